"""What a head of a regression gives beside the mean: a variance, a standard deviation, or the log of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pytest_bnn.network.calling import Field
from pytest_bnn.tasks.pull import FULL

#: What stands beside the mean; ``"mean"``: nothing.
Beside: TypeAlias = Literal["mean", "variance", "log_variance", "std", "log_std"]

_NAMES: dict[Beside, tuple[str, ...]] = {
    "variance": ("variance", "var"),
    "log_variance": ("log_variance", "logvar", "log_var"),
    "std": ("std", "stddev", "sigma", "scale"),
    "log_std": ("log_std", "log_sigma", "log_scale"),
}
KINDS: tuple[Beside, ...] = tuple(kind for kind in get_args(Beside) if kind != "mean")

#: Fewer rows than so many fit a form by chance.
_ROWS = 3


class UnclearError(Exception):
    """Why it cannot be told which outputs are the mean, and what stands beside it."""


@dataclass(frozen=True, slots=True, eq=False)
class Pulled:
    """The outputs of a loss's call of the model, its gradient at them, and the labels, each ``[rows, numbers]``."""

    outputs: Tensor
    slope: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Head:
    """Where in a flat row of outputs the ``d`` means are, and the numbers beside them.

    Attributes:
        kind: What is beside the means.
        mean: Their places ``[d]``.
        beside: The places of the numbers beside them ``[d]``; None where there are none.
        why: By what it is known, in words.
    """

    kind: Beside
    mean: Tensor
    beside: Tensor | None
    why: str


def head_of(
    option: Literal["auto"] | Beside,
    *,
    fields: Sequence[Field],
    field: str,
    numbers: int,
    wanted: int,
    row: Sequence[int],
    pulled: Callable[[], Pulled | None],
    noise_declared: bool,
) -> Head:
    """Return what the head of a regression gives.

    It is what the user says; else what the loss's gradient shows, then what names of outputs say.

    Args:
        option: What the user says.
        fields: The network's outputs.
        field: The name of that which has the means.
        numbers: How many numbers a row of all outputs together has.
        wanted: How many labels a row has, ``d``.
        row: The shape of a row of the output with the means.
        pulled: Gives what the loss does to the outputs, flat in the same order; None where that is not known.
        noise_declared: Whether the user has declared a noise: then a head is not asked for one.

    Raises:
        UnclearError: It cannot be told.
    """
    start, size = _place(fields, field, numbers)
    own = torch.arange(start, start + size)
    candidates: list[tuple[str, Tensor]] = []
    if size == 2 * wanted:
        halves = own.reshape(*row) if len(row) > 1 and row[-1] == 2 else own.reshape(2, -1).T
        mean, beside = halves.reshape(-1, 2).T
        candidates = [("the second half of the outputs", beside)]
    elif size == wanted:
        mean = own
        candidates = _others(fields, field, wanted) if size < numbers else []
    else:
        raise UnclearError(f"the outputs have {size} numbers for each example, and the labels {wanted}")
    if option == "mean" and size == wanted:
        return Head(kind="mean", mean=mean, beside=None, why="the option head says so")
    if option != "auto" and option != "mean":
        if len(candidates) != 1:
            words = "several outputs may be it" if candidates else "no other output has as many numbers as the mean"
            raise UnclearError(f"head={option} says what is beside the mean, and {words}")
        return Head(kind=option, mean=mean, beside=candidates[0][1], why="the option head says so")
    if not candidates:
        return Head(kind="mean", mean=mean, beside=None, why="there is no other output")
    return _told(mean, candidates, pulled(), may_be_none=noise_declared and size == wanted)


def _told(mean: Tensor, candidates: list[tuple[str, Tensor]], pull: Pulled | None, *, may_be_none: bool) -> Head:
    """Return what the loss, or else a name, says of candidates for what is beside the mean."""
    shown = [(kind, at) for _, at in candidates if pull is not None and (kind := by_pull(pull, mean, at)) is not None]
    if len(shown) == 1:
        kind, at = shown[0]
        return Head(kind=kind, mean=mean, beside=at, why=f"the loss pulls on it as on a {_words(kind)}")
    named = [(kind, at, name) for name, at in candidates if (kind := by_name(name)) is not None]
    if len(named) == 1:
        kind, at, name = named[0]
        return Head(kind=kind, mean=mean, beside=at, why=f"the output is called {name}")
    if may_be_none:
        return Head(kind="mean", mean=mean, beside=None, why="a noise was declared")
    names = " and ".join(name for name, _ in candidates)
    raise UnclearError(
        f"{names} may be the variance of the prediction, its logarithm, or something else"
        if len(candidates) == 1
        else f"each of {names} may be the spread of the prediction"
    )


