"""``noise.source``: do the outputs vary, and is it the posterior that makes them?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.noise._pairs import live_in, not_finite_in, parts_of, spreads
from pytest_bnn.checks.noise._reference import SATURATED, cannot_vary
from pytest_bnn.checks.noise._scale import Scale, scales_of
from pytest_bnn.checks.noise._silence import MIN_SPREAD, causes_of_silence, floor_of, not_finite, without_layers
from pytest_bnn.checks.values import Passes, Positive
from pytest_bnn.libraries.posterior import bayesian_layers, zero_sigma
from pytest_bnn.libraries.registry import nobody_knows
from pytest_bnn.network.calling import forward
from pytest_bnn.network.comparing import TRACED_IMAGES, Parting, difference, first_parting, tolerance, traced
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import Certainty, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import draws_below_median
from pytest_bnn.subject import Subject, fitted

MAX_PASSES = 128

#: Images that get further pairs of passes, where the first pair did not differ.
_LIVELIEST = 8


@check(
    claim="Outputs vary because of the posterior alone: not with every sigma at 0, and with it without reseeding.",
    needs=("images",),
    can=("mean_mode",),
    sampled=True,
    after="mean.equals_teacher",
)
def source(
    subject: Subject, *, max_passes: Passes = MAX_PASSES, min_spread: Positive = MIN_SPREAD, budget: Budget
) -> Finding:
    """Measure whether the variance of the outputs comes from the posterior.

    Two passes in a row with every sigma at 0 must agree to float tolerance, so that neither dropout nor BatchNorm
    nor noise of another origin is at work: that is exact. Two in a row with the posterior's noise must differ,
    although nobody seeds in between: by more than ``min_spread`` on some image, its spread being that of
    `measure_noise_varies`. One pair that differs is enough, and needs no statistics. Where the first pair does not, the
    eight images that varied most get further ones. Where every image's typical spread (its median over pairs) exceeds
    ``min_spread``, each pair stays below it with a probability of at most one half, so the check fails after as many
    pairs as bring that to ``alpha``. Names the module that the noise comes from, or the cause of its absence.

    Args:
        subject: images, at least; see `Subject`.
        max_passes: The most passes with noise, at least 2; where too few do not differ the verdict is
            ``inconclusive``.
        min_spread: As in `measure_noise_varies`.
        budget: Error rates; those in force when None.

    Source: the sign test; `pytest_bnn.stats.intervals.draws_below_median`.
    """
    return _source(subject, budget, max_passes, min_spread)


measure_noise_source, assert_noise_source = source.measure, source.assert_


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Passes taken two by two: the largest spread of an image in each pair, what counts as none, and NaN."""

    largest: tuple[float, ...]
    floor: float
    bad: int = 0

    @property
    def passes(self) -> int:
        return 2 * len(self.largest)

    @property
    def spread(self) -> float:
        return max(self.largest)

    @property
    def varies(self) -> bool:
        return self.spread > self.floor


def _pairs(subject: Subject, calm: Tensor, min_spread: float, most: int) -> _Pairs:
    """Draw pairs, at most so many, until one differs."""
    images = subject.require_images()
    largest: list[float] = []
    scale: Scale = 1.0
    with undisturbed(subject.model, seed=subject.seed):
        while True:
            pair = torch.stack([forward(subject.model, images) for _ in range(2)])
            floor, bad = floor_of(pair, min_spread), not_finite_in(pair)
            if not largest:
                scale = scales_of(calm, subject.fields, live_in(torch.cat([pair, calm.to(pair)[None]])))
            found = torch.zeros(1) if bad else spreads(pair, scale, parts_of(subject))[0]
            largest.append(float(found.max()))
            if bad or largest[-1] > floor or len(largest) >= most:
                return _Pairs(tuple(largest), floor, bad)
            if len(largest) == 1 and len(found) == len(images):
                images = images[found.argsort(descending=True)[:_LIVELIEST]]


