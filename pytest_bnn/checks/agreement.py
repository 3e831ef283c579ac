"""``teacher.agreement``: does the mean prediction still say what the teacher says?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from pytest_bnn.checks.claim import Check, Finding, asserting, not_applicable
from pytest_bnn.evidence import Evidence, Measurement, Threshold, Verdict
from pytest_bnn.sampling import probabilities
from pytest_bnn.statistics import ERROR_RATE, LeadingClassTest, clopper_pearson_lower
from pytest_bnn.subject import Given, Subject

TEACHER_AGREEMENT = Check(
    id="teacher.agreement",
    claim="The leading class of the mean predictive distribution is the teacher's, on the required share of the images.",
    needs=("teacher", "images"),
)

MIN_AGREEMENT = 0.95
MAX_PASSES = 128

#: Passes drawn at once; the first block is the least that can decide an image at the default error rate.
_FIRST_BLOCK = 32
_BLOCK = 8


def measure_teacher_agreement(
    model: nn.Module | Subject,
    *,
    min_agreement: float = MIN_AGREEMENT,
    max_passes: int = MAX_PASSES,
    **given: Unpack[Given],
) -> Evidence:
    """Measure whether the mean prediction agrees with the teacher's on enough of the given images.

    The claim is about this set of images: the only uncertainty is the Monte-Carlo error of the mean over passes.
    Each image is decided by a sequential test, pass after pass; the chance that any of them is decided wrongly
    is at most 1e-6. An image that is not decided counts against passing and against failing alike; when
    neither is certain after ``max_passes`` the verdict is ``inconclusive``.

    Args:
        model: The Bayesian network, or a `Subject`.
        min_agreement: The required share of the images, in (0, 1].
        max_passes: The most passes to draw, at least 2.
        **given: teacher and images, at least; see `Subject`.

    Source: `pytest_bnn.statistics.LeadingClassTest`; Clopper and Pearson 1934 for the population's bound.
    """
    if not 0 < min_agreement <= 1:
        raise ValueError(f"min_agreement must lie in (0, 1], not {min_agreement!r}")
    if max_passes < 2:
        raise ValueError(f"max_passes must be at least 2, not {max_passes!r}")
    return TEACHER_AGREEMENT.run(
        Subject.of(model, given), lambda subject: _find(subject, min_agreement, max_passes)
    )


assert_teacher_agreement = asserting(measure_teacher_agreement)


@dataclass(slots=True)
class _Votes:
    """What the passes said so far: decided images, and sums for the point estimates."""

    test: LeadingClassTest
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
    def undecided(self) -> Tensor:
        return (~(self.test.leading() | self.test.overtaken())).nonzero().flatten()


def _find(subject: Subject, min_agreement: float, max_passes: int) -> Finding:
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
    bad = ~torch.isfinite(first).flatten(2).all(2)
    if bool(bad.any()):
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"outputs are NaN or infinite in {int(bad.any(1).sum())} of {len(first)} passes",
            remedy="see noise.varies: it names the layer",
        )
    votes = _Votes(
        LeadingClassTest(expected.argmax(1), classes),
        torch.zeros(images, classes, dtype=torch.float64),
        torch.zeros(images, dtype=torch.float64),
    )
    votes.take(first, torch.arange(images))
    needed = int(-(-min_agreement * images // 1))
    verdict = _verdict(votes, needed)
    while verdict is Verdict.INCONCLUSIVE and votes.passes < max_passes:
        rows = votes.undecided
        stop = min(votes.passes + _BLOCK, max_passes)
        votes.take(subject.bank.draw(votes.passes, stop, rows), rows)
        verdict = _verdict(votes, needed)
    return _finding(votes, verdict, expected, teacher, first, min_agreement, needed)


def _verdict(votes: _Votes, needed: int) -> Verdict:
    images = len(votes.counts)
    if int(votes.test.leading().sum()) >= needed:
        return Verdict.PASS
    if int(votes.test.overtaken().sum()) > images - needed:
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE


def _finding(
    votes: _Votes,
    verdict: Verdict,
    expected: Tensor,
    teacher: Tensor,
    first: Tensor,
    min_agreement: float,
    needed: int,
) -> Finding:
    images = len(expected)
    leaders = expected.argmax(1)
    mean = votes.sums / votes.counts[:, None]
    agree, disagree = int(votes.test.leading().sum()), int(votes.test.overtaken().sum())
    point = int((mean.argmax(1) == leaders).sum())
    single = float((first.cpu().argmax(2) == leaders).double().mean())
    divergence = (expected * (expected.clamp_min(1e-12).log() - mean.clamp_min(1e-12).log())).sum(1)
    logit_error = float((first.double().mean(0).cpu() - teacher.double()).square().mean().sqrt())
    headline = (
        f"the mean prediction agrees on {point} of {images} images ({100 * point / images:.4g} %); "
        f"certain for {agree}, certainly not for {disagree}, open for {images - agree - disagree} "
        f"after {votes.passes} passes"
    )
    notes = []
    if agree:
        bound = clopper_pearson_lower(agree, images, ERROR_RATE)
        notes.append(
            f"for the population behind these images, if they are a random sample of it, agreement is at least "
            f"{bound:.3g} with confidence 1 - {ERROR_RATE:g}; the claim here is about this set"
        )
    remedy = ""
    if verdict is Verdict.FAIL:
        remedy = "convert with a smaller moped_delta, or fine-tune toward the teacher; look at the images that disagree"
    elif verdict is Verdict.INCONCLUSIVE:
        remedy = (
            f"allow more than {votes.passes} passes (--samples): the leading class of {images - agree - disagree} images is "
            "too close to call"
        )
        if single < min_agreement:
            remedy += (
                f"; where that does not help, convert with a smaller moped_delta: a single pass agrees on "
                f"{100 * single:.3g} % of the images only"
            )
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=(
            Measurement(name="needed", value=needed, unit="images"),
            Measurement(name="decided for the teacher", value=agree, unit="images"),
            Measurement(name="decided against the teacher", value=disagree, unit="images"),
            Measurement(name="open", value=images - agree - disagree, unit="images"),
            Measurement(name="agreement of the mean prediction", value=point / images, note="point estimate"),
            Measurement(name="agreement of a single pass", value=single, note="mean over passes"),
            Measurement(name="KL(teacher, BNN)", value=float(divergence.mean()), unit="nats", note="mean over images"),
            Measurement(name="logit error", value=logit_error, note="root mean square, mean over passes"),
            Measurement(name="error rate", value=ERROR_RATE, note="that any image is decided wrongly"),
        ),
        threshold=Threshold(
            quantity="certain share of the images",
            observed=agree / images,
            relation=">=",
            allowed=min_agreement,
        ),
        remedy=remedy,
        notes=tuple(notes),
        samples=votes.passes,
    )
