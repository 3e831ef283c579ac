"""What a subject predicts: the mixture of its passes over classes, and its teacher's answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_bnn.checks._knowing import Answers, require_known
from pytest_bnn.checks._remembered import remembered
from pytest_bnn.checks.finding import Finding, NotHereError
from pytest_bnn.data.repeats import repeats
from pytest_bnn.errors import InputError
from pytest_bnn.network.calling import ForwardError, judged_field
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.sampling.mixture import SMALL, Mixing, Mixture
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.answers import class_labels
from pytest_bnn.tasks.task import Task, are_shares

#: Passes of a first look at predictions: a mean of so many errs by a fraction of what some hundred labels leave open.
FIRST = 8

#: Passes before anything is accused: the mean of few is surer of itself than that of many, where passes differ.
PASSES = 64

#: The share of the largest entropy from which on a model says nothing of its examples.
_UNSURE = 0.98

_NO_CLASSES = (
    "the claim is about the probabilities of classes, and the task is regression: say --task classification where the "
    "outputs are scores of classes (binary where one number is), or --output NAME where another output has them"
)
_PRESUMED = "{why}, which is no more than presumed: give labels, the loss, --task or --output"
_NOT_FINITE = "outputs are NaN or infinite in some passes: see noise.varies; load or train the weights again"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Predicted:
    """The predictions for ``N`` decisions: one an example, or for dense outputs one place of each, by a seeded choice.

    Attributes:
        mixture: The passes of the model.
        teacher: Log probabilities of the teacher, ``[N, C]``; None without a teacher.
        task: What the outputs mean. Where they are probabilities already, one of 0 may have been rounded to it.
    """

    mixture: Mixture
    teacher: Tensor | None
    task: Task

    @property
    def presumed(self) -> str:
        """Why no model may fail on these: that they are about classes is a presumption; empty where it is known."""
        return "" if self.task.proven else _PRESUMED.format(why=self.task.why)


def predicted(subject: Subject, passes: int) -> Predicted:
    """Return what the model predicts for all examples; computed once for each number of passes.

    Raises:
        NotHereError: The task has no classes, or outputs are not finite.
    """

    def find() -> Predicted | NotHereError:
        try:
            return _predicted(subject, passes)
        except NotHereError as error:
            return error

    known = remembered(subject, f"predicted {passes}", find)
    if isinstance(known, NotHereError):
        raise known
    return known


def _predicted(subject: Subject, passes: int) -> Predicted:
    task = subject.task
    if task.kind == "unknown":
        raise NotHereError(task.why)
    if task.kind == "regression":
        raise NotHereError(_NO_CLASSES)
    mixing, places, own = Mixing(), None, None
    for drawn in subject.bank.blocks(0, passes):
        block = judged_field(drawn.detach().cpu(), subject.fields, task.field)
        if bool(torch.isnan(block).any()) or bool(torch.isposinf(block).any()):
            raise NotHereError(_NOT_FINITE)
        if own is None:
            places = _places(task, block[0], subject.seed)
            own = _read_as(subject)[0] or _task_of(task, _chosen(task, block, places))
        for one in block:
            mixing.take(own.log_probabilities(_chosen(task, one[None], places)[0]))
    teacher = None
    if subject.teacher is not None:
        teacher = log_shares_of(subject, subject.teacher_output(), _read_as(subject)[1])
    mixture = mixing.result()
    known = teacher is not None and teacher.shape == mixture.log_shares.shape
    return Predicted(mixture=mixture, teacher=teacher if known else None, task=own or task)


def _task_of(task: Task, outputs: Tensor) -> Task:
    """Return the task of one decision an example; whoever gives probabilities is read so."""
    if task.kind == "dense":
        one: Task = replace(task, kind="binary" if outputs.shape[-1] == 1 else "classification")
        return replace(one, shares=task.shares)
    return replace(task, shares=are_shares(outputs)) if task.kind == "classification" else task


def _places(task: Task, outputs: Tensor, seed: int) -> Tensor | None:
    """Choose one place of each example of dense outputs: those of one example do not err independently."""
    if task.kind != "dense":
        return None
    count = task.places(outputs[None], 1).shape[-2] // len(outputs)
    return torch.randint(count, (len(outputs),), generator=torch.Generator().manual_seed(seed))


def _chosen(task: Task, outputs: Tensor, places: Tensor | None) -> Tensor:
    """Return ``[passes, N, ...]`` of one decision an example."""
    if places is None:
        return outputs
    scores: Tensor = task.places(outputs, 1).unflatten(1, (len(places), -1))
    return scores[:, torch.arange(len(places)), places]


def evaluated(subject: Subject) -> tuple[Subject, str]:
    """Return the subject on the examples with labels, and the option that gave these; empty for its own.

    Raises:
        NotHereError: There are none, or what the outputs mean is not known.
    """
    with naming("--evaluation"):
        judged = subject.evaluated
        missing = judged.images is None
    if missing:
        raise NotHereError("the claim is about labelled examples: give them with --data or --evaluation", ("labels",))
    where = "" if judged is subject else "--evaluation"
    with naming(where):
        task = judged.task
    if task.kind == "unknown":
        raise NotHereError(task.why)
    return judged, where


def part_of(found: Predicted, rows: Tensor) -> Predicted:
    """Return the predictions for some of the examples."""
    if torch.equal(rows, torch.arange(len(found.mixture.squares))):
        return found
    teacher = None if found.teacher is None else found.teacher[rows]
    return Predicted(mixture=found.mixture.part(rows), teacher=teacher, task=found.task)


def _known_classes(subject: Subject, passes: int) -> Tensor | None:
    given = subject.labels_of(subject.task.field)
    labels = None if given is None else classes_of(subject, given, subject.task)
    if labels is None:
        return None
    found = predicted(subject, passes)
    if bool((labels < 0).any()) or bool((labels >= found.mixture.log_shares.shape[1]).any()):
        return None
    rows = repeats(subject.require_images()).first
    teacher = None if found.teacher is None else Answers.of(found.teacher[rows], labels[rows])
    require_known(Answers.of(found.mixture.log_shares[rows], labels[rows]), teacher)
    return labels


def learned_classes(subject: Subject, passes: int) -> Tensor | None:
    """Return the class of each of a subject's own examples ``[N]``; None where labels do not say it for all.

    Raises:
        NotHereError: Nobody knows the labels, or the model is about as unsure of its examples as it can be: it has not
            learned what could be told from something else.
    """
    labels = _known_classes(subject, passes)
    mixture = predicted(subject, passes).mixture
    most = math.log(mixture.log_shares.shape[1])
    typical = float(mixture.entropy.median())
    if typical >= _UNSURE * most:
        raise NotHereError(
            f"the model is as unsure of its own examples as it can be (an entropy of {typical:.3g} nats, {most:.3g} at "
            "most), so that nothing can make it less sure: train it first"
        )
    return labels


def passes_known(subject: Subject) -> int | None:
    """Return of how many passes the predictions are known already, the most there are; None where none are."""
    keys = [key.removeprefix("predicted ") for key, kept in subject.evaluations.items() if isinstance(kept, Predicted)]
    return max((int(key) for key in keys), default=None)


def log_shares_of(subject: Subject, outputs: Tensor, read_as: Task | None = None) -> Tensor:
    """Return the log probabilities ``[N, C]`` in other outputs on all examples, of the decisions of `predicted`.

    Args:
        subject: Whose outputs they might be.
        outputs: Of all examples.
        read_as: The task of one decision; told from the outputs when None.
    """
    chosen = _decisions(subject, outputs)
    found = (read_as or _task_of(subject.task, chosen)).log_probabilities(chosen)
    return found.double() if found.numel() <= SMALL else found.float()


def _decisions(subject: Subject, outputs: Tensor) -> Tensor:
    outputs = judged_field(outputs.detach().cpu(), subject.fields, subject.task.field)
    return _chosen(subject.task, outputs[None], _places(subject.task, outputs, subject.seed))[0]


def tasks_of(subject: Subject) -> tuple[Task | None, Task | None]:
    """Return how the outputs of the model and of its teacher are read: as scores, or as probabilities already.

    Raises:
        NotHereError: As in `predicted`.
    """
    its = None if subject.teacher is None else _task_of(subject.task, _decisions(subject, subject.teacher_output()))
    return predicted(subject, 1).task, its


def read_as(subject: Subject, tasks: tuple[Task | None, Task | None]) -> Subject:
    """Let a subject's outputs be read as those of `tasks_of` another one, however few examples it has; return it."""
    subject.evaluations["read as"] = tasks
    return subject