def _source(subject: Subject, budget: Budget, max_passes: int, min_spread: float) -> Finding:
    images = subject.require_images()
    with undisturbed(subject.model, seed=subject.seed), zero_sigma(subject.model):
        calm, again = forward(subject.model, images), forward(subject.model, images)
    silent, allowed = difference(calm, again), tolerance(calm)
    leaks = not 0 <= silent <= allowed
    needed = draws_below_median(budget.alpha)
    pairs = _pairs(subject, calm.double(), min_spread, 1 if leaks else min(needed, max_passes // 2))
    if pairs.bad:
        return not_finite(subject, pairs.passes, pairs.bad)
    if leaks and (why := nobody_knows(subject.model) or _of_the_network(subject)):
        return not_applicable(why)
    if not pairs.varies and bayesian_layers(subject.model):
        stuck = cannot_vary(subject, pairs.floor)
        if bool(stuck.all()):
            return not_applicable(SATURATED)
    if leaks:
        return _leak(subject, pairs, silent, allowed, budget)
    words = f"two passes in a row differ by {pairs.spread:.3g} of the outputs' scale"
    words += "; with every sigma at 0 they are equal"
    verdict, remedy, where, causes = Verdict.PASS, "", None, []
    if not pairs.varies:
        decided = len(pairs.largest) >= needed
        verdict = Verdict.FAIL if decided else Verdict.INCONCLUSIVE
        where = _other_noise(subject, in_train_mode=True)
        causes = causes_of_silence(subject, pairs.spread)
        if where is not None:
            cause = f"in train mode the outputs do vary, with every sigma at 0 too: {called(where.path)} ({where.kind})"
            causes.insert(0, cause)
        words = "two passes in a row do not differ" + (f": {causes[0]}" if causes else "")
        remedy = "let the posterior be the source of the noise: convert the layers, and never seed inside forward"
        if not decided:
            remedy = f"allow more than {pairs.passes} passes (--samples): {2 * needed} that do not differ decide"
    return _finding(
        verdict,
        words,
        pairs,
        silent,
        Threshold(quantity="largest spread of an image", observed=pairs.spread, relation=">", allowed=pairs.floor),
        where,
        remedy,
        budget,
        causes,
        () if pairs.varies else without_layers(subject),
    )


def _of_the_network(subject: Subject) -> str:
    """Say that the network had noise of its own before it was converted; empty where that is not shown."""
    if subject.teacher is None:
        return ""
    expected = subject.teacher_output()
    with undisturbed(subject.teacher, seed=subject.seed + 1):
        again = forward(subject.teacher, fitted(subject.require_images(), subject.teacher))
    if 0 <= difference(expected, again.to(expected.device)) <= tolerance(expected):
        return ""
    return (
        "the teacher's outputs vary from pass to pass too: the network has noise of its own beside the posterior's, "
        "such as a sampled latent; audit a network that returns the mean of it, to have the posterior's noise judged"
    )


def _leak(subject: Subject, pairs: _Pairs, silent: float, allowed: float, budget: Budget) -> Finding:
    """Return the finding of outputs that vary without the posterior's noise."""
    where = _other_noise(subject, in_train_mode=False)
    words = f"with every sigma at 0 two passes still differ by {silent:.2g} of the outputs' scale"
    words += f"; the noise enters at {called(where.path)} ({where.kind})" if where else ""
    remedy = (
        "switch that module to eval mode, or remove it: its noise is not the posterior's"
        if where is not None and where.training
        else "look for what draws noise in that module or just before it, such as a functional dropout without "
        "training=self.training: it is not the posterior's"
    )
    if not bayesian_layers(subject.model):
        words += f"; {causes_of_silence(subject, pairs.spread)[0]}"
        remedy = "audit the converted model itself, not one derived from it; what varies here is no posterior"
    threshold = Threshold(quantity="difference with every sigma at 0", observed=silent, relation="<=", allowed=allowed)
    return _finding(Verdict.FAIL, words, pairs, silent, threshold, where, remedy, budget, [])


def _finding(
    verdict: Verdict,
    headline: str,
    pairs: _Pairs,
    silent: float,
    threshold: Threshold,
    where: Parting | None,
    remedy: str,
    budget: Budget,
    causes: list[str],
    layers: tuple[Measurement, ...] = (),
) -> Finding:
    silenced = verdict is Verdict.FAIL and not pairs.varies
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=(
            Measurement(name="difference with every sigma at 0", value=silent, unit="of the outputs' scale"),
            Measurement(
                name="largest spread", value=pairs.spread, unit="of the outputs' scale", note=f"{pairs.passes} passes"
            ),
            *layers,
        ),
        threshold=threshold,
        layers=() if where is None else (LayerFinding(path=where.path, kind=where.kind, ok=False, finding=str(where)),),
        remedy=remedy,
        notes=tuple(causes),
        samples=pairs.passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic="typical spread of some image (median over pairs of passes, by the sign test)",
            high=pairs.spread if silenced else None,
        ),
    )


def _other_noise(subject: Subject, *, in_train_mode: bool) -> Parting | None:
    few = subject.require_images()[: max(2, TRACED_IMAGES)]
    runs = []
    with undisturbed(subject.model, seed=subject.seed), zero_sigma(subject.model), traced(subject.model) as calls:
        if in_train_mode:
            for module in subject.model.modules():
                module.training = True
        for _ in range(2):
            calls.clear()
            forward(subject.model, few)
            runs.append(list(calls))
    return first_parting(*runs)
