"""``noise.spread``: does the predictive spread lie in its band, and how much of it does each layer make?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.noise._groups import Group, Grouped, group_parts, grouped
from pytest_bnn.checks.noise._pairs import Pairs, first_pairs, not_finite_in
from pytest_bnn.checks.noise._reference import SATURATED, cannot_vary
from pytest_bnn.checks.noise._scale import without_noise
from pytest_bnn.checks.noise._silence import not_finite, without_layers
from pytest_bnn.checks.values import Passes, SpreadBand
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.libraries.protocol import tensors_of
from pytest_bnn.network.naming import called
from pytest_bnn.progress import so_far
from pytest_bnn.records.evidence import Certainty, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import median_bounds, trials_needed
from pytest_bnn.subject import Subject

#: Below a thousandth of the signal no decision moves; above the signal's own scale the noise decides.
BAND = (1e-3, 1.0)
MAX_PASSES = 128

_BLOCK = 8

#: A spread that looks too wide and is not certain to be is looked at in so many times the passes, on so many images.
_LONGER, _FEW = 4, 16

#: What the attribution costs: two passes on so many images, for so many layers or groups of layers.
_IMAGES = 4
_GROUPS = 32

#: Where a subject keeps what was measured of single layers.
CONTRIBUTIONS = "contributions of layers to the spread"


@check(
    claim="The predictive spread lies in the declared band: the noise is neither lost beside the signal nor above it.",
    needs=("images",),
    can=("mean_mode",),
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


def contributions(subject: Subject) -> dict[str, float]:
    """Return each layer's share of the sum of the variances that single layers make, where it was measured.

    Layers that were measured in groups are named as a group, ``"FIRST to LAST"``.

    Args:
        subject: What was judged.
    """
    known = subject.evaluations.get(CONTRIBUTIONS)
    return dict(known) if isinstance(known, dict) else {}


@dataclass(slots=True)
class _Bounds:
    """Bounds of the spread of each group: of its median over pairs of passes, certain for a verdict or another."""

    found: Tensor
    low: float
    high: list[float]
    surely_above: list[float]
    surely_below: float

    def verdict(self, band: tuple[float, float]) -> Verdict:
        """Return whether all spreads surely lie in the band, or one surely does not."""
        least, most = band
        if least <= self.low and max(self.high) <= most:
            return Verdict.PASS
        outside = self.surely_below < least or max(self.surely_above) > most
        return Verdict.FAIL if outside else Verdict.INCONCLUSIVE

    @property
    def widest(self) -> int:
        """The group whose spread is the largest."""
        return int(torch.tensor(self.surely_above).argmax()) if max(self.surely_above) > 0 else 0


def _bounds(pairs: Pairs, found: Grouped, budget: Budget, images: Tensor) -> _Bounds:
    groups = found.groups
    wide = torch.stack([g.spreads(pairs, most=True)[:, images].square().mean(1).sqrt() for g in groups], 1)
    sizes = torch.tensor([1 if g.columns is None else len(g.columns) for g in groups], dtype=torch.float64)
    narrow = torch.stack([g.spreads(pairs, most=False)[:, images].square().mean(1) for g in groups], 1)
    whole = (narrow * sizes).sum(1).div(sizes.sum()).sqrt()
    return _Bounds(
        found=torch.cat([whole[:, None], wide], 1),
        low=float(median_bounds(whole, budget.beta)[0]),
        high=median_bounds(wide, budget.beta)[1].tolist(),
        surely_above=median_bounds(wide, budget.alpha / 4 / len(groups))[0].tolist(),
        surely_below=float(median_bounds(whole, budget.alpha / 2)[1]),
    )


def _find(subject: Subject, band: tuple[float, float], max_passes: int, budget: Budget) -> Finding:
    least, most = band
    passes, last = 2 * trials_needed(budget.beta), max_passes // 2 * 2
    calm = without_noise(subject)
    images, looked, parts = torch.arange(len(calm)), False, group_parts(subject, calm)
    while True:
        passes = min(passes, last)
        pairs = first_pairs(subject, passes, parts)
        if pairs.finite.bad:
            return not_finite(subject, passes, pairs.finite.bad)
        groups = grouped(subject, calm, pairs.live)
        bounds = _bounds(pairs, groups, budget, images)
        layers = bayesian_layers(subject.model)
        verdict = bounds.verdict(band)
        above = max(bounds.surely_above) > most
        if verdict is Verdict.INCONCLUSIVE and passes < last:
            so_far(f"not decided yet: a spread of about {float(bounds.found[:, 0].median()):.2g}")
            passes += _BLOCK
            continue
        if verdict is not Verdict.PASS and not above and layers and not looked:
            # What cannot vary under this posterior is quiet for a reason.
            images, looked = (~cannot_vary(subject, least)).nonzero().flatten(), True
            if not len(images):
                return not_applicable(SATURATED)
            if len(images) < len(calm):
                continue
        if verdict is Verdict.FAIL and above and layers and all(t.sigma_is_the_prior() for t in tensors_of(layers)):
            return not_applicable(
                "every sigma is still the prior's: the network is untrained, and it is the prior's doing that its "
                f"outputs vary by {float(bounds.found[:, 1 + bounds.widest].median()):.3g} of their scale; audit it "
                "again when it is trained"
            )
        if verdict is Verdict.INCONCLUSIVE and float(bounds.found[:, 1:].median(0).values.max()) > most:
            rows = images[:: -(-len(images) // _FEW)]
            passes = _look_longer(subject, bounds, pairs, rows, groups, most, budget)
            verdict = bounds.verdict(band)
        return _finding(subject, verdict, bounds, band, groups, passes, budget, len(calm) - len(images))


def _look_longer(
    subject: Subject, bounds: _Bounds, seen: Pairs, rows: Tensor, groups: Grouped, most: float, budget: Budget
) -> int:
    """Draw further passes of a few images until the group that looks widest surely is too wide; return their number."""
    at = int(bounds.found[:, 1:].median(0).values.argmax())
    group, passes, last = groups.groups[at], seen.passes, _LONGER * seen.passes
    found = group.spreads(seen, most=True)[:, rows].square().mean(1).sqrt()
    while passes < last and not bounds.surely_above[at] > most:
        block = subject.bank.draw(passes, min(passes + 4 * _BLOCK, last), rows)
        passes += len(block)
        if not_finite_in(block):
            break
        further = Pairs(groups.parts)
        further.take(block)
        found = torch.cat([found, group.spreads(further, most=True).square().mean(1).sqrt()])
        low = float(median_bounds(found, budget.alpha / 4 / len(groups.groups))[0])
        bounds.surely_above[at] = max(bounds.surely_above[at], low)
    return passes


def _finding(
    subject: Subject,
    verdict: Verdict,
    bounds: _Bounds,
    band: tuple[float, float],
    groups: Grouped,
    passes: int,
    budget: Budget,
    fixed: int,
) -> Finding:
    at = bounds.widest
    above, several = bounds.surely_above[at] > band[1], len(groups.groups) > 1
    medians = bounds.found.median(0).values.tolist()
    wide = above or medians[0] > (band[0] * band[1]) ** 0.5
    # One of several outputs is named where it is too wide; otherwise what is said is about all of them.
    alone = several and (above or max(bounds.high) > band[1])
    if alone:
        at = max(range(len(bounds.high)), key=bounds.high.__getitem__) if not above else at
    group, spread = groups.groups[at], medians[1 + at] if alone or above else medians[0]
    low, high = bounds.low, max(bounds.high)
    if verdict is Verdict.FAIL:
        low, high = (bounds.surely_above[at], high) if wide else (low, bounds.surely_below)
    shares = _attribution(subject, group if alone or not several else None, groups)
    total = sum(share for _, _, share in shares)
    subject.evaluations[CONTRIBUTIONS] = {path: share / total for path, _, share in shares if 0 < total < math.inf}
    layers = tuple(
        LayerFinding(
            path=path,
            kind=kind,
            ok=verdict is not Verdict.FAIL or (len(shares) * share <= total if wide else share >= band[0] ** 2),
            finding=f"alone it makes {group.name if alone else 'the outputs'} vary by {share**0.5:.3g} of "
            f"{'its' if alone else 'their'} scale"
            + (f", {100 * share / total:.3g} % of the sum of variances" if total else ""),
        )
        for path, kind, share in sorted(shares, key=lambda row: -row[2] if wide else row[2])
    )
    top = max(shares, key=lambda row: row[2], default=None)
    where = f" in {group.name}" if alone else ""
    limit = f"at most {band[1]:g} is allowed" if wide else f"at least {band[0]:g} is required"
    if verdict is Verdict.FAIL and wide:
        headline = (
            f"the noise{where} is {spread:.3g} times the signal ({limit}, {passes} passes): it drowns what "
            "the network says"
        )
    elif verdict is Verdict.FAIL:
        headline = (
            f"the noise{where} is {spread:.3g} times the signal ({limit}, {passes} passes): the posterior has "
            "all but collapsed"
        )
    else:
        headline = (
            f"the noise{where} is {spread:.3g} times the signal ({band[0]:g} to {band[1]:g} is allowed, "
            f"{passes} passes)"
        )
    if top is not None and total:
        headline += f". Largest source: {_layers(top[0], top[1])}, {100 * top[2] / total:.3g} % of the variance"
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=(
            Measurement(name="spread", value=spread, unit="of the outputs' scale", note="median over pairs of passes"),
            Measurement(name="band, least", value=band[0], unit="of the outputs' scale"),
            Measurement(name="band, most", value=band[1], unit="of the outputs' scale"),
            *(
                Measurement(name=f"spread of {g.name}", value=medians[1 + index], unit="of its own scale")
                for index, g in enumerate(groups.groups)
                if several
            ),
            *([Measurement(name="images that cannot vary", value=fixed)] if fixed else []),
            *(without_layers(subject) if verdict is Verdict.FAIL and not wide else ()),
        ),
        threshold=Threshold(
            quantity=f"spread of {group.name if alone else 'the outputs'}",
            observed=spread,
            relation="<=" if wide else ">=",
            allowed=band[1] if wide else band[0],
            other_end=band[0] if wide else band[1],
        ),
        layers=layers,
        remedy=_remedy(
            verdict,
            passes,
            budget,
            wide=wide,
            below=float(bounds.found[:, 0].max()) < band[0],
            top=None if top is None else top[0],
        ),
        notes=_notes(groups, fixed),
        samples=passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic="typical spread of the outputs (median over pairs of passes, by order statistics)",
            low=low if abs(low) < float("inf") else None,
            high=high if abs(high) < float("inf") else None,
        ),
    )


def _notes(groups: Grouped, fixed: int) -> tuple[str, ...]:
    notes = []
    if groups.constant:
        notes.append(
            f"not judged: {', '.join(groups.constant)}: without noise it is the same for all images, or no noise moves "
            "it, so that it has no scale of its own"
        )
    if fixed:
        notes.append(
            f"{fixed} images are outside of the claim: weights drawn from the posterior by the check itself do not "
            "move their outputs either (saturated, masked or blank)"
        )
    return tuple(notes)


def _layers(path: str, kind: str) -> str:
    """Name a layer, or several in a row, that make noise."""
    several = kind.endswith(" layers")
    return f"{kind}, `{path.replace(' to ', '` to `')}`" if several else f"layer {called(path)} ({kind})"


def _remedy(verdict: Verdict, passes: int, budget: Budget, *, wide: bool, below: bool, top: str | None) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.INCONCLUSIVE:
        failing = 2 * trials_needed(budget.alpha / 2)
        if below and passes < failing:
            return f"all of {passes} passes lie below the band: allow {failing} (--samples), which make that certain"
        needed = 2 * trials_needed(budget.beta)
        if passes < needed:
            return f"allow more than {passes} passes (--samples): {needed} decide where all of them say the same"
        return "the spread is too close to the band's end to call: allow more passes, or declare another band"
    if wide:
        first = "" if top is None else f", first in `{top}`" if top else ""
        return f"convert with a smaller moped_delta, or train sigma down{first}"
    return (
        "convert with a larger moped_delta, or find what drove rho down in training, such as a KL term of the wrong "
        "sign"
    )


def _attribution(subject: Subject, only: Group | None, groups: Grouped) -> list[tuple[str, str, float]]:
    """Return path, kind and relative variance of the outputs, or of one group, for the noise of each layer alone."""
    layers = bayesian_layers(subject.model)
    size = -(-len(layers) // _GROUPS)
    rows = torch.arange(len(subject.require_images()))[:_IMAGES]
    found = []
    for part in (layers[start : start + size] for start in range(0, len(layers), max(1, size))):
        pair = Pairs(groups.parts)
        pair.take(subject.bank.draw(0, 2, rows, noisy=[layer.path for layer in part]))
        name = part[0].path if len(part) == 1 else f"{part[0].path} to {part[-1].path}"
        kind = part[0].kind if len(part) == 1 else f"{len(part)} layers"
        shares = [float(g.spreads(pair, most=True).square().mean()) for g in ((only,) if only else groups.groups)]
        found.append((name, kind, sum(shares) / len(shares)))
    return found
