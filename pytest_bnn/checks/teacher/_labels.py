"""Labels beside the teacher's answers: where the teacher contradicts them, it is no reference for a trained network."""

from __future__ import annotations

from torch import Tensor

from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import Task

#: A teacher that is right less often than this is no judge of its labels, nor they of it.
_RIGHT = 0.5


def classes_given(subject: Subject, task: Task, count: int) -> Tensor | None:
    """Return the class of each example by its label, ``[N]``; None where labels are no classes of whole examples."""
    labels = subject.labels_of(task.field)
    if task.kind not in ("classification", "binary") or not isinstance(labels, Tensor) or labels.is_complex():
        return None
    flat = labels.detach().cpu().reshape(-1)
    if len(flat) != count or len(labels) != count or not bool((flat == flat.round()).all()) or bool((flat < 0).any()):
        return None
    return flat.long()


def kept_by_labels(subject: Subject, task: Task, teacher: Tensor, labels: Tensor | None) -> Tensor | None:
    """Say which images of a fine-tuned model are judged: those on which the teacher is right; None for all."""
    if subject.stage != "finetuned" or labels is None:
        return None
    right = task.probabilities(teacher).argmax(-1).reshape(-1) == labels
    return right if _RIGHT <= float(right.double().mean()) < 1 else None
