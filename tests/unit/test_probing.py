"""What calling networks on a few examples shows; and that a forward's oddities end no audit."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.checks import measure_noise_varies, measure_teacher_agreement
from pytest_bnn.conversion import convert
from pytest_bnn.data.batch import Batch
from pytest_bnn.data.samples import samples_of
from pytest_bnn.errors import InputError
from pytest_bnn.network.calling import field_of, forward
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.subject import Subject

N = 6
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A layer, and what a function makes of its output."""

    def __init__(self, end: Any = None, before: Any = None) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(4, 3)
        self.end, self.before = end, before
        self.eval()

    def forward(self, x: Tensor) -> Any:
        if self.before is not None:
            self.before(x)
        y = self.layer(x)
        return y if self.end is None else self.end(y)


def probed(network: nn.Module, images: Any = X) -> Subject:
    return Subject(network, images=images)


def test_a_loader_of_single_examples() -> None:
    """Its size is no demand of the network's."""
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=1)
    subject = Subject(Net(), images=samples_of(data))
    assert subject.fields
    assert subject.notes == ()
    assert not isinstance(subject.images, Batch) or subject.images.size is None


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_networks_of_one_size(size: int) -> None:
    """A loader's batch size, or all examples at once; every row is right, and a note says so."""

    def only(x: Tensor) -> None:
        assert len(x) == size, f"batches of {size} only"

    network = Net(before=only)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=size)
    subject = Subject(network, images=samples_of(data))
    assert isinstance(subject.images, Batch)
    assert subject.images.size == size
    assert f"takes {size} examples at once and no other number" in subject.notes[0]
    assert torch.allclose(forward(network, subject.images), network.layer(X))
    assert len(subject.loss_batch()[0]) == size
    assert torch.allclose(forward(network, subject.images[torch.tensor([5, 1])]), network.layer(X[[5, 1]]))


def writes(x: Tensor) -> None:
    x.mul_(2)


@pytest.mark.parametrize(
    "images", [X, (X, torch.zeros(N)), {"x": X}, [X, None]], ids=["tensor", "pair", "dict", "list"]
)
def test_who_writes_to_its_input_gets_copies(images: Any) -> None:
    """The user's tensors stay equal, each pass sees the same, and a note names the network."""
    before = X.clone()
    network = Net(before=writes)
    subject = probed(network, images)
    assert subject.images is not None
    once, again = forward(network, subject.images), forward(network, subject.images)
    assert torch.equal(once, again)
    assert torch.equal(X, before)
    assert "the forward of the model (Net) writes to its input in place" in subject.notes[0]


def test_a_teacher_that_writes_to_its_input() -> None:
    """Both networks get copies then."""
    before = X.clone()
    evidence = measure_teacher_agreement(
        convert(Net()), teacher=Net(before=writes), images=X, task="classification", max_passes=2
    )
    assert torch.equal(X, before)
    assert evidence.verdict is not Verdict.ERROR


