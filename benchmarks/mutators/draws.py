"""How the noise of one tensor or layer is broken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.mutators.case import EXTREMES, FACTORS, Apply, Case, Ways, first_is_nan, layer_of, override, tensor_of
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers


def of_draw(tensor: PosteriorTensor, partner: PosteriorTensor | None, later: PosteriorTensor | None) -> Ways:
    """Return every way to break a draw; ``partner`` and ``later`` are other tensors of its shape, if there are any."""
    for factor in FACTORS:
        yield "draw", f"scaled by {factor}", _drawing(tensor, _scaled(factor))
    yield "draw", "permuted", _drawing(tensor, lambda eps: eps.copy_(eps.normal_().roll(1, 0)))
    yield "draw", "NaN", _drawing(tensor, lambda eps: first_is_nan(eps.normal_()))
    yield "draw", "frozen", lambda case: _fill(tensor_of(case, tensor), _kept())
    yield "draw", "detached", lambda case: _fill(tensor_of(case, tensor), lambda eps: eps.normal_(), detached=True)
    if partner is not None:
        yield "draw", "swapped", lambda case: _swap_buffers(tensor_of(case, tensor), tensor_of(case, partner))
        yield "draw", "buffer shared", lambda case: _share_buffer(tensor_of(case, tensor), tensor_of(case, partner))
        if partner is not later:
            yield "draw", "aliased", lambda case: _follow(tensor_of(case, tensor), tensor_of(case, partner))
    if later is not None:
        yield (
            "draw",
            "aliased with the next pass",
            lambda case: _follow(tensor_of(case, tensor), tensor_of(case, later)),
        )


def of_training(layer: BayesianLayer) -> Ways:
    """Return every way to break a layer's noise in train mode alone."""
    yield "draw in train mode", "left out", _in_training(layer, lambda: Tensor.zero_)
    for factor in (*EXTREMES, 0.1):
        yield "draw in train mode", f"scaled by {factor}", _in_training(layer, partial(_scaled, factor))
    yield "draw in train mode", "frozen", _in_training(layer, _kept)
    yield "draw in train mode", "detached", _in_training(layer, lambda: Tensor.normal_, detached=True)


def of_draws() -> Ways:
    """Return every way to break the noise of all layers at once, which another model of the same factory shows."""
    yield "draws", "of a seeded generator", lambda case: _own_generator(case, seeded=True)
    yield "draws", "of a generator of their own", lambda case: _own_generator(case, seeded=False)


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


def _fill(tensor: PosteriorTensor, fill: Fill, *, detached: bool = False, in_training: bool = False) -> None:
    """Let the layer draw this tensor's noise by ``fill``, in train mode only where that is said."""
    kind: Any = type(tensor.module)

    def forward(self: nn.Module, x: Tensor) -> Any:
        if in_training and not self.training:
            return kind.forward(self, x)
        buffer = getattr(self, tensor.eps_name)
        with _Filling(buffer, fill, detached=detached):
            return kind.forward(self, x)

    override(tensor.module, forward=forward)


def _drawing(tensor: PosteriorTensor, fill: Fill) -> Apply:
    return lambda case: _fill(tensor_of(case, tensor), fill)


def _in_training(layer: BayesianLayer, fill: Callable[[], Fill], *, detached: bool = False) -> Apply:
    """Let all tensors of a layer draw in another way in train mode."""

    def apply(case: Case) -> None:
        for tensor in layer_of(case, layer).tensors:
            _fill(tensor, fill(), detached=detached, in_training=True)

    return apply


def _scaled(by: float) -> Fill:
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


def _own_generator(case: Case, *, seeded: bool) -> None:
    """Let all layers draw from a generator that is made with the model."""
    healthy = case.copy()

    def make() -> nn.Module:
        model = healthy.copy().model
        generator = torch.Generator()
        if seeded:
            generator.manual_seed(0)
        else:
            generator.seed()
        for layer in bayesian_layers(model):
            for tensor in layer.tensors:
                _fill(tensor, lambda eps: eps.normal_(generator=generator))
        return model

    case.model, case.factory = make(), make
