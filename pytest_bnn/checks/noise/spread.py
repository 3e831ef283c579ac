"""``noise.spread``: does the predictive spread lie in its band, and how much of it does each layer make?"""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.noise._pairs import (
    Scale,
    live_in,
    not_finite_in,
    scales_of,
    spreads,
    without_noise,
)
from pytest_bnn.checks.noise._silence import not_finite
from pytest_bnn.checks.values import Passes, SpreadBand
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.libraries.protocol import tensors_of
from pytest_bnn.libraries.registry import nobody_knows
from pytest_bnn.records.evidence import Certainty, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import median_bounds, trials_needed
from pytest_bnn.subject import Subject

#: Below a thousandth of the signal no decision moves; above the signal's own scale the noise decides.
BAND = (1e-3, 1.0)
MAX_PASSES = 128

_BLOCK = 8

#: What the attribution costs: two passes on so many images, for so many layers or groups of layers.
_IMAGES = 4
_GROUPS = 32


@check(
    claim="The predictive spread lies in the declared band: the noise is neither lost beside the signal nor above it.",
    needs=("images",),
    sampled=True,
    after="noise.varies",
)
def spread(subject: Subject, *, band: SpreadBand = BAND, max_passes: Passes = MAX_PASSES, budget: Budget) -> Finding:
    """Measure whether the predictive spread lies in a band.

    The spread of a pair of passes is the root mean square, over images and outputs, of their difference by the
    square root of 2, relative to the scale of the outputs: the standard deviation, over images and outputs, of what the
    network says without noise; of several output tensors each has its own, and numbers that no noise moves set none.
    The median over pairs must lie in the band; passes are drawn until bounds of the median decide, which take
    nothing for granted about the outputs. Beside the verdict stands what each layer contributes: the variance of the
    outputs with the noise of that layer alone, from two passes.

    Args:
        subject: images, at least; see `Subject`.
        band: The least and the most relative spread.
        max_passes: The most passes, at least 2; where they do not decide the verdict is ``inconclusive``.
        budget: Error rates; those in force when None.

    Source: `pytest_bnn.stats.intervals.median_bounds`.
    """
    return _find(subject, band, max_passes, budget)


measure_noise_spread, assert_noise_spread = spread.measure, spread.assert_


def _find(subject: Subject, band: tuple[float, float], max_passes: int, budget: Budget) -> Finding:
    least, most = band
    passes, last = 2 * trials_needed(budget.beta), max_passes // 2 * 2
    calm = without_noise(subject)
    while True:
        passes = min(passes, last)
        outputs = subject.bank.first(passes)
        if not_finite_in(outputs):
            return not_finite(subject, passes, not_finite_in(outputs))
        scale = scales_of(calm, subject.fields, live_in(outputs))
        found = spreads(outputs, scale).square().mean(1).sqrt()
        layers = bayesian_layers(subject.model)
        if not layers and bool((found > 0).any()) and (why := nobody_knows(subject.model)):
            return not_applicable(why)
        low, high = (float(bound) for bound in median_bounds(found, budget.beta))
        surely_above, surely_below = (float(bound) for bound in median_bounds(found, budget.alpha / 2))
        if least <= low and high <= most:
            verdict = Verdict.PASS
        elif surely_below < least or surely_above > most:
            if surely_above > most and layers and all(t.sigma_is_the_prior() for t in tensors_of(layers)):
                return not_applicable(
                    "every sigma is still the prior's: the network is untrained, and it is the prior's doing that its "
                    f"outputs vary by {float(found.median()):.3g} of their scale; audit it again when it is trained"
                )
            verdict = Verdict.FAIL
        elif passes < last:
            passes += _BLOCK
            continue
        else:
            verdict = Verdict.INCONCLUSIVE
        return _finding(subject, verdict, found, (surely_above, low, high, surely_below), band, scale, passes, budget)


def _finding(
    subject: Subject,
    verdict: Verdict,
    found: Tensor,
    bounds: tuple[float, float, float, float],
    band: tuple[float, float],
    scale: Scale,
    passes: int,
    budget: Budget,
) -> Finding:
    spread = float(found.median())
    wide = spread > (band[0] * band[1]) ** 0.5
    quiet_low, low, high, quiet_high = bounds
    if verdict is Verdict.FAIL:
        low, high = (quiet_low, high) if wide else (low, quiet_high)
    shares = _attribution(subject, scale)
    total = sum(share for _, _, share in shares)
    layers = tuple(
        LayerFinding(
            path=path,
            kind=kind,
            ok=verdict is not Verdict.FAIL or (len(shares) * share <= total if wide else share >= band[0] ** 2),
            finding=f"alone it makes the outputs vary by {share**0.5:.3g} of their scale"
            + (f", {100 * share / total:.3g} % of the sum of variances" if total else ""),
        )
        for path, kind, share in sorted(shares, key=lambda row: -row[2] if wide else row[2])
    )
    top = max(shares, key=lambda row: row[2], default=None)
    headline = f"the outputs vary by {spread:.3g} of their scale without noise ({passes} passes)"
    if verdict is Verdict.FAIL:
        headline += ": the noise drowns what the network says" if wide else ": the posterior has all but collapsed"
    if top is not None and total:
        headline += f"; most of it comes from {top[0] or 'the model itself'} ({100 * top[2] / total:.3g} %)"
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=(
            Measurement(name="spread", value=spread, unit="of the outputs' scale", note="median over pairs of passes"),
            Measurement(name="band, least", value=band[0], unit="of the outputs' scale"),
            Measurement(name="band, most", value=band[1], unit="of the outputs' scale"),
        ),
        threshold=Threshold(
            quantity="spread of the outputs",
            observed=spread,
            relation="<=" if wide else ">=",
            allowed=band[1] if wide else band[0],
        ),
        layers=layers,
        remedy=_remedy(verdict, passes, budget, wide=wide),
        samples=passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic="typical spread of the outputs (median over pairs of passes, by order statistics)",
            low=low if abs(low) < float("inf") else None,
            high=high if abs(high) < float("inf") else None,
        ),
    )


def _remedy(verdict: Verdict, passes: int, budget: Budget, *, wide: bool) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.INCONCLUSIVE:
        needed = 2 * trials_needed(budget.beta)
        if passes < needed:
            return f"allow more than {passes} passes (--samples): {needed} decide where all of them say the same"
        return "the spread is too close to the band's end to call: allow more passes, or declare another band"
    if wide:
        return "convert with a smaller moped_delta, or train sigma down where the layers below contribute most"
    return (
        "convert with a larger moped_delta, or find what drove rho down in training, such as a KL term of the wrong "
        "sign"
    )


def _attribution(subject: Subject, scale: Scale) -> list[tuple[str, str, float]]:
    """Give path, kind and relative variance of the outputs for the noise of each layer alone."""
    layers = bayesian_layers(subject.model)
    size = -(-len(layers) // _GROUPS)
    rows = torch.arange(len(subject.require_images()))[:_IMAGES]
    found = []
    for group in (layers[start : start + size] for start in range(0, len(layers), max(1, size))):
        outputs = subject.bank.draw(0, 2, rows, noisy=[layer.path for layer in group])
        name = group[0].path if len(group) == 1 else f"{group[0].path} to {group[-1].path}"
        kind = group[0].kind if len(group) == 1 else f"{len(group)} layers"
        found.append((name, kind, float(spreads(outputs, scale).square().mean())))
    return found
