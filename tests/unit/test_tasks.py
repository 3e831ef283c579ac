"""Which task a network has: the table of decisions, and what outputs then mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.conversion import convert
from pytest_bnn.network.calling import Field
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.deciding import decide
from pytest_bnn.tasks.reached import gradients_at_outputs
from pytest_bnn.tasks.task import Task, TaskOption, are_shares

N = 12


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decided(
    rows: Tensor,
    labels: Any = None,
    loss: Callable[[Tensor], Tensor] | None = None,
    *,
    option: TaskOption = "auto",
    name: str = "",
    classes: int = 0,
) -> Task:
    """Decide about one output, with the gradient of a loss that sees it."""

    def reached() -> dict[str, Tensor]:
        if loss is None:
            return {}
        leaf = rows.clone().requires_grad_()
        loss(leaf).backward()
        assert leaf.grad is not None
        return {name: leaf.grad}

    field = Field(name, tuple(rows.shape[1:]))
    return decide(option, output=None, fields=(field,), example=rows, labels=labels, classes=classes, reached=reached)


INDICES = torch.arange(N) % 3
ZERO_ONE = torch.arange(N) % 2
SOFT = torch.softmax(random(N, 3), 1)
IGNORED = torch.where(ZERO_ONE == 1, -100, INDICES)
MANY = (random(N, 3) > 0).float()
ORDINAL = torch.arange(N) % 4

#: Outputs, labels, and the kind with a word of its reason.
BY_LABELS: dict[str, tuple[Tensor, Any, str, str]] = {
    "indices": (random(N, 3), INDICES, "classification", "whole numbers below 3"),
    "indices as a column": (random(N, 3), INDICES[:, None], "classification", "whole numbers"),
    "indices of uint8": (random(N, 3), INDICES.to(torch.uint8), "classification", "whole numbers"),
    "indices, some ignored": (random(N, 3), IGNORED, "classification", "whole numbers"),
    "two classes": (random(N, 2), ZERO_ONE, "classification", "whole numbers below 2"),
    "two classes as truth values": (random(N, 2), ZERO_ONE.bool(), "classification", "whole numbers"),
    "soft": (random(N, 3), SOFT, "classification", "distributions"),
    "smoothed": (random(N, 3), 0.9 * functional.one_hot(INDICES).float() + 0.1 / 3, "classification", "distributions"),
    "one hot": (random(N, 3), functional.one_hot(INDICES), "classification", "distributions"),
    "logit": (random(N, 1), ZERO_ONE, "binary", "0 and 1"),
    "logit, floats": (random(N, 1), ZERO_ONE.float(), "binary", "0 and 1"),
    "logit, a column": (random(N), ZERO_ONE.float()[:, None], "binary", "0 and 1"),
    "logit, truth values": (random(N), ZERO_ONE.bool(), "binary", "0 and 1"),
    "quantity": (random(N, 1), random(N), "regression", "numbers"),
    "quantity in a column": (random(N), random(N, 1), "regression", "numbers"),
    "count": (random(N, 1), ORDINAL, "regression", "numbers"),
    "two quantities": (random(N, 2), random(N, 2), "regression", "as many as outputs"),
    "counts": (random(N, 2), torch.stack([ORDINAL, ORDINAL + 1], 1), "regression", "as many as outputs"),
    "depth": (random(N, 1, 4, 5), random(N, 1, 4, 5), "regression", "as many as outputs"),
    "segmentation": (random(N, 3, 4, 5), torch.zeros(N, 4, 5).long(), "dense", "[4, 5] places"),
    "segmentation of two": (random(N, 1, 4, 5), torch.zeros(N, 1, 4, 5), "dense", "[4, 5] places"),
    "mask of two": (random(N, 1, 4, 5), torch.zeros(N, 4, 5).bool(), "dense", "[4, 5] places"),
    "tokens": (random(N, 5, 3), torch.where(random(N, 5) > 0, -100, 1), "dense", "[5] places"),
    "tokens, classes first": (random(N, 3, 5), torch.zeros(N, 5).long(), "dense", "[5] places"),
    "several labels at once": (random(N, 3), MANY, "unknown", "several at once"),
    "several labels as whole numbers": (random(N, 3), MANY.long(), "unknown", "--task regression"),
    "ordinal, one output less": (random(N, 3), ORDINAL, "unknown", "from 0 to 3, and there are 3 outputs"),
    "labels of -1 and 1": (random(N, 3), 2 * ZERO_ONE - 1, "unknown", "from -1 to 1"),
    "as many places as classes": (random(N, 4, 4), torch.zeros(N, 4).long(), "unknown", "--loss"),
}


@pytest.mark.parametrize("name", BY_LABELS)
def test_labels_decide(name: str) -> None:
    """By their dtype and shape beside the outputs'; what no task is about is unknown, with the reason."""
    rows, labels, kind, words = BY_LABELS[name]
    task = decided(rows, labels)
    assert (task.kind, task.proven) == (kind, True), task.why
    assert words in task.why


