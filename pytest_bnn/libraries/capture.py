"""The weights that a model's own forward really uses, seen at the functional call (``F.conv2d``, ``F.linear``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers

#: The functional calls that take an input, a weight and a bias.
_FUNCTIONAL = frozenset(["linear", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3))])


@dataclass(frozen=True, slots=True, eq=False)
class FunctionalCall:
    """One call such as ``F.conv2d(input, weight, bias, *rest, **keywords)``; the tensors are those used, not copies."""

    function: Any
    input_size: tuple[int, ...]
    weight: Tensor
    bias: Tensor | None
    rest: tuple[Any, ...]
    keywords: dict[str, Any]


@dataclass(slots=True, eq=False)
class LayerCall:
    """What one call of a Bayesian layer did: its functional calls in order, its output, and Flipout's signs (int8)."""

    layer: BayesianLayer
    functional: list[FunctionalCall] = field(default_factory=list)
    output: Any = None
    signs: list[Tensor] = field(default_factory=list)

    def noise(self) -> list[tuple[PosteriorTensor, Tensor]]:
        """Give the noise that the call really used, ``w - mu``, in units of the weights, for each posterior tensor.

        Flipout perturbs in a second functional call, whose weight is the noise itself. Tensors that the call does not
        reveal are left out: a layer that computes by other means, or more often than its estimator does.
        """
        flipout = self.layer.estimator == "Flipout"
        if len(self.functional) != 1 + flipout:
            return []
        call = self.functional[-1]
        found = []
        for tensor in self.layer.tensors:
            used = call.weight if tensor.role == "weight" else call.bias
            if isinstance(used, Tensor) and used.shape == tensor.mu.shape:
                found.append((tensor, used.detach() if flipout else used.detach() - tensor.mu.detach()))
        return found


class _Capture(TorchFunctionMode):
    def __init__(self, memory: Tensor | None) -> None:
        super().__init__()
        self.memory = memory
        self.calls: list[LayerCall] = []
        self.running: list[LayerCall] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.running and getattr(func, "__name__", "") in _FUNCTIONAL:
            rest = {key: value for key, value in kwargs.items() if key not in ("input", "weight", "bias")}
            size = tuple((args[0] if args else kwargs["input"]).shape)
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            self.running[-1].functional.append(FunctionalCall(func, size, weight, bias, tuple(args[3:]), rest))
        result = func(*args, **kwargs)
        if self.running and func is Tensor.uniform_ and self.running[-1].layer.estimator == "Flipout":
            self.running[-1].signs.append(result.detach().sign().to(torch.int8))
        return result

    def moved(self, call: FunctionalCall) -> FunctionalCall:
        """Give a call whose weight lies behind those of the calls before, where there is room."""
        assert self.memory is not None
        start = sum(earlier.functional[-1].weight.numel() for earlier in self.calls if earlier.functional)
        room = self.memory[start : start + call.weight.numel()]
        if room.numel() < call.weight.numel() or room.dtype is not call.weight.dtype:
            return call
        return replace(call, weight=room.view(call.weight.shape).copy_(call.weight.detach()))


@contextmanager
def capture(model: nn.Module, *, memory: Tensor | None = None) -> Iterator[list[LayerCall]]:
    """Collect what the Bayesian layers that run inside really use, call by call.

    What is collected keeps the drawn weights alive: one copy of all weights for each pass. Registers hooks; use it
    within `isolation.undisturbed`, or on a model of one's own.

    Args:
        model: What runs.
        memory: Flat, float32: drawn weights move there while it lasts, so that they do not lie scattered among what
            the layers themselves need for a moment. They are overwritten by the next pass after the list was cleared.
    """
    mode = _Capture(memory)
    handles = []
    for layer in bayesian_layers(model):

        def enter(_module: nn.Module, _inputs: Any, layer: BayesianLayer = layer) -> None:
            mode.running.append(LayerCall(layer))

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            call = mode.running.pop()
            call.output = output
            if mode.memory is not None and call.functional:
                call.functional[-1] = mode.moved(call.functional[-1])
            mode.calls.append(call)

        handles += [layer.module.register_forward_pre_hook(enter), layer.module.register_forward_hook(leave)]
    try:
        with mode:
            yield mode.calls
    finally:
        for handle in handles:
            handle.remove()
