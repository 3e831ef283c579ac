"""Which likelihood a loss has, and what it asks of the outputs: read off its gradient at them.

A loss that is a negative log likelihood of classes pulls on a row of scores by ``c * (softmax(scores) - target)``. The
factor c, its sign and the target are read off row by row, without knowing how the loss was written. Sums over the
rows' calls count, so that a loss of several passes is one, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pytest_bnn.tasks.distances import pull_on_numbers, pull_on_sides
from pytest_bnn.tasks.pull import FULL, HALF, Pull
from pytest_bnn.tasks.soft import distilled, smoothed
from pytest_bnn.tasks.task import Task

#: How far the largest share is from 1 where a row's pull is more than rounding.
_SURE = 1e-3

#: Above which share of the other rows' factor the pull on a row that is sure is no rounding, or another class's.
_PULLED = 0.1

#: Allowed relative difference of the factors of rows that a likelihood weighs alike.
_FACTOR = 1e-2


def pull_of(task: Task, outputs: Tensor, gradient: Tensor, labels: Tensor | None, teacher: Tensor | None) -> Pull:
    """Tell what a loss's gradient at the outputs of one call asks of them.

    Args:
        task: What the outputs mean.
        outputs: ``[rows, ...]``, as the model gave them.
        gradient: The gradient of the loss to them, of the same shape.
        labels: The labels of the same rows, in their order; None where there are none.
        teacher: The teacher's outputs on the same rows, for distillation; None where there are none.
    """
    allowed = FULL if outputs.dtype in (torch.float32, torch.float64) else HALF
    found, slope = outputs.detach().double(), gradient.detach().double()
    if task.kind == "dense":
        found, slope = task.places(found, 0), task.places(slope, 0)
        labels = None if labels is None else labels.reshape(-1)
        teacher = None if teacher is None else task.places(teacher.double(), 0)
    if task.kind in ("classification", "dense") and found.ndim == 2 and found.shape[1] > 1:
        return _of_classes(task, found, slope, _indices(labels, found), teacher, allowed, _sure_of(outputs, allowed))
    if labels is None or labels.numel() != found.numel():
        return Pull()
    target = labels.reshape(found.shape).to(found.device).double()
    if task.kind == "binary":
        return pull_on_sides(task, found, slope, target, allowed)
    if task.kind == "regression":
        return pull_on_numbers(found, slope, target, allowed)
    return Pull()


def _sure_of(outputs: Tensor, allowed: float) -> float:
    """Return how far the largest share is from 1 where a row's pull is more than its rounding, which is that of a 1."""
    return max(_SURE, torch.finfo(outputs.dtype).eps / 4 / allowed)


def _indices(labels: Tensor | None, outputs: Tensor) -> Tensor | None:
    """Return the class of each row, -1 where it is left out; None where labels are no classes."""
    if labels is None or labels.is_complex():
        return None
    if labels.shape == outputs.shape and labels.is_floating_point():
        return labels.argmax(1) if bool(((labels == 0) | (labels == 1)).all()) else None
    flat = labels.reshape(-1)
    if flat.is_floating_point() or flat.numel() != len(outputs):
        return None
    inside = (flat >= 0) & (flat < outputs.shape[1])
    return torch.where(inside, flat, -1).to(outputs.device)


