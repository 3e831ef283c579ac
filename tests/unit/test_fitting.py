"""How networks take the user's examples, and in what structure the training loss gets them."""

from __future__ import annotations

import sys
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pytest_bnn.data.batch import Batch
from pytest_bnn.data.samples import samples_of
from pytest_bnn.errors import InputError
from pytest_bnn.network.calling import forward
from pytest_bnn.network.tree import tensors
from pytest_bnn.subject import Subject

N = 6
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Z = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % 3
TOKENS = torch.arange(N * 5).reshape(N, 5) % 7
MASK = TOKENS != 0


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 3)
        self.words = nn.Embedding(7, 3)
        self.eval()


class One(Base):
    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class Two(Base):
    def forward(self, branch: Tensor, trunk: Tensor) -> Any:
        return self.layer(branch) * self.layer(trunk)


class Pair(Base):
    def forward(self, pair: Any) -> Any:
        left, right = pair
        return self.layer(left) - self.layer(right)


class Masked(Base):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.layer(x if mask is None else x * mask)


class Any_(Base):
    def forward(self, *inputs: Tensor) -> Any:
        return sum(map(self.layer, inputs))


class Keywords(Base):
    def forward(self, **inputs: Tensor) -> Any:
        return self.layer(inputs["left"]) + self.layer(inputs["right"])


class Whole(Base):
    def forward(self, batch: Any) -> Any:
        return self.layer(batch["image"])


class Unpacks(Base):
    """Takes what the loader gives, labels and all."""

    def forward(self, batch: Any) -> Any:
        x, _labels = batch
        return self.layer(x)


