"""Which task a network has: as the user says, else by labels, loss and the names of outputs, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pytest_bnn.network.calling import Field, field_of
from pytest_bnn.tasks.task import Kind, Task, TaskOption, are_shares

#: Names of outputs, with what they hold.
_SCORES = ("logits", "logit", "prediction", "predictions", "pred", "preds", "out", "output", "scores")
_SHARES = ("probs", "probabilities", "proba")
_MEANS = ("mean", "mu", "loc")

_DECLARE = "say what they are: --task classification, binary, regression or dense (task= in Python)"
_ASK = f"{_DECLARE}, or give labels"


#: The label that torch's losses leave out.
_IGNORED = -100


#: Gives the loss's gradient at the output that is judged; None where it has none.
Gradient: TypeAlias = Callable[[], Tensor | None]


@dataclass(frozen=True, slots=True)
class _Found:
    kind: Kind
    why: str
    proven: bool = True
    classes_last: bool = False


def decide(
    option: TaskOption,
    *,
    output: str | None,
    fields: tuple[Field, ...],
    example: Tensor,
    labels: Any,
    classes: int,
    reached: Callable[[], dict[str, Tensor]],
) -> Task:
    """Decide which task a network has, and which of its outputs the task is about.

    Args:
        option: What the user says it is, or ``"auto"``.
        output: The output that the user names, or None.
        fields: The network's outputs, as in `pytest_bnn.network.calling.layout`.
        example: Outputs ``[N, ...]`` on all examples, the teacher's where there is one.
        labels: What was given as labels.
        classes: How many names of classes were given.
        reached: Gives the loss's gradient at the outputs that it uses.
    """
    field, problem = _field(output, fields, reached)
    if problem:
        return Task(kind="unknown", why=problem)
    rows = field_of(example, fields, field) if fields else example
    found = _Found(option, "--task says so") if option != "auto" else _kind(rows, labels, field, classes, reached)
    kind, why, classes_last = found.kind, found.why, found.classes_last
    if kind == "dense" and option != "auto":
        classes_last = _classes_last(rows, labels)
    misfit = _misfit(kind, rows)
    if misfit:
        return Task(kind="unknown", field=field, why=f"{why}, but {misfit}")
    dim = -1 if kind != "dense" or classes_last else 1
    share = kind in ("classification", "dense") and are_shares(rows, dim=dim)
    if kind == "binary" or (kind == "dense" and rows.shape[dim] == 1):
        share = bool(((rows >= 0) & (rows <= 1)).all()) and not _named(field, ("logit", "logits"))
    return Task(kind=kind, field=field, why=why, proven=found.proven, shares=share, classes_last=classes_last)


def decide_each(
    main: Task,
    *,
    fields: tuple[Field, ...],
    example: Tensor,
    labels: Callable[[str], Any],
    reached: Callable[[], dict[str, Tensor]],
) -> tuple[Task, ...]:
    """Return what each of several outputs means: ``main`` first, then those of which labels, loss or names tell it.

    Args:
        main: What was decided for all of them together.
        fields: The network's outputs, as in `pytest_bnn.network.calling.layout`.
        example: Outputs on all examples.
        labels: Gives the labels of an output, by its name.
        reached: Gives the loss's gradient at the outputs that it uses.
    """
    found = []
    for field in fields:
        if main.kind == "unknown" or field.name != main.field:
            task = decide(
                "auto", output=field.name, fields=fields, example=example, labels=labels(field.name), classes=0,
                reached=reached,
            )  # fmt: skip
            found += [task] if task.proven and task.kind != "unknown" else []
    if main.kind != "unknown":
        return (main, *found)
    # One output alone is no answer to which of several decides.
    return tuple(found) if len(found) > 1 else (main,)


def _field(output: str | None, fields: tuple[Field, ...], reached: Callable[[], dict[str, Tensor]]) -> tuple[str, str]:
    """Return the output that claims of a task are about, or why it is not known."""
    names = [field.name for field in fields]
    if output is not None:
        if output in names:
            return output, ""
        return "", f"--output is {output!r}, and the network gives {', '.join(names) or 'one output without a name'}"
    if len(names) <= 1:
        return (names[0] if names else ""), ""
    used = [name for name in names if name in reached()]
    if len(used) == 1:
        return used[0], ""
    candidates = used or names
    for known in (_SCORES, _SHARES, _MEANS):
        named = [name for name in candidates if _named(name, known)]
        if len(named) == 1:
            return named[0], ""
    return "", (
        f"the network gives {len(names)} outputs ({', '.join(names)}), and neither the loss nor their names tell which "
        "one decides: name it with --output NAME (output= in Python)"
    )


def _named(name: str, known: tuple[str, ...]) -> bool:
    return name.rpartition(".")[2].lower() in known


def _kind(rows: Tensor, labels: Any, field: str, classes: int, reached: Callable[[], dict[str, Tensor]]) -> _Found:
    shape = tuple(rows.shape[1:])
    numbers = shape[-1] if len(shape) == 1 else 1 if not shape else 0
    if isinstance(labels, Tensor) and len(labels) == len(rows):
        by_labels = _by_labels(rows, labels, lambda: reached().get(field))
        if by_labels is not None:
            return by_labels
    gradient = reached().get(field)
    if gradient is not None and numbers > 1 and gradient.ndim == 2 and _sums_to_zero(gradient):
        return _Found("classification", "the loss moves the scores of a row against each other, as a softmax does")
    if _named(field, _MEANS):
        return _Found("regression", f"the output is called {field}")
    if _named(field, _SHARES) and numbers > 1:
        return _Found("classification", f"the output is called {field}")
    if classes and numbers == classes > 1:
        return _Found("classification", f"there are {classes} names of classes and as many outputs")
    if numbers > 1 and are_shares(rows):
        return _Found("classification", "every row of outputs is a distribution")
    if numbers > 2 or (numbers == 2 and _named(field, ("logits",))):
        return _Found("classification", f"{numbers} outputs were taken for the scores of classes", proven=False)
    words = "one number" if numbers == 1 else "two numbers" if numbers == 2 else f"outputs of shape {list(shape)}"
    if isinstance(labels, Tensor):
        of = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        return _Found("unknown", f"{words} for each example may be scores or quantities, and labels {of} do not tell: "
                      f"{_DECLARE}, or give class indices [N] as whole numbers")  # fmt: skip
    return _Found("unknown", f"{words} for each example may be scores or quantities: {_ASK}")


def _by_labels(rows: Tensor, labels: Tensor, gradient: Gradient) -> _Found | None:
    """Return what the labels tell about the task; None where they tell nothing."""
    if labels.is_complex():
        return None
    shape = tuple(rows.shape[1:])
    flat = labels.squeeze(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    whole = not labels.is_floating_point()
    if flat.ndim == 1 and shape in ((), (1,)):
        two = _is_two_valued(flat)
        return _Found("binary" if two else "regression", f"the labels are {'0 and 1' if two else 'numbers'}")
    if flat.ndim == 1 and whole and len(shape) == 1:
        return _by_indices(flat, shape[0], gradient)
    if whole and labels.ndim >= 2 and len(shape) == labels.ndim:
        return _by_places(rows, labels, gradient)
    return _by_entries(labels, shape) if labels.shape == rows.shape else None


def _by_indices(labels: Tensor, outputs: int, gradient: Gradient) -> _Found | None:
    counted = labels[labels != _IGNORED]
    if not len(counted):
        return None
    if bool((counted >= 0).all()) and int(counted.max()) < outputs:
        return _Found("classification", f"the labels are whole numbers below {outputs}")
    found = gradient()
    if found is not None and found.ndim == 2 and _sums_to_zero(found):
        return None
    words = f"the labels go from {int(counted.min())} to {int(counted.max())}, and there are {outputs} outputs"
    return _Found(
        "unknown", f"{words}, so that they are no indices of classes: {_DECLARE}, or give class indices from 0"
    )


def _by_places(rows: Tensor, labels: Tensor, gradient: Gradient) -> _Found | None:
    places = f"there is a label for each of {list(labels.shape[1:])} places"
    first, last = _fits(rows, labels)
    if first and last:
        found = gradient()
        if found is None or found.ndim != rows.ndim:
            words = f"{places}, and as many classes as places: which dimension counts the classes only the loss tells"
            return _Found("unknown", f"{words}: give it with --loss (loss= in Python)")
        last = not _sums_to_zero(found)
    return _Found("dense", places, classes_last=last) if first or last else None


def _by_entries(labels: Tensor, shape: tuple[int, ...]) -> _Found | None:
    """Return what labels tell that are as many as the outputs."""
    if _is_two_valued(labels):
        if len(shape) == 1 and are_shares(labels.double()):
            return _Found("classification", "the labels are distributions over classes")
        if len(shape) > 1 and shape[0] == 1:
            return _Found("dense", f"the labels are 0 and 1 for each of {list(shape[1:])} places")
        words = (
            f"the labels are 0 and 1 for each of {list(shape)} outputs, several at once, and no task here is about such"
        )
        return _Found("unknown", f"{words}: --task regression (task= in Python) compares them as numbers")
    if labels.is_floating_point() and len(shape) == 1 and are_shares(labels):
        return _Found("classification", "the labels are distributions over classes")
    return _Found("regression", "the labels are numbers, as many as outputs")


def _is_two_valued(labels: Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1)).all())


def _fits(rows: Tensor, labels: Tensor) -> tuple[bool, bool]:
    """Return whether the classes of dense outputs may be the first dimension of a row, and whether the last."""
    shape, places = tuple(rows.shape[1:]), tuple(labels.shape[1:])
    return shape[1:] == places, shape[:-1] == places


def _classes_last(rows: Tensor, labels: Any) -> bool:
    """Return whether the classes are the last dimension of outputs that the user calls dense."""
    if isinstance(labels, Tensor) and any(fits := _fits(rows, labels)):
        return not fits[0]
    return rows.ndim == 3


def _misfit(kind: Kind, rows: Tensor) -> str:
    """Say why outputs cannot be those of a task; empty where they can."""
    shape = list(rows.shape[1:])
    if kind == "classification" and (len(shape) != 1 or shape[0] < 2):
        return f"the outputs have the shape {[len(rows), *shape]}, not [images, classes]"
    if kind == "binary" and shape not in ([], [1]):
        return f"the outputs have the shape {[len(rows), *shape]}, not one number for each image"
    if kind == "dense" and len(shape) < 2:
        return f"the outputs have the shape {[len(rows), *shape]}, not classes for each place"
    return ""


def _sums_to_zero(gradient: Tensor) -> bool:
    """Return whether a gradient moves the outputs of each row against each other: their softmax is what counts."""
    values = gradient.double()
    size = values.abs().sum(1)
    # The loss may have been computed in half precision.
    allowed = 1e-4 if gradient.dtype in (torch.float32, torch.float64) else 4 * torch.finfo(gradient.dtype).eps
    return bool((values.sum(1).abs() <= allowed * size).all()) and bool((size > 0).any())