def test_what_is_no_row_may_be_written_to() -> None:
    """A matrix of neighbours beside the rows: it stays, from the first call on."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Any:
            edges.add_(1)
            return self.layer(x)

    edges = torch.zeros(2, 9)
    subject = probed(Graph(), {"x": X, "edges": edges})
    assert subject.images is not None
    forward(subject.model, subject.images)
    assert not edges.any()


def test_inference_tensors() -> None:
    """Images that were made in inference mode are images."""
    with torch.inference_mode():
        images = X * 1
    subject = probed(Net(before=writes), images)
    assert subject.fields
    assert torch.equal(images, X)


OUTPUTS: dict[str, tuple[Any, list[tuple[str, tuple[int, ...]]]]] = {
    "tensor": (None, [("", (3,))]),
    "dict": (lambda y: {"a": y, "b": y[:, 0]}, [("a", (3,)), ("b", ())]),
    "with a KL": (lambda y: (y, torch.tensor(3.0)), [("0", (3,))]),
    "with a KL of one number": (lambda y: (y, torch.ones(1)), [("0", (3,))]),
    "with a codebook": (lambda y: (y, torch.zeros(N, 7)), [("0", (3,))]),
    "with a codebook of two": (lambda y: (y, torch.zeros(2, 7)), [("0", (3,))]),
    "with as many as are tried": (lambda y: {"y": y, "c": torch.zeros(2, 3, 7)}, [("y", (3,))]),
    "flattened": (lambda y: y.repeat_interleave(5, 0), [("", (5, 3))]),
    "nested": (lambda y: {"heads": [y, (y[:, :1],)]}, [("heads.0", (3,)), ("heads.1.0", (1,))]),
    "classes and scores": (lambda y: (y, y.argmax(1)), [("0", (3,))]),
    "classes alone": (lambda y: y.argmax(1), [("", ())]),
    "a distribution": (
        lambda y: torch.distributions.Normal(y, y.exp()),
        [("loc", (3,)), ("scale", (3,))],
    ),
    "complex beside": (lambda y: (y, torch.complex(y, y)), [("0", (3,))]),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name: str) -> None:
    """Those with a row for each example, by their place; others never, whatever their length is by chance."""
    end, fields = OUTPUTS[name]
    network = Net(end)
    subject = probed(network)
    assert [(field.name, field.shape) for field in subject.fields] == fields
    assert subject.images is not None
    for rows in (torch.arange(N), torch.tensor([3]), torch.tensor([1, 4]), torch.arange(5)):
        found = forward(network, subject.images[rows])
        assert found.shape[0] == len(rows)
        for field in subject.fields:
            assert (
                field_of(found, subject.fields, field.name).shape[1:] == (field.shape or (1,))[: found.ndim - 1] or ()
            )


@pytest.mark.parametrize("layers", [1, 2, 3, 6])
def test_hidden_states(layers: int) -> None:
    """(out, (h, c)) of an LSTM with as many layers as examples are tried, or are given: rows are the examples."""
    network = nn.LSTM(4, 3, num_layers=layers, batch_first=True).eval()
    x = torch.randn(N, 5, 4)
    subject = probed(network, x)
    fields = {field.name: field.shape for field in subject.fields}
    assert fields["0"] == (5, 3)
    assert subject.images is not None
    with torch.no_grad():
        expected = network(x)[0]
    for rows in (torch.arange(N), torch.tensor([2, 0]), torch.tensor([layers - 1])):
        found = forward(network, subject.images[rows])
        assert torch.allclose(field_of(found, subject.fields, "0").reshape(len(rows), 5, 3), expected[rows], atol=1e-6)


ROWLESS = {
    "one number": lambda y: y.sum(),
    "other rows": lambda y: y.mean(0),
    "more rows": lambda y: torch.cat([y, y[:1]]),
    "nothing": lambda y: None,
    "a text": lambda y: "text",
    "empty": lambda y: y[:0],
    "complex": lambda y: torch.complex(y, y),
}


@pytest.mark.parametrize("name", ROWLESS)
def test_outputs_that_belong_to_no_example(name: str) -> None:
    """Not applicable, in words that say what came out; never a crash."""
    model = convert(Net(ROWLESS[name]))
    evidence = measure_noise_varies(model, images=X[:, :])
    assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.headline
    assert "not a row of real numbers for each" in evidence.headline


def exits(_: Tensor) -> None:
    sys.exit(0)


def raises(_: Tensor) -> None:
    raise ValueError("my own words")


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (exits, r"the forward of the model Net tried to end the process \(SystemExit: 0"),
        (raises, "the model Net does not accept images.*ValueError: my own words"),
    ],
)
def test_networks_that_raise(before: Any, words: str) -> None:
    """An error that names the network and what it said; a program's end is one too, and nothing is disturbed."""
    network = Net(before=before)
    state = torch.get_rng_state()
    subject = probed(network)
    assert subject.fields == ()
    with pytest.raises(InputError, match=words):
        subject.try_images()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation(rows: int, training: bool) -> None:
    """A network in train mode is looked at in eval mode, one example included, and keeps its statistics and mode."""
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train(training)
    before = [tensor.clone() for tensor in network.state_dict().values()]
    subject = probed(network, X[:rows])
    assert [field.shape for field in subject.fields] == [(3,)]
    assert subject.notes == ()
    assert all(torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True))
    assert all(module.training is training for module in network.modules())


def test_a_single_example() -> None:
    """Nothing to compare sizes with: one row each."""
    subject = probed(Net(lambda y: {"a": y, "b": y}), X[:1])
    assert [field.name for field in subject.fields] == ["a", "b"]