@pytest.mark.parametrize(("shape", "last"), [((3, 5), False), ((5, 3), True), ((3, 5, 2), False), ((5, 2, 3), True)])
def test_where_the_classes_are(shape: tuple[int, ...], last: bool) -> None:
    """First as in segmentation, last as for tokens: the shares of a place are those of its classes."""
    rows = random(2, *shape)
    places = shape[1:] if not last else shape[:-1]
    task = decided(rows, torch.zeros(2, *places).long())
    assert task.classes_last is last
    shares = task.at_places(rows, 0)
    expected = torch.softmax(rows, -1 if last else 1)
    expected = expected if last else expected.movedim(1, -1)
    assert torch.allclose(shares, expected.reshape(-1, 3))
    assert torch.allclose(task.at_places(torch.stack([rows, rows + 1]), 1)[0], shares)


@pytest.mark.parametrize("last", [True, False])
def test_the_loss_tells_classes_from_as_many_places(last: bool) -> None:
    """Its gradient sums to zero over the classes of a place."""
    labels = torch.arange(N * 4).reshape(N, 4) % 4

    def loss(rows: Tensor) -> Tensor:
        return functional.cross_entropy(rows.movedim(-1, 1) if last else rows, labels)

    assert decided(random(N, 4, 4), labels, loss).classes_last is last


LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "cross entropy": (lambda z: functional.cross_entropy(z, INDICES), "classification"),
    "label smoothing": (lambda z: functional.cross_entropy(z, INDICES, label_smoothing=0.1), "classification"),
    "class weights": (
        lambda z: functional.cross_entropy(z, INDICES, weight=torch.tensor([1.0, 5, 9])),
        "classification",
    ),
    "focal": (
        lambda z: ((1 - (p := torch.softmax(z, 1)[torch.arange(N), INDICES])) ** 2 * -p.log()).mean(),
        "classification",
    ),
    "distillation": (
        lambda z: functional.kl_div((z / 2).log_softmax(1), SOFT, reduction="batchmean"),
        "classification",
    ),
    "squares": (lambda z: z.square().mean(), "unknown"),
    "several at once": (lambda z: functional.binary_cross_entropy_with_logits(z, MANY), "unknown"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_decides_without_labels(name: str, dtype: torch.dtype) -> None:
    """A softmax moves the scores of a row against each other; without that, scores of classes are a presumption."""
    loss, kind = LOSSES[name]
    task = decided(random(N, 3).to(dtype), None, lambda z: loss(z.float()))
    assert task.proven is (kind == "classification")
    assert task.kind == "classification"
    assert ("softmax" in task.why) is task.proven


def test_two_columns_without_labels_are_unknown() -> None:
    """Two classes, two quantities, a mean and a variance: the words say how to tell."""
    for rows in (random(N, 2), random(N, 1), random(N), random(N, 3, 4, 5)):
        task = decided(rows)
        assert task.kind == "unknown"
        assert "--task classification, binary, regression or dense (task= in Python), or give labels" in task.why
    assert not decided(random(N, 3)).proven


@pytest.mark.parametrize(
    ("name", "rows", "kind", "proven"),
    [
        ("head.mean", random(N, 2), "regression", True),
        ("loc", random(N), "regression", True),
        ("probs", random(N, 2), "classification", True),
        ("logits", random(N, 2), "classification", False),
        ("out", random(N, 2), "unknown", True),
    ],
)
def test_names_decide(name: str, rows: Tensor, kind: str, proven: bool) -> None:
    """Where neither labels nor the loss do."""
    task = decided(rows, name=name)
    assert (task.kind, task.proven) == (kind, proven)


def test_other_evidence() -> None:
    """As many names of classes as outputs; rows that are distributions."""
    assert decided(random(N, 2), classes=2).kind == "classification"
    assert decided(random(N, 2), classes=3).kind == "unknown"
    task = decided(torch.softmax(random(N, 2), 1))
    assert (task.kind, task.shares, task.proven) == ("classification", True, True)


@pytest.mark.parametrize(
    ("option", "shape", "kind"),
    [
        ("classification", (2,), "classification"),
        ("classification", (1,), "unknown"),
        ("classification", (2, 3), "unknown"),
        ("binary", (1,), "binary"),
        ("binary", (), "binary"),
        ("binary", (2,), "unknown"),
        ("regression", (3,), "regression"),
        ("regression", (3, 4, 5), "regression"),
        ("dense", (3, 4, 5), "dense"),
        ("dense", (4, 3), "dense"),
        ("dense", (3,), "unknown"),
    ],
)
def test_the_user_overrules(option: TaskOption, shape: tuple[int, ...], kind: str) -> None:
    """Labels and loss are not asked; outputs that cannot be of that task make it unknown, with their shape."""
    task = decided(random(N, *shape), INDICES, option=option)
    assert (task.kind, task.proven) == (kind, True)
    assert "--task says so" in task.why
    if kind == "unknown":
        assert f"the outputs have the shape {[N, *shape]}" in task.why
    assert task.classes_last is (option == "dense" and shape == (4, 3))


class Heads(nn.Module):
    """Features first, then logits, and a head that the loss leaves alone."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.other = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.names = names

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        found = (features, self.head(features), self.other(features))
        return dict(zip(self.names, found, strict=True))


def heads(names: tuple[str, ...], loss: Any = None, output: str | None = None) -> Task:
    return Subject(convert(Heads(names)), images=(random(N, 4), INDICES), loss=loss, output=output).task


def on_second(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(list(model(batch[0]).values())[1], batch[1])


def test_which_output_is_judged() -> None:
    """The loss's, though others have a gradient through it; else the one with a known name; else it is asked for."""
    assert heads(("a", "b", "c"), on_second).field == "b"
    assert heads(("a", "logits", "c")).field == "logits"
    assert heads(("a", "b", "probs")).field == "probs"
    assert heads(("a", "b", "c"), output="c").field == "c"
    task = heads(("a", "b", "c"))
    assert task.kind == "unknown"
    assert "3 outputs (a, b, c)" in task.why
    assert "--output NAME" in task.why
    wrong = heads(("a", "b", "c"), output="logits")
    assert (wrong.kind, wrong.why) == ("unknown", "--output is 'logits', and the network gives a, b, c")


def test_a_loss_that_says_nothing() -> None:
    """One that raises, ends the program, or runs backward by itself: its gradient is none or its own."""

    def ends(model: nn.Module, batch: Any) -> Tensor:
        raise SystemExit(0)

    def backward_itself(model: nn.Module, batch: Any) -> Tensor:
        on_second(model, batch).backward()
        return torch.tensor(0.0)

    model = Heads(("a", "b", "c"))
    batch = (random(N, 4), INDICES)
    assert gradients_at_outputs(model, ends, lambda: batch, 0) == {}
    assert gradients_at_outputs(model, None, lambda: batch, 0) == {}
    assert list(gradients_at_outputs(model, backward_itself, lambda: batch, 0)) == ["b"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_probabilities_are_not_softmaxed_again(dtype: torch.dtype) -> None:
    """However their dtype rounds them; scores never count as such by chance."""
    rows = torch.softmax(3 * random(200, 10).to(dtype), 1)
    assert rows.dtype == dtype
    task = decided(rows, torch.arange(200) % 10)
    assert task.shares
    assert torch.equal(task.probabilities(rows[:1]), rows[:1].float() if dtype.itemsize == 2 else rows[:1])
    assert torch.equal(task.probabilities(rows[:1] * 0.9).argmax(-1), rows[:1].argmax(-1)), "decided once"
    assert not decided(random(200, 10).to(dtype), torch.arange(200) % 10).shares
    assert not are_shares(torch.rand(200, 10, generator=torch.Generator().manual_seed(0)).to(dtype))


def test_sides_of_a_threshold() -> None:
    """Of a logit at 0, of a probability at a half; a row may be a number or a column. Oracle: torch's sigmoid."""
    logits = 3 * random(N)
    for rows in (logits, logits[:, None]):
        shares = decided(rows, ZERO_ONE).probabilities(rows)
        assert torch.allclose(shares, torch.stack([1 - logits.sigmoid(), logits.sigmoid()], 1))
    task = decided(logits.sigmoid(), ZERO_ONE)
    assert task.shares
    assert torch.equal(task.probabilities(logits.sigmoid()).argmax(1), (logits > 0).long())


def test_tasks_without_classes() -> None:
    """They have no shares: asking for them is a mistake."""
    for kind in ("regression", "unknown", "dense"):
        with pytest.raises(ValueError, match=r"classes|places"):
            Task(kind=kind).probabilities(random(N, 3))


@given(
    st.sampled_from([(), (1,), (2,), (3,), (3, 4), (4, 3), (1, 2, 2), (3, 2, 2)]),
    st.sampled_from([None, (), (1,), (3,), (2, 2), (4,), (1, 2, 2)]),
    st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16, torch.uint8]),
    st.sampled_from(get_args(TaskOption)),
)
def test_every_shape_is_decided(
    shape: tuple[int, ...], places: tuple[int, ...] | None, dtype: torch.dtype, option: TaskOption
) -> None:
    """No outputs and labels end the audit; what is unknown has a reason, and what is known can be used."""
    rows = random(4, *shape)
    labels = None if places is None else (2 * random(4, *places, seed=1)).abs().to(dtype)
    task = decided(rows, labels, option=option)
    assert task.why
    if task.kind in ("classification", "binary"):
        assert torch.allclose(task.probabilities(rows).sum(-1), torch.ones(4))
    if task.kind == "dense":
        assert torch.allclose(task.at_places(rows, 0).sum(-1), torch.tensor(1.0))
