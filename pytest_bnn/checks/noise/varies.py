"""``noise.varies``: do the outputs for the same input differ from pass to pass?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.noise._pairs import first_pairs, not_finite_in, parts_of, spreads
from pytest_bnn.checks.noise._reference import SATURATED, cannot_vary
from pytest_bnn.checks.noise._scale import Scale, scale_without_noise, typical
from pytest_bnn.checks.noise._silence import MIN_SPREAD, causes_of_silence, floor_of, not_finite, without_layers
from pytest_bnn.checks.values import Passes, Positive
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.libraries.registry import nobody_knows
from pytest_bnn.progress import so_far
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import median_bounds, trials_needed
from pytest_bnn.subject import Subject

MAX_PASSES = 128

#: Images that get further passes at once, and how many passes, where the first ones did not decide.
_SUSPECTS = 8
_BLOCK = 16


@check(
    claim="In eval mode, the outputs for the same input differ from pass to pass by more than rounding.",
    needs=("images",),
    sampled=True,
    after="noise.source",
)
def varies(
    subject: Subject, *, max_passes: Passes = MAX_PASSES, min_spread: Positive = MIN_SPREAD, budget: Budget
) -> Finding:
    """Measure whether the outputs for the same input differ between passes.

    The spread of an image in a pair of passes is the root mean square, over its outputs, of their difference by the
    square root of 2, relative to the scale of the outputs: the standard deviation, over images and outputs, of what the
    network says without noise; of several output tensors each has its own, and numbers that no noise moves set none.
    Its median over pairs, the image's typical spread, must exceed ``min_spread`` on every image, and every
    output must be finite. Images whose outputs do not move under weights drawn here either (saturated, masked, blank)
    are outside of the claim. Passes are drawn until bounds of the medians decide, which take nothing for granted about
    the outputs: no moments, no normality. A sound model fails with a chance of at most the budget's ``alpha``.

    Args:
        subject: images, at least; see `Subject`.
        max_passes: The most passes, at least 2; where they do not decide the verdict is ``inconclusive``.
        min_spread: The least relative spread; never below one rounding of the outputs' dtype.
        budget: Error rates; those in force when None.

    Source: `pytest_bnn.stats.intervals.median_bounds`.
    """
    return _varies(subject, budget, max_passes, min_spread)


measure_noise_varies, assert_noise_varies = varies.measure, varies.assert_


@dataclass(slots=True, eq=False)
class _Bounds:
    """The spread of each image in each of the first pairs of passes, and the bounds of its median so far."""

    spread: Tensor
    low: Tensor
    high: Tensor
    floor: float
    passes: int
    bad: int = 0

    def verdict(self, images: Tensor) -> Verdict:
        """Say what the bounds of some images mean for the claim."""
        if bool((self.high[images] <= self.floor).any()):
            return Verdict.FAIL
        return Verdict.PASS if bool((self.low[images] > self.floor).all()) else Verdict.INCONCLUSIVE

    def telling(self, images: Tensor) -> int:
        """Return the image with the lowest spread, of those alone that keep the claim from holding where some do."""
        silent, doubtful = images[self.high[images] <= self.floor], images[~(self.low[images] > self.floor)]
        telling = next(rows for rows in (silent, doubtful, images) if len(rows))
        return int(telling[int(self.spread.median(0).values[telling].argmin())])


def _varies(subject: Subject, budget: Budget, max_passes: int, min_spread: float) -> Finding:
    passes = min(max_passes, 2 * trials_needed(budget.beta)) // 2 * 2
    pairs = first_pairs(subject, passes)
    if bad := pairs.finite.bad:
        return not_finite(subject, passes, bad)
    scale, floor = scale_without_noise(subject, pairs.live), floor_of(pairs.first, min_spread)
    found = pairs.spreads(scale)
    if not bayesian_layers(subject.model) and bool((found > floor).any()) and (why := nobody_knows(subject.model)):
        return not_applicable(why)
    low, high = median_bounds(found, budget.beta)[0], median_bounds(found, budget.alpha / found.shape[1])[1]
    bounds = _Bounds(found, low, high, floor, passes)
    images = torch.arange(found.shape[1])
    _decide(subject, bounds, images, budget, scale, max_passes)
    if not bounds.bad and bounds.verdict(images) is not Verdict.PASS and bayesian_layers(subject.model):
        images = (~cannot_vary(subject, floor)).nonzero().flatten()
        if not len(images):
            return not_applicable(SATURATED)
        _decide(subject, bounds, images, budget, scale, max_passes)
    if bounds.bad:
        return not_finite(subject, bounds.passes, bounds.bad)
    return _variation(subject, bounds, images, budget, scale)


def _decide(subject: Subject, bounds: _Bounds, images: Tensor, budget: Budget, scale: Scale, max_passes: int) -> None:
    """Draw further passes of the images that vary least, until some surely do not vary or all of them surely do."""
    per_image = budget.alpha / bounds.spread.shape[1]
    while bounds.verdict(images) is Verdict.INCONCLUSIVE:
        # A model that is silent is so for every image: a few decide.
        rows = images[~(bounds.low[images] > bounds.floor)]
        rows = rows[bounds.spread[:, rows].median(0).values.argsort()[:_SUSPECTS]]
        so_far(f"{len(rows):,} of {len(images):,} images not decided yet")
        few, passes = bounds.spread[:, rows], 2 * len(bounds.spread)
        while passes + 2 <= max_passes and bounds.verdict(rows) is Verdict.INCONCLUSIVE:
            stop = min(passes + _BLOCK, max_passes // 2 * 2)
            block = subject.bank.draw(passes, stop, rows)
            bounds.bad = not_finite_in(block)
            if bounds.bad:
                bounds.passes = stop
                return
            few = torch.cat([few, spreads(block, scale, parts_of(subject))])
            bounds.low[rows] = median_bounds(few, budget.beta)[0]
            bounds.high[rows] = median_bounds(few, per_image)[1]
            passes = stop
        bounds.passes = max(bounds.passes, passes)
        if bounds.verdict(rows) is not Verdict.PASS:
            return


def _variation(subject: Subject, bounds: _Bounds, images: Tensor, budget: Budget, scale: Scale) -> Finding:
    verdict, floor, passes = bounds.verdict(images), bounds.floor, bounds.passes
    spread = bounds.spread.median(0).values
    judged = spread[images]
    fixed = len(spread) - len(images)
    image = bounds.telling(images)
    lowest = float(spread[image])
    place = int(subject.places[image])
    # Where other images vary, the weights do.
    causes = [] if verdict is Verdict.PASS else causes_of_silence(subject, float(bounds.spread.max()))
    headline = (
        f"the outputs vary by {float(judged.median()):.3g} of their scale (median of {len(judged)} images, "
        f"{passes} passes)"
    )
    notes = list(causes)
    if fixed:
        headline += f"; those of {fixed} images cannot vary under this posterior"
        notes.append(
            f"{fixed} of {len(spread)} images are outside of the claim: "
            "weights drawn from the posterior by the check itself do not move their outputs either (saturated, masked "
            "or blank)"
        )
    remedy = ""
    if verdict is not Verdict.PASS:
        amount = "exactly 0" if lowest == 0 else f"{lowest:.2g} of the outputs' scale"
        headline = f"the outputs for image {place} vary by {amount} (more than {floor:.2g} is required)" + (
            f": {causes[0]}" if causes else ""
        )
        remedy = "make every forward pass draw its own weights; a posterior this narrow carries no uncertainty"
    if verdict is Verdict.INCONCLUSIVE:
        needed = 2 * trials_needed(budget.beta if lowest > floor else budget.alpha / len(spread))
        remedy = (
            f"allow more than {passes} passes (--samples): {needed} decide where all of them say the same"
            if passes < needed
            else f"the spread of image {place} is too close to {floor:g} to call: allow more passes, or say with "
            "min_spread what you require"
        )
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=(
            Measurement(name="median spread", value=float(judged.median()), unit="of the outputs' scale"),
            Measurement(
                name="lowest spread", value=float(judged.min()), unit="of the outputs' scale",
                note=f"image {int(subject.places[int(images[int(judged.argmin())])])}",
            ),
            Measurement(name="highest spread", value=float(judged.max()), unit="of the outputs' scale"),
            Measurement(name="outputs' scale", value=typical(scale), note="without noise"),
            *([Measurement(name="images that cannot vary", value=fixed)] if fixed else []),
            *(without_layers(subject) if verdict is Verdict.FAIL else ()),
        ),
        threshold=Threshold(
            quantity=("lowest spread, " if lowest == float(judged.min()) else "spread ") + f"of image {place}",
            observed=lowest, relation=">", allowed=floor,
        ),
        remedy=remedy,
        notes=tuple(notes),
        samples=passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic=f"typical spread of image {place} (median over pairs of passes, by order statistics)",
            low=_finite(bounds.low[image]),
            high=_finite(bounds.high[image]),
        ),
    )  # fmt: skip


def _finite(bound: Tensor) -> float | None:
    return float(bound) if bool(torch.isfinite(bound)) else None