def _of_classes(
    task: Task,
    outputs: Tensor,
    slope: Tensor,
    labels: Tensor | None,
    teacher: Tensor | None,
    allowed: float,
    least: float,
) -> Pull:
    live = slope.abs().sum(1) > 0
    if not bool(live.any()):
        return Pull()
    one = ((slope != 0).sum(1) == 1) | ~live
    if bool(one.all()):
        return _of_one_entry(task, outputs, slope, live, labels)
    if task.shares:
        return _normalised_again(outputs, slope, labels, live, allowed, scores=False) or Pull()
    shares = torch.softmax(outputs, 1)
    # Of a row that is sure of a class only rounding is left, or a push away from another looks like a pull to it.
    sure = shares.max(1).values >= 1 - least
    live = (live & ~sure) if bool((live & ~sure).any()) else _pulled_alike(outputs, slope, live, least)
    if not bool(live.any()):
        return Pull()
    candidates = [] if labels is None else [labels]
    candidates += [slope.argmin(1), slope.argmax(1)]
    fits = []
    for targets in candidates:
        wanted = torch.nn.functional.one_hot(targets.clamp_min(0), outputs.shape[1]).double()
        usable = live & (targets >= 0)
        scale, off = _fitted(slope, shares - wanted)
        if bool(usable.any()) and float(off[usable].max()) <= allowed and _one_sign(scale[usable]):
            if targets is not labels and outputs.shape[1] == 2:
                continue  # of two classes the pull toward one is the push away from the other
            fits.append((targets, usable, scale))
    if fits:
        targets, usable, scale = fits[0]
        sign = 1 if float(scale[usable][0]) > 0 else -1
        if sign < 0 and (better := _toward_others(fits[1:], scale[usable], allowed)) is not None:
            if not better:
                return Pull()
            targets, usable, scale = better[0]
            sign = 1
        if sign < 0 and not (targets is labels and _is_one_factor(scale[usable], targets[usable])):
            return Pull()  # away from what a row is not, as complementary labels and bad rewards push
        nothing = torch.full_like(scale, torch.nan)
        # In half precision a few rows among many that are sure of a class fit a form by chance.
        few = allowed > FULL and 4 * int(usable.sum()) < len(outputs)
        implied = torch.where(usable, targets, torch.full_like(targets, -1))
        resting = sure & ~usable if labels is None else sure & ~usable & (labels >= 0)
        smallest = sign * float(scale[usable].abs().min())
        return Pull(
            form="cross-entropy",
            sign=sign,
            scale=None if few else torch.where(usable, scale, nothing),
            implied=torch.where(resting, _of_sure_rows(outputs, slope, smallest, allowed), implied),
            rows=len(outputs) if labels is None else int((labels >= 0).sum()),
        )
    # Of forms that all rows share, rows that are sure of a class tell something, too: not by their direction alone.
    pulled = slope.abs().sum(1) > 0
    if labels is not None and (found := smoothed(shares, slope, labels, pulled, allowed)) is not None:
        return found
    if (again := _normalised_again(shares, slope, labels, live, allowed, scores=True)) is not None:
        return again
    return distilled(outputs, slope, labels, teacher, pulled, allowed)


_Fit: TypeAlias = tuple[Tensor, Tensor, Tensor]


def _toward_others(fits: list[_Fit], scale: Tensor, allowed: float) -> list[_Fit] | None:
    """Return the fit by which rows that seem to be pushed away from their labels are pulled toward other classes.

    Where two classes share all of a row's probability, the one looks like the other: that of one factor in all rows is
    the right one. An empty list where that cannot be told; None where no fit pulls.
    """
    pulling = [fit for fit in fits if bool((fit[2][fit[1]] > 0).all())]
    if not pulling:
        return None
    found = pulling[0][2][pulling[0][1]]
    even = [float(each.std(unbiased=False)) <= allowed * float(each.abs().mean()) for each in (scale, found)]
    if len(scale) > 1 and even[0] != even[1]:
        return pulling[:1] if even[1] else None
    return []


def _pulled_alike(outputs: Tensor, slope: Tensor, live: Tensor, least: float) -> Tensor:
    """Return the rows that are pulled away from classes which they are sure of, where these are most rows.

    Toward the class that a row is sure of, or away from it, only rounding pulls, of another size in every row; toward
    another class it is one size in all of them.
    """
    size = slope.norm(dim=1)
    away = slope.gather(1, outputs.argmax(1)[:, None])[:, 0] > 0
    alike = live & away & (size >= (1 - max(10 * _SURE, 2 * least)) * size.max())
    return alike if 2 * int(alike.sum()) > len(alike) else torch.zeros_like(alike)


def _of_sure_rows(outputs: Tensor, slope: Tensor, factor: float, allowed: float) -> Tensor:
    """Return the class that rows which are sure of one are pulled toward, by a factor like that of others, else -1."""
    top = outputs.argmax(1)
    others = slope.scatter(1, top[:, None], 0.0)
    other = others.argmin(1) if factor > 0 else others.argmax(1)
    wanted = torch.nn.functional.one_hot(other, outputs.shape[1]).double()
    scale, off = _fitted(slope, torch.softmax(outputs, 1) - wanted)
    moved = (off <= allowed) & (scale / factor >= _PULLED)
    rests = slope.norm(dim=1) < _PULLED * abs(factor)
    return torch.where(rests, top, torch.where(moved, other, torch.full_like(top, -1)))


def _fitted(slope: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factor of a direction in each row, and which share of the row it leaves unexplained."""
    scale = (slope * direction).sum(1) / direction.square().sum(1).clamp_min(1e-300)
    off = (slope - scale[:, None] * direction).norm(dim=1) / slope.norm(dim=1).clamp_min(1e-300)
    return scale, off


def _one_sign(scale: Tensor) -> bool:
    return bool((scale > 0).all()) or bool((scale < 0).all())


def _is_one_factor(scale: Tensor, classes: Tensor) -> bool:
    """Return whether all rows, or all rows of each class, have one factor, as in a likelihood and not in a reward."""
    if len(scale) < 2:
        return False
    groups = [scale] if len(classes.unique()) == len(classes) else [scale[classes == c] for c in classes.unique()]
    return all(float((group - group[0]).abs().max()) <= _FACTOR * float(group[0].abs()) for group in groups)


def _of_one_entry(task: Task, outputs: Tensor, slope: Tensor, live: Tensor, labels: Tensor | None) -> Pull:
    """Tell pulls on one entry of each row: the logarithm was taken already, or it was forgotten."""
    implied = torch.where(live, slope.abs().argmax(1), torch.full_like(slope.argmax(1), -1))
    value = slope.gather(1, implied.clamp_min(0)[:, None])[:, 0][live]
    sign = 1 if bool((value < 0).all()) else -1 if bool((value > 0).all()) else 0
    factor = value * outputs.gather(1, implied.clamp_min(0)[:, None])[:, 0][live] if task.shares else value
    if labels is None or not torch.equal(implied[live], labels[live]) or not _is_one_factor(factor, implied[live]):
        # Where a row is sure of its label, another score may be the only one that is still pulled on.
        sign = max(sign, 0)
    if task.shares:
        return Pull(form="likelihood of shares", sign=sign, implied=implied)
    sums = torch.logsumexp(outputs[live], 1).abs()
    scale = torch.full_like(outputs[:, 0], torch.nan)
    scale[live] = -value
    if bool((sums <= 1e-3).all()):
        return Pull(form="likelihood of shares", sign=sign, scale=scale, implied=implied, rows=int(live.sum()))
    even = float((value - value[0]).abs().max()) <= 1e-3 * float(value[0].abs())
    if even and sign == 1 and float((sums > 1e-2).double().mean()) > 0.9 and int(live.sum()) > 1:
        return Pull(form="scores for log-probabilities", sign=sign, implied=implied)
    return Pull(sign=0, implied=implied)


def _normalised_again(
    shares: Tensor, slope: Tensor, labels: Tensor | None, live: Tensor, allowed: float, *, scores: bool
) -> Pull | None:
    """Tell a cross-entropy that takes shares for scores; the slope is that at the shares or at their ``scores``.

    Of two classes any loss pulls in that direction.
    """
    if labels is None or shares.shape[1] < 3 or allowed > FULL:
        return None
    usable = live & (labels >= 0)
    direction = torch.softmax(shares, 1) - torch.nn.functional.one_hot(labels.clamp_min(0), shares.shape[1]).double()
    if scores:
        direction = shares * (direction - (shares * direction).sum(1, keepdim=True))
    scale, off = _fitted(slope, direction)
    if not bool(usable.any()) or float(off[usable].max()) > allowed or not bool((scale[usable] > 0).all()):
        return None
    if not _is_one_factor(scale[usable], labels[usable]):
        return None
    return Pull(form="cross-entropy of shares", sign=1, rows=int((labels >= 0).sum()))


def scale_over_calls(pulls: Sequence[Pull]) -> float | None:
    """Return the factor c of a row, summed over the calls; None where calls or rows differ, or a form has none.

    For the mean of several passes' losses it is the loss's own; so it is for the loss of the passes' mean shares, whose
    rows' factors sum to it.
    """
    scales = [pull.scale for pull in pulls]
    if not scales or any(scale is None for scale in scales):
        return None
    whole = torch.stack([scale.nan_to_num() for scale in scales if scale is not None]).sum(0)
    counted = whole[whole != 0]
    if not len(counted):
        return None
    middle = float(counted.median())
    return middle if float((counted - middle).abs().max()) <= FULL * abs(middle) else None