class Words(Base):
    """As in transformers: names, labels among them that it can do without."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Any:
        assert input_ids is not None
        found = self.words(input_ids)
        if token_type_ids is not None:
            found = found + token_type_ids[..., None]
        found = found if attention_mask is None else found * attention_mask[..., None]
        assert labels is None, "labels are no input"
        return {"logits": found.mean(1)}


class NeedsLabels(Base):
    def forward(self, image: Tensor, label: Tensor) -> Any:
        return self.layer(image) + label[:, None]


Sample = namedtuple("Sample", "image label")

#: Networks, data, what the network should be called with, and the labels beside it.
WAYS: dict[str, tuple[type[Base], Any, tuple[Any, ...], dict[str, Any], Any]] = {
    "image and label": (One, (X, Y), (X,), {}, Y),
    "namedtuple": (One, Sample(X, Y), (X,), {}, Y),
    "a list": (One, [X, Y], (X,), {}, Y),
    "siamese pair with label": (Two, ((X, Z), Y), (X, Z), {}, Y),
    "siamese pair as one argument": (Pair, ((X, Z), Y), ((X, Z),), {}, Y),
    "branch and trunk": (Two, (X, Z), (X, Z), {}, None),
    "branch and trunk with target": (Two, (X, Z, Y), (X, Z), {}, Y),
    "branch and trunk, target None": (Two, (X, Z, None), (X, Z), {}, None),
    "survival": (One, (X, Y.float(), Y > 0), (X,), {}, (Y.float(), Y > 0)),
    "mask that it can do without": (Masked, (X, Z > 0, Y), (X, Z > 0), {}, Y),
    "no mask, a column of labels": (Masked, (X, Y[:, None]), (X,), {}, Y[:, None]),
    "mask left out": (Masked, (X, Y), (X,), {}, Y),
    "any number": (Any_, (X, Y), (X,), {}, Y),
    "keywords": (Keywords, {"left": X, "right": Z, "label": Y}, (), {"left": X, "right": Z}, Y),
    "image and label by name": (One, {"image": X, "label": Y}, (X,), {}, Y),
    "the names of the forward": (Two, {"trunk": Z, "branch": X, "target": Y}, (), {"trunk": Z, "branch": X}, Y),
    "the whole dictionary": (Whole, {"image": X, "label": Y}, ({"image": X},), {}, Y),
    "the whole batch": (Unpacks, (X, Y), ((X, Y),), {}, None),
    "words": (
        Words,
        {"input_ids": TOKENS, "attention_mask": MASK, "labels": Y},
        (),
        {"input_ids": TOKENS, "attention_mask": MASK},
        Y,
    ),
    "words of a tokenizer": (
        Words,
        UserDict(input_ids=TOKENS, token_type_ids=TOKENS * 0, attention_mask=MASK.long(), label_ids=Y),
        (),
        {"input_ids": TOKENS, "token_type_ids": TOKENS * 0, "attention_mask": MASK.long()},
        Y,
    ),
    "words and labels beside": (Words, ({"input_ids": TOKENS}, Y), (), {"input_ids": TOKENS}, Y),
    "labels that the forward needs": (NeedsLabels, {"image": X, "label": Y}, (), {"image": X, "label": Y}, None),
    "paths and weights": (
        One,
        {"image": X, "label": Y, "path": [f"{index}.png" for index in range(N)], "weight": torch.ones(N)},
        (X,),
        {},
        Y,
    ),
    "boxes": (
        One,
        {"image": X, "target": [{"boxes": torch.zeros(index, 4)} for index in range(N)]},
        (X,),
        {},
        [{"boxes": torch.zeros(index, 4)} for index in range(N)],
    ),
}


def equal(one: Any, other: Any) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )


def subject_of(network: nn.Module, data: Any, **given: Any) -> Subject:
    return Subject(network, images=samples_of(data), **given)


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_take_examples(name: str) -> None:
    """Oracle: the network, called by hand."""
    make, data, arguments, keywords, labels = WAYS[name]
    network = make()
    subject = subject_of(network, data)
    images = subject.images
    assert images is not None
    found = (images.arguments, dict(images.keywords)) if isinstance(images, Batch) else ((images,), {})
    assert equal(found, (arguments, keywords))
    assert equal(subject.labels, labels)
    with torch.no_grad():
        expected = network(*arguments, **keywords)
    assert torch.equal(forward(network, images), expected["logits"] if isinstance(expected, dict) else expected)


@pytest.mark.parametrize("name", WAYS)
def test_the_loss_gets_what_was_given(name: str) -> None:
    """In its own structure, a fresh copy each time: what a loss does to it, nobody sees."""
    make, data, *_ = WAYS[name]
    subject = subject_of(make(), data)
    once = subject.loss_batch()
    kept = [tensor.clone() for tensor in tensors(data)]
    assert equal(once, data)
    assert isinstance(once, type(data)) or isinstance(data, list)
    for tensor in tensors(once):
        tensor.zero_()
    assert equal(data, kept)
    assert equal(subject.loss_batch(), data)


class Items(Dataset[Any]):
    """A data set of items that a function makes."""

    def __init__(self, make: Callable[[int], Any], length: int = N) -> None:
        self.make, self.length = make, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(X[index], int(Y[index])) for index in range(N)])


def named(index: int) -> dict[str, Any]:
    return {"image": X[index], "label": int(Y[index]), "path": f"{index}.png", "size": (4, index)}


LABELS: dict[str, Callable[[int], Any]] = {
    "int": lambda index: int(Y[index]),
    "float": float,
    "bool": lambda index: index > 2,
    "tensor": lambda index: Y[index],
    "column": lambda index: Y[index][None],
    "int32": lambda index: Y[index].int(),
    "numpy": lambda index: numpy.float32(index),
    "array": lambda index: numpy.array([index, 1], dtype=numpy.float64),
    "pair": lambda index: (index, float(index)),
    "dict": lambda index: {"class": index, "box": torch.zeros(4)},
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_those_of_a_loader(kind: str) -> None:
    """A Dataset's labels have the shape and dtype that torch's own loader would give them."""
    data = Items(lambda index: (X[index], LABELS[kind](index)))
    batch = subject_of(One(), data).loss_batch()
    expected = next(iter(DataLoader(data, batch_size=N)))
    assert equal(batch, expected)
    assert equal(subject_of(One(), DataLoader(data, batch_size=4)).loss_batch(), next(iter(DataLoader(data, 4))))


@pytest.mark.parametrize("size", [1, 4, 5, 6, 8])
def test_loaders_keep_their_batches(size: int) -> None:
    """The loss gets the loader's own first batch; all examples are taken, names of files with their images."""
    data = Items(named)
    subject = subject_of(One(), DataLoader(data, batch_size=size))
    batch = subject.loss_batch()
    expected = next(iter(DataLoader(data, batch_size=size)))
    assert equal(batch, expected)
    assert batch["path"] == expected["path"]
    samples = samples_of(DataLoader(data, batch_size=size))
    assert list(samples.item["path"]) == [f"{index}.png" for index in range(N)]
    assert samples.rows == N
    assert samples.take(2)["path"] == ["0.png", "1.png"]


