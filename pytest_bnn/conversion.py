"""From a deterministic network to a Bayesian one with bayesian-torch's ``dnn_to_bnn``: plan first, then a copy."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Literal

import torch
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from bayesian_torch.utils.util import get_rho
from torch import Tensor, nn

from pytest_bnn.errors import ConversionError
from pytest_bnn.isolation import preserved_random_state
from pytest_bnn.posterior import bayesian_layers, is_bayesian

#: What the library converts faithfully. It has one-dimensional ones too, but cannot build them (docs/faults.md, A20).
CONVERTIBLE = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)

#: The library goes by words in a class's name.
_SELECTED_NAMES = ("Conv", "Linear", "LSTM")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
          "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
          "_is_full_backward_hook")  # fmt: skip

Estimator = Literal["Reparameterization", "Flipout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The parameters of a conversion, validated.

    Args:
        prior_mu: Mean of the prior of every weight. The library leaves it here under MOPED too (docs/faults.md, A4).
        prior_sigma: Standard deviation of the prior of every weight, above 0.
        posterior_mu_init: Mean of the random posterior means; used without MOPED only.
        posterior_rho_init: Mean of the random rho; used without MOPED only.
        type: The estimator, ``"Reparameterization"`` or ``"Flipout"``.
        moped_enable: Whether the posterior starts at the network's own weights: mu = w, sigma = delta * abs(w).
        moped_delta: That delta, above 0.

    Source: Krishnan, Subedar and Tickoo 2020 for MOPED; bayesian-torch's ``dnn_to_bnn`` for the names.
    """

    prior_mu: float = 0.0
    prior_sigma: float = 1.0
    posterior_mu_init: float = 0.0
    posterior_rho_init: float = -3.0
    type: Estimator = "Reparameterization"
    moped_enable: bool = True
    moped_delta: float = 0.1

    def __post_init__(self) -> None:
        for name in ("prior_mu", "prior_sigma", "posterior_mu_init", "posterior_rho_init", "moped_delta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, not {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, not {value!r}")
        if self.prior_sigma <= 0 or self.moped_delta <= 0:
            raise ValueError("prior_sigma and moped_delta must be above 0")
        if self.type not in ("Reparameterization", "Flipout"):
            raise ValueError(f"type must be 'Reparameterization' or 'Flipout', not {self.type!r}")
        if not isinstance(self.moped_enable, bool):
            raise TypeError(f"moped_enable must be True or False, not {self.moped_enable!r}")


def convert(
    model: nn.Module,
    *,
    prior_mu: float = 0.0,
    prior_sigma: float = 1.0,
    posterior_mu_init: float = 0.0,
    posterior_rho_init: float = -3.0,
    type: Estimator = "Reparameterization",
    moped_enable: bool = True,
    moped_delta: float = 0.1,
) -> nn.Module:
    """Give a Bayesian copy of a network; the network itself is not touched.

    Every Linear, Conv2d, Conv3d, ConvTranspose2d and ConvTranspose3d becomes a Bayesian layer through
    bayesian-torch's ``dnn_to_bnn``. Device, dtype, requires_grad, train/eval modes and forward hooks survive.
    With MOPED the global random state is not used; without it the posterior is drawn from it, as by any
    initialisation.

    Args:
        model: The deterministic network.
        prior_mu: See `Conversion`, as for all others.
        prior_sigma: Prior standard deviation.
        posterior_mu_init: Without MOPED.
        posterior_rho_init: Without MOPED.
        type: ``"Reparameterization"`` or ``"Flipout"``.
        moped_enable: Start at the network's own weights.
        moped_delta: sigma / abs(w) at the start.

    Raises:
        ConversionError: Some part cannot be converted faithfully; it names every such module and why.
        TypeError: ``model`` is no module, or a parameter has the wrong type.
        ValueError: A parameter is out of range.
    """
    return convert_with(
        model,
        Conversion(
            prior_mu=prior_mu,
            prior_sigma=prior_sigma,
            posterior_mu_init=posterior_mu_init,
            posterior_rho_init=posterior_rho_init,
            type=type,
            moped_enable=moped_enable,
            moped_delta=moped_delta,
        ),
    )


