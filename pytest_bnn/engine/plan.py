"""What the engine does for each Bayesian layer: its functional call, mean and spread of its weights, its BatchNorm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.capture import LayerCall
from pytest_bnn.conversion.layers import border_of, is_ours
from pytest_bnn.posterior import BayesianLayer, PosteriorTensor

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

#: Looking at a tensor's form says nothing about its values.
_FORM = frozenset({"dim", "size", "numel", "is_floating_point", "stride", "is_contiguous", "__get__"})


class Unsupported(Exception):  # noqa: N818  a decision, not an error
    """The engine cannot stand in for this model; the message says why."""


@dataclass(slots=True, eq=False)
class Drawn:
    """One tensor that is drawn in every pass, ``mean + spread * eps``, in the layout that the call wants.

    ``center`` says whether there is a mean: Flipout draws the perturbation alone. ``scale`` is BatchNorm's factor per
    output channel, ``shift`` what it adds. Mean and spread are there from the first time that they are asked for.
    """

    tensor: PosteriorTensor
    stream: int
    center: bool
    scale: Tensor | None
    shift: Tensor | None
    laid_out: Callable[[Tensor], Tensor]
    _spread: Tensor | None = None
    _mean: Tensor | None = None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.tensor.count

    @property
    def spread(self) -> Tensor:
        """Sigma, scaled."""
        if self._spread is None:
            self._spread = self.laid_out(_scaled(self.tensor.sigma, self.scale))
        return self._spread

    @property
    def mean(self) -> Tensor | None:
        """Mu, scaled and shifted; None for a perturbation."""
        if self.center and self._mean is None:
            self._mean = self.folded(self.tensor.mu.detach())
        return self._mean

    def folded(self, used: Tensor) -> Tensor:
        """Turn a tensor that the layer itself used into what the engine's call takes."""
        value = _scaled(used, self.scale)
        return self.laid_out(value if self.shift is None else value + self.shift)


@dataclass(slots=True, eq=False)
class LayerPlan:
    """One layer: its functional call, what is drawn for it, and for Flipout its constant half."""

    layer: BayesianLayer
    function: Any
    rest: tuple[Any, ...]
    keywords: dict[str, Any]
    calls: int
    weight: Drawn
    bias: Drawn | None
    constant_bias: Tensor | None
    mean_weight: Tensor | None
    mean_bias: Tensor | None
    norm: nn.Module | None
    border: tuple[list[int], str] | None

    @property
    def flipout(self) -> bool:
        """Whether the estimator is Flipout."""
        return self.mean_weight is not None

    @property
    def drawn(self) -> tuple[Drawn, ...]:
        """What is drawn in every call."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(slots=True, eq=False)
class Plan:
    """How the engine runs a model: its planned layers by the ``id`` of their module."""

    layers: dict[int, LayerPlan]

    def lay_out(self) -> None:
        """Compute what is drawn around, before several threads ask for it."""
        for layer in self.layers.values():
            for drawn in layer.drawn:
                _ = drawn.mean, drawn.spread

    @property
    def streams(self) -> int:
        """How many streams of noise one call of every layer takes: weight, bias, and Flipout's signs in and out."""
        return 4 * len(self.layers)


