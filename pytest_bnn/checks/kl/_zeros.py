"""Weights whose sigma is dead although they are in use, and weights that get noise although the teacher prunes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pytest_bnn.checks.finding import at_fault
from pytest_bnn.libraries.gaussian import PosteriorTensor
from pytest_bnn.libraries.protocol import BayesianLayer
from pytest_bnn.records.evidence import LayerFinding

#: A sigma below this is dead: its gradient is below 1e-8 of a weight's, so no training moves it (faults.md, A6).
DEAD_SIGMA = 1e-8

#: Share of dead sigma in a tensor from which it is worth a warning; a few in a million weights never matter.
DEAD_SHARE = 1e-3

_ALIVE = (
    "move weights that are exactly 0 away from it before a MOPED conversion, or set rho there by hand; where they are "
    "pruned on purpose nothing is to be done: keep the teacher's mask (torch.nn.utils.prune) and give the teacher"
)
_PRUNED = (
    "set rho to a large negative number where the teacher's mask is 0, as a MOPED conversion does, or prune the "
    "posterior's mu and sigma with the same mask"
)


@dataclass(slots=True)
class Zeros:
    """What was found: dead sigma of weights in use, noise on pruned weights, notes on pruned weights without noise."""

    dead: list[LayerFinding] = field(default_factory=list)
    noisy: list[LayerFinding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return _ALIVE if self.dead else _PRUNED


def zeros_of(layers: Sequence[BayesianLayer], teacher: nn.Module | None) -> Zeros:
    """Look for dead sigma, and for noise on weights that the teacher's mask prunes."""
    found = Zeros()
    modules = {} if teacher is None else dict(teacher.named_modules(remove_duplicate=False))
    for tensor in (tensor for layer in layers for tensor in layer.tensors):
        dead = tensor.sigma < DEAD_SIGMA
        pruned = _pruned(modules.get(tensor.path), tensor)
        if pruned is not None:
            noisy = int((pruned & ~dead).sum())
            if noisy:
                widest = float(tensor.sigma[pruned].max())
                words = (
                    f"{noisy:,} of {int(pruned.sum()):,} weights of the {tensor.role} that the teacher's mask prunes"
                )
                found.noisy.append(at_fault(tensor, f"{words} get noise (sigma up to {widest:.2g})"))
            else:
                found.notes.append(
                    f"`{tensor.name}`: {int(pruned.sum()):,} weights are pruned by the teacher's mask, and have no "
                    "noise"
                )
            dead &= ~pruned
        count = int(dead.sum())
        if count > DEAD_SHARE * tensor.count:
            finding = f"{count:,} of {tensor.count:,} sigma of the {tensor.role} are dead (below {DEAD_SIGMA:g})"
            found.dead.append(at_fault(tensor, finding))
    return found


def _pruned(module: nn.Module | None, tensor: PosteriorTensor) -> Tensor | None:
    """Say which weights a module masks: by `torch.nn.utils.prune`, or by a parametrization that makes zeros."""
    weight = getattr(module, tensor.role, None)
    if module is None or not isinstance(weight, Tensor) or weight.shape != tensor.mu.shape:
        return None
    parametrized = dict(module.named_children()).get("parametrizations")
    mask = dict(module.named_buffers(recurse=False)).get(f"{tensor.role}_mask")
    if mask is None:
        if parametrized is None or tensor.role not in parametrized._modules:
            return None
        mask = weight.detach()
    zero = (mask == 0).to(tensor.mu.device)
    return zero if bool(torch.any(zero)) else None
