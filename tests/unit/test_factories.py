"""What users hold becomes a batch: tensors, data sets, loaders; and names on a command line become objects."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pytest_bnn.data import sources as factories
from pytest_bnn.data.samples import MAX_EXAMPLES, samples_of
from pytest_bnn.errors import InputError

IMAGES = torch.arange(10 * 3 * 2 * 2, dtype=torch.float32).reshape(10, 3, 2, 2)
LABELS = torch.arange(10) % 4
SOFT = torch.softmax(torch.arange(len(LABELS) * 4.0).reshape(-1, 4) % 7, 1)


class Pairs(Dataset[tuple[Tensor, int]]):
    """A map-style data set with int labels, which counts what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked.append(index)
        return IMAGES[index], int(LABELS[index])


class Bare(Dataset[Tensor]):
    """Images without labels."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Tensor:
        return IMAGES[index]


class Stream(IterableDataset[tuple[Tensor, int]]):
    """A stream without length."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True))


class Unlimited(IterableDataset[tuple[Tensor, int]]):
    """A stream without end: only a limit stops it."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        while True:
            yield IMAGES[0], 1


def batch_of(data: Any, source: str = "data", limit: int = MAX_EXAMPLES) -> tuple[Tensor, Tensor | None]:
    """Read examples and take them for images and labels, as a network with one input does."""
    item = samples_of(data, source, limit).item
    if isinstance(item, Tensor):
        return item, None
    return item[0], item[1] if len(item) > 1 else None


#: What holds its examples in the order in which they come.
STREAMS = ("stream", "loader of a stream")

LABELLED: dict[str, Any] = {
    "tuple": (IMAGES, LABELS),
    "list": [IMAGES, LABELS],
    "labels as a list": (IMAGES, LABELS.tolist()),
    "labels of numpy": (IMAGES, LABELS.numpy()),
    "dataset": Pairs(),
    "tensor dataset": TensorDataset(IMAGES, LABELS),
    "stream": Stream(),
    "loader": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3),
    "loader of a stream": DataLoader(Stream(), batch_size=4),
}
BARE: dict[str, Any] = {
    "tensor": IMAGES,
    "tuple of one": (IMAGES,),
    "labels None": (IMAGES, None),
    "dataset": Bare(),
    "tensor dataset": TensorDataset(IMAGES),
    "loader": DataLoader(TensorDataset(IMAGES), batch_size=4),
    "loader of images": DataLoader(Bare(), batch_size=4),
}


@pytest.mark.parametrize("limit", [1, 3, 4, 10, 512])
@pytest.mark.parametrize("kind", LABELLED)
def test_labelled_data(kind: str, limit: int) -> None:
    """The same images in their order whatever holds them; of more than the limit a random choice, but of a stream."""
    samples = samples_of(LABELLED[kind], limit=limit)
    images, labels = samples.item
    places = torch.arange(min(limit, len(IMAGES))) if kind in STREAMS else samples.places
    assert len(places) == min(limit, len(IMAGES))
    assert torch.equal(places, places.unique()), "in order, none twice"
    assert torch.equal(images, IMAGES[places])
    assert torch.equal(torch.as_tensor(labels), LABELS[places])


@pytest.mark.parametrize("kind", [kind for kind in LABELLED if kind not in STREAMS])
def test_a_sorted_folder_shows_all_its_classes(kind: str) -> None:
    """The first images of a folder that is sorted by class are of one class: a random choice, from the seed, is not."""
    one, again, other = (samples_of(LABELLED[kind], limit=5, seed=seed).places for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, torch.arange(5))


@pytest.mark.parametrize("limit", [3, 512])
@pytest.mark.parametrize("kind", BARE)
def test_data_without_labels(kind: str, limit: int) -> None:
    """Labels that nobody gave are None, never invented."""
    images, labels = batch_of(BARE[kind], limit=limit)
    assert labels is None
    assert torch.equal(images, IMAGES[samples_of(BARE[kind], limit=limit).places])


def test_no_more_is_read_than_is_taken() -> None:
    """A data set may be large, or have no end."""
    data = Pairs()
    samples = samples_of(data, limit=4)
    assert data.asked == samples.places.tolist()
    assert len(data.asked) == 4
    assert len(batch_of(Unlimited(), limit=5)[0]) == 5
    assert len(batch_of(DataLoader(Unlimited(), batch_size=2), limit=5)[0]) == 5


def test_the_default_limit() -> None:
    """The help names it."""
    assert len(batch_of(torch.zeros(600, 1, 2, 2))[0]) == MAX_EXAMPLES == 512


def test_random_states_are_left_alone() -> None:
    """A loader that shuffles or augments draws from the user's generators, and they are put back."""

    class Augmented(Dataset[Tensor]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Tensor:
            return IMAGES[index] + torch.rand(1) + random.random() + numpy.random.rand()

    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()  # type: ignore[index]
    batch_of(DataLoader(Augmented(), batch_size=2, shuffle=True))
    batch_of(Augmented())
    after = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


class Soft(Dataset[Any]):
    """Labels that are distributions."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Any:
        return IMAGES[index], SOFT[index]


@pytest.mark.parametrize(
    "data", [(IMAGES, SOFT), Soft(), DataLoader(Soft(), batch_size=3)], ids=["tuple", "set", "loader"]
)
def test_soft_labels(data: Any) -> None:
    """A row for each image, whatever holds them."""
    images, labels = batch_of(data)
    assert labels is not None
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, SOFT)


class Pictures(Dataset[Any]):
    """torchvision's data sets without a transform: Pillow images."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return Image.new("RGB", (4, 4)), 1


class Named(Dataset[Any]):
    """Labels that are words."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return IMAGES[index], "cat"


class Boxed(Dataset[Any]):
    """As many boxes as there are objects in an image."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return IMAGES[index], torch.zeros(2 + index, 4)


class Ragged(Dataset[Tensor]):
    """Images of two sizes."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(3, 2 + index, 2)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Pictures(), ("an Image", "add a transform that makes tensors")),
        ([], ("a list", "no tensor, Dataset or DataLoader")),
        (None, ("None", "no tensor, Dataset or DataLoader")),
        (7, ("an int",)),
        ({"names": ["cat"] * 10}, ("a dict",)),
        (TensorDataset(IMAGES[:0]), ("is empty", "at least one image")),
        (DataLoader(TensorDataset(IMAGES[:0])), ("is empty",)),
        (Ragged(), ("size", "(3, 2, 2)", "(3, 3, 2)")),
        (Boxed(), ("labels of different shapes", "(2, 4) and (3, 4)")),
        (Named(), ("a str given as labels is no tensor",)),
        ((IMAGES, ["cat"] * len(IMAGES)), ("a list of str given as labels is no tensor", "one label for each image")),
    ],
)
def test_what_is_no_data(data: Any, words: tuple[str, ...]) -> None:
    """The message has what was given and what would be right, and the caller's name for it."""
    with pytest.raises(InputError) as caught:
        batch_of(data, "--data: net:held_out")
    for word in ("--data: net:held_out", *words):
        assert word in str(caught.value)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module in the current folder, forgotten afterwards."""
    text = """
from torch import nn
import torch
network = nn.Linear(2, 2)
def make_network(): return nn.Linear(3, 3)
class Zoo:
    @staticmethod
    def small(): return nn.Linear(4, 4)
def ends(): raise SystemExit(3)
def broken(): raise ZeroDivisionError("no.\\nsecond line")
pixels = torch.zeros(700, 3)
def dataset(): return torch.utils.data.TensorDataset(pixels)
"""
    (tmp_path / "factories_of_a_user.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "factories_of_a_user"
    sys.modules.pop("factories_of_a_user", None)


def test_models_by_name(module: str) -> None:
    """A factory, a static method and the network itself are all named alike."""
    for name, size in (("make_network", 3), ("Zoo.small", 4), ("network", 2)):
        model = factories.load_model(f"{module}:{name}", "--model")
        assert isinstance(model, nn.Linear)
        assert model.in_features == size


def test_data_by_name(module: str) -> None:
    """A tensor or data set needs no function around it."""
    assert factories.load_data(f"{module}:pixels", "--data").rows == 512
    assert factories.load_data(f"{module}:dataset", "--data", 5).rows == 5


def test_loss_by_name(module: str) -> None:
    """Whatever is called is a loss, a number is not."""
    assert callable(factories.load_loss(f"{module}:make_network", "--loss"))
    with pytest.raises(InputError, match="--loss: factories_of_a_user:pixels is a Tensor"):
        factories.load_loss(f"{module}:pixels", "--loss")


def test_what_ends_the_program_is_told(module: str, tmp_path: Path) -> None:
    """A training script without a guard must not end the audit without a word."""
    (tmp_path / "script_of_a_user.py").write_text("import sys\nsys.exit('usage: script epochs')\n", encoding="utf-8")
    guard = r"Put what runs as a script under if __name__ == '__main__'\."
    with pytest.raises(InputError, match=rf"importing 'script_of_a_user' raised SystemExit: usage: .* {guard}"):
        factories.load_model("script_of_a_user:network", "--model")
    with pytest.raises(InputError, match=rf"factories_of_a_user:ends\(\) raised SystemExit: 3\. {guard}"):
        factories.load_data(f"{module}:ends", "--data")


def test_only_the_first_line_of_what_a_factory_raises(module: str) -> None:
    """Torch's errors run to pages; the first line says it, and the cause stays chained for -v."""
    with pytest.raises(InputError) as caught:
        factories.load_model(f"{module}:broken", "--model")
    assert "factories_of_a_user:broken() raised ZeroDivisionError: no. Make it work" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
