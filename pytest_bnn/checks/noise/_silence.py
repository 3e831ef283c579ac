"""Causes of outputs that do not vary, or are NaN or infinite, as the checks of noise name them."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor

from pytest_bnn.checks.finding import BAYESIAN_LAYERS, TENSORS_NOT_FINITE, Finding
from pytest_bnn.libraries.gaussian import not_finite as count_not_finite
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers, orphaned_posteriors
from pytest_bnn.libraries.protocol import tensors_of
from pytest_bnn.libraries.registry import nobody_knows
from pytest_bnn.network.calling import forward
from pytest_bnn.network.isolation import seed_everything, undisturbed
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject

#: A spread below this share of the logits' own scale is rounding or nothing: it cannot move a decision.
MIN_SPREAD = 1e-4


def floor_of(outputs: Tensor, min_spread: float) -> float:
    """Return the spread below which outputs count as equal: as asked for, but never less than one rounding.

    Two passes with equal weights give equal bits, so what is left is weights that hardly leave their rounding.
    """
    return max(min_spread, torch.finfo(outputs.dtype).eps if outputs.is_floating_point() else 0.0)


def not_finite(subject: Subject, passes: int, bad: int) -> Finding:
    """Return the finding of outputs that are NaN or infinite, with the layers that have such parameters."""
    culprits = [
        LayerFinding(path=tensor.path, kind=layer.kind, ok=False, finding=f"its {tensor.role}: {problem}")
        for layer in bayesian_layers(subject.model)
        for tensor in layer.tensors
        for problem in _not_finite_in(tensor)
    ]
    where = f": {called(culprits[0].path)} ({culprits[0].finding})" if culprits else ""
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"outputs are NaN or infinite in {bad} of {passes} passes{where}",
        measurements=(Measurement(name=TENSORS_NOT_FINITE, value=len(culprits)),),
        threshold=Threshold(quantity="passes with NaN or infinity", observed=bad, relation="==", allowed=0),
        layers=tuple(culprits),
        remedy="a rho that is infinite comes from moped_delta * abs(weight) above 88: convert with a smaller "
        "moped_delta; NaN in mu or rho comes from a diverged training"
        if culprits
        else "every mu, rho and sigma is finite: look for what overflows or divides by 0 in the forward",
        samples=passes,
    )


def _not_finite_in(tensor: PosteriorTensor) -> list[str]:
    """Say which of mu, rho and sigma is not finite; rho may be minus infinity, where sigma is 0."""
    rho = tensor.rho.detach()
    named = (("mu", tensor.mu), ("rho", rho.masked_fill(torch.isneginf(rho), 0)), ("sigma", tensor.sigma))
    return [
        f"{count} of {values.numel()} {name} are NaN or infinite"
        for name, values in named
        if (count := count_not_finite(values))
    ][:1]


def without_layers(subject: Subject) -> tuple[Measurement, ...]:
    """Return the measurement that there is no Bayesian layer, where there is none: outputs do not vary for that."""
    return () if bayesian_layers(subject.model) else (Measurement(name=BAYESIAN_LAYERS, value=0),)


def causes_of_silence(subject: Subject, spread: float) -> list[str]:
    """Say why outputs do not vary, from what can be seen; the likeliest first."""
    layers = bayesian_layers(subject.model)
    if not layers:
        orphans = orphaned_posteriors(subject.model)
        if orphans and any(isinstance(module, torch.fx.GraphModule) for module in subject.model.modules()):
            return ["the model was derived with torch.fx or a feature extractor: its noise is baked in"]
        if orphans:
            return [f"mu and rho at {called(orphans[0])} belong to no layer that draws"]
        return [nobody_knows(subject.model) or "the model has no Bayesian layer"]
    causes = []
    if generator := _what_the_forward_does_to_the_generator(subject):
        causes.append(generator)
    widths = [float((t.sigma / t.mu.detach().abs().clamp_min(1e-12)).median()) for t in tensors_of(layers)]
    if widths and (widest := max(widths)) < MIN_SPREAD:
        causes.append(f"sigma has collapsed: its median is at most {widest:.1g} of abs(mu) in every layer")
    if not causes and spread == 0:
        causes.append("sigma is not 0, yet every pass uses the same weights: the noise is cached or never drawn")
    return causes


def _what_the_forward_does_to_the_generator(subject: Subject) -> str:
    """Return how a forward pass resets the random generator: seeds it, or puts it back; empty where it does neither."""
    ends, kept, outputs = [], [], []
    for seed in (subject.seed, subject.seed + 1):
        with undisturbed(subject.model, seed=subject.seed):
            seed_everything(seed)
            before = torch.get_rng_state()
            outputs.append(forward(subject.model, subject.require_images()[:1]))
            ends.append(torch.get_rng_state())
            kept.append(torch.equal(before, ends[-1]))
    if not kept[0] and torch.equal(ends[0], ends[1]):
        return "the forward seeds the random generator itself, so every pass draws the same noise"
    if all(kept) and not torch.equal(outputs[0], outputs[1]):
        return (
            "the forward puts the random generator back to where it was when it is done (fork_rng, set_rng_state), so "
            "that passes in a row draw the same noise"
        )
    return ""