def by_name(name: str) -> Beside | None:
    """Return what an output is by its name; None where that does not tell."""
    last = name.rpartition(".")[2].lower()
    return next((kind for kind, names in _NAMES.items() if last in names), None)


def by_pull(pull: Pulled, mean: Tensor, beside: Tensor) -> Beside | None:
    """Return what the outputs beside the mean are to a Gaussian likelihood; None where no reading or several fit.

    With the error r of the mean and the variance v, the likelihood pulls on the mean by ``w r / v`` and on the log
    variance by ``w (v - r^2) / 2 v``, on the others by the chain rule. The weight w of a row, whatever it is, is
    read off the first and compared with the second.

    Args:
        pull: What the loss does.
        mean: Places of the means ``[d]``.
        beside: Places of the numbers beside them ``[d]``.
    """
    if pull.labels.shape != (len(pull.outputs), len(mean)):
        return None
    error = (pull.outputs[:, mean] - pull.labels).double()
    second, slope = pull.outputs[:, beside].double(), pull.slope[:, beside].double()
    weight = pull.slope[:, mean].double() / error  # w / v
    live = (error != 0) & torch.isfinite(error) & (weight != 0)
    if int(live.sum()) < _ROWS or not bool((slope[live] != 0).any()) or not bool((weight[live] > 0).all()):
        return None
    return _one([kind for kind in KINDS if _fits(kind, second, slope, error, weight, live)])


def _fits(kind: Beside, second: Tensor, slope: Tensor, error: Tensor, weight: Tensor, live: Tensor) -> bool:
    inner = second[live] if kind in ("log_variance", "log_std") else second[live].clamp_min(1e-300)
    if kind in ("variance", "std") and bool((second[live] <= 0).any()):
        return False
    variance = deviation(kind, inner).square()
    chain = torch.full_like(inner, 1.0 if kind in ("std", "log_std") else 0.5)
    if kind in ("variance", "std"):
        chain = chain / inner
    gap = weight[live] * chain
    expected, size = gap * (variance - error[live].square()), gap * (variance + error[live].square())
    return bool(((slope[live] - expected).abs() <= FULL * size).all())


def _one(kinds: list[Beside]) -> Beside | None:
    return kinds[0] if len(kinds) == 1 else None


def deviation(kind: Beside, values: Tensor) -> Tensor:
    """Return the standard deviations that numbers of a kind stand for; NaN for a negative variance or deviation."""
    if kind == "variance":
        return values.sqrt()
    if kind == "log_variance":
        return (values / 2).exp()
    if kind == "log_std":
        return values.exp()
    return torch.where(values >= 0, values, torch.nan)


def _words(kind: Beside) -> str:
    return {"log_variance": "log variance", "log_std": "log standard deviation", "std": "standard deviation"}.get(
        kind, kind
    )


def _place(fields: Sequence[Field], field: str, numbers: int) -> tuple[int, int]:
    """Return where in a flat row an output begins, and its size; the whole row where it holds no others."""
    if len(fields) < 2 or sum(one.size for one in fields) != numbers:
        return 0, numbers
    start = 0
    for one in fields:
        if one.name == field:
            return start, one.size
        start += one.size
    raise KeyError(field)


def _others(fields: Sequence[Field], field: str, wanted: int) -> list[tuple[str, Tensor]]:
    """Return the outputs that may belong to the means: by their names, or those of the same size without a name."""
    found, start = [], 0
    for one in fields:
        if one.name != field and one.size == wanted:
            found.append((one.name, torch.arange(start, start + one.size)))
        start += one.size
    stem = field.rpartition(".")[0]
    named = [(name, at) for name, at in found if by_name(name)]
    near = [(name, at) for name, at in named if name.rpartition(".")[0] == stem]
    bare = [(f"output {name}", at) for name, at in found if name.rpartition(".")[2].isdigit()]
    return near or named or bare
