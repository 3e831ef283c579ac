"""``noise.varies`` and ``noise.source``: do the outputs vary, and is it the posterior that makes them?"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from pytest_bnn.checks.claim import Check, Finding, asserting
from pytest_bnn.checks.pairs import not_finite_in, scale_of, scale_without_noise, spreads
from pytest_bnn.checks.trace import TRACED_IMAGES, Parting, difference, first_parting, tolerance, traced
from pytest_bnn.evidence import Certainty, Evidence, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.isolation import seed_everything, undisturbed
from pytest_bnn.posterior import bayesian_layers, orphaned_posteriors, zero_sigma
from pytest_bnn.sampling import forward
from pytest_bnn.statistics import Budget, median_bounds, trials_needed
from pytest_bnn.subject import Given, Subject

#: A spread below this share of the logits' own scale is rounding or nothing: it cannot move a decision.
MIN_SPREAD = 1e-4
MAX_PASSES = 128

#: Images that get further passes at once, and how many passes, where the first ones did not decide.
_SUSPECTS = 8
_BLOCK = 16

NOISE_VARIES = Check(
    id="noise.varies",
    claim="In eval mode, the outputs for the same input differ from pass to pass by more than rounding.",
    needs=("images",),
    sampled=True,
)

NOISE_SOURCE = Check(
    id="noise.source",
    claim="Outputs vary because of the posterior alone: not with every sigma at 0, and with it without reseeding.",
    needs=("images",),
)


def measure_noise_varies(
    model: nn.Module | Subject,
    *,
    max_passes: int = MAX_PASSES,
    min_spread: float = MIN_SPREAD,
    budget: Budget | None = None,
    **given: Unpack[Given],
) -> Evidence:
    """Measure whether the outputs for the same input differ between passes.

    The spread of an image in a pair of passes is the root mean square, over its outputs, of their difference by the
    square root of 2, relative to the standard deviation over images and outputs of what the network says without
    noise. Its median over pairs, the image's typical spread, must exceed ``min_spread`` on every image, and every
    output must be finite. Passes are drawn until bounds of the medians decide, which take nothing for granted about
    the outputs: no moments, no normality. A sound model fails with a chance of at most the budget's ``alpha``.

    Args:
        model: The Bayesian network, or a `Subject`.
        max_passes: The most passes, at least 2; where they do not decide the verdict is ``inconclusive``.
        min_spread: The least relative spread; never below ten times the dtype's rounding.
        budget: Error rates; those in force when None.
        **given: images, at least; see `Subject`.

    Source: `pytest_bnn.statistics.median_bounds`.
    """
    if max_passes < 2 or not min_spread > 0:
        raise ValueError("max_passes must be at least 2 and min_spread above 0")
    return NOISE_VARIES.run(
        Subject.of(model, given),
        lambda subject: _varies(subject, budget or Budget.in_force(), max_passes, min_spread),
    )


def measure_noise_source(
    model: nn.Module | Subject, *, min_spread: float = MIN_SPREAD, **given: Unpack[Given]
) -> Evidence:
    """Measure whether the variance of the outputs comes from the posterior.

    Two passes in a row with every sigma at 0 must agree to float tolerance, so that neither dropout nor BatchNorm
    nor noise of another origin is at work; two in a row with the posterior's noise must differ, although nobody
    seeds in between. Names the module that the noise comes from, or the cause of its absence.

    Args:
        model: The Bayesian network, or a `Subject`.
        min_spread: As in `measure_noise_varies`.
        **given: images, at least; see `Subject`.
    """
    if not min_spread > 0:
        raise ValueError("min_spread must be above 0")
    return NOISE_SOURCE.run(Subject.of(model, given), lambda subject: _source(subject, min_spread))


assert_noise_varies = asserting(measure_noise_varies)
assert_noise_source = asserting(measure_noise_source)


def _varies(subject: Subject, budget: Budget, max_passes: int, min_spread: float) -> Finding:
    passes = min(max_passes, 2 * trials_needed(budget.beta)) // 2 * 2
    outputs = subject.bank.first(passes)
    if not_finite_in(outputs):
        return not_finite(subject, passes, not_finite_in(outputs))
    scale, floor = scale_without_noise(subject), _floor(outputs, min_spread)
    found = spreads(outputs, scale)
    per_image = budget.alpha / found.shape[1]
    low, high = median_bounds(found, budget.beta)[0], median_bounds(found, per_image)[1]
    while not bool((high <= floor).any()) and not bool((low > floor).all()):
        # A model that is silent is so for every image: a few decide.
        rows = (low <= floor).nonzero().flatten()
        rows = rows[found[:, rows].median(0).values.argsort()[:_SUSPECTS]]
        few, passes = found[:, rows], len(outputs)
        while passes + 2 <= max_passes and not bool((high <= floor).any()) and not bool((low[rows] > floor).all()):
            stop = min(passes + _BLOCK, max_passes // 2 * 2)
            few = torch.cat([few, spreads(subject.bank.draw(passes, stop, rows), scale)])
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
    causes = [] if verdict is Verdict.PASS else _causes_of_silence(subject, lowest)
    headline = f"outputs vary by {float(spread.median()):.3g} of their scale (median of {len(spread)} images, {passes} passes)"
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


def not_finite(subject: Subject, passes: int, bad: int) -> Finding:
    """Give the finding of outputs that are NaN or infinite, with the layers that have such parameters."""
    culprits = [
        LayerFinding(path=tensor.path, kind=layer.kind, ok=False, finding=f"{tensor.role}: {problem}")
        for layer in bayesian_layers(subject.model)
        for tensor in layer.tensors
        for problem in _not_finite_in(tensor.mu, tensor.rho, tensor.sigma)
    ]
    where = f": {culprits[0].path} {culprits[0].finding}" if culprits else ""
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"outputs are NaN or infinite in {bad} of {passes} passes{where}",
        threshold=Threshold(quantity="passes with NaN or infinity", observed=bad, relation="==", allowed=0),
        layers=tuple(culprits),
        remedy="a rho that is infinite comes from moped_delta * abs(weight) above 88: convert with a smaller "
        "moped_delta; NaN in mu or rho comes from a diverged training",
        samples=passes,
    )


def _not_finite_in(mu: Tensor, rho: Tensor, sigma: Tensor) -> list[str]:
    named = (("mu", mu), ("rho", rho), ("sigma", sigma))
    return [
        f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} {name} are NaN or infinite"
        for name, tensor in named
        if not bool((torch.isfinite(tensor) | (torch.isneginf(tensor) & (name == "rho"))).all())
    ][:1]


def _source(subject: Subject, min_spread: float) -> Finding:
    images = subject.require_images()
    with undisturbed(subject.model, seed=subject.seed), zero_sigma(subject.model):
        silent = difference(forward(subject.model, images), forward(subject.model, images))
    with undisturbed(subject.model, seed=subject.seed):
        one, other = forward(subject.model, images), forward(subject.model, images)
    bad = not_finite_in(torch.stack([one, other]))
    if bad:
        return not_finite(subject, 2, bad)
    floor = _floor(one, min_spread)
    allowed = tolerance(one)
    gap = float((one.double() - other.double()).square().mean().sqrt()) / scale_of(one.double().flatten(1))
    leaks, varies = not 0 <= silent <= allowed, gap > floor
    where = _other_noise(subject, images, in_train_mode=not leaks) if leaks or not varies else None
    if leaks:
        headline = f"with every sigma at 0 two passes still differ by {silent:.2g} of the outputs' scale"
        headline += f"; the noise enters at {where.path or 'the model itself'} ({where.kind})" if where else ""
        remedy = "switch that module to eval mode, or remove it: its noise is not the posterior's"
        if not bayesian_layers(subject.model):
            headline += f"; {_causes_of_silence(subject, gap)[0]}"
            remedy = "audit the converted model itself, not one derived from it; what varies here is no posterior"
        quantity, observed, relation, bound = "difference with every sigma at 0", silent, "<=", allowed
    else:
        quantity, observed, relation, bound = "difference of two passes", gap, ">", floor
        headline, remedy = f"two passes differ by {gap:.3g} of the outputs' scale; with every sigma at 0 they are equal", ""
    causes = []
    if not leaks and not varies:
        causes = _causes_of_silence(subject, gap)
        if where is not None:
            causes.insert(0, f"in train mode the outputs do vary, with every sigma at 0 too: {where.path} ({where.kind})")
        headline = "two passes in a row do not differ" + (f": {causes[0]}" if causes else "")
        remedy = "let the posterior be the source of the noise: convert the layers, and never seed inside forward"
    return Finding(
        verdict=Verdict.PASS if varies and not leaks else Verdict.FAIL,
        headline=headline,
        measurements=(
            Measurement(name="difference with every sigma at 0", value=silent, unit="of the outputs' scale"),
            Measurement(name="difference of two passes", value=gap, unit="of the outputs' scale"),
        ),
        threshold=Threshold(
            quantity=quantity,
            observed=observed,
            relation="<=" if relation == "<=" else ">",
            allowed=bound,
        ),
        layers=() if where is None else (LayerFinding(path=where.path, kind=where.kind, ok=False, finding=str(where)),),
        remedy=remedy,
        notes=tuple(causes),
        samples=4,
    )


def _other_noise(subject: Subject, images: Tensor, *, in_train_mode: bool) -> Parting | None:
    few = images[: max(2, TRACED_IMAGES)]
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


def _causes_of_silence(subject: Subject, spread: float) -> list[str]:
    """Say why outputs do not vary, from what can be seen; the likeliest first."""
    layers = bayesian_layers(subject.model)
    if not layers:
        orphans = orphaned_posteriors(subject.model)
        if orphans:
            return ["the model was derived with torch.fx or a feature extractor: its noise is baked in"]
        return ["the model has no Bayesian layer"]
    causes = []
    if _reseeds(subject):
        causes.append("the forward seeds the random generator itself, so every pass draws the same noise")
    widest = max(float((t.sigma / t.mu.detach().abs().clamp_min(1e-12)).median()) for la in layers for t in la.tensors)
    if widest < MIN_SPREAD:
        causes.append(f"sigma has collapsed: its median is at most {widest:.1g} of abs(mu) in every layer")
    if not causes and spread == 0:
        causes.append("sigma is not 0, yet every pass uses the same weights: the noise is cached or never drawn")
    return causes


def _reseeds(subject: Subject) -> bool:
    states = []
    for seed in (subject.seed, subject.seed + 1):
        with undisturbed(subject.model, seed=subject.seed):
            seed_everything(seed)
            before = torch.get_rng_state()
            forward(subject.model, subject.require_images()[:1])
            after = torch.get_rng_state()
            states.append((after, not torch.equal(before, after)))
    return states[0][1] and torch.equal(states[0][0], states[1][0])


def _floor(outputs: Tensor, min_spread: float) -> float:
    return max(min_spread, 10 * torch.finfo(outputs.dtype).eps if outputs.is_floating_point() else 0.0)
