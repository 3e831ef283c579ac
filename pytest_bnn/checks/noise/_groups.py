"""The numbers of an output that share one scale: all of a tensor, or each of a regression's, whose units may differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks.noise._pairs import Pairs, parts_of
from pytest_bnn.checks.noise._scale import Scale, scales_of
from pytest_bnn.subject import Subject

#: More numbers of one example than this are pixels, or places of something else, in one unit.
MOST_NUMBERS = 16

#: Examples from which the scale of each number can be told; fewer have one scale together.
_ENOUGH = 8

#: What varies over the examples by less than this many roundings of its size is a constant.
_CONSTANT = 100


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Numbers that are judged together.

    Attributes:
        name: As a message calls them; empty where they are all that there is.
        columns: Which of the numbers of an example they are; all when None.
        scale: What noise is lost beside: what the network says about the examples without noise.
        most: What noise must not exceed: the same, or what the teacher or the labels say where that is more.
    """

    name: str
    columns: Tensor | None
    scale: Scale
    most: Scale

    def spreads(self, pairs: Pairs, *, most: bool) -> Tensor:
        """Return the spread of each image in each pair of passes, ``[pairs, images]``, by one of the two scales.

        Args:
            pairs: What passes say two by two, summed up by `group_parts`.
            most: By `most`, and not by `scale`.
        """
        return pairs.spreads(self.most if most else self.scale, self.columns)


@dataclass(frozen=True, slots=True)
class Grouped:
    """All groups of an output.

    Attributes:
        groups: What is judged.
        constant: The names of numbers that are in none, since they have no scale.
        parts: What `Pairs` sums up apart, so that each group can be told from the others.
    """

    groups: tuple[Group, ...]
    constant: tuple[str, ...]
    parts: tuple[slice, ...]


def group_parts(subject: Subject, calm: Tensor) -> tuple[slice, ...]:
    """Return which numbers of an output may be in groups of their own: those of a regression, and other tensors.

    Args:
        subject: What is judged.
        calm: What the network says without noise, ``[N, ...]``.
    """
    columns = _numbers(subject, calm)
    others = [part for part in parts_of(subject) if part.start not in columns]
    return (*sorted([*others, *(slice(c, c + 1) for c in columns)], key=lambda part: int(part.start)),)


def grouped(subject: Subject, calm: Tensor, live: Tensor) -> Grouped:
    """Group the numbers of an output: those of a regression one by one, all others by their tensors.

    Args:
        subject: What is judged.
        calm: What the network says without noise, ``[N, ...]``, in float64.
        live: Which numbers vary with the noise.
    """
    rows = calm.flatten(1) if calm.ndim > 1 else calm[:, None]
    whole = scales_of(calm, subject.fields, live)
    columns, parts = _numbers(subject, calm), group_parts(subject, calm)
    together = Grouped((Group("", None, whole, whole),), (), parts)
    if not columns or len(calm) < _ENOUGH:
        return together
    groups, constant = [], []
    others = [column for column in range(rows.shape[1]) if column not in columns]
    said = _said(subject, columns)
    for place, column in enumerate(columns):
        name = _name(subject, place, len(columns))
        own = rows[:, column]
        spread = float(own.std())
        rounding = _CONSTANT * torch.finfo(torch.float32).eps * float(own.abs().max())
        if not spread > rounding or not bool(live.flatten(1)[:, column].any() if live.ndim > 1 else live.any()):
            constant.append(name)
            continue
        most = max([spread, *(float(values[:, place].std()) for values in said)])
        groups.append(Group(name, torch.tensor([column]), spread, most))
    if others:
        scale = whole[others] if isinstance(whole, Tensor) else whole
        groups.append(Group("the other outputs", torch.tensor(others), scale, scale))
    return Grouped(tuple(groups), tuple(constant), parts) if groups else together


def _numbers(subject: Subject, calm: Tensor) -> list[int]:
    """Return the numbers of an example that a regression is about, where each may have a unit of its own."""
    # Labels, loss and names of outputs are asked only where they can matter.
    numbers = calm[0].numel()
    few = [field for field in subject.fields if field.size <= MOST_NUMBERS]
    if (not few and numbers > MOST_NUMBERS) or subject.task.kind != "regression":
        return []
    start = 0
    for field in subject.fields:
        if len(subject.fields) > 1 and field.name != subject.task.field:
            start += field.size
            continue
        return [*range(start, start + field.size)] if field.size <= MOST_NUMBERS and len(field.shape) < 2 else []
    return [*range(numbers)] if numbers <= MOST_NUMBERS and calm.ndim < 3 else []


def _said(subject: Subject, columns: list[int]) -> list[Tensor]:
    """Return the teacher's answers and the labels for the same numbers, ``[N, numbers]``, where they compare."""
    found = []
    if subject.teacher is not None:
        answers = subject.teacher_output().detach().double()
        answers = answers.reshape(len(answers), -1)
        if columns and answers.shape[1] > max(columns):
            found.append(answers[:, columns])
    labels = subject.labels
    if isinstance(labels, Tensor) and not labels.is_complex() and len(labels):
        values = labels.double().reshape(len(labels), -1)
        if values.shape[1] == len(columns):
            found.append(values)
    return [values for values in found if len(values) > 1 and bool(torch.isfinite(values).all())]


def _name(subject: Subject, place: int, count: int) -> str:
    field = subject.task.field
    if count == 1:
        return f"the output {field}" if field and len(subject.fields) > 1 else ""
    return f"output {field + '.' if field and len(subject.fields) > 1 else ''}{place} of {count} (from 0)"
