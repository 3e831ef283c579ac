"""How a loss pulls on numbers, and on one score for two sides: toward labels, and whether toward each row's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytest_bnn.tasks.pull import Pull
from pytest_bnn.tasks.task import Task


def pull_on_sides(task: Task, outputs: Tensor, slope: Tensor, target: Tensor, allowed: float) -> Pull:
    """Return what a loss asks of scores, or shares, of one of two sides.

    Args:
        task: What the outputs mean.
        outputs: One number a row, float64.
        slope: The loss's gradient at them.
        target: The labels, of the same shape.
        allowed: By how much the factor may scatter, relative to itself.
    """
    live = (slope != 0).flatten()
    if not bool(((target == 0) | (target == 1)).all()) or not bool(live.any()):
        return Pull()
    share = outputs if task.shares else torch.sigmoid(outputs)
    sign = 0
    # A pull that fits no row's own label may fit others: the sides that it goes to.
    for sides in (target, (slope < 0).double()):
        direction = share - sides
        if task.shares:
            direction = direction / (share * (1 - share)).clamp_min(1e-12)
        scale = (slope / direction.where(direction != 0, torch.ones_like(direction))).flatten()
        if sides is target:
            sign = _sign_of(scale[live])
        if _sign_of(scale[live]) and float(scale[live].std(unbiased=False)) <= allowed * float(
            scale[live].abs().mean()
        ):
            return Pull(
                form="binary cross-entropy",
                sign=sign or _sign_of(scale[live]),
                scale=torch.where(live, scale, torch.nan),
                implied=sides if bool(live.all()) else None,
                rows=len(outputs),
            )
    return Pull(sign=max(sign, 0))  # away from each label is toward the other one, in another convention


def pull_on_numbers(outputs: Tensor, slope: Tensor, target: Tensor, allowed: float) -> Pull:
    """Return what a loss asks of numbers: whether each is pulled toward its label, as any distance does.

    A squared distance pulls by ``k * (output - label)``. Where these are not the rows' own labels, k is the number for
    which ``output - slope / k`` has the labels' sum of squares; where the labels come out, in another order, they are
    implied. Outputs ``[N, 1]`` beside labels ``[N]`` are broadcast: each is pulled toward the mean of all labels.

    A sign of -1 is no proof of a wrong sign: what a loss compares with an output may be a function of its label.

    Args:
        outputs: ``[rows, ...]``, float64.
        slope: The loss's gradient at them.
        target: The labels, of the same shape.
        allowed: By how much a pull may miss a form, relative to the pull.
    """
    apart = outputs - target
    live = (slope != 0) & (apart != 0)
    if not bool(live.any()):
        return Pull()
    factor = slope[live] / apart[live]
    sign = _sign_of(factor)
    if float((factor - factor.median()).abs().max()) <= allowed * float(factor.abs().median()):
        return Pull(form="distance" if sign else "unknown", sign=sign, implied=target)
    if outputs.numel() == len(outputs) and _toward_the_mean(
        outputs.flatten(), slope.flatten(), target.flatten(), allowed
    ):
        return Pull(form="distance to the mean label")
    others = _other_labels(outputs, slope, target, allowed)
    if others is not None:
        return Pull(form="distance", sign=1, implied=others)
    return Pull(form="distance" if sign else "unknown", sign=sign)


def _sign_of(factors: Tensor) -> int:
    return 1 if bool((factors > 0).all()) else -1 if bool((factors < 0).all()) else 0


def _some(value: float) -> bool:
    return 0 < value < math.inf


def _toward_the_mean(outputs: Tensor, slope: Tensor, target: Tensor, allowed: float) -> bool:
    """Return whether all numbers are pulled toward the mean of labels that differ."""
    spread = float(target.std(unbiased=False))
    basis = torch.stack([outputs, torch.ones_like(outputs)], 1)
    k, offset = (float(value) for value in torch.linalg.lstsq(basis, slope[:, None]).solution[:, 0])
    if len(target) < 3 or not _some(spread) or not _some(k):
        return False
    off = float((slope - k * outputs - offset).norm())
    # What varies with the outputs is a part of the pull that can be seen, or k is rounding.
    seen = k * float(outputs.std(unbiased=False)) > 1e-2 * float(slope.abs().max())
    return seen and off <= allowed * float(slope.norm()) and abs(-offset / k - float(target.mean())) <= allowed * spread


def _other_labels(outputs: Tensor, slope: Tensor, target: Tensor, allowed: float) -> Tensor | None:
    """Return the labels that a squared distance pulls toward, where they are the given ones in another order."""
    a, b = float(slope.square().sum()), -2 * float((outputs * slope).sum())
    c = float(outputs.square().sum() - target.square().sum())
    inside = b * b - 4 * a * c
    rows, spread = len(target), target.reshape(len(target), -1).std(0, unbiased=False)
    if not _some(a) or inside < 0 or not bool((spread > 0).all()):
        return None
    wanted, root = target.reshape(rows, -1).sort(0).values, math.sqrt(inside)
    for inverse in ((-b + root) / (2 * a), (-b - root) / (2 * a)):
        found = outputs - inverse * slope
        off = (found.reshape(rows, -1).sort(0).values - wanted).abs()
        if inverse > 0 and bool((off <= allowed * spread).all()):
            return found
    return None
