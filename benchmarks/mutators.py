"""How `benchmarks.mutants` breaks one attribute of one Bayesian layer, in a copy of the model it was listed for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers

FACTORS = (1.01, 1.1, 2, 10)

#: For what no check may judge: the extremes suffice.
EXTREMES = (FACTORS[0], FACTORS[-1])

#: Breaks a model, given its teacher too.
Apply = Callable[[nn.Module, nn.Module], object]

#: Attribute, mutation, and what brings it about.
Ways = Iterator[tuple[str, str, Apply]]


def of_tensor(tensor: PosteriorTensor, partner: PosteriorTensor | None, later: PosteriorTensor | None) -> Ways:
    """Yield every way to break a tensor; ``partner`` and ``later`` are others of its shape, where there are any."""
    yield from _of_values("mu", tensor, tensor.mu_name, partner)
    yield "mu", "frozen", lambda model, _: _at(model, tensor).mu.requires_grad_(False)
    yield "mu", "aliased with the teacher", lambda model, teacher: _alias_teacher(_at(model, tensor), teacher)
    yield from _of_values("sigma", tensor, tensor.rho_name, partner)
    yield "sigma", "frozen", lambda model, _: _at(model, tensor).rho.requires_grad_(False)
    for attribute, name in (("prior mean", tensor.prior_mu_name), ("prior sigma", tensor.prior_sigma_name)):
        for way in _of_values(attribute, tensor, name, partner):
            if way[1] not in ("permuted", "aliased"):  # constants, which nobody writes to
                yield way
    yield "prior mean", "aliased with mu", lambda model, _: _alias_prior(_at(model, tensor))
    for factor in FACTORS:
        yield "draw", f"scaled by {factor}", _drawing(tensor, _scaled_noise(factor))
    yield "draw", "permuted", _drawing(tensor, lambda eps: eps.copy_(eps.normal_().roll(1, 0)))
    yield "draw", "NaN", _drawing(tensor, lambda eps: _first_is_nan(eps.normal_()))
    yield "draw", "frozen", lambda model, _: _fill(_at(model, tensor), _kept())
    yield "draw", "detached", lambda model, _: _fill(_at(model, tensor), lambda eps: eps.normal_(), detached=True)
    if partner is not None:
        yield "draw", "swapped", lambda model, _: _swap_buffers(_at(model, tensor), _at(model, partner))
        yield "draw", "buffer shared", lambda model, _: _share_buffer(_at(model, tensor), _at(model, partner))
        if partner is not later:
            yield "draw", "aliased", lambda model, _: _follow(_at(model, tensor), _at(model, partner))
    if later is not None:
        yield "draw", "aliased with the next pass", lambda model, _: _follow(_at(model, tensor), _at(model, later))


def _at(model: nn.Module, tensor: PosteriorTensor) -> PosteriorTensor:
    """Return the tensor of the same name in a copy of the model."""
    return next(t for layer in bayesian_layers(model) for t in layer.tensors if t.name == tensor.name)


# --- mu, sigma and prior -----------------------------------------------------------------------------------------


def _of_values(attribute: str, tensor: PosteriorTensor, name: str, partner: PosteriorTensor | None) -> Ways:
    def changed(change: Callable[[Tensor], Tensor]) -> Apply:
        def apply(model: nn.Module, _: nn.Module) -> None:
            value = getattr(_at(model, tensor).module, name)
            with torch.no_grad():
                value.copy_(change(value))

        return apply

    for factor in FACTORS if attribute == "mu" else EXTREMES:
        yield attribute, f"scaled by {factor}", changed(_wider(factor) if attribute == "sigma" else _times(factor))
    yield attribute, "permuted", changed(lambda value: value.roll(1, 0))
    yield attribute, "NaN", changed(lambda value: _first_is_nan(value.clone()))
    if partner is None:
        return
    names = {tensor.mu_name: partner.mu_name, tensor.rho_name: partner.rho_name}
    names |= {tensor.prior_mu_name: partner.prior_mu_name, tensor.prior_sigma_name: partner.prior_sigma_name}

    def swap(model: nn.Module, _: nn.Module) -> None:
        one = getattr(_at(model, tensor).module, name)
        other = getattr(_at(model, partner).module, names[name])
        with torch.no_grad():
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)

    def alias(model: nn.Module, _: nn.Module) -> None:
        setattr(_at(model, tensor).module, name, getattr(_at(model, partner).module, names[name]))

    yield attribute, "swapped", swap
    yield attribute, "aliased", alias


def _times(by: float) -> Callable[[Tensor], Tensor]:
    return lambda value: value * by


def _wider(by: float) -> Callable[[Tensor], Tensor]:
    """Turn rho into that of a sigma ``by`` times as wide."""
    return lambda rho: (by * nn.functional.softplus(rho.double())).expm1().log().to(rho.dtype)


def _first_is_nan(value: Tensor) -> Tensor:
    value.view(-1)[0] = torch.nan
    return value


def _alias_teacher(tensor: PosteriorTensor, teacher: nn.Module) -> None:
    tensor.mu.data = getattr(teacher.get_submodule(tensor.path), tensor.role).data


def _alias_prior(tensor: PosteriorTensor) -> None:
    tensor.module._buffers[tensor.prior_mu_name] = tensor.mu.detach()


# --- Draws -------------------------------------------------------------------------------------------------------

#: Fills a noise buffer in place, in place of ``normal_()``, and gives it.
Fill = Callable[[Tensor], Tensor]


class _Filling(TorchFunctionMode):
    """Fills one noise buffer by ``fill``; where it is multiplied with sigma, cuts the graph if told to."""

    def __init__(self, buffer: Tensor, fill: Fill, *, detached: bool) -> None:
        super().__init__()
        self.place = buffer.data_ptr()
        self.fill = fill
        self.detached = detached

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.normal_ and args[0].data_ptr() == self.place:
            return self.fill(args[0])
        result = func(*args, **(kwargs or {}))
        product = self.detached and getattr(func, "__name__", "") in ("mul", "__mul__")
        if product and any(isinstance(a, Tensor) and a.data_ptr() == self.place for a in args):
            return result.detach()
        return result


def _fill(tensor: PosteriorTensor, fill: Fill, *, detached: bool = False) -> None:
    """Let the layer draw this tensor's noise by ``fill``."""
    kind: Any = type(tensor.module)

    def forward(self: nn.Module, x: Tensor) -> Any:
        buffer = getattr(self, tensor.eps_name)
        with _Filling(buffer, fill, detached=detached):
            return kind.forward(self, x)

    tensor.module.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def _drawing(tensor: PosteriorTensor, fill: Fill) -> Apply:
    return lambda model, _: _fill(_at(model, tensor), fill)


