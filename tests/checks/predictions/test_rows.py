"""``predictions.rows``: an example's output is its own, whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import pytest_bnn
from pytest_bnn.checks import measure_predictions_rows
from pytest_bnn.data.samples import Samples, samples_of
from pytest_bnn.network.rows import NEGLIGIBLE
from pytest_bnn.records.evidence import Acceptance, Evidence, Verdict


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Around(nn.Module):
    """A network with something of its own around it."""

    def __init__(self, network: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self._forward = network, forward

    def forward(self, *inputs: Any) -> Any:
        return self._forward(self.network, *inputs)


def perceptron(*, width: int = 16, out: int = 5) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, out)).eval()


def judged(teacher: nn.Module, images: Any, *, alone: bool = False, **given: Any) -> Evidence:
    """Judge the conversion of a network beside it; with ``alone`` without the teacher."""
    return measure_predictions_rows(
        pytest_bnn.convert(teacher).eval(), teacher=None if alone else teacher, images=images, **given
    )


def around(forward: Callable[..., Any], network: nn.Module | None = None) -> nn.Module:
    return Around(network or perceptron(), forward).eval()


class Tokens(nn.Module):
    """Attention over the tokens of an example, or over the examples where its dimensions are mistaken."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.into = nn.Linear(4, 8)
        self.att = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        h = h + self.att(h, h, h, need_weights=False)[0]
        found: Tensor = self.out(h.mean(1))
        return found


def tokens(*, batch_first: bool) -> nn.Module:
    torch.manual_seed(2)
    return Tokens(batch_first=batch_first).eval()


class Recurrent(nn.Module):
    """Reads a sequence, time first, and gives a row for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.rnn(x)[0][-1])
        return found


class Packed(Recurrent):
    def forward(self, x: Any) -> Tensor:
        packed = self.rnn(x)[0]
        padded, lengths = pad_packed_sequence(packed)
        found: Tensor = self.out(padded[lengths - 1, torch.arange(len(lengths))])
        return found


def packed() -> PackedSequence:
    return pack_padded_sequence(inputs(6, 10, 4), torch.randint(2, 7, (10,), generator=_seeded()), enforce_sorted=False)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def normed(**given: Any) -> nn.Module:
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, **given), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    network.train()
    network(inputs(32, 1, 8, 8, seed=9))
    return network.eval()


def mixed_experts(network: nn.Module, x: Tensor) -> Any:
    """Each row goes to the expert that its own scores choose."""
    scores = network(x)
    signs = torch.where(torch.arange(5) == scores.argmax(1, keepdim=True), 1.0, -1.0)
    return scores * signs


def chaotic(network: nn.Module, x: Tensor) -> Any:
    """A rounding at the start is as large as the output at the end."""
    y = torch.sigmoid(network(x))
    for _ in range(80):
        y = 3.99 * y * (1 - y)
    return y


def convolutions() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
    ).eval()


def padded_classes(network: nn.Module, x: Tensor) -> Any:
    return functional.pad(network(x), (0, 3), value=-1e9)


HEALTHY: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "perceptron": (perceptron, lambda: inputs(40, 6)),
    "convolutions with norms of their own": (convolutions, lambda: inputs(20, 1, 8, 8)),
    "batch norm": (normed, lambda: inputs(20, 1, 8, 8)),
    "attention over tokens": (lambda: tokens(batch_first=True), lambda: inputs(20, 7, 4)),
    "two examples": (perceptron, lambda: inputs(2, 6)),
    "double precision": (lambda: perceptron().double(), lambda: inputs(20, 6).double()),
    "bfloat16": (lambda: perceptron(width=200).bfloat16(), lambda: inputs(20, 6).bfloat16()),
    "far from zero": (lambda: around(lambda n, x: n(x) + 1e6), lambda: inputs(20, 6)),
    "classes that are masked": (lambda: around(padded_classes), lambda: inputs(20, 6)),
    "classes at minus infinity": (
        lambda: around(lambda n, x: n(x).masked_fill(torch.arange(5) == 4, -torch.inf)),
        lambda: inputs(20, 6),
    ),
    "whole numbers": (lambda: around(lambda n, x: n(x).argmax(1)), lambda: inputs(20, 6)),
    "experts by their scores": (lambda: around(mixed_experts), lambda: inputs(20, 6)),
    "chaos": (lambda: around(chaotic), lambda: inputs(20, 6)),
    "several outputs": (lambda: around(lambda n, x: {"logits": n(x), "x": 1e3 * n(x)[:, :1]}), lambda: inputs(20, 6)),
    "tokens that are rows": (lambda: around(lambda n, x: n(x.flatten(0, 1))), lambda: inputs(12, 7, 6)),
    "two inputs": (lambda: around(lambda n, x, y: n(x) * y), lambda: (inputs(20, 6), inputs(20, 1, seed=1))),
    "averages of copies": (
        lambda: around(lambda n, x: n(x.repeat(4, 1)).view(4, len(x), -1).mean(0)),
        lambda: inputs(20, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_networks_that_answer_each_example_by_itself(name: str) -> None:
    """Whatever they are, rounding is no company; and the teacher is not needed to see that."""
    make, data = HEALTHY[name]
    found = judged(make(), data())
    assert found.verdict is Verdict.PASS, found.explain()
    gap, allowed = found["largest difference"], found["what rounding explains"]
    assert isinstance(gap, float)
    assert isinstance(allowed, float)
    assert gap <= allowed


def test_time_first() -> None:
    """With --batch-dim 1 the second dimension counts the examples; without, times are taken for examples."""
    torch.manual_seed(1)
    network, sequences = Recurrent().eval(), inputs(6, 12, 4)
    found = measure_predictions_rows(network, images=samples_of(sequences, dim=1))
    assert found.verdict is Verdict.PASS, found.explain()
    mistaken = measure_predictions_rows(around(lambda n, x: n.rnn(x)[0], network), images=sequences)
    assert mistaken.verdict is Verdict.WARN
    assert "--batch-dim 1" in mistaken.remedy


def test_packed_sequences() -> None:
    """They are as long as the longest of each batch, which makes no difference to the others."""
    torch.manual_seed(1)
    found = measure_predictions_rows(
        Packed().eval(), images=Samples(item=(packed(),), rows=10, places=torch.arange(10))
    )
    assert found.verdict is Verdict.PASS, found.explain()


def one_size(network: nn.Module, x: Tensor) -> Any:
    return network(x.reshape(8, 6))


def pairs(network: nn.Module, x: Tensor) -> Any:
    """Contrastive: rows 2i and 2i + 1 are two views of one thing."""
    y = network(x.view(-1, 2, 6))
    return (y - y.mean(1, keepdim=True)).flatten(0, 1)


def longest(network: nn.Module, x: Tensor) -> Any:
    """As many numbers as the batch has different rows, or so."""
    return network(x)[:, : 1 + len(x.unique(dim=0)) % 6]


class Graph(nn.Module):
    """Each node hears from those that edges lead from."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        y = self.network(x)
        found: Tensor = y.index_add(0, edges[1] % len(x), y[edges[0] % len(x)])
        return found


