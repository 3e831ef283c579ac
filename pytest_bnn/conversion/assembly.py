"""From a plan to a network: Bayesian layers first, then a copy of the network that refers to them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.conversion.attention import PROJECTIONS, BayesianMultiheadAttention
from pytest_bnn.conversion.layers import layer_class
from pytest_bnn.conversion.parameters import Conversion
from pytest_bnn.conversion.plan import LayerPlan, Plan

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
          "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
          "_is_full_backward_hook")  # fmt: skip


def build(model: nn.Module, plan: Plan, conversion: Conversion) -> nn.Module:
    """Return the converted copy of a model.

    The copy is a deep copy that is told beforehand what becomes of every layer, so whatever refers to a layer, at
    several paths or outside of the module tree, refers to its one Bayesian form.
    """
    memo: dict[int, Any] = {}
    with _without_draws(conversion.moped_enable):
        for layer in plan.layers:
            memo[id(layer.origin)] = make_layer(layer, conversion)
        projections = [[make_layer(layer, conversion) for layer in layers] for _, layers in plan.attentions]
    for method in plan.methods:
        memo[id(method.kept)] = memo[id(method.layer)].forward
    converted: nn.Module = copy.deepcopy(model, memo)
    for layer in plan.layers:
        made = memo[id(layer.origin)]
        for name in (*_HOOKS, *layer.attributes):
            source = layer.attributes if name in layer.attributes else layer.origin.__dict__
            made.__dict__[name] = copy.deepcopy(source[name], memo)
        for key in layer.dropped_hooks:
            made._forward_pre_hooks.pop(key)
    for (origin, _), layers in zip(plan.attentions, projections, strict=True):
        _hand_over(memo[id(origin)], layers)
    for origin, cls in plan.renamed:
        memo[id(origin)].__class__ = cls
    return converted


def make_layer(plan: LayerPlan, conversion: Conversion) -> nn.Module:
    """Make one Bayesian layer as ``dnn_to_bnn`` does; with MOPED its posterior is at the plan's weights."""
    layer: Any = layer_class(plan.kind, conversion.type, own=plan.own)(
        **plan.settings,
        prior_mean=conversion.prior_mu,
        prior_variance=conversion.prior_sigma,
        posterior_mu_init=conversion.posterior_mu_init,
        posterior_rho_init=conversion.posterior_rho_init,
    )
    layer.dnn_to_bnn_flag = True
    layer.training = plan.origin.training
    for name, buffer in layer.named_buffers():
        if name.startswith("eps_"):  # the library leaves them as memory was
            buffer.zero_()
    if (layer.prior_weight_mu.device, layer.prior_weight_mu.dtype) != (plan.weight.device, plan.weight.dtype):
        layer.to(device=plan.weight.device, dtype=plan.weight.dtype)
        for name, buffer in layer.named_buffers():  # a float32 prior would have been rounded on the way
            if name.startswith("prior"):
                buffer.fill_(conversion.prior_mu if name.endswith("mu") else conversion.prior_sigma)
    name = "weight" if plan.kind == "Linear" else "kernel"
    for role, tensor, trained in (
        (name, plan.weight, plan.trained[0]),
        ("bias", plan.bias, plan.trained[1]),
    ):
        if tensor is None:
            continue
        mu, rho = getattr(layer, f"mu_{role}"), getattr(layer, f"rho_{role}")
        if conversion.moped_enable:
            mu.data.copy_(tensor)
            _set_rho(rho.data, tensor, conversion.moped_delta)
        mu.requires_grad_(trained)
        rho.requires_grad_(trained)
    made: nn.Module = layer
    return made


def _set_rho(rho: Tensor, weight: Tensor, delta: float) -> None:
    """Make sigma = delta * abs(weight): the library's ``get_rho`` to the bit, without its copies of the weights."""
    torch.abs(weight, out=rho)
    rho.mul_(delta).expm1_().add_(1e-20).log_()


def _hand_over(attention: Any, layers: list[nn.Module]) -> None:
    """Let layers do what an attention's bare parameters did."""
    for name in ("in_proj_weight", "in_proj_bias", *(f"{name}_weight" for name in PROJECTIONS)):
        attention._parameters[name] = None
    for name, layer in zip(PROJECTIONS, layers, strict=True):
        attention._modules[name] = layer
    attention.__class__ = BayesianMultiheadAttention


class _NoDraws(TorchFunctionMode):
    """Leaves out the random values that MOPED overwrites: they are most of the time that a conversion takes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.normal_:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_draws(wanted: bool) -> Iterator[None]:
    if wanted:
        with _NoDraws():
            yield
    else:
        yield
