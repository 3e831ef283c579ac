"""What is found about one output beside its teacher's: the verdict, its numbers and what to do."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.teacher._classes import class_counts
from pytest_bnn.checks.teacher._distances import Distance, agreement_without_noise
from pytest_bnn.checks.teacher._items import Claim, Votes, hopeless, undecided, verdict
from pytest_bnn.checks.teacher._medians import Numbers
from pytest_bnn.checks.teacher._stories import of_classes, story_of
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import ForwardError
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.betting import decidable_gap
from pytest_bnn.stats.intervals import clopper_pearson_lower, trials_for_share
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import Task

MAX_PASSES = 128

#: So far below the required share the point estimate says what passes can only make more certain.
_FAR = 0.15


def finding_of(
    subject: Subject,
    task: Task,
    items: Votes | Numbers,
    teacher: Tensor,
    mean: Tensor,
    max_passes: int,
    apart: Distance | None,
    distance: float,
) -> Finding:
    """Return the finding about one output.

    Args:
        subject: What is judged.
        task: What the output means.
        items: What the passes say about it.
        teacher: The teacher's outputs, ``[N, ...]``.
        mean: The mean of the outputs over the first passes, ``[N, ...]``, in float64.
        max_passes: The most passes that were allowed.
        apart: How far the probabilities are, where that was measured.
        distance: From which distance on there is a warning.
    """
    count, claim, found = items.count, items.claim, verdict(items)
    agree, disagree = int(items.leading.sum()), int(items.overtaken.sum())
    open_ = undecided(items)
    point = int(items.agreeing.sum())
    low, high = claim.interval(agree, disagree, count)
    unit = "places" if task.kind == "dense" else "images"
    what = "typical prediction (median over passes)" if isinstance(items, Numbers) else "mean prediction"
    headline = (
        f"the {what} agrees on {point} of {count} {unit} ({100 * point / count:.4g} %); "
        f"certain for {agree}, certainly not for {disagree}, open for {len(open_)} after {items.passes} passes"
    )
    if claim.population:
        headline += f"; in the population behind them on {100 * low:.4g} % to {100 * high:.4g} %"
    single = _single(items)
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
    counts = class_counts(items) if isinstance(items, Votes) else []
    story = story_of(subject, items, found, counts, unit)
    found, headline = story.verdict, headline + story.headline
    far = found is Verdict.INCONCLUSIVE and not hopeless(items) and point / count < claim.min_agreement - _FAR
    if far:
        headline = f"probably fails: {headline}"
        remedy = story.remedy or _against_noise(subject, items, task, unit)
    elif found is Verdict.FAIL:
        remedy = story.remedy or _against_disagreement(subject, items, task, unit)
    else:
        remedy = story.remedy or _remedy(items, found, len(open_), point / count, single, unit)
    if found in (Verdict.PASS, Verdict.INCONCLUSIVE) and claim.passes(point, count):
        if apart is not None and apart.calm > distance and not apart.surer:
            found = Verdict.WARN
            headline = (
                f"the leading classes are the teacher's on {point} of {count} {unit}, and the probabilities are not: "
                f"without noise {apart.calm:.3g} of their mass lies elsewhere, and the network is less sure"
                + (f"; {apart.scale}" if apart.scale else "")
            )
            remedy = (
                "look for a temperature or a scale that was left in the head, for an activation that is applied twice "
                "or was exchanged, and for logits that are averaged where probabilities should be; where the network "
                "is meant to be less sure than its teacher, allow it: --set teacher.agreement.distance=1"
            )
        elif found is Verdict.INCONCLUSIVE and not hopeless(items) and items.passes >= MAX_PASSES:
            return replace(
                not_applicable(
                    f"{headline}: the answer agrees where it can be told, and {len(open_)} {unit} are too close to "
                    f"call for {items.passes} passes; allow more of them (--samples), or require a smaller share "
                    "(--min-agreement)"
                ),
                measurements=apart.measurements if apart is not None else (),
                samples=items.passes,
            )
    return Finding(
        verdict=found,
        headline=headline,
        measurements=(
            Measurement(name="task", value=task.kind, note=task.why),
            Measurement(name="needed", value=claim.needed(count), unit=unit),
            Measurement(name="decided for the teacher", value=agree, unit=unit),
            Measurement(name="decided against the teacher", value=disagree, unit=unit),
            Measurement(name="open", value=len(open_), unit=unit),
            Measurement(name=f"agreement of the {what.partition(' (')[0]}", value=point / count, note="point estimate"),
            Measurement(name="agreement of a single pass", value=single, note="mean over passes"),
            *_distances(items, teacher, mean),
            *(apart.measurements if apart is not None else ()),
            *of_classes(subject, counts, claim),
        ),
        threshold=Threshold(
            quantity=f"certain share of the {'population' if claim.population else unit}",
            observed=low if claim.population else agree / count,
            relation=">=",
            allowed=claim.min_agreement,
        ),
        remedy=remedy,
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


def _single(items: Votes | Numbers) -> float:
    """Return the share of items on which a single pass agrees: over the passes on all images, or the first ones."""
    return items.single_share if isinstance(items, Numbers) else items.single / (items.whole * items.count)


def _distances(items: Votes | Numbers, teacher: Tensor, mean: Tensor) -> tuple[Measurement, ...]:
    finite = torch.isfinite(teacher)  # a mask's minus infinity aside
    error = float((mean - teacher.double())[finite].square().mean().sqrt())
    if isinstance(items, Numbers):
        gap = (items.median - items.expected) / items.allowed
        worst = int(gap.abs().amax(1).argmax())
        signed = float(gap[worst, int(gap[worst].abs().argmax())])
        return (
            Measurement(name="allowed distance", value=float(items.allowed.max()), note="of the largest output"),
            Measurement(name="largest distance", value=signed, unit="of the allowed", note=f"image {worst}"),
            Measurement(name="output error", value=error, note="root mean square, mean over passes"),
        )
    expected = items.expected
    divergence = (expected * (expected.clamp_min(1e-12).log() - items.mean.clamp_min(1e-12).log())).sum(1)
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


def _against_disagreement(subject: Subject, items: Votes | Numbers, task: Task, unit: str) -> str:
    """Say what to do about a model that disagrees: whether its noise is to blame shows where there is none."""
    if isinstance(items, Votes) and bayesian_layers(subject.model):
        calm = agreement_without_noise(subject, items, task)
        if calm < items.claim.min_agreement:
            return (
                "fine-tune toward the teacher, or load the weights that were: the noise is not the cause, since "
                f"without it the model agrees on {100 * calm:.3g} % of the {unit} only; look at the {unit} that "
                "disagree"
            )
    return "convert with a smaller moped_delta, or fine-tune toward the teacher; look at the images that disagree"


def _against_noise(subject: Subject, items: Votes | Numbers, task: Task, unit: str) -> str:
    """Say what to do about a model that all but certainly disagrees: more passes would only make it more certain."""
    smaller = "make sigma smaller: convert with a smaller moped_delta, or train longer toward the teacher"
    if not (isinstance(items, Votes) and bayesian_layers(subject.model)):
        return smaller
    try:
        calm = agreement_without_noise(subject, items, task)
    except ForwardError:  # it does not run without noise
        return smaller
    if calm < items.claim.min_agreement:
        return _against_disagreement(subject, items, task, unit)
    return f"{smaller}; without noise the model agrees on {100 * calm:.3g} % of the {unit}, so the noise is the cause"


def _remedy(items: Votes | Numbers, found: Verdict, open_: int, point: float, single: float, unit: str) -> str:
    claim = items.claim
    if found is Verdict.PASS:
        return ""
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