def test_names_of_files_are_cut_with_their_images() -> None:
    """Of a large data set a random choice is taken, names and images alike."""
    for data in (Items(named), DataLoader(Items(named), batch_size=2)):
        samples = samples_of(data, limit=3, seed=1)
        assert list(samples.item["path"]) == [f"{index}.png" for index in samples.places.tolist()]
        assert equal(samples.item["image"], X[samples.places])


def test_other_loaders() -> None:
    """Streams, drop_last, samplers with a generator of their own (left as it was), collation of one's own."""
    assert equal(subject_of(One(), Stream()).loss_batch(), (X, Y))
    assert equal(subject_of(One(), DataLoader(Stream(), batch_size=4)).loss_batch(), (X[:4], Y[:4]))
    assert samples_of(DataLoader(TensorDataset(X, Y), batch_size=4, drop_last=True)).rows == 4
    with pytest.raises(InputError, match="is empty"):
        samples_of(DataLoader(TensorDataset(X, Y), batch_size=8, drop_last=True))
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True, generator=generator)
    before = generator.get_state()
    first = samples_of(loader)
    assert torch.equal(generator.get_state(), before)
    assert equal(first.first, next(iter(loader))), "what the user's next epoch would give"

    def collate(items: list[Any]) -> Any:
        return {
            "image": torch.stack([x for x, _ in items]),
            "target": [{"boxes": torch.zeros(int(y), 4)} for _, y in items],
        }

    samples = samples_of(DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=collate))
    assert [len(entry["boxes"]) for entry in samples.item["target"]] == Y.tolist()
    batch = subject_of(One(), DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=collate)).loss_batch()
    assert [len(entry["boxes"]) for entry in batch["target"]] == Y[:4].tolist()