def dropped(network: nn.Module, x: Tensor) -> Any:
    return network(functional.dropout(x, 0.5, training=True))


UNJUDGED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "one example": (perceptron, lambda: inputs(1, 6), "at least two"),
    "equal examples": (perceptron, lambda: inputs(1, 6).expand(9, 6), "All examples have the same outputs"),
    "NaN alone": (lambda: around(lambda n, x: n(x) * torch.nan), lambda: inputs(20, 6), "have the same outputs"),
    "dropout in every mode": (lambda: around(dropped), lambda: inputs(20, 6), "see noise.source"),
    "pairs": (lambda: around(pairs), lambda: inputs(20, 6), "takes 2 of them at once"),
    "nodes of a graph": (
        lambda: Graph(perceptron()).eval(),
        lambda: {"x": inputs(20, 6), "edges": torch.tensor([[0, 3, 5], [1, 2, 4]])},
        "belongs to all examples",
    ),
    "as wide as the longest": (lambda: around(longest), lambda: inputs(20, 6), "follows its batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNJUDGED)
def test_what_is_not_judged(name: str) -> None:
    """It says why, and what would be judged."""
    make, data, words = UNJUDGED[name]
    found = judged(make(), data())
    assert found.verdict is Verdict.NOT_APPLICABLE, found.explain()
    assert words in found.headline


def test_a_network_of_one_batch_size() -> None:
    """It gets no other: whether the examples meet can be seen in it all the same."""
    found = judged(around(one_size), inputs(8, 6))
    assert found.verdict is Verdict.PASS, found.explain()
    mixing = measure_predictions_rows(
        around(lambda n, x: one_size(n, x).softmax(0), pytest_bnn.convert(perceptron())),
        teacher=around(one_size),
        images=inputs(8, 6),
    )
    assert (mixing.verdict, "which others" in mixing.headline) == (Verdict.FAIL, True), mixing.explain()


def test_a_network_that_does_not_take_one_example() -> None:
    """A squeeze() too many: that is said, and no fault of its batches."""
    found = judged(around(lambda n, x: n(x.view(-1, 2, 3).squeeze().flatten(1))), inputs(20, 6))
    assert found.verdict is Verdict.PASS, found.explain()
    assert any(note.startswith("Not judged: batches of 1, of which") for note in found.notes)


class Cached(nn.Module):
    """Gives the outputs of the last batch of this size again."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.known: dict[int, Any] = {}

    def forward(self, x: Tensor) -> Any:
        if len(x) not in self.known:
            self.known = {len(x): self.network(x)}
        return self.known[len(x)]


def standardised(network: nn.Module, x: Tensor) -> Any:
    y = network(x)
    return (y - y.mean(0)) / (y.std(0, unbiased=False) + 1e-2)


#: What a model does that its teacher does not, what its outputs then depend on, and words of the finding.
FAULTS: dict[str, tuple[Callable[[nn.Module, Tensor], Any], str]] = {
    "standardised over the batch": (standardised, "which others are in its batch"),
    "softmax over the batch": (lambda n, x: n(x).softmax(0), "which others are in its batch"),
    "inputs normalised by the batch": (lambda n, x: n(x / x.std()), "which others are in its batch"),
    "the largest of the batch": (lambda n, x: n(x) / n(x).abs().max(), "which others are in its batch"),
    "one example another way": (lambda n, x: n(x) * (1.1 if len(x) == 1 else 1), "how many are in its batch"),
    "many another way": (lambda n, x: n(x if len(x) < 16 else x.clamp(-1, 1)), "how many are in its batch"),
    "by place": (lambda n, x: n(x) + 0.01 * torch.arange(len(x))[:, None], "its place in the batch"),
    "the first row in front": (lambda n, x: n(x - x[:1]), "in"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_only_the_model_does_fails(name: str) -> None:
    """The teacher given does not do it; without a teacher nobody knows, and where it does, it is a choice."""
    forward, words = FAULTS[name]
    model, images = around(forward, pytest_bnn.convert(perceptron())), inputs(20, 6)
    found = measure_predictions_rows(model, teacher=perceptron(), images=images)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert words in found.headline
    assert "The teacher given does not" in found.notes[0]
    unknown = measure_predictions_rows(model, images=images)
    assert (unknown.verdict, "--teacher MODULE:FACTORY" in unknown.notes[0]) == (Verdict.WARN, True)
    before = measure_predictions_rows(model, teacher=around(forward), images=images)
    assert (before.verdict, "so does its teacher's" in before.headline) == (Verdict.WARN, True)


def test_outputs_that_are_kept() -> None:
    """A cache by the batch's size gives one batch the outputs of another."""
    found = measure_predictions_rows(
        Cached(pytest_bnn.convert(perceptron())), teacher=perceptron(), images=inputs(9, 6)
    )
    assert found.verdict is Verdict.FAIL, found.explain()


def test_attention_across_the_batch_is_a_choice() -> None:
    """The teacher does it too: a warning that names the module, and that a reason settles."""
    teacher, images = tokens(batch_first=False), inputs(20, 7, 4)
    found = judged(teacher, images)
    assert found.verdict is Verdict.WARN, found.explain()
    assert "examples meet in `att`" in found.headline
    assert "batch_first=True" in found.remedy
    assert [layer.path for layer in found.layers] == ["att"]
    settled = judged(teacher, images, allow={"att": "a set of views of one object"})
    assert settled.verdict is Verdict.PASS
    assert settled.notes[0] == "That is so on purpose: a set of views of one object."
    assert settled.accepted == (Acceptance(path="att", reason="a set of views of one object"),)
    assert settled.headline.endswith("; accepted: 'a set of views of one object'.")
    assert found.accepted == ()
    assert judged(teacher, images, allow={"out": "not this one"}).verdict is Verdict.WARN


def test_allow_of_the_command_line_reaches_it() -> None:
    """One pattern settles both: layers that are deterministic, and modules in which examples meet."""
    from pytest_bnn.audit.plan import shorthands

    assert shorthands(allow={"att": "a set"})["predictions.rows"] == {"allow": {"att": "a set"}}


def test_batch_norm_left_in_train_mode() -> None:
    """The layer and its mode are named, in the model alone and in both."""
    teacher, images = normed(), inputs(20, 1, 8, 8)
    model = pytest_bnn.convert(teacher).eval()
    model.get_submodule("1").train()
    found = measure_predictions_rows(model, teacher=teacher, images=images)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "`1` (BatchNorm2d, in train mode)" in found.headline
    assert "eval mode" in found.remedy
    teacher.get_submodule("1").train()
    assert measure_predictions_rows(model, teacher=teacher, images=images).verdict is Verdict.WARN
    kept = judged(normed(track_running_stats=False), images)
    assert (kept.verdict, "track_running_stats=True" in kept.remedy) == (Verdict.WARN, True)


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_the_difference_is_that_of_two_calls(estimator: Any) -> None:
    """The oracle: the mean network by hand, on the batch and alone, in units of the spread over the examples."""
    teacher, images = perceptron(), inputs(9, 6)
    model = around(lambda n, x: n(x) + 0.01 * len(x), pytest_bnn.convert(teacher, type=estimator))
    found = measure_predictions_rows(model, teacher=teacher, images=images)
    with torch.no_grad():
        whole = teacher(images)
    spread = (whole - whole.mean(0)).abs().amax(0)
    assert found["largest difference"] == pytest.approx(0.01 * 8 / float(spread.min()), rel=1e-3)
    assert found["what rounding explains"] == pytest.approx(NEGLIGIBLE, rel=0.1)


def test_a_teacher_of_which_nothing_is_known() -> None:
    """One that varies says nothing of what was so before: a warning."""
    model = around(FAULTS["softmax over the batch"][0], pytest_bnn.convert(perceptron()))
    found = measure_predictions_rows(model, teacher=around(dropped), images=inputs(20, 6))
    assert (found.verdict, "vary from pass to pass" in found.notes[0]) == (Verdict.WARN, True)
