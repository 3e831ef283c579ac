"""What a layer computes with now: its weight and bias, also where torch makes them anew from other parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@dataclass(frozen=True, slots=True, eq=False)
class Baked:
    """One tensor of a layer as a plain one, and whether what it is made of is trained."""

    value: Tensor | None
    trained: bool


def baked(module: nn.Module, name: str) -> Baked:
    """Return a layer's weight or bias: plain, parametrized, or made by a hook (weight norm, spectral norm, pruning)."""
    for hook in making_hooks(module).values():
        if _tensor_of(hook) == name:
            sources = [module._parameters.get(source) for source in _sources(hook)]
            return Baked(_made_by(hook, module).detach().clone(), any(_is_trained(source) for source in sources))
    if not parametrize.is_parametrized(module, name):
        parameter = module._parameters.get(name)
        return Baked(parameter if parameter is None else parameter.detach(), _is_trained(parameter))
    # A parametrization may keep buffers up to date in train mode: read a copy of it, in eval mode.
    module = copy.deepcopy(module).eval()
    value: Tensor = getattr(module, name)
    sources = list(module.parametrizations[name].parameters())  # type: ignore[index,union-attr]
    return Baked(value.detach().contiguous(), any(_is_trained(source) for source in sources))


def making_hooks(module: nn.Module) -> dict[int, Any]:
    """Return the hooks that make a layer's weight before every forward, by their keys."""
    kinds = (WeightNorm, SpectralNorm, BasePruningMethod)
    return {key: hook for key, hook in module._forward_pre_hooks.items() if isinstance(hook, kinds)}


def sources(module: nn.Module) -> set[str]:
    """Return the names of the parameters and buffers that those hooks use, and of what they make."""
    return {name for hook in making_hooks(module).values() for name in (_tensor_of(hook), *_sources(hook))}


def _tensor_of(hook: Any) -> str:
    name: str = hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
    return name


def _sources(hook: Any) -> Iterator[str]:
    endings = {WeightNorm: ("g", "v"), SpectralNorm: ("orig", "u", "v")}
    for ending in endings.get(type(hook), ("orig", "mask")):
        yield f"{_tensor_of(hook)}_{ending}"


def _made_by(hook: Any, module: nn.Module) -> Tensor:
    if isinstance(hook, BasePruningMethod):
        made: Tensor = hook.apply_mask(module)
    elif isinstance(hook, SpectralNorm):
        made = hook.compute_weight(module, do_power_iteration=False)
    else:
        made = hook.compute_weight(module)
    return made


def _is_trained(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad
