"""Pulls toward targets that share their weight among the classes: labels that were smoothed, a teacher's shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pytest_bnn.tasks.pull import FULL, Form, Pull

_TEMPERATURES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 16.0, 20.0)


def smoothed(shares: Tensor, slope: Tensor, labels: Tensor, live: Tensor, allowed: float) -> Pull | None:
    """Tell the pull of a cross-entropy toward smoothed labels; None where the rows that are ``live`` have another."""
    classes = shares.shape[1]
    usable = live & (labels >= 0)
    wanted = torch.nn.functional.one_hot(labels.clamp_min(0), classes).double()
    found = _solved([shares - wanted, wanted - 1 / classes], slope, usable, allowed) if bool(usable.any()) else None
    if found is None or not 0 < found[1] / (found[0] or torch.inf) < 1:
        return None
    scale = torch.where(usable, found[0], torch.nan)
    return Pull(form="smoothed labels", sign=1 if found[0] > 0 else -1, scale=scale, rows=int((labels >= 0).sum()))


def distilled(
    outputs: Tensor, slope: Tensor, labels: Tensor | None, teacher: Tensor | None, live: Tensor, allowed: float
) -> Pull:
    """Tell a pull toward the teacher's shares at a temperature, with or without a part toward the labels."""
    if teacher is None or teacher.shape != outputs.shape:
        return Pull()
    hard: list[Tensor] = []
    if labels is not None and bool((labels >= 0).all()):
        hard = [torch.softmax(outputs, 1) - torch.nn.functional.one_hot(labels, outputs.shape[1]).double()]
    for temperature in _TEMPERATURES:
        soft = torch.softmax(outputs / temperature, 1) - torch.softmax(teacher / temperature, 1)
        found = _solved([soft], slope, live, allowed)
        if found is None and hard:
            found = _solved([soft, *hard], slope, live, allowed)
        if found is None:
            continue
        scale = torch.where(live, sum(found), torch.nan)
        # T^2 KL(softmax(t / T), softmax(o / T)) pulls by T (softmax(o / T) - softmax(t / T)); without T^2 by 1 / T.
        lost = temperature > 1 and len(found) == 1 and _is_whole(1 / (abs(found[0]) * len(outputs)), temperature)
        form: Form = "distillation without T^2" if lost else "distillation"
        return Pull(
            form=form, sign=_sign_of_all(found), scale=scale if temperature == 1 else None,
            temperature=temperature, rows=len(outputs),
        )  # fmt: skip
    return Pull()


def _solved(parts: Sequence[Tensor], slope: Tensor, live: Tensor, allowed: float) -> list[float] | None:
    """Return the factors of some directions, the same in all rows; None where they do not explain the slope."""
    basis = torch.stack([part[live].flatten() for part in parts], 1)
    wanted = slope[live].flatten()
    found = torch.linalg.lstsq(basis, wanted[:, None]).solution[:, 0]
    if not bool(torch.isfinite(found).all()):
        return None
    off = float((wanted - basis @ found).norm() / wanted.norm())
    return [float(value) for value in found] if off <= allowed else None


def _sign_of_all(factors: Sequence[float]) -> int:
    """Return the sign that all factors have; 0 where they differ, as those of two directions that are nearly one do."""
    return 1 if all(value > 0 for value in factors) else -1 if all(value < 0 for value in factors) else 0


def _is_whole(value: float, wanted: float) -> bool:
    return abs(value / wanted - 1) <= FULL
