"""``noise.varies``: do the outputs for the same input differ from pass to pass?"""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_bnn.checks.check import Finding, check
from pytest_bnn.checks.noise._pairs import not_finite_in, scale_without_noise, spreads
from pytest_bnn.checks.noise._silence import MIN_SPREAD, causes_of_silence, floor_of, not_finite
from pytest_bnn.checks.values import Passes, Positive
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.intervals import Budget, median_bounds, trials_needed
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
    square root of 2, relative to the standard deviation over images and outputs of what the network says without
    noise. Its median over pairs, the image's typical spread, must exceed ``min_spread`` on every image, and every
    output must be finite. Passes are drawn until bounds of the medians decide, which take nothing for granted about
    the outputs: no moments, no normality. A sound model fails with a chance of at most the budget's ``alpha``.

    Args:
        subject: images, at least; see `Subject`.
        max_passes: The most passes, at least 2; where they do not decide the verdict is ``inconclusive``.
        min_spread: The least relative spread; never below ten times the dtype's rounding.
        budget: Error rates; those in force when None.

    Source: `pytest_bnn.stats.intervals.median_bounds`.
    """
    return _varies(subject, budget, max_passes, min_spread)


measure_noise_varies, assert_noise_varies = varies.measure, varies.assert_


def _varies(subject: Subject, budget: Budget, max_passes: int, min_spread: float) -> Finding:
    passes = min(max_passes, 2 * trials_needed(budget.beta)) // 2 * 2
    outputs = subject.bank.first(passes)
    if not_finite_in(outputs):
        return not_finite(subject, passes, not_finite_in(outputs))
    scale, floor = scale_without_noise(subject), floor_of(outputs, min_spread)
    found = spreads(outputs, scale)
    per_image = budget.alpha / found.shape[1]
    low, high = median_bounds(found, budget.beta)[0], median_bounds(found, per_image)[1]
    while not bool((high <= floor).any()) and not bool((low > floor).all()):
        # A model that is silent is so for every image: a few decide.
        rows = (~(low > floor)).nonzero().flatten()
        rows = rows[found[:, rows].median(0).values.argsort()[:_SUSPECTS]]
        few, passes = found[:, rows], len(outputs)
        while passes + 2 <= max_passes and not bool((high <= floor).any()) and not bool((low[rows] > floor).all()):
            stop = min(passes + _BLOCK, max_passes // 2 * 2)
            block = subject.bank.draw(passes, stop, rows)
            if bad := not_finite_in(block):
                return not_finite(subject, stop, bad)
            few = torch.cat([few, spreads(block, scale)])
            low[rows], high[rows], passes = median_bounds(few, budget.beta)[0], median_bounds(few, per_image)[1], stop
        if not bool((low[rows] > floor).all()):
            break
    verdict = Verdict.PASS if bool((low > floor).all()) else Verdict.INCONCLUSIVE
    if bool((high <= floor).any()):
        verdict = Verdict.FAIL
    return _variation(subject, verdict, found, (low, high), budget, floor, scale, passes)


def _variation(
    subject: Subject,
    verdict: Verdict,
    found: Tensor,
    bounds: tuple[Tensor, Tensor],
    budget: Budget,
    floor: float,
    scale: float,
    passes: int,
) -> Finding:
    spread = found.median(0).values
    low, high = bounds
    image = int(high.argmin() if verdict is Verdict.FAIL else low.argmin())
    lowest = float(spread[image])
    causes = [] if verdict is Verdict.PASS else causes_of_silence(subject, lowest)
    headline = (
        f"outputs vary by {float(spread.median()):.3g} of their scale (median of {len(spread)} images, {passes} passes)"
    )
    remedy = ""
    if verdict is not Verdict.PASS:
        amount = "exactly 0" if lowest == 0 else f"{lowest:.2g} of the outputs' scale"
        headline = f"the outputs for image {image} vary by {amount}" + (f": {causes[0]}" if causes else "")
        remedy = "make every forward pass draw its own weights; a posterior this narrow carries no uncertainty"
    if verdict is Verdict.INCONCLUSIVE:
        needed = 2 * trials_needed(budget.beta if lowest > floor else budget.alpha / len(spread))
        remedy = (
            f"allow more than {passes} passes (--samples): {needed} decide where all of them say the same"
            if passes < needed
            else f"the spread of image {image} is too close to {floor:g} to call: allow more passes, or say with "
            "min_spread what you require"
        )
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=(
            Measurement(name="median spread", value=float(spread.median()), unit="of the outputs' scale"),
            Measurement(
                name="lowest spread", value=float(spread.min()), unit="of the outputs' scale",
                note=f"image {int(spread.argmin())}",
            ),
            Measurement(name="highest spread", value=float(spread.max()), unit="of the outputs' scale"),
            Measurement(name="outputs' scale", value=scale, note="without noise"),
        ),
        threshold=Threshold(quantity="lowest spread of an image", observed=lowest, relation=">", allowed=floor),
        remedy=remedy,
        notes=tuple(causes),
        samples=passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic=f"typical spread of image {image} (median over pairs of passes, by order statistics)",
            low=_finite(low[image]),
            high=_finite(high[image]),
        ),
    )  # fmt: skip


def _finite(bound: Tensor) -> float | None:
    return float(bound) if bool(torch.isfinite(bound)) else None
