"""How the KL term, the place, the forward and the kernel of one Bayesian layer are broken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.mutators.case import FACTORS, Apply, Case, Ways, layer_of, override, put, times
from pytest_bnn.libraries.posterior import BayesianLayer


def of_layer(layer: BayesianLayer, twin: BayesianLayer | None) -> Ways:
    """Return every way to break a layer's KL term and its place; ``twin`` is another of its shapes, if there is one."""
    for factor in FACTORS:
        yield "KL", f"scaled by {factor}", _with_kl(layer, times(factor))
    yield "KL", "NaN", _with_kl(layer, times(torch.nan))
    yield "KL", "detached", _with_kl(layer, Tensor.detach)
    yield "KL", "frozen", lambda case: _freeze_kl(case.model.get_submodule(layer.path))
    yield "path", "frozen", lambda case: put(case.model, layer.path, case.teacher.get_submodule(layer.path))
    yield "path", "detached", lambda case: _hide(case.model, layer.path)
    if twin is not None:
        yield "KL", "swapped", lambda case: _exchange_kl(case.model, layer.path, twin.path, both=True)
        yield "KL", "aliased", lambda case: _exchange_kl(case.model, layer.path, twin.path, both=False)
        yield "path", "swapped", lambda case: _exchange(case.model, layer.path, twin.path)
        yield "path", "aliased", lambda case: put(case.model, layer.path, case.model.get_submodule(twin.path))


def of_forward(layer: BayesianLayer) -> Ways:
    """Return every way to break what a layer's forward does beside its draw."""
    yield "forward", "without gradient", _with_forward(layer, _without_gradient)
    yield "forward", "output detached", _with_forward(layer, lambda call, x: call(x).detach())
    yield "forward", "mean of the batch added", _with_forward(layer, _with_mean_of_batch)
    yield "forward", "other path for one example", _with_forward(layer, _other_path_for_one)
    yield "forward", "seeds the generator", _with_forward(layer, _seeding)
    yield "forward", "puts the generator back", _with_forward(layer, _putting_back)
    yield "forward", "seeds the generator on its way back", _with_forward(layer, _seeding_backward)
    yield "kernel", "made deterministic", lambda case: _copy_of_teacher(case, layer.path)
    yield "kernel", "mu used undrawn", lambda case: _undrawn(layer_of(case, layer))
    yield "kernel", "another one after it", lambda case: _add_kernel(case.model, layer.path)


# --- KL and path -------------------------------------------------------------------------------------------------


def _with_kl(layer: BayesianLayer, change: Callable[[Tensor], Tensor]) -> Apply:
    def apply(case: Case) -> None:
        module = case.model.get_submodule(layer.path)
        kind: Any = type(module)
        override(module, kl_loss=lambda self: change(kind.kl_loss(self)))

    return apply


def _freeze_kl(module: Any) -> None:
    first = module.kl_loss().detach()
    override(module, kl_loss=lambda self: first.clone())


def _exchange_kl(model: nn.Module, path: str, twin: str, *, both: bool) -> None:
    one, other = model.get_submodule(path), model.get_submodule(twin)
    kind: Any = type(one)
    its: Any = type(other)
    override(one, kl_loss=lambda self: its.kl_loss(other))
    if both:
        override(other, kl_loss=lambda self: kind.kl_loss(one))


def _exchange(model: nn.Module, one: str, other: str) -> None:
    first, second = model.get_submodule(one), model.get_submodule(other)
    put(model, one, second)
    put(model, other, first)


def _hide(model: nn.Module, path: str) -> None:
    """Keep a layer in use without registering it: neither optimizer nor ``named_modules`` sees it."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    vars(owner)[name] = owner._modules.pop(name)


# --- Forward and kernel ------------------------------------------------------------------------------------------

#: A layer's own forward.
Call = Callable[[Tensor], Tensor]


def _with_forward(layer: BayesianLayer, change: Callable[[Call, Tensor], Tensor]) -> Apply:
    def apply(case: Case) -> None:
        module = case.model.get_submodule(layer.path)
        kind: Any = type(module)
        override(module, forward=lambda self, x: change(lambda images: kind.forward(self, images), x))

    return apply


def _without_gradient(call: Call, x: Tensor) -> Tensor:
    with torch.no_grad():
        return call(x)


def _with_mean_of_batch(call: Call, x: Tensor) -> Tensor:
    out = call(x)
    return out + out.mean(0)


def _other_path_for_one(call: Call, x: Tensor) -> Tensor:
    return 1.1 * call(x) if len(x) == 1 else call(x)


def _seeding(call: Call, x: Tensor) -> Tensor:
    out = call(x)
    torch.manual_seed(0)
    return out


def _putting_back(call: Call, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return call(x)


def _seeding_backward(call: Call, x: Tensor) -> Tensor:
    out = call(x)
    if out.requires_grad:
        out.register_hook(lambda _: torch.manual_seed(0) and None)
    return out


def _copy_of_teacher(case: Case, path: str) -> None:
    put(case.model, path, copy.deepcopy(case.teacher.get_submodule(path)))


def _undrawn(layer: BayesianLayer) -> None:
    """Let a layer compute with its means, as its deterministic counterpart does."""
    weight, bias = (next((t for t in layer.tensors if t.role == role), None) for role in ("weight", "bias"))
    assert weight is not None

    def forward(self: Any, x: Tensor) -> Tensor:
        kernel, shift = getattr(self, weight.mu_name), getattr(self, bias.mu_name) if bias is not None else None
        if kernel.ndim == 2:
            return functional.linear(x, kernel, shift)
        return functional.conv2d(x, kernel, shift, self.stride, self.padding, self.dilation, self.groups)

    override(layer.module, forward=forward)


def _add_kernel(model: nn.Module, path: str) -> None:
    """Let a product with a matrix, 1 for now, follow a layer."""
    module = model.get_submodule(path)
    weight = next(p for name, p in module.named_parameters(recurse=False) if "mu" in name and p.ndim > 1)
    model.register_parameter("extra", nn.Parameter(torch.eye(len(weight))))

    def follow(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return functional.linear(out.movedim(1, -1), model.get_parameter("extra")).movedim(-1, 1)

    module.register_forward_hook(follow)