def _read_as(subject: Subject) -> tuple[Task | None, Task | None]:
    known = subject.evaluations.get("read as")
    return known if isinstance(known, tuple) else (None, None)


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Say of examples that cannot be used by which option they were given; those of --data speak for themselves."""
    try:
        yield
    except (InputError, ForwardError) as error:
        if not option:
            raise
        why = error.problem if isinstance(error, InputError) else f"the model does not accept them ({error})"
        fix = f"{option} MODULE:FACTORY has to give examples of the form of --data, such as the networks accept"
        raise InputError(f"{option}: {why}", fix=fix) from error


def classes_of(subject: Subject, given: object, task: Task) -> Tensor | None:
    rows = len(subject.require_images())
    if task.kind != "dense":
        return class_labels(given, rows)
    if not isinstance(given, Tensor) or len(given) != rows or given.is_complex():
        return None
    if given.is_floating_point() and not bool(((given == 0) | (given == 1)).all()):
        return None
    places = _places(
        task, judged_field(subject.forward_once().detach().cpu(), subject.fields, task.field), subject.seed
    )
    flat = given.detach().cpu().reshape(rows, -1)
    if places is None or flat.shape[1] <= int(places.max()):
        return None
    return flat[torch.arange(rows), places].long()


def in_two_looks(judge: Callable[[int], Finding], passes: int, first: int = FIRST) -> Finding:
    """Judge by the mean of the ``first`` few passes, and by that of ``passes`` before anything is accused."""
    found = judge(min(first, passes))
    accuses = found.spared or found.verdict in (Verdict.FAIL, Verdict.WARN)
    return judge(passes) if accuses and passes > first else found
