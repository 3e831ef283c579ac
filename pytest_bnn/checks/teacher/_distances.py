"""How far what the network says is from what the teacher says, beyond the leading class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks.noise._scale import without_noise
from pytest_bnn.checks.teacher._items import Votes, shares_of
from pytest_bnn.checks.teacher._medians import Numbers
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import judged_field
from pytest_bnn.network.comparing import difference, tolerance
from pytest_bnn.records.evidence import Measurement
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import Task

#: A relation is shown where it explains this share of the variance of the outputs.
_EXPLAINED = 0.98


@dataclass(frozen=True, slots=True)
class Distance:
    """Total variation of probabilities to the teacher's, mean over items.

    Attributes:
        mean: That of the mean prediction.
        calm: That of the network at its posterior mean: what the noise does not explain.
        surer: Whether the network at its mean is as sure of the teacher's class as the teacher, or of the labels.
        scale: By how much its scores are the teacher's, in words; empty where the outputs are no scores.
    """

    mean: float
    calm: float
    surer: bool
    scale: str

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """For the evidence."""
        return (
            Measurement(
                name="distance of probabilities", value=self.mean, note="total variation of the mean prediction"
            ),
            Measurement(
                name="distance without noise", value=self.calm,
                note="total variation at the posterior mean" + (f"; {self.scale}" if self.scale else ""),
            ),
        )  # fmt: skip


def distance_of(subject: Subject, items: Votes, teacher: Tensor, task: Task, labels: Tensor | None) -> Distance | None:
    """Measure how far probabilities are from the teacher's, where the mean prediction agrees in the leading class.

    None where it agrees nowhere, and where the network has no posterior mean: nothing in it is Bayesian, or what it
    says with every sigma at 0 still varies.

    Args:
        subject: What is judged.
        items: What was judged.
        teacher: The teacher's outputs, ``[N, ...]``.
        task: What they mean.
        labels: The class of each example, where it is known.
    """
    agreeing = items.agreeing
    if not bayesian_layers(subject.model) or not bool(agreeing.any()):
        return None
    whole = without_noise(subject)
    if not 0 <= difference(whole, without_noise(subject, again=True)) <= tolerance(torch.empty(0)):
        return None
    outputs = judged_field(whole, subject.fields, task.field).cpu()
    calm = shares_of(items.task, outputs, 0).double()[items.chosen][agreeing]
    expected = items.expected[agreeing]
    rows = torch.arange(len(expected))
    leaders = expected.argmax(1) if labels is None else labels[items.chosen][agreeing]
    surer = bool(calm[rows, leaders].mean() >= expected[rows, leaders].mean())
    scores = not task.shares and not items.task.shares
    return Distance(
        mean=_total_variation(items.mean[agreeing], expected),
        calm=_total_variation(calm, expected),
        surer=surer,
        scale=_scale(teacher.double(), outputs.double(), task) if scores else "",
    )


def agreement_without_noise(subject: Subject, items: Votes, task: Task) -> float:
    """Return the share of items on which the network at its posterior mean has the teacher's leading class."""
    outputs = judged_field(without_noise(subject), subject.fields, task.field).cpu()
    leaders = shares_of(items.task, outputs, 0)[items.chosen].argmax(1)
    return float((leaders == items.expected.argmax(1)).double().mean())


def _total_variation(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().sum(1).mean() / 2)


def _scale(teacher: Tensor, outputs: Tensor, task: Task) -> str:
    if teacher.shape != outputs.shape:
        return ""
    dim = (-1 if task.classes_last else 1) if task.kind == "dense" else -1
    kept = torch.isfinite(teacher) & torch.isfinite(outputs) & (teacher.abs() < 1e8)
    one, other = torch.where(kept, teacher, 0.0), torch.where(kept, outputs, 0.0)
    if task.kind != "binary" and teacher.shape[dim] > 1:
        number = kept.sum(dim, keepdim=True).clamp_min(1)
        one = torch.where(kept, one - one.sum(dim, keepdim=True) / number, 0.0)
        other = torch.where(kept, other - other.sum(dim, keepdim=True) / number, 0.0)
    square = float((one * one).sum() * (other * other).sum())
    if not square:
        return ""
    slope = float((one * other).sum() / (one * one).sum())
    return (
        f"its scores are {slope:.3g} times the teacher's (correlation {float((one * other).sum()) / square**0.5:.3g})"
    )


def relation(items: Numbers) -> tuple[str, bool]:
    """Say how typical outputs of a regression follow the teacher's where they are far, and whether the other way.

    Empty where no line explains them.
    """
    far = ((items.median - items.expected).abs() > items.allowed).sum(0)
    column = int(far.argmax())
    x, y = items.expected[:, column], items.median[:, column]
    if len(x) < 3 or not float(x.std()) or not float(y.std()):
        return "", False
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    correlation = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    if correlation**2 < _EXPLAINED:
        return "", False
    name = f"output {column} (from 0) is" if items.expected.shape[1] > 1 else "the outputs are"
    offset = float(y.mean() - slope * x.mean())
    words = f"{name} {slope:.3g} times the teacher's {'+' if offset >= 0 else '-'} {abs(offset):.3g}"
    return f"{words} (correlation {correlation:.3g})", slope < 0