class Consumers(TorchFunctionMode):
    """Watches what is done with the outputs of Bayesian layers, inside `capture`."""

    def __init__(self, model: nn.Module, calls: list[LayerCall]) -> None:
        super().__init__()
        self._calls = calls
        self.used_by: defaultdict[int, list[str]] = defaultdict(list)
        self.norms: defaultdict[int, list[nn.Module]] = defaultdict(list)
        self._handles = [
            module.register_forward_pre_hook(self._norm) for module in model.modules() if type(module) in _NORMS
        ]

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _norm(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs:
            self.norms[id(inputs[0])].append(module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in _FORM:
            outputs = {id(call.output) for call in self._calls}
            for value in _tensors((args, kwargs)):
                if id(value) in outputs:
                    self.used_by[id(value)].append(name)
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def make_plan(calls: Sequence[LayerCall], consumers: Consumers, *, channels_last: bool) -> Plan:
    """Plan a model from what one pass of its own forward did.

    Args:
        calls: What its Bayesian layers did.
        consumers: What took their outputs.
        channels_last: Whether the weights of two-dimensional convolutions are laid out so.

    Raises:
        Unsupported: A layer is not one that the engine knows.
    """
    by_layer: defaultdict[int, list[LayerCall]] = defaultdict(list)
    for call in calls:
        by_layer[id(call.layer.module)].append(call)
    norm_calls: defaultdict[int, int] = defaultdict(int)
    for modules in consumers.norms.values():
        for module in modules:
            norm_calls[id(module)] += 1
    layers: dict[int, LayerPlan] = {}
    for index, (key, group) in enumerate(by_layer.items()):
        if not _is_known(group):
            layer = group[0].layer
            raise Unsupported(f"{layer.path or 'the model'} ({type(layer.module).__name__}) computes by its own means")
        layers[key] = _plan_layer(index, group, _foldable(group, consumers, norm_calls), channels_last)
    return Plan(layers)


def _is_known(group: Sequence[LayerCall]) -> bool:
    layer = group[0].layer
    if not (layer.is_stock or is_ours(layer.module)) or not all(isinstance(call.output, Tensor) for call in group):
        return False
    wanted = 2 if layer.estimator == "Flipout" else 1
    roles = {tensor.role for tensor in layer.tensors}
    for call in group:
        if len(call.functional) != wanted or len({id(f.function) for f in call.functional}) != 1:
            return False
        last = call.functional[-1]
        if (last.bias is not None) != ("bias" in roles) or last.weight.dtype is not torch.float32:
            return False
        first = group[0].functional[-1]
        if (last.function, last.rest, last.keywords) != (first.function, first.rest, first.keywords):
            return False
    return "weight" in roles


def _foldable(group: Sequence[LayerCall], consumers: Consumers, norm_calls: dict[int, int]) -> nn.BatchNorm2d | None:
    """Give the BatchNorm that alone takes the layer's output, in eval mode; None where there is none."""
    if len(group) != 1:
        return None
    call = group[0]
    norms = consumers.norms.get(id(call.output), [])
    if len(norms) != 1 or norm_calls[id(norms[0])] != 1 or consumers.used_by[id(call.output)] != ["batch_norm"]:
        return None
    norm, name = norms[0], call.functional[-1].function.__name__
    if not isinstance(norm, _NORMS) or norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    if "forward" in vars(norm) or (name == "linear" and call.output.ndim != 2):
        return None
    if name.startswith("conv_transpose"):
        return None
    return norm  # type: ignore[return-value]


def _plan_layer(index: int, group: Sequence[LayerCall], norm: nn.BatchNorm2d | None, channels_last: bool) -> LayerPlan:
    layer = group[0].layer
    call = group[0].functional[-1]
    laid_out = _channels_last if channels_last else Tensor.contiguous
    tensors = {tensor.role: tensor for tensor in layer.tensors}
    flipout = layer.estimator == "Flipout"
    scale = shift = None
    if norm is not None:
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = torch.rsqrt(norm.running_var.detach().double() + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.detach().double()
        shift = -norm.running_mean.detach().double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.detach().double()
        scale, shift = scale.float(), shift.float()
    weight = Drawn(tensors["weight"], 4 * index, not flipout, scale, None, laid_out)
    bias = None
    if "bias" in tensors:
        bias = Drawn(tensors["bias"], 4 * index + 1, not flipout, scale, None if flipout else shift, laid_out)
    mean_weight = mean_bias = None
    if flipout:
        mean_weight = laid_out(_scaled(tensors["weight"].mu.detach(), scale))
        mean_bias = _scaled(tensors["bias"].mu.detach(), scale) if bias is not None else None
        if shift is not None:
            mean_bias = shift if mean_bias is None else mean_bias + shift
    return LayerPlan(
        layer=layer,
        function=call.function,
        rest=call.rest,
        keywords=call.keywords,
        calls=len(group),
        weight=weight,
        bias=bias,
        constant_bias=shift if bias is None and not flipout else None,
        mean_weight=mean_weight,
        mean_bias=mean_bias,
        norm=norm,
        border=border_of(layer.module),
    )


def _scaled(value: Tensor, scale: Tensor | None) -> Tensor:
    return value if scale is None else value * scale.reshape(-1, *[1] * (value.ndim - 1))


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value.contiguous()
