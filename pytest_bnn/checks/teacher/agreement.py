"""``teacher.agreement``: does the mean prediction still say what the teacher says?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks.check import Finding, check, not_applicable
from pytest_bnn.checks.noise._pairs import not_finite_in
from pytest_bnn.checks.noise._silence import not_finite
from pytest_bnn.checks.values import AgreementShare, OfPopulation, Passes
from pytest_bnn.errors import OptionError
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.sampling.bank import probabilities
from pytest_bnn.stats.intervals import (
    Budget,
    LeadingClassTest,
    clopper_pearson_lower,
    clopper_pearson_upper,
    trials_for_share,
)
from pytest_bnn.subject import Subject

MIN_AGREEMENT = 0.95
MAX_PASSES = 128

#: Passes drawn at once; the first block is the least that can decide an image at the default error rate.
_FIRST_BLOCK = 32
_BLOCK = 8


@check(
    claim="The leading class of the mean predictive distribution is the teacher's, on the required share of the "
    "images.",
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
    budget: Budget,
) -> Finding:
    """Measure whether the mean prediction agrees with the teacher's on enough of the given images.

    The claim is about this set of images: the only uncertainty is the Monte-Carlo error of the mean over passes.
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
        budget: Error rates; those in force when None.

    Source: `pytest_bnn.stats.intervals.LeadingClassTest`; Clopper and Pearson 1934 for the population's bound.
    """
    if population and min_agreement == 1:
        raise OptionError("no number of images shows that a whole population agrees", fix="give min_agreement below 1")
    return _find(subject, _Claim(min_agreement, population, budget), max_passes)


measure_teacher_agreement, assert_teacher_agreement = agreement.measure, agreement.assert_


@dataclass(frozen=True, slots=True)
class _Claim:
    """What is required, of these images or of the population behind them, and how certain the verdict has to be."""

    min_agreement: float
    population: bool
    budget: Budget

    @property
    def of_passes(self) -> Budget:
        """The part of the budget that Monte-Carlo error may use up."""
        return self.budget.split(2) if self.population else self.budget

    def needed(self, images: int) -> int:
        """How many images have to agree: the least number whose share of them is as large as required."""
        count = math.ceil(self.min_agreement * images)  # the product is rounded: .07 of 100 is above 7
        return count - 1 if (count - 1) / images >= self.min_agreement else count

    def passes(self, agree: int, images: int) -> bool:
        """Say whether the claim is certain when so many images agree."""
        if not self.population:
            return agree >= self.needed(images)
        return clopper_pearson_lower(agree, images, self.of_passes.beta) >= self.min_agreement

    def fails(self, disagree: int, images: int) -> bool:
        """Say whether the claim is certainly wrong when so many images disagree."""
        if not self.population:
            return disagree > images - self.needed(images)
        return clopper_pearson_upper(images - disagree, images, self.of_passes.alpha) < self.min_agreement


@dataclass(slots=True)
class _Votes:
    """What the passes said so far: decided images, and sums for the point estimates."""

    test: LeadingClassTest
    claim: _Claim
    sums: Tensor
    counts: Tensor
    passes: int = 0

    def take(self, block: Tensor, rows: Tensor) -> None:
        for outputs in block:
            shares = probabilities(outputs).double().cpu()
            self.test.update(shares, rows)
            self.sums[rows] += shares
            self.counts[rows] += 1
        self.passes += len(block)

    @property
    def leading(self) -> Tensor:
        """Whether each image is certain for the teacher, at beta: what a pass stands on."""
        return self.test.leading(self.claim.of_passes.beta)

    @property
    def overtaken(self) -> Tensor:
        """Whether each image is certain against the teacher, at alpha: what a failure stands on."""
        return self.test.overtaken(self.claim.of_passes.alpha)

    @property
    def undecided(self) -> Tensor:
        return (~(self.leading | self.overtaken)).nonzero().flatten()

    @property
    def verdict(self) -> Verdict:
        images = len(self.counts)
        if self.claim.passes(int(self.leading.sum()), images):
            return Verdict.PASS
        return Verdict.FAIL if self.claim.fails(int(self.overtaken.sum()), images) else Verdict.INCONCLUSIVE

    @property
    def hopeless(self) -> bool:
        """Say whether no number of passes can decide: the images are too few."""
        images, open_ = len(self.counts), len(self.undecided)
        agree, disagree = int(self.leading.sum()), int(self.overtaken.sum())
        return not self.claim.passes(agree + open_, images) and not self.claim.fails(disagree + open_, images)


def _find(subject: Subject, claim: _Claim, max_passes: int) -> Finding:
    teacher = subject.teacher_output().detach().cpu()
    if teacher.ndim != 2 or teacher.shape[1] < 2:
        return not_applicable(f"the teacher's outputs have the shape {list(teacher.shape)}, not [images, classes]")
    expected = probabilities(teacher).double()
    images, classes = expected.shape
    first = subject.bank.first(min(_FIRST_BLOCK, max_passes))
    if first.shape[1:] != teacher.shape:
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"the outputs have the shape {list(first.shape[1:])}, the teacher's {list(teacher.shape)}",
            remedy="compare the model with the teacher that it was converted from",
        )
    if bad := not_finite_in(first):
        return not_finite(subject, len(first), bad)
    votes = _Votes(
        LeadingClassTest(expected.argmax(1), classes),
        claim,
        torch.zeros(images, classes, dtype=torch.float64),
        torch.zeros(images, dtype=torch.float64),
    )
    votes.take(first, torch.arange(images))
    while votes.verdict is Verdict.INCONCLUSIVE and votes.passes < max_passes and not votes.hopeless:
        rows = votes.undecided
        stop = min(votes.passes + _BLOCK, max_passes)
        block = subject.bank.draw(votes.passes, stop, rows)
        if bad := not_finite_in(block):
            return not_finite(subject, stop, bad)
        votes.take(block, rows)
    return _finding(votes, expected, teacher, first)


def _finding(votes: _Votes, expected: Tensor, teacher: Tensor, first: Tensor) -> Finding:
    images, claim, verdict = len(expected), votes.claim, votes.verdict
    leaders = expected.argmax(1)
    mean = votes.sums / votes.counts[:, None]
    agree, disagree = int(votes.leading.sum()), int(votes.overtaken.sum())
    undecided = len(votes.undecided)
    point = int((mean.argmax(1) == leaders).sum())
    single = float((first.cpu().argmax(2) == leaders).double().mean())
    divergence = (expected * (expected.clamp_min(1e-12).log() - mean.clamp_min(1e-12).log())).sum(1)
    logit_error = float((first.double().mean(0).cpu() - teacher.double()).square().mean().sqrt())
    low, high = _interval(claim, agree, disagree, images)
    headline = (
        f"the mean prediction agrees on {point} of {images} images ({100 * point / images:.4g} %); "
        f"certain for {agree}, certainly not for {disagree}, open for {undecided} after {votes.passes} passes"
    )
    if claim.population:
        headline += f"; in the population behind them on {100 * low:.4g} % to {100 * high:.4g} %"
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=(
            Measurement(name="needed", value=claim.needed(images), unit="images"),
            Measurement(name="decided for the teacher", value=agree, unit="images"),
            Measurement(name="decided against the teacher", value=disagree, unit="images"),
            Measurement(name="open", value=undecided, unit="images"),
            Measurement(name="agreement of the mean prediction", value=point / images, note="point estimate"),
            Measurement(name="agreement of a single pass", value=single, note="mean over passes"),
            Measurement(name="KL(teacher, BNN)", value=float(divergence.mean()), unit="nats", note="mean over images"),
            Measurement(name="logit error", value=logit_error, note="root mean square, mean over passes"),
        ),
        threshold=Threshold(
            quantity="certain share of the population" if claim.population else "certain share of the images",
            observed=low if claim.population else agree / images,
            relation=">=",
            allowed=claim.min_agreement,
        ),
        remedy=_remedy(votes, undecided, point / images, single),
        notes=() if claim.population else _about_the_population(claim, agree, images),
        samples=votes.passes,
        certainty=Certainty(
            alpha=claim.budget.alpha,
            beta=claim.budget.beta,
            statistic="share of the "
            + (
                "population (Clopper-Pearson, images decided by betting)"
                if claim.population
                else "images, each decided by betting"
            )
            + " on which the teacher's class leads",
            low=low,
            high=high,
        ),
    )


def _interval(claim: _Claim, agree: int, disagree: int, images: int) -> tuple[float, float]:
    """Give the share that is certain at beta, and the share that is not excluded at alpha."""
    if not claim.population:
        return agree / images, 1 - disagree / images
    return (
        clopper_pearson_lower(agree, images, claim.of_passes.beta),
        clopper_pearson_upper(images - disagree, images, claim.of_passes.alpha),
    )


def _about_the_population(claim: _Claim, agree: int, images: int) -> tuple[str, ...]:
    if not agree:
        return ()
    bound = clopper_pearson_lower(agree, images, claim.budget.beta)
    return (
        f"for the population behind these images, if they are a random sample of it, agreement is at least {bound:.3g} "
        f"with confidence 1 - {claim.budget.beta:.3g}; the claim here is about this set",
    )


def _remedy(votes: _Votes, undecided: int, point: float, single: float) -> str:
    claim, verdict = votes.claim, votes.verdict
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return "convert with a smaller moped_delta, or fine-tune toward the teacher; look at the images that disagree"
    if votes.hopeless:
        wanted = trials_for_share(claim.min_agreement, point, claim.of_passes.beta)
        more = "more images than can be counted: too few of them agree"
        return (
            f"give {more if wanted is None else f'{wanted} images, of which as many agree'}: {len(votes.counts)} "
            f"cannot carry a claim of {claim.min_agreement:g} about a population"
        )
    remedy = (
        f"allow more than {votes.passes} passes (--samples): the leading class of {undecided} images is too close to "
        "call"
    )
    if single < claim.min_agreement:
        remedy += (
            f"; where that does not help, convert with a smaller moped_delta: a single pass agrees on "
            f"{100 * single:.3g} % of the images only"
        )
    return remedy
