"""``data.sane``: what the examples and labels can carry, and whether the teacher knows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_bnn.checks.check import check
from pytest_bnn.checks.data._knowledge import (
    best_possible,
    chance,
    claimed_wrongly,
    is_at_chance,
    other_order,
    says_the_commonest,
)
from pytest_bnn.checks.finding import Finding
from pytest_bnn.data.repeats import Repeats, repeats
from pytest_bnn.errors import InputError
from pytest_bnn.network.calling import ForwardError, field_of
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.counts import chance_of_order
from pytest_bnn.stats.intervals import clopper_pearson_lower, clopper_pearson_upper
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.answers import Answers, answers_of, class_labels

#: Fewer labels than these say nothing about which classes there are, and are no reason for a warning.
_FEW = 20

_PREPROCESSING = (
    "look at the preprocessing of the examples first (normalisation, scale, order of channels, size: it has to be that "
    "of the teacher's training), then at the order of the classes, then at whether each label is its own example's"
)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Something that is amiss, from the worst to the least."""

    verdict: Verdict
    said: str
    remedy: str
    threshold: Threshold | None = None


@check(
    claim="The examples are no copies of each other, and where there are labels they have several classes, which the "
    "teacher knows.",
    needs=("images",),
    sampled=True,
    after="gradient.samples",
)
def sane(subject: Subject, *, budget: Budget) -> Finding:
    """Measure what the data can carry: distinct examples and classes, and whether the teacher knows the labels.

    Fails where the teacher cannot be right on nearly as many labels as it claims to be, however they are paired, and
    where the labels fit its classes in another order; both with the budget's ``alpha``, as if the distinct examples
    were a random sample. Warns where its answers are no better than chance, where all examples are one, or copies, and
    where the labels have one class, or are sorted and the last classes are missing. A low accuracy alone is no fault:
    problems may be hard, labels noisy, classes rare.

    Args:
        subject: images, at least; teacher and labels; see `Subject`.
        budget: Error rates; those in force when None.

    Source: the Poisson-binomial distribution; Clopper and Pearson 1934; the sign test.
    """
    return _find(subject, budget)


measure_data_sane, assert_data_sane = sane.measure, sane.assert_


def _find(subject: Subject, budget: Budget) -> Finding:
    found = repeats(subject.require_images())
    outputs = _teacher(subject)
    labels = class_labels(subject.labels, found.rows)
    if outputs is not None and subject.task.kind not in ("classification", "binary"):
        labels = None
    answers = None
    if labels is not None and outputs is not None:
        answers = answers_of(subject.task, outputs, labels, found.first)
    beside = _evaluated(subject)
    each = budget.split(1 if beside is None else 2)
    problems = [*_of_answers(answers, each), *_of_evaluation(beside, each), *_of_outputs(outputs, answers, found)]
    problems += [*_of_examples(found), *_of_labels(labels, answers)]
    problems.sort(key=lambda problem: problem.verdict is not Verdict.FAIL)
    given = subject.labels is not None
    headline = problems[0].said if problems else _sound(found, labels, answers, given=given)
    return Finding(
        verdict=problems[0].verdict if problems else Verdict.PASS,
        headline=headline,
        measurements=tuple(_measurements(found, labels, answers)),
        threshold=problems[0].threshold if problems else None,
        remedy=problems[0].remedy if problems else "",
        notes=tuple(problem.said for problem in problems[1:]),
        certainty=_certainty(answers, budget),
    )


def _evaluated(subject: Subject) -> Answers | None:
    """Return the teacher's answers to labelled examples that are given beside the data; None where there are none."""
    try:
        other = subject.evaluated
        if other is subject or other.images is None or (outputs := _teacher(other)) is None:
            return None
        if other.task.kind not in ("classification", "binary"):
            return None
        found = repeats(other.require_images())
    except (InputError, ForwardError):  # claims about predictions say what is wrong with them
        return None
    labels = class_labels(other.labels, found.rows)
    return None if labels is None else answers_of(other.task, outputs, labels, found.first)


def _of_evaluation(answers: Answers | None, budget: Budget) -> Iterator[_Problem]:
    for problem in _of_answers(answers, budget):
        yield replace(problem, said=f"of the examples of --evaluation: {problem.said}")


def _teacher(subject: Subject) -> Tensor | None:
    """Return the teacher's output that the task is about; all of them where it is about none."""
    if subject.teacher is None:
        return None
    outputs, fields = subject.teacher_output().detach().cpu(), subject.fields
    known = subject.task.field in {field.name for field in fields}
    whole = outputs.shape[-1] == sum(field.size for field in fields)
    return field_of(outputs, fields, subject.task.field) if known and whole else outputs