def _scaled_noise(by: float) -> Fill:
    return lambda eps: eps.normal_().mul_(by)


def _kept() -> Fill:
    noise: list[Tensor] = []

    def fill(eps: Tensor) -> Tensor:
        if not noise:
            noise.append(torch.randn_like(eps))
        return eps.copy_(noise[0])

    return fill


def _follow(tensor: PosteriorTensor, leader: PosteriorTensor) -> None:
    """Let a tensor take the noise that another one drew last."""
    drawn: list[Tensor] = []

    def lead(eps: Tensor) -> Tensor:
        drawn[:] = [eps.normal_().clone()]
        return eps

    _fill(leader, lead)
    _fill(tensor, lambda eps: eps.copy_(drawn[0]) if drawn else eps.normal_())


def _swap_buffers(one: PosteriorTensor, other: PosteriorTensor) -> None:
    mine, yours = one.module._buffers, other.module._buffers
    mine[one.eps_name], yours[other.eps_name] = yours[other.eps_name], mine[one.eps_name]


def _share_buffer(one: PosteriorTensor, other: PosteriorTensor) -> None:
    one.module._buffers[one.eps_name] = other.module._buffers[other.eps_name]


# --- KL and path -------------------------------------------------------------------------------------------------


def of_layer(layer: BayesianLayer, twin: BayesianLayer | None) -> Ways:
    """Yield every way to break a layer's KL term and its place; ``twin`` is another of its shapes, if there is one."""
    for factor in FACTORS:
        yield "KL", f"scaled by {factor}", _with_kl(layer, _times(factor))
    yield "KL", "NaN", _with_kl(layer, _times(torch.nan))
    yield "KL", "detached", _with_kl(layer, Tensor.detach)
    yield "KL", "frozen", lambda model, _: _freeze_kl(model.get_submodule(layer.path))
    yield "path", "frozen", lambda model, teacher: _put(model, layer.path, teacher.get_submodule(layer.path))
    yield "path", "detached", lambda model, _: _hide(model, layer.path)
    if twin is not None:
        yield (
            "KL",
            "swapped",
            lambda model, _: _exchange_kl(model.get_submodule(layer.path), model.get_submodule(twin.path), both=True),
        )
        yield (
            "KL",
            "aliased",
            lambda model, _: _exchange_kl(model.get_submodule(layer.path), model.get_submodule(twin.path), both=False),
        )
        yield "path", "swapped", lambda model, _: _exchange(model, layer.path, twin.path)
        yield "path", "aliased", lambda model, _: _put(model, layer.path, model.get_submodule(twin.path))


def _with_kl(layer: BayesianLayer, change: Callable[[Tensor], Tensor]) -> Apply:
    def apply(model: nn.Module, _: nn.Module) -> None:
        module = model.get_submodule(layer.path)
        kind: Any = type(module)
        module.__class__ = type(kind.__name__, (kind,), {"kl_loss": lambda self: change(kind.kl_loss(self))})

    return apply


def _freeze_kl(module: Any) -> None:
    first = module.kl_loss().detach()
    module.__class__ = type(type(module).__name__, (type(module),), {"kl_loss": lambda self: first.clone()})


def _exchange_kl(one: nn.Module, other: nn.Module, *, both: bool) -> None:
    kind: Any = type(one)
    its: Any = type(other)
    one.__class__ = type(kind.__name__, (kind,), {"kl_loss": lambda self: its.kl_loss(other)})
    if both:
        other.__class__ = type(its.__name__, (its,), {"kl_loss": lambda self: kind.kl_loss(one)})


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module


def _exchange(model: nn.Module, one: str, other: str) -> None:
    first, second = model.get_submodule(one), model.get_submodule(other)
    _put(model, one, second)
    _put(model, other, first)


def _hide(model: nn.Module, path: str) -> None:
    """Keep a layer in use without registering it: neither optimizer nor ``named_modules`` sees it."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    vars(owner)[name] = owner._modules.pop(name)
