"""``teacher.agreement``: does the mean prediction still say what the teacher says?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pytest_bnn.checks._numbers import scales
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.noise._pairs import Finite
from pytest_bnn.checks.noise._silence import not_finite
from pytest_bnn.checks.teacher._classes import open_in_doubt
from pytest_bnn.checks.teacher._distances import distance_of
from pytest_bnn.checks.teacher._findings import MAX_PASSES, finding_of
from pytest_bnn.checks.teacher._items import FIRST_PASSES, Claim, Votes, hopeless, undecided, verdict
from pytest_bnn.checks.teacher._labels import classes_given, kept_by_labels
from pytest_bnn.checks.teacher._medians import Numbers
from pytest_bnn.checks.teacher._stories import together
from pytest_bnn.checks.values import AgreementShare, OfPopulation, Passes, Positive
from pytest_bnn.data.repeats import repeats
from pytest_bnn.errors import OptionError
from pytest_bnn.network.calling import judged_field
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.moments import Mean
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import Task, are_shares

MIN_AGREEMENT = 0.95

#: Half of the spread of what the teacher says: nearer to it than its outputs usually are to each other.
TOLERANCE = 0.5

#: A quarter of the mass of probabilities elsewhere: no fine-tuning measured here came to half of it.
DISTANCE = 0.25

#: Further passes between two looks.
_BLOCK = 8


@check(
    claim="The mean prediction agrees with the teacher's, in its leading class or in its value, on the required share "
    "of the images, and no class is lost.",
    needs=("teacher", "images"),
    sampled=True,
    after="gradient.samples",
)
def agreement(
    subject: Subject,
    *,
    min_agreement: AgreementShare = MIN_AGREEMENT,
    max_passes: Passes = MAX_PASSES,
    population: OfPopulation = False,
    tolerance: Positive = TOLERANCE,
    distance: Positive = DISTANCE,
    budget: Budget,
) -> Finding:
    """Measure whether the mean prediction agrees with the teacher's on enough of the given images.

    The claim is about this set of images: the only uncertainty is the Monte-Carlo error of the mean over passes.
    What agreement is depends on the task (`pytest_bnn.tasks`), which labels, the loss or ``task`` decide: the leading
    class; the side of the threshold, for one logit or probability; the leading class of each place of dense outputs, of
    which a random choice is judged; for a regression, a typical prediction (the median over passes) within
    ``tolerance``. Where nothing decides the task, a model may pass, and never fails.

    Where a network gives several outputs, each is judged of which labels, loss or names tell what it means; they share
    the budget. A class is lost where another one certainly leads on most of its images, and on more of them than the
    required share lets disagree by chance: a model with a lost class fails. Of a fine-tuned model, images on which the
    teacher contradicts the label are left out.

    Each image is decided by a sequential test, pass after pass; the chance that the model passes with an image that
    is decided wrongly is at most the budget's ``beta``, that it fails so at most ``alpha``. An image that is not
    decided counts against passing and against failing alike; when neither is certain after ``max_passes`` the
    verdict is ``inconclusive``.

    With ``population`` the claim is about the population that the images are a random sample of. Half of each error
    rate goes to the passes, half to the choice of images; where there are too few images for either verdict, the
    evidence says how many it would take.

    Args:
        subject: teacher and images, at least; see `Subject`.
        min_agreement: The required share of the images, in (0, 1]; below 1 for a population.
        max_passes: The most passes to draw, at least 2.
        population: Judge the population behind the images.
        distance: From which mean total variation of probabilities on, at the posterior mean, a model that is less sure
            than its teacher is warned about; 1 for never.
        tolerance: For a regression: how far the typical prediction may be from the teacher's, as a share of the
            standard deviation of the teacher's outputs over the images.
        budget: Error rates; those in force when None.

    Source: `pytest_bnn.stats.betting.LeadingClassTest`; Clopper and Pearson 1934 for the population's bound.
    """
    if population and min_agreement == 1:
        raise OptionError("no number of images shows that a whole population agrees", fix="give min_agreement below 1")
    return _find(subject, Claim(min_agreement, population, budget), max_passes, tolerance, distance)


measure_teacher_agreement, assert_teacher_agreement = agreement.measure, agreement.assert_


def _find(subject: Subject, claim: Claim, max_passes: int, tolerance: float, distance: float) -> Finding:
    heads = subject.heads
    each = replace(claim, budget=claim.budget.split(len(heads)))
    found = [_judge(subject, task, each, max_passes, tolerance, distance) for task in heads]
    return found[0] if len(found) == 1 else together(list(zip(heads, found, strict=True)), claim)


def _judge(subject: Subject, task: Task, claim: Claim, max_passes: int, tolerance: float, distance: float) -> Finding:
    """Judge one output of the network."""
    if task.kind == "unknown":
        return not_applicable(task.why, ("task",))
    if claim.population and task.kind == "dense":
        return not_applicable(
            "the places of an image are no random sample of a population: judge these images, without population, or "
            "let the network return one answer for each image"
        )
    if claim.population and (why := repeats(subject.require_images()).no_sample):
        return not_applicable(why)
    fields = subject.fields
    teacher = judged_field(subject.teacher_output().detach().cpu(), fields, task.field)
    passes = min(FIRST_PASSES, max_passes)
    shape, bad = _shape_of(subject, task, passes)
    if bad:
        return not_finite(subject, passes, bad)
    if shape != teacher.shape:
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"the outputs have the shape {list(shape)}, the teacher's {list(teacher.shape)}",
            remedy="compare the model with the teacher that it was converted from",
        )
    items: Votes | Numbers
    notes: list[str] = []
    labels: Tensor | None = None
    if task.kind == "regression":
        items = Numbers(
            claim,
            teacher.double().reshape(len(teacher), -1),
            tolerance * scales(teacher),
            looks=_looks(max_passes),
            again=lambda stop, rows: _blocks(subject, task, stop, rows),
        )
    else:
        task, own, note = _as_shares(task, _blocks(subject, task, passes))
        labels = classes_given(subject, task, len(teacher))
        kept = kept_by_labels(subject, task, teacher, labels)
        items = Votes.of(teacher, task, claim, subject.seed, kept)
        items.task = own
        notes += note
        if kept is not None:
            notes.append(
                f"{int((~kept).sum())} images are left out, on which the teacher contradicts their labels: there a "
                "network that was trained with labels is right to differ"
            )
    mean, every = Mean(), torch.arange(len(teacher))
    for block in _blocks(subject, task, passes):
        items.take(block, every)
        for outputs in block:
            mean.take(outputs[None].cpu().double())
    while items.passes < max_passes:
        wanted = _wanted(items)
        if not len(wanted):
            break
        rows = items.rows_of(wanted)
        stop = min(items.passes + (items.passes if isinstance(items, Numbers) else _BLOCK), max_passes)
        if bad := _take(subject, task, items, stop, rows):
            return not_finite(subject, stop, bad)
    apart = (
        distance_of(subject, items, teacher, task, labels)
        if isinstance(items, Votes) and subject.stage != "converted"
        else None
    )
    finding = finding_of(subject, task, items, teacher, mean.mean, max_passes, apart, distance)
    finding = replace(finding, notes=(*finding.notes, *notes)) if notes else finding
    if finding.verdict in (Verdict.PASS, Verdict.WARN, Verdict.NOT_APPLICABLE) or task.proven:
        return finding
    told = "do not agree" if finding.verdict is Verdict.FAIL else "are not certain to agree"
    return Finding(
        verdict=Verdict.NOT_APPLICABLE,
        headline=f"{task.why}, and their leading classes {told}: {finding.headline}. Whether they are scores of "
        "classes is not known: give labels or the loss, or say so with --task classification (task= in Python)",
        measurements=finding.measurements,
        samples=finding.samples,
    )


def _blocks(subject: Subject, task: Task, passes: int, rows: Tensor | None = None) -> Iterator[Tensor]:
    """Yield the first passes on one output of the network, in blocks; on all images where ``rows`` is None."""
    for block in subject.bank.blocks(0, passes, rows):
        yield judged_field(block, subject.fields, task.field)


def _shape_of(subject: Subject, task: Task, passes: int) -> tuple[torch.Size, int]:
    """Return the shape of one output in the first passes, and how many of these hold NaN or infinity."""
    finite, shape = Finite(), torch.Size()
    for block in subject.bank.blocks(0, passes):
        finite.take(block)
        shape = judged_field(block, subject.fields, task.field).shape[1:]
    return shape, finite.bad


def _take(subject: Subject, task: Task, items: Votes | Numbers, stop: int, rows: Tensor) -> int:
    """Take further passes on some images, up to ``stop``; return how many hold NaN or infinity."""
    finite = Finite()
    for block in subject.bank.blocks(items.passes, stop, rows):
        finite.take(block)
        if not finite.bad:
            items.take(judged_field(block, subject.fields, task.field), rows)
    return finite.bad


def _wanted(items: Votes | Numbers) -> Tensor:
    """Return the items of which further passes may decide something."""
    if verdict(items) is Verdict.INCONCLUSIVE and not hopeless(items):
        return undecided(items)
    doubtful = verdict(items) is Verdict.PASS and isinstance(items, Votes)
    return open_in_doubt(items) if doubtful and isinstance(items, Votes) else torch.arange(0)


def _as_shares(task: Task, first: Iterable[Tensor]) -> tuple[Task, Task, list[str]]:
    """Return the task of the teacher's outputs and that of the model's: one of the two may give probabilities alone."""
    if task.kind == "classification":
        dims = all(are_shares(block) for block in first)
        if task.shares == dims:
            return task, task, []
        gives, lacks = ("probabilities", "scores") if dims else ("scores", "probabilities")
        return (
            task,
            replace(task, shares=dims),
            [
                f"the model gives {gives}, the teacher {lacks}: each is read as what it is; whoever uses the model "
                "instead of its teacher has to know"
            ],
        )
    if task.shares and any(bool(((block < 0) | (block > 1)).any()) for block in first):
        task = replace(task, shares=False)  # the teacher's scores lie between 0 and 1 by chance
    return task, task, []


def _looks(max_passes: int) -> int:
    """Return how often a doubling number of passes is looked at."""
    return 1 + max(0, math.ceil(math.log2(max_passes / FIRST_PASSES)))
