"""``teacher.agreement``: does the mean prediction still say what the teacher says?"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.noise._pairs import not_finite_in
from pytest_bnn.checks.noise._silence import not_finite
from pytest_bnn.checks.teacher._items import Claim, Numbers, Votes, hopeless, undecided, verdict
from pytest_bnn.checks.values import AgreementShare, OfPopulation, Passes, Positive
from pytest_bnn.data.repeats import repeats
from pytest_bnn.errors import OptionError
from pytest_bnn.network.calling import Field, field_of
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.betting import decidable_gap
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import clopper_pearson_lower, trials_for_share
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import Task

MIN_AGREEMENT = 0.95
MAX_PASSES = 128

#: Half of the spread of what the teacher says: nearer to it than its outputs usually are to each other.
TOLERANCE = 0.5

#: Passes drawn at once; the first block is the least that can decide an image at the default error rate.
_FIRST_BLOCK = 32
_BLOCK = 8


@check(
    claim="The mean prediction agrees with the teacher's, in its leading class or in its value, on the required share "
    "of the images.",
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
    budget: Budget,
) -> Finding:
    """Measure whether the mean prediction agrees with the teacher's on enough of the given images.

    The claim is about this set of images: the only uncertainty is the Monte-Carlo error of the mean over passes.
    What agreement is depends on the task (`pytest_bnn.tasks`), which labels, the loss or ``task`` decide: the leading
    class; the side of the threshold, for one logit or probability; the leading class of each place of dense outputs, of
    which a random choice is judged; for a regression, a typical prediction (the median over passes) within
    ``tolerance``. Where nothing decides the task, a model may pass, and never fails.

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
        tolerance: For a regression: how far the typical prediction may be from the teacher's, as a share of the
            standard deviation of the teacher's outputs over the images.
        budget: Error rates; those in force when None.

    Source: `pytest_bnn.stats.betting.LeadingClassTest`; Clopper and Pearson 1934 for the population's bound.
    """
    if population and min_agreement == 1:
        raise OptionError("no number of images shows that a whole population agrees", fix="give min_agreement below 1")
    return _find(subject, Claim(min_agreement, population, budget), max_passes, tolerance)


measure_teacher_agreement, assert_teacher_agreement = agreement.measure, agreement.assert_


def _find(subject: Subject, claim: Claim, max_passes: int, tolerance: float) -> Finding:
    task = subject.task
    if task.kind == "unknown":
        return not_applicable(task.why)
    if claim.population and task.kind == "dense":
        return not_applicable(
            "the places of an image are no random sample of a population: judge these images, without population, or "
            "let the network return one answer for each image"
        )
    if claim.population and (why := repeats(subject.require_images()).no_sample):
        return not_applicable(why)
    fields = subject.fields
    teacher = _judged(subject.teacher_output().detach().cpu(), fields, task)
    first = subject.bank.first(min(_FIRST_BLOCK, max_passes))
    if bad := not_finite_in(first):
        return not_finite(subject, len(first), bad)
    first = _judged(first, fields, task)
    if first.shape[1:] != teacher.shape:
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"the outputs have the shape {list(first.shape[1:])}, the teacher's {list(teacher.shape)}",
            remedy="compare the model with the teacher that it was converted from",
        )
    if task.shares and bool(((first < 0) | (first > 1)).any()):
        task = replace(task, shares=False)  # the teacher's scores lie between 0 and 1 by chance
    items: Votes | Numbers
    if task.kind == "regression":
        items = Numbers(
            claim, teacher.double().reshape(len(teacher), -1), tolerance * _scales(teacher), looks=_looks(max_passes)
        )
    else:
        items = Votes.of(teacher, task, claim, subject.seed)
    items.take(first, torch.arange(len(teacher)))
    while verdict(items) is Verdict.INCONCLUSIVE and items.passes < max_passes and not hopeless(items):
        rows = items.rows_of(undecided(items))
        step = items.passes if isinstance(items, Numbers) else _BLOCK
        stop = min(items.passes + step, max_passes)
        block = subject.bank.draw(items.passes, stop, None if len(rows) == len(teacher) else rows)
        if bad := not_finite_in(block):
            return not_finite(subject, stop, bad)
        items.take(_judged(block, fields, task), rows)
    finding = _finding(subject, items, teacher, first, max_passes)
    if finding.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE) or task.proven:
        return finding
    told = "do not agree" if finding.verdict is Verdict.FAIL else "are not certain to agree"
    return Finding(
        verdict=Verdict.NOT_APPLICABLE,
        headline=f"{task.why}, and their leading classes {told}: {finding.headline}. Whether they are scores of "
        "classes is not known: give labels or the loss, or say so with --task classification (task= in Python)",
        measurements=finding.measurements,
        samples=finding.samples,
    )


def _judged(outputs: Tensor, fields: tuple[Field, ...], task: Task) -> Tensor:
    """Give the output that the task is about, out of all that are side by side."""
    return (
        field_of(outputs, fields, task.field)
        if fields and outputs.shape[-1] == sum(f.size for f in fields)
        else outputs
    )


def _looks(max_passes: int) -> int:
    """Give how often a doubling number of passes is looked at."""
    return 1 + max(0, math.ceil(math.log2(max_passes / _FIRST_BLOCK)))


def _scales(teacher: Tensor) -> Tensor:
    """Give the scale of each output of a regression: its standard deviation over images, or else its size."""
    values = teacher.double().reshape(len(teacher), -1)
    spread = values.std(0) if len(values) > 1 else torch.zeros(values.shape[1], dtype=torch.float64)
    size = values.square().mean(0).sqrt()
    return torch.where(spread > 1e-12 * size, spread, size).clamp_min(1e-300)


def _finding(subject: Subject, items: Votes | Numbers, teacher: Tensor, first: Tensor, max_passes: int) -> Finding:
    count, claim, found = items.count, items.claim, verdict(items)
    agree, disagree = int(items.leading.sum()), int(items.overtaken.sum())
    open_ = undecided(items)
    point = int(items.agreeing.sum())
    low, high = claim.interval(agree, disagree, count)
    unit = "places" if subject.task.kind == "dense" else "images"
    what = "typical prediction (median over passes)" if isinstance(items, Numbers) else "mean prediction"
    headline = (
        f"the {what} agrees on {point} of {count} {unit} ({100 * point / count:.4g} %); "
        f"certain for {agree}, certainly not for {disagree}, open for {len(open_)} after {items.passes} passes"
    )
    if claim.population:
        headline += f"; in the population behind them on {100 * low:.4g} % to {100 * high:.4g} %"
    single = _single(items, first)
    if found is Verdict.INCONCLUSIVE and isinstance(items, Votes) and not hopeless(items):
        # With fewer passes than by default, more of them may decide.
        gap = decidable_gap(max(max_passes, MAX_PASSES), claim.of_passes.beta / count)
        margins = items.expected.topk(2, dim=1).values.diff(dim=1).abs().flatten()
        close = int((margins < gap).sum())
        # Even a model that says what the teacher says could not pass; with fewer passes no model could at all.
        if gap <= 1 and not claim.passes(count - close, count):
            return not_applicable(
                f"the teacher's own margins are below what {max_passes} passes can decide on {close} of {count} "
                f"{unit}: its leading class is ahead by less than {gap:.2g} there, and the mean prediction agrees on "
                f"{point}; "
                "give images of which the teacher is surer, or allow more passes (--samples)"
            )
    return Finding(
        verdict=found,
        headline=headline,
        measurements=(
            Measurement(name="task", value=subject.task.kind, note=subject.task.why),
            Measurement(name="needed", value=claim.needed(count), unit=unit),
            Measurement(name="decided for the teacher", value=agree, unit=unit),
            Measurement(name="decided against the teacher", value=disagree, unit=unit),
            Measurement(name="open", value=len(open_), unit=unit),
            Measurement(name=f"agreement of the {what.partition(' (')[0]}", value=point / count, note="point estimate"),
            Measurement(name="agreement of a single pass", value=single, note="mean over passes"),
            *_distances(items, teacher, first),
        ),
        threshold=Threshold(
            quantity=f"certain share of the {'population' if claim.population else unit}",
            observed=low if claim.population else agree / count,
            relation=">=",
            allowed=claim.min_agreement,
        ),
        remedy=_remedy(items, found, len(open_), point / count, single, unit),
        notes=() if claim.population or unit != "images" else _about_the_population(claim, agree, count),
        samples=items.passes,
        certainty=Certainty(
            alpha=claim.budget.alpha,
            beta=claim.budget.beta,
            statistic="share of the "
            + (
                "population (Clopper-Pearson, images decided by betting)"
                if claim.population
                else f"{unit}, each decided by {'order statistics' if isinstance(items, Numbers) else 'betting'}"
            )
            + (
                " whose typical outputs lie near the teacher's"
                if isinstance(items, Numbers)
                else " on which the teacher's class leads"
            ),
            low=low,
            high=high,
        ),
    )


def _single(items: Votes | Numbers, first: Tensor) -> float:
    """Give the share of items on which a single pass agrees, over the first passes."""
    if isinstance(items, Votes):
        return items.single / (items.whole * items.count)
    near = (first.cpu().double().reshape(*first.shape[:2], -1) - items.expected).abs() <= items.allowed
    return float(near.all(2).double().mean())


def _distances(items: Votes | Numbers, teacher: Tensor, first: Tensor) -> tuple[Measurement, ...]:
    finite = torch.isfinite(teacher)  # a mask's minus infinity aside
    error = float((first.double().mean(0).cpu() - teacher.double())[finite].square().mean().sqrt())
    if isinstance(items, Numbers):
        gap = (items.median - items.expected) / items.allowed
        worst = int(gap.abs().amax(1).argmax())
        signed = float(gap[worst, int(gap[worst].abs().argmax())])
        return (
            Measurement(name="allowed distance", value=float(items.allowed.max()), note="of the largest output"),
            Measurement(name="largest distance", value=signed, unit="of the allowed", note=f"image {worst}"),
            Measurement(name="output error", value=error, note="root mean square, mean over passes"),
        )
    expected, mean = items.expected, items.mean
    divergence = (expected * (expected.clamp_min(1e-12).log() - mean.clamp_min(1e-12).log())).sum(1)
    return (
        Measurement(name="KL(teacher, BNN)", value=float(divergence.mean()), unit="nats", note="mean over images"),
        Measurement(name="logit error", value=error, note="root mean square, mean over passes"),
    )


def _about_the_population(claim: Claim, agree: int, images: int) -> tuple[str, ...]:
    if not agree:
        return ()
    bound = clopper_pearson_lower(agree, images, claim.budget.beta)
    return (
        f"for the population behind these images, if they are a random sample of it, agreement is at least {bound:.3g} "
        f"with confidence 1 - {claim.budget.beta:.3g}; the claim here is about this set",
    )


def _remedy(items: Votes | Numbers, found: Verdict, open_: int, point: float, single: float, unit: str) -> str:
    claim = items.claim
    if found is Verdict.PASS:
        return ""
    if found is Verdict.FAIL:
        if isinstance(items, Numbers):
            return (
                "look at the units first: targets that were standardised for the one and not for the other are far "
                "apart everywhere; else convert with a smaller moped_delta, or fine-tune toward the teacher"
            )
        return "convert with a smaller moped_delta, or fine-tune toward the teacher; look at the images that disagree"
    if hopeless(items):
        wanted = trials_for_share(claim.min_agreement, point, claim.of_passes.beta)
        more = "more images than can be counted: too few of them agree"
        return (
            f"give {more if wanted is None else f'{wanted} images, of which as many agree'}: {items.count} "
            f"cannot carry a claim of {claim.min_agreement:g} about a population"
        )
    close = "the typical output" if isinstance(items, Numbers) else "the leading class"
    remedy = f"allow more than {items.passes} passes (--samples): {close} of {open_} {unit} is too close to call"
    if single < claim.min_agreement:
        remedy += (
            f"; where that does not help, convert with a smaller moped_delta: a single pass agrees on "
            f"{100 * single:.3g} % of the {unit} only"
        )
    return remedy
