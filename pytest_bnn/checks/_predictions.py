"""What a subject predicts: the mixture of its passes over classes, its teacher's answer, and labels beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_bnn.checks._knowing import who_knows
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
_NO_LABELS = "the labels are no class for each decision: let {whose} return (images, class indices [{shape}])"
_PRESUMED = "{why}, which is no more than presumed: give labels, the loss, --task or --output"
_ROUNDED = (
    "{count} of {of} labels are of classes to which the outputs give a probability of exactly 0, and it cannot be told "
    "from rounding: let the network return the scores before its softmax or sigmoid, or name that output with --output"
)
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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Labelled:
    """`Predicted` beside the classes ``[N]`` that occurred, each example once; ``rows`` are their numbers.

    ``rows`` are the numbers of the examples; ``known`` says whether the model, and not only its teacher, is right more
    often than by chance.
    """

    predicted: Predicted
    labels: Tensor
    rows: Tensor
    left_out: int
    known: bool

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def mixture(self) -> Mixture:
        return self.predicted.mixture


def predicted(subject: Subject, passes: int) -> Predicted:
    """Return what the model predicts for all examples; computed once for each number of passes.

    Raises:
        NotHereError: The task has no classes, or outputs are not finite.
    """
    known = subject.evaluations.get(f"predicted {passes}")
    if isinstance(known, NotHereError):
        raise known
    if not isinstance(known, Predicted):
        try:
            known = _predicted(subject, passes)
        except NotHereError as error:
            known = error
        subject.evaluations[f"predicted {passes}"] = known
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
            own = _task_of(task, _chosen(task, block, places))
        for one in block:
            mixing.take(own.log_probabilities(_chosen(task, one[None], places)[0]))
    teacher = None
    if subject.teacher is not None:
        teacher = log_shares_of(subject, subject.teacher_output())
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


def labelled(subject: Subject, passes: int) -> Labelled:
    """Return the predictions beside the labels of the examples on which claims about the truth are judged.

    Each distinct example counts once, and labels that are no class of the model's not at all.

    Raises:
        NotHereError: There are no labels of classes, or nobody knows these better than by chance.
    """
    judged, where = evaluated(subject)
    task = judged.task
    given = judged.labels_of(task.field)
    if given is None:
        whose = where or "--data or --evaluation"
        raise NotHereError(
            f"the claim is about the truth, and no labels were given: let {whose} return (images, labels)"
            + ("; those of --data are not of these examples" if where else ""),
            ("labels",),
        )
    with naming(where):
        found = predicted(judged, passes)
    if found.presumed:
        raise NotHereError(found.presumed)
    labels = _classes(judged, given, task)
    if labels is None:
        whose, shape = where or "--data", "[N, ...]" if task.kind == "dense" else "[N]"
        raise NotHereError(
            f"the labels are no class for each decision: let {whose} return (images, class indices {shape}), as whole "
            "numbers"
        )
    kept = repeats(judged.require_images()).first
    classes = found.mixture.log_shares.shape[1]
    kept = kept[(labels[kept] >= 0) & (labels[kept] < classes)]
    if not len(kept):
        raise NotHereError(
            "no label is a class of the model: give class indices from 0, with --data, --evaluation or labels="
        )
    left_out = len(labels) - len(kept)
    _require_exact(found, labels[kept], kept)
    return Labelled(
        predicted=part_of(found, kept),
        labels=labels[kept],
        rows=kept,
        left_out=left_out,
        known=_known(found, labels, kept),
    )


def part_of(found: Predicted, rows: Tensor) -> Predicted:
    """Return the predictions for some of the examples."""
    if torch.equal(rows, torch.arange(len(found.mixture.squares))):
        return found
    teacher = None if found.teacher is None else found.teacher[rows]
    return Predicted(mixture=found.mixture.part(rows), teacher=teacher, task=found.task)


def _known_classes(subject: Subject, passes: int) -> Tensor | None:
    given = subject.labels_of(subject.task.field)
    labels = None if given is None else _classes(subject, given, subject.task)
    if labels is None:
        return None
    found = predicted(subject, passes)
    if bool((labels < 0).any()) or bool((labels >= found.mixture.log_shares.shape[1]).any()):
        return None
    _known(found, labels, repeats(subject.require_images()).first)
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


def calibrated(subject: Subject, passes: int) -> Labelled:
    """Return `labelled` predictions of a model that knows the labels, so that it can be rightly sure of them.

    Raises:
        NotHereError: As `labelled` does, and where the teacher knows the labels and the model does not.
    """
    found = labelled(subject, passes)
    if not found.known:
        raise NotHereError(
            "the model is right on the labels no more often than by chance, and its teacher is: that is no matter of "
            "how sure it is, see teacher.agreement and scores.against_teacher"
        )
    return found


def passes_known(subject: Subject) -> int | None:
    """Return of how many passes the predictions are known already, the most there are; None where none are."""
    keys = [key.removeprefix("predicted ") for key, kept in subject.evaluations.items() if isinstance(kept, Predicted)]
    return max((int(key) for key in keys), default=None)


def log_shares_of(subject: Subject, outputs: Tensor) -> Tensor:
    """Return the log probabilities ``[N, C]`` in other outputs on all examples, of the decisions of `predicted`."""
    task = subject.task
    outputs = judged_field(outputs.detach().cpu(), subject.fields, task.field)
    chosen = _chosen(task, outputs[None], _places(task, outputs, subject.seed))[0]
    found = _task_of(task, chosen).log_probabilities(chosen)
    return found.double() if found.numel() <= SMALL else found.float()


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


def _classes(subject: Subject, given: object, task: Task) -> Tensor | None:
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


def ruled_out(log_shares: Tensor, labels: Tensor) -> int:
    """Return how many labels are of classes that have no probability at all."""
    return int(torch.isneginf(log_shares.gather(1, labels[:, None])).sum())


def _require_exact(found: Predicted, labels: Tensor, kept: Tensor) -> None:
    """Refuse labels of a probability that may be 0 for want of digits."""
    count = ruled_out(found.mixture.log_shares[kept], labels) if found.task.shares else 0
    if count:
        raise NotHereError(_ROUNDED.format(count=count, of=len(kept)))


def _known(found: Predicted, labels: Tensor, kept: Tensor) -> bool:
    """Say whether the model knows the labels, and refuse those that neither it nor its teacher does.

    What is not known cannot be known rightly sure.
    """
    teacher = None if found.teacher is None else found.teacher[kept]
    who = who_knows(found.mixture.log_shares[kept], teacher, labels[kept])
    if who is None:
        raise NotHereError(
            "neither the model nor its teacher is right on the labels more often than by chance, so that there is "
            "nothing learned to be sure of: see data.sane, and give labels that the model was trained for (--data, "
            "--evaluation)"
        )
    return who == "model"


def in_two_looks(judge: Callable[[int], Finding], passes: int, first: int = FIRST) -> Finding:
    """Judge by the mean of the ``first`` few passes, and by that of ``passes`` before anything is accused."""
    found = judge(min(first, passes))
    accuses = found.verdict in (Verdict.FAIL, Verdict.WARN)
    return judge(passes) if accuses and passes > first else found