def convert_with(model: nn.Module, conversion: Conversion) -> nn.Module:
    """Do as `convert`, with the parameters as one record."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {_type_name(model)}")
    with preserved_random_state():
        obstacles = list(_obstacles(model, conversion))
    if obstacles:
        raise ConversionError(
            f"{_type_name(model)} cannot be converted, and nothing was touched: " + "; ".join(obstacles),
            fix="replace these modules by Linear, Conv2d or Conv3d layers that the library converts, "
            "or convert the parts of the network that can be",
        )
    converted = copy.deepcopy(model)
    originals = {path: module for path, module in converted.named_modules() if isinstance(module, CONVERTIBLE)}
    parameters = {name: getattr(conversion, name) for name in Conversion.__dataclass_fields__}
    empty = [(m, name) for m in converted.modules() for name, child in m._modules.items() if child is None]
    for module, name in empty:  # the library would stumble over `model.downsample = None`
        del module._modules[name]
    if conversion.moped_enable:
        with preserved_random_state():
            dnn_to_bnn(converted, parameters)
    else:
        dnn_to_bnn(converted, parameters)
    for module, name in empty:
        module._modules[name] = None
    for path, original in originals.items():
        _carry_over(original, converted.get_submodule(path), conversion)
    _check_sigma(converted)
    return converted


def _carry_over(original: nn.Module, layer: nn.Module, conversion: Conversion) -> None:
    """Give a new layer what the library forgets of the old one (docs/faults.md, A21)."""
    weight = original.weight
    assert isinstance(weight, Tensor)
    layer.to(device=weight.device, dtype=weight.dtype)
    layer.training = original.training
    for role, tensor in original.named_parameters(recurse=False):
        for name, parameter in layer.named_parameters(recurse=False):
            if name.endswith("_bias") == (role == "bias"):
                parameter.requires_grad_(tensor.requires_grad)
                if conversion.moped_enable:  # the library went through float32
                    rho = name.startswith("rho")
                    value = get_rho(tensor.detach(), conversion.moped_delta) if rho else tensor
                    parameter.data.copy_(value.detach())
    for hooks in _HOOKS:
        layer.__dict__[hooks] = original.__dict__[hooks]


def _check_sigma(model: nn.Module) -> None:
    for layer in bayesian_layers(model):
        for tensor in layer.tensors:
            if bool(torch.isfinite(tensor.sigma).all()):
                continue
            raise ConversionError(
                f"{tensor.name} got a sigma that is not finite in {tensor.mu.dtype}, and nothing was touched",
                fix="use a smaller moped_delta: the library overflows where moped_delta * abs(weight) exceeds 88",
            )


def _obstacles(model: nn.Module, conversion: Conversion) -> Iterator[str]:
    if any(is_bayesian(module) for module in model.modules()):
        yield "it already holds Bayesian layers"
        return
    convertible = [(path, m) for path, m in model.named_modules(remove_duplicate=False) if _is_selected(m)]
    if not convertible:
        yield "it has no Linear or convolution layer"
    for path, module in convertible:
        reason = _why_not(path, module, conversion)
        if reason:
            yield f"{path or 'the model itself'} ({_type_name(module)}) {reason}"
    yield from _shared(model, convertible)


def _is_selected(module: nn.Module) -> bool:
    layers = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase)
    by_name = not module._modules and any(word in _type_name(module) for word in _SELECTED_NAMES)
    return isinstance(module, layers) or by_name


def _why_not(path: str, module: nn.Module, conversion: Conversion) -> str:
    if type(module) not in CONVERTIBLE:
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            return "is recurrent: the library drops its trained weights"
        if type(module) in (nn.Conv1d, nn.ConvTranspose1d):
            return "is one-dimensional: the library cannot build its Bayesian form"
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            return "is lazy: run the network once first"
        return f"is no torch.nn layer that the library knows, only its name or base class is ({_bases(module)})"
    if path == "":
        return "is a single layer: the library converts children only; wrap it in nn.Sequential"
    if module._modules:
        return f"owns child modules ({', '.join(module._modules)}), as parametrizations do: the library skips it"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"has padding_mode {module.padding_mode!r}, which the library drops"
    if any(getattr(module, "output_padding", ()) or ()):
        return f"has output_padding {module.output_padding}, which the library drops"
    for name, tensor in module.named_parameters(recurse=False):
        if not bool(torch.isfinite(tensor).all()):
            return f"holds NaN or infinity in its {name}"
        if tensor.dtype is torch.float16:
            return "is float16, where sigma underflows to 0: convert in float32"
        largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
        if conversion.moped_enable and conversion.moped_delta * largest > 88:
            return (
                f"has a {name} of size {largest:.3g}: moped_delta * abs(weight) overflows above 88; lower moped_delta"
            )
    if conversion.type == "Flipout":
        if isinstance(module, nn.ConvTranspose2d) and module.in_channels != module.out_channels:
            return "has another number of channels out than in, for which the library's Flipout has no KL term"
        if isinstance(module, nn.ConvTranspose3d) and module.bias is not None:
            return "has a bias, with which the library's Flipout raises in forward"
    plain = set(module.__dict__) - set(type(module)(*_smallest(module)).__dict__)
    if plain:
        return f"carries attributes that the Bayesian layer would lack ({', '.join(sorted(plain))})"
    return ""


def _smallest(module: nn.Module) -> tuple[int, ...]:
    return (1, 1) if isinstance(module, nn.Linear) else (1, 1, 1)


def _shared(model: nn.Module, convertible: list[tuple[str, nn.Module]]) -> Iterator[str]:
    paths: defaultdict[int, list[str]] = defaultdict(list)
    owners: defaultdict[int, dict[int, str]] = defaultdict(dict)
    for path, module in convertible:
        paths[id(module)].append(path)
    for path, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            owners[id(tensor)][id(module)] = f"{path}.{name}"
    for places in paths.values():
        if len(places) > 1:
            yield f"one module is used at {' and '.join(places)}: the library would make independent copies of it"
    for places_by_owner in owners.values():
        if len(places_by_owner) > 1 and any(owner in paths for owner in places_by_owner):
            yield f"one tensor is shared by {' and '.join(places_by_owner.values())}: the library would untie it"
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if name == "_modules":
                continue
            for held in _modules_in(value):
                if id(held) in paths:
                    place = f"{path}.{name}" if path else name
                    yield f"{place} keeps a second reference to {paths[id(held)][0]} that would stay deterministic"


def _modules_in(value: object, depth: int = 3) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, MethodType):
        yield from _modules_in(value.__self__, 0)
    elif isinstance(value, list | tuple | set | dict) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _modules_in(item, depth - 1)


def _type_name(value: object) -> str:
    return type(value).__name__


def _bases(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