def test_labels_given_beside() -> None:
    """Class indices, a column, a tree: those of the loss's batch, cut with it; what has no rows stays whole."""
    many = torch.randn(40, 4)
    beside = {"y": torch.arange(40), "weights": torch.ones(3), "scale": torch.tensor(2.0), "name": "a"}
    images, labels = Subject(One(), images=many, labels=beside).loss_batch()
    assert len(images) == len(labels["y"]) == 32
    assert (len(labels["weights"]), float(labels["scale"]), labels["name"]) == (3, 2, "a")
    _, column = Subject(One(), images=many, labels=torch.arange(40)[:, None]).loss_batch()
    assert column.shape == (32, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_inputs_get_the_model_s_dtype_and_labels_keep_theirs(dtype: torch.dtype) -> None:
    """Targets are the loss's business; masks and tokens stay what they are."""
    images, labels = Subject(One().to(dtype), images=(X, Z.double())).loss_batch()
    assert (images.dtype, labels.dtype) == (dtype, torch.float64)
    batch = Subject(Words().to(dtype), images={"input_ids": TOKENS.int(), "attention_mask": MASK}).loss_batch()
    assert (batch["input_ids"].dtype, batch["attention_mask"].dtype) == (torch.int32, torch.bool)


def test_inputs_that_need_a_gradient() -> None:
    """The loss gets leaves of its own: no gradient reaches the user's tensor."""
    x = X.clone().requires_grad_()
    images, _ = Subject(One(), images=(x, Y)).loss_batch()
    assert images.is_leaf
    assert images.requires_grad
    One()(images).sum().backward()
    assert x.grad is None


def test_arrays() -> None:
    """Read-only, of other byte order, backwards: they become tensors without a warning, and stay as they are."""
    frozen = X.numpy().copy()
    frozen.flags.writeable = False
    for array in (frozen, X.numpy().astype(">f4"), X.numpy()[::-1], X.numpy().T.copy().T):
        assert torch.equal(samples_of((array, Y.numpy())).item[0], torch.as_tensor(array.astype("f4").copy()))
        assert torch.equal(samples_of(Items(lambda i, a=array: a[i])).item, samples_of(array).item)  # type: ignore[misc]
    subject = Subject(One(), images=(frozen, Y.numpy()))
    subject.loss_batch()[0].zero_()
    assert frozen.any()


class Table:
    """As pandas' tables are."""

    def to_numpy(self) -> Any:
        return X.numpy()


def exits(_: int) -> Any:
    sys.exit(0)


def fails(_: int) -> Any:
    raise KeyError("label")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Table(), ("a Table", "torch.as_tensor(data.to_numpy())")),
        (numpy.array([X.numpy(), None], dtype=object), ("a ndarray", "no tensor, Dataset or DataLoader")),
        ({"x": numpy.array(["a", "b"])}, ("a dict with x: a ndarray",)),
        (Items(exits), ("an Items", "SystemExit: 0")),
        (Items(fails), ("an Items", "KeyError: 'label'")),
        (DataLoader(Items(fails)), ("a DataLoader", "KeyError: 'label'")),
        (X.to_sparse(), ("sparse (sparse_coo)", "to_dense()")),
        ((X.to_sparse(), Y), ("tensor 0 of shape [6, 4] is sparse",)),
        (Items(lambda index: {"image": X[index], "label": Y[index]} if index else {"image": X[0]}),
         ("items of different structure", "the same fields")),
    ],
)  # fmt: skip
def test_what_cannot_be_read(data: Any, words: tuple[str, ...]) -> None:
    """One clear error, with what was found and what would be right; never the end of the program."""
    with pytest.raises(InputError) as caught:
        samples_of(data, "--data: net:held_out")
    for word in ("--data: net:held_out", *words):
        assert word in str(caught.value)


def test_sparse_images_in_python() -> None:
    """The same where they are given to a check."""
    with pytest.raises(InputError, match=r"images: .*sparse.*to_dense"):
        Subject(One(), images=X.to_sparse())


@pytest.mark.parametrize(
    ("make", "data", "words"),
    [
        (
            Two,
            {"left": X, "right": Z, "label": Y},
            ("left: float32 [6, 4]", "Two.forward(branch, trunk)", "their names"),
        ),
        (Whole, {"picture": X, "other": Z, "label": Y}, ("picture: float32 [6, 4]", "Whole.forward(batch)")),
        (Keywords, {"one": X, "two": Z}, ("one: float32 [6, 4]", "Keywords.forward(inputs)")),
    ],
)
def test_what_no_network_takes(make: type[Base], data: Any, words: tuple[str, ...]) -> None:
    """The error has what the data hold and what the forward takes; no order is guessed."""
    with pytest.raises(InputError) as caught:
        subject_of(make(), data).images  # noqa: B018
    for word in words:
        assert word in str(caught.value)


def test_two_examples_are_no_batch_of_two_parts() -> None:
    """A forward that unpacks its batch would take a tensor of two examples for it."""
    network = Unpacks()
    for rows in (3, 6):
        images = subject_of(network, (X[:rows], Y[:rows])).images
        assert isinstance(images, Batch)
        assert torch.equal(forward(network, images), network.layer(X[:rows]))


def test_a_network_that_raises_is_asked_in_its_own_words() -> None:
    """One tensor of images is given as it is: what the network says about it is the message."""
    subject = Subject(One(), images=(torch.zeros(6, 5), Y))
    with pytest.raises(InputError, match=r"the model One does not accept images of shape \[6, 5\].*mat1 and mat2"):
        subject.try_images()