def _of_answers(answers: Answers | None, budget: Budget) -> Iterator[_Problem]:
    """Judge the teacher's answers: the two ways of failing share alpha."""
    if answers is None or not len(answers):
        return
    n, right = len(answers), answers.right
    if moved := other_order(answers, budget.alpha / 2):
        said = answers.said.clone()
        for old, new in moved.items():
            said[answers.said == old] = new
        pairs = ", ".join(f"its {old} is the labels' {new}" for old, new in sorted(moved.items())[:4])
        yield _Problem(
            Verdict.FAIL,
            f"the labels count the classes in another order than the teacher: {pairs}; it is right on {right} of {n} "
            f"labels as they are, and on {int((said == answers.labels).sum())} in that order",
            "bring labels and outputs into one order: classes sorted by name are in another order than those of a "
            "list, and folders 10, 2, 1 in another than numbers",
            Threshold(
                quantity="answers that are the label, in the order that was given",
                observed=right,
                relation=">=",
                allowed=int((said == answers.labels).sum()),
            ),
        )
        return
    guess = chance(answers)
    if claimed_wrongly(answers) <= budget.alpha / 2:
        top = int(answers.said_counts.argmax())
        yield _Problem(
            Verdict.FAIL,
            f"the teacher says class {top} for {int(answers.said_counts[top])} of {n} examples and is sure of it (it "
            f"gives its answers a probability of {float(answers.sure.mean()):.3g}), while the labels have "
            f"{int((answers.label_counts > 0).sum())} classes: it is right on {right}, and on "
            f"{best_possible(answers)} at most, were its answers given to the examples that they fit best; chance is "
            f"{n * guess:.3g}",
            _PREPROCESSING,
            Threshold(
                quantity="answers that can be right, however they are paired",
                observed=best_possible(answers),
                relation=">=",
                allowed=round(float(answers.sure.sum()) / 2),
                unit="(half of what the teacher claims)",
            ),
        )
    elif n >= _FEW and is_at_chance(answers, budget):
        yield _Problem(
            Verdict.WARN,
            f"the teacher is right on {right} of {n} labels, no better than chance ({n * guess:.3g}): what agrees with "
            "it knows no more",
            _PREPROCESSING,
        )


def _of_outputs(outputs: Tensor | None, answers: Answers | None, found: Repeats) -> Iterator[_Problem]:
    """Judge a teacher that says one thing, whatever the labels are."""
    if outputs is None or found.distinct < 2 or (answers is not None and says_the_commonest(answers)):
        return
    rows = outputs[found.first].reshape(found.distinct, -1)
    if bool((rows == rows[:1]).all()):
        yield _Problem(
            Verdict.WARN,
            f"the teacher gives one output for all of {found.distinct} distinct examples: to agree with it shows "
            "nothing",
            "look at the teacher's weights and at the scale of the examples: its units may all be dead or saturated",
        )


def _of_examples(found: Repeats) -> Iterator[_Problem]:
    if not found.copied:
        return
    said = (
        f"all {found.rows} examples are one and the same"
        if found.distinct == 1
        else f"the {found.rows} examples are {found.distinct}, each of them {found.rows // found.distinct} times"
    )
    yield _Problem(
        Verdict.WARN,
        f"{said}: what holds for them is shown for {found.distinct}, and for no population",
        "give distinct examples, and leave repeating them to the loop over passes",
    )


def _of_labels(labels: Tensor | None, answers: Answers | None) -> Iterator[_Problem]:
    if labels is None or len(labels) < _FEW:
        return
    counts = torch.bincount(labels[labels >= 0])
    classes = int((counts > 0).sum())
    if classes == 1:
        yield _Problem(
            Verdict.WARN,
            f"all {len(labels)} labels are class {int(counts.argmax())}: nothing here is about another class",
            "give examples of all classes: the first ones of a sorted data set are all of one; shuffle, then take some",
        )
        return
    if answers is None or not classes:
        return
    last = int(labels.max())
    in_order = bool((labels[1:] >= labels[:-1]).all())
    if in_order and last < answers.classes - 1 and chance_of_order(counts.tolist()) < 1e-6:
        yield _Problem(
            Verdict.WARN,
            f"the labels are sorted and end at class {last} of {answers.classes}: these are the first ones of a sorted "
            "data set, and the last classes never occur",
            "shuffle the data set, then take some, or give all of it",
        )


def _sound(found: Repeats, labels: Tensor | None, answers: Answers | None, *, given: bool) -> str:
    words = f"{found.distinct} distinct examples"
    if found.distinct < found.rows:
        words += f" among {found.rows}"
    if labels is None:
        why = "the labels are no classes of examples" if given else "no labels were given"
        return f"{words}; {why}, so nothing is said about what the teacher knows"
    words += f", labels of {len(labels[labels >= 0].unique())} classes"
    if answers is None or not len(answers):
        return words
    by_chance = len(answers) * chance(answers)
    return f"{words}; the teacher is right on {answers.right} of {len(answers)} (chance {by_chance:.3g})"


def _measurements(found: Repeats, labels: Tensor | None, answers: Answers | None) -> Iterator[Measurement]:
    yield Measurement(name="distinct examples", value=found.distinct, unit=f"of {found.rows}")
    if labels is not None:
        yield Measurement(name="classes among the labels", value=len(labels[labels >= 0].unique()))
    if answers is None or not len(answers):
        return
    n = len(answers)
    top = int(answers.said_counts.argmax())
    yield Measurement(name="teacher's accuracy", value=answers.right / n, note=f"on {n} distinct examples with labels")
    yield Measurement(name="chance", value=chance(answers), note="answers and labels paired at random")
    yield Measurement(name="commonest label", value=int(answers.label_counts.max()) / n)
    yield Measurement(name="commonest answer", value=int(answers.said_counts[top]) / n, note=f"class {top}")
    yield Measurement(name="teacher's confidence", value=float(answers.sure.mean()), note="mean over examples")


def _certainty(answers: Answers | None, budget: Budget) -> Certainty | None:
    if answers is None or not len(answers):
        return None
    n, right = len(answers), answers.right
    return Certainty(
        alpha=budget.alpha,
        beta=budget.beta,
        statistic="the teacher's accuracy on labels like these (Clopper-Pearson)",
        low=clopper_pearson_lower(right, n, budget.beta),
        high=clopper_pearson_upper(right, n, budget.beta),
    )
