"""A network's answers beside the labels of the examples, where both are classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_bnn.tasks.task import Task


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a network says of examples whose class is known, one row for each.

    Attributes:
        said: The class that it says ``[N]``.
        sure: The probability that it gives to that class ``[N]``.
        labels: The class that it is ``[N]``.
        classes: How many classes the network knows.
    """

    said: Tensor
    sure: Tensor
    labels: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> Answers:
        """Return some of the rows."""
        return Answers(self.said[rows], self.sure[rows], self.labels[rows], self.classes)

    @property
    def right(self) -> int:
        """How many answers are the label."""
        return int((self.said == self.labels).sum())

    @property
    def said_counts(self) -> Tensor:
        """How often it says each class."""
        return torch.bincount(self.said, minlength=self.classes)

    @property
    def label_counts(self) -> Tensor:
        """How often each class occurs."""
        return torch.bincount(self.labels, minlength=self.classes)


def answers_of(task: Task, outputs: Tensor, labels: Any, rows: Tensor) -> Answers | None:
    """Return a network's answers beside the labels of some examples; None where these are no classes.

    Args:
        task: What the outputs mean.
        outputs: Those of all examples, ``[N, classes]``, or one number each for two classes.
        labels: What was given as labels; entries that are no class of the network's are left out.
        rows: The numbers of the examples that count.
    """
    indices = class_labels(labels, len(outputs))
    if indices is None or task.kind not in ("classification", "binary"):
        return None
    shares = task.probabilities(outputs.detach().cpu())
    rows = rows[(indices[rows] >= 0) & (indices[rows] < shares.shape[-1])]
    sure, said = shares[rows].double().max(-1)
    return Answers(said, sure, indices[rows], shares.shape[-1])


def class_labels(labels: Any, rows: int) -> Tensor | None:
    """Return labels as indices of classes ``[N]``, on the CPU; None where they are something else."""
    if not isinstance(labels, Tensor) or labels.is_complex() or not labels.ndim or len(labels) != rows:
        return None
    flat = labels.detach().cpu()
    flat = flat.squeeze(-1) if flat.ndim == 2 and flat.shape[1] == 1 else flat
    if flat.ndim != 1 or (flat.is_floating_point() and not bool(((flat == 0) | (flat == 1)).all())):
        return None
    return flat.long()
