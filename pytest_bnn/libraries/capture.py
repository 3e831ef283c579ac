"""The weights that a model's own forward really uses, seen at the functional call (``F.conv2d``, ``F.linear``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.libraries.draws import in_backward, within
from pytest_bnn.libraries.functional import NAMES, FunctionalCall
from pytest_bnn.libraries.gaussian import PosteriorTensor, in_parts
from pytest_bnn.libraries.protocol import BayesianLayer
from pytest_bnn.libraries.registry import bayesian_layers

__all__ = ["FunctionalCall", "LayerCall", "calls_by_layer", "capture"]


@dataclass(slots=True, eq=False)
class LayerCall:
    """What one call of a Bayesian layer did: its functional calls in order, its output, and Flipout's signs (int8).

    ``again`` says that activation checkpointing made it, in a backward pass; such a call may end early.
    """

    layer: BayesianLayer
    functional: list[FunctionalCall] = field(default_factory=list)
    output: Any = None
    signs: list[Tensor] = field(default_factory=list)
    again: bool = False

    @property
    def operands(self) -> list[Tensor]:
        """The weights and biases that its functional calls used, in their order."""
        return [used for call in self.functional for used in (call.weight, call.bias) if used is not None]

    def noise(self) -> list[tuple[PosteriorTensor, Tensor]]:
        """Return the noise that the call really used, ``w - mu``, in units of the weights, for each posterior tensor.

        Flipout perturbs in a second functional call, whose weight is the noise itself. Tensors that the call does not
        reveal are left out: a layer that computes by other means, or more often than its estimator does.
        """
        return [(tensor, self._noise_in(tensor, used)) for tensor, used in self.revealed()]

    def noise_of(self, tensor: PosteriorTensor) -> Tensor | None:
        """Return the noise of one tensor, as `noise` gives it; None where the call does not reveal it."""
        found = [used for one, used in self.revealed() if (one.path, one.role) == (tensor.path, tensor.role)]
        return self._noise_in(tensor, found[0]) if found else None

    def revealed(self) -> list[tuple[PosteriorTensor, Tensor]]:
        """Return the tensors whose noise the call reveals, with what it used: ``w``, or with Flipout the noise."""
        if len(self.functional) != 1 + (self.layer.estimator == "Flipout"):
            return []
        call = self.functional[-1]
        found = []
        for tensor in self.layer.tensors:
            used = call.weight if tensor.role == "weight" else call.bias
            if isinstance(used, Tensor) and used.shape == tensor.mu.shape:
                found.append((tensor, used.detach()))
        return found

    def noisy(self) -> list[PosteriorTensor]:
        """Return the tensors whose noise the call reveals, and which has some that is not 0."""
        return [
            tensor
            for tensor, used in self.revealed()
            if any(
                bool((part if self.layer.estimator == "Flipout" else part - mu).any())
                for part, mu in in_parts(used, tensor.mu.detach())
            )
        ]

    def form(self) -> LayerCall:
        """Return the call with tensors that have no numbers."""
        functional = [replace(one, weight=_form(one.weight), bias=_form(one.bias)) for one in self.functional]
        return replace(self, functional=functional, output=_form(self.output), signs=[])

    def _noise_in(self, tensor: PosteriorTensor, used: Tensor) -> Tensor:
        return used if self.layer.estimator == "Flipout" else used - tensor.mu.detach()


#: Gives what a functional call of a layer uses in place of an operand: its weight or its bias.
Operand: TypeAlias = Callable[[BayesianLayer, Tensor], Tensor]


class _Capture(TorchFunctionMode):
    def __init__(self, operand: Operand | None) -> None:
        super().__init__()
        self.operand = operand
        self.calls: list[LayerCall] = []
        self.running: list[LayerCall] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.running and getattr(func, "__name__", "") in NAMES:
            call = FunctionalCall.of(func, args, kwargs)
            if self.operand is not None:
                layer, bias = self.running[-1].layer, call.bias
                call = replace(
                    call,
                    weight=self.operand(layer, call.weight),
                    bias=None if bias is None else self.operand(layer, bias),
                )
                input = args[0] if args else kwargs["input"]
                args, kwargs = (input, call.weight, call.bias, *call.rest), call.keywords
            self.running[-1].functional.append(call)
        result = func(*args, **kwargs)
        if self.running and func is Tensor.uniform_ and self.running[-1].layer.estimator == "Flipout":
            self.running[-1].signs.append(result.detach().sign().to(torch.int8))
        return result


@contextmanager
def capture(
    model: nn.Module,
    *,
    told: Callable[[LayerCall], None] | None = None,
    operand: Operand | None = None,
) -> Iterator[list[LayerCall]]:
    """Collect what the Bayesian layers that run inside really use, call by call.

    What is collected keeps the drawn weights alive: one copy of all weights for each pass. Registers hooks; use it
    within `isolation.undisturbed`, or on a model of one's own.

    Args:
        model: What runs.
        told: Is given each call as it ends; no list of them is kept then.
        operand: Gives the tensor that a functional call uses in place of a weight or bias, and that is collected;
            the layer's own when None.
    """
    mode = _Capture(operand)
    layers = {id(layer.module): layer for layer in bayesian_layers(model)}

    def enter(module: nn.Module) -> None:
        mode.running.append(LayerCall(layers[id(module)], again=in_backward()))

    def leave(_module: nn.Module, output: Any) -> None:
        call = mode.running.pop()
        call.output = output
        if told is not None:
            told(call)
        else:
            mode.calls.append(call)

    with within([layer.module for layer in layers.values()], mode, enter=enter, leave=leave):
        yield mode.calls


def calls_by_layer(calls: Iterable[LayerCall]) -> defaultdict[int, list[LayerCall]]:
    """Return calls in their order by the ``id`` of their layer's module."""
    found: defaultdict[int, list[LayerCall]] = defaultdict(list)
    for call in calls:
        found[id(call.layer.module)].append(call)
    return found


def _form(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, Tensor) else None
