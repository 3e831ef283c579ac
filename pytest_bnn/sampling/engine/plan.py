"""What the engine does for each Bayesian layer: its functional call, mean and spread of its weights, its BatchNorm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.libraries.capture import LayerCall, calls_by_layer
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor
from pytest_bnn.sampling.engine.consumers import NORMS, Consumers
from pytest_bnn.sampling.engine.noise import Strided
from pytest_bnn.sampling.engine.taps import Taps, used_taps

#: Weights of a layer beyond which its outputs are computed in parts: four bytes each, twice in each thread.
PART = 1 << 19

#: Weights of a tensor beyond which its mean stays where it is, in the model's layout: reading it from there takes a few
#: percent of a pass, and few networks have many such tensors.
STAYS = 1 << 20

#: Output channels of a part are a multiple of it, which the machine's vectors are long.
_ROWS = 32


class Unsupported(Exception):  # noqa: N818  a decision, not an error
    """The engine cannot stand in for this model; the message says why."""


@dataclass(slots=True, eq=False)
class Drawn:
    """One tensor that is drawn in every pass, ``mean + spread * eps``, in the layout that the call wants.

    ``center`` says whether there is a mean: Flipout draws the perturbation alone. ``scale`` is BatchNorm's factor per
    output channel, ``shift`` what it adds, ``part`` the part of the tensor that is used, of ``size`` numbers. Mean and
    spread are there once they have been laid out.
    """

    tensor: PosteriorTensor
    stream: int
    center: bool
    scale: Tensor | None
    shift: Tensor | None
    memory_format: torch.memory_format
    part: tuple[slice, ...] = ()
    size: int = field(init=False)
    _spread: Tensor | None = None
    _mean: Tensor | Strided | None = None

    def __post_init__(self) -> None:
        self.size = self._of(self.tensor.mu).numel()

    @property
    def shape(self) -> torch.Size:
        """The shape of what is drawn."""
        return self._of(self.tensor.mu).shape

    @property
    def spread(self) -> Tensor:
        """Sigma, scaled."""
        assert self._spread is not None
        return self._spread

    @property
    def mean(self) -> Tensor | Strided | None:
        """Mu, scaled and shifted; None for a perturbation. Of a large tensor it stays where mu lies."""
        return self._mean

    def lay_out(self, spread: Tensor) -> None:
        """Compute the spread in this piece of memory, flat, without any more, and find out where the mean is."""
        mu, rho = self._of(self.tensor.mu), self._of(self.tensor.rho)
        self._spread = self._fold(self.tensor.map.into(self._in(spread), rho), None)
        if not self.center:
            return
        if self.scale is None and self.shift is None and mu.is_contiguous(memory_format=self.memory_format):
            self._mean = mu
            return
        if self.size > STAYS and self.shift is None and mu.ndim > 1:
            self._mean = Strided.of(mu, self.scale, channels_last=self.memory_format is torch.channels_last)
        if self._mean is None:
            self._mean = self.folded(self.tensor.mu)

    def rows(self, rows: slice) -> tuple[Tensor | Strided | None, Tensor]:
        """Return mean and spread of some rows."""
        return None if self.mean is None else self.mean[rows], self.spread[rows]

    def folded(self, used: Tensor, rows: slice = slice(None)) -> Tensor:
        """Turn a tensor that the layer itself used, or some of its rows, into what the engine's call takes."""
        return self._fold(self._of(used)[rows].clone(memory_format=self.memory_format), self.shift, rows)

    def _of(self, tensor: Tensor) -> Tensor:
        return tensor.detach()[self.part]

    def _in(self, memory: Tensor) -> Tensor:
        shape = self.shape
        strides = torch.empty(shape, device="meta").to(memory_format=self.memory_format).stride()
        return memory.as_strided(shape, strides, memory.storage_offset())

    def _fold(self, value: Tensor, shift: Tensor | None, rows: slice = slice(None)) -> Tensor:
        if self.scale is not None:
            value.mul_(self.scale[rows].reshape(-1, *[1] * (value.ndim - 1)))
        return value if shift is None else value.add_(shift[rows])


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
    taps: Taps | None
    border: tuple[list[int], str] | None

    @property
    def flipout(self) -> bool:
        """Whether the estimator is Flipout."""
        return self.mean_weight is not None

    @property
    def drawn(self) -> tuple[Drawn, ...]:
        """What is drawn in every call."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def taken(self, input: Tensor) -> Tensor:
        """Return what its functional call takes of the input of the layer.

        Raises:
            Unsupported: It is of another size than the kernel was cut for.
        """
        if self.border is not None:
            input = nn.functional.pad(input, self.border[0], mode=self.border[1])
        if self.taps is not None and not self.taps.fit(input):
            raise Unsupported("its forward does not always give a layer inputs of one size")
        return input

    def parts(self, step: int | None) -> tuple[slice, ...]:
        """Return parts of the outputs that can be computed one after the other, so that less memory is needed.

        Args:
            step: What the number of weights before a part must be a multiple of; None where there are no parts.
        """
        rows = self.weight.shape[0]
        wide = self.weight.size // max(1, rows)
        if step is None or self.flipout or self.weight.size <= PART or not _takes_rows_apart(self):
            return (slice(0, rows),)
        each = math.lcm(step // math.gcd(step, wide), _ROWS)
        size = max(each, PART // wide // each * each)
        return tuple(slice(start, min(start + size, rows)) for start in range(0, rows, size))


@dataclass(slots=True, eq=False)
class Plan:
    """How the engine runs a model: its planned layers by the ``id`` of their module."""

    layers: dict[int, LayerPlan]

    def lay_out(self) -> None:
        """Compute what is drawn around, before several threads ask for it, all spreads into one piece of memory.

        The largest comes first, while there is room for what is computed on the way.
        """
        drawn = [drawn for layer in self.layers.values() for drawn in layer.drawn]
        drawn.sort(key=lambda each: -each.size)
        spreads = torch.empty(sum(padded(each.size) for each in drawn))
        start = 0
        for each in drawn:
            each.lay_out(spreads[start : start + each.size])
            start += padded(each.size)

    def require_same_calls(self, counts: Mapping[int, int]) -> None:
        """Make sure that a forward called each layer as often as the model's own did.

        Args:
            counts: How often, by the ``id`` of the layer's module.

        Raises:
            Unsupported: One was not.
        """
        if any(counts.get(key, 0) != layer.calls for key, layer in self.layers.items()):
            raise Unsupported(
                "its forward computes with layers without calling their modules, or does not always call the same ones"
            )

    @property
    def streams(self) -> int:
        """How many streams of noise one call of every layer takes: weight, bias, and Flipout's signs in and out."""
        return 4 * len(self.layers)


def make_plan(calls: Sequence[LayerCall], consumers: Consumers | None, *, channels_last: bool) -> Plan:
    """Plan a model from what one pass of its own forward did.

    Args:
        calls: What its Bayesian layers did.
        consumers: What took their outputs; where None, no BatchNorm is folded into a layer.
        channels_last: Whether the weights of two-dimensional convolutions are laid out so.

    Raises:
        Unsupported: A layer is not one that the engine knows.
    """
    by_layer = calls_by_layer(calls)
    numbers = {id(call.layer.module): number for number, call in enumerate(calls)}
    layers: dict[int, LayerPlan] = {}
    for index, (key, group) in enumerate(by_layer.items()):
        if why := _why_unknown(group):
            raise Unsupported(f"{group[0].layer.name} {why}")
        norm = None if consumers is None else _foldable(group, consumers, numbers[key])
        layers[key] = _plan_layer(index, group, norm, channels_last)
    return Plan(layers)


def _why_unknown(group: Sequence[LayerCall]) -> str:
    """Say why the engine cannot compute what a layer did in its calls; empty where it can."""
    layer = group[0].layer
    if not all(isinstance(call.output, Tensor) for call in group):
        return "returns more than one tensor, such as its KL beside its output"
    if not layer.is_stock:
        return "has a forward that no sampler stands in for"
    return "" if _is_known(group) else "does not compute in each call with one weight and bias, each time alike"


def _is_known(group: Sequence[LayerCall]) -> bool:
    layer = group[0].layer
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


def _foldable(group: Sequence[LayerCall], consumers: Consumers, number: int) -> nn.BatchNorm2d | None:
    """Return the BatchNorm that alone takes the layer's output, in eval mode; None where there is none."""
    if len(group) != 1:
        return None
    call = group[0]
    norms = consumers.norms.get(number, [])
    if len(norms) != 1 or consumers.norm_calls[id(norms[0])] != 1 or consumers.used_by[number] != ["batch_norm"]:
        return None
    norm, name = norms[0], call.functional[-1].function.__name__
    if not isinstance(norm, NORMS) or norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    if "forward" in vars(norm) or (name == "linear" and call.output.ndim != 2):
        return None
    if name.startswith("conv_transpose"):
        return None
    return norm  # type: ignore[return-value]


def _plan_layer(index: int, group: Sequence[LayerCall], norm: nn.BatchNorm2d | None, channels_last: bool) -> LayerPlan:
    layer = group[0].layer
    call = group[0].functional[-1]
    tensors = {tensor.role: tensor for tensor in layer.tensors}
    flipout = layer.estimator == "Flipout"
    scale, shift = (None, None) if norm is None else _affine(norm)
    taps = used_taps(call) if len({used.functional[-1].input_size for used in group}) == 1 else None
    as_pixels = channels_last and tensors["weight"].mu.ndim == 4
    weight = Drawn(
        tensors["weight"], 4 * index, not flipout, scale, None,
        torch.channels_last if as_pixels else torch.contiguous_format,
        () if taps is None else (slice(None), slice(None), *taps.kernel),
    )  # fmt: skip
    bias = None
    if "bias" in tensors:
        moved = None if flipout else shift
        bias = Drawn(tensors["bias"], 4 * index + 1, not flipout, scale, moved, torch.contiguous_format)
    mean_weight = mean_bias = None
    if flipout:
        mean_weight = weight.folded(tensors["weight"].mu)
        mean_bias = bias.folded(tensors["bias"].mu) if bias is not None else None
        if shift is not None:
            mean_bias = shift if mean_bias is None else mean_bias + shift
    rest, keywords = (call.rest, call.keywords) if taps is None else taps.cut(call)
    return LayerPlan(
        layer=layer,
        function=call.function,
        rest=rest,
        keywords=keywords,
        calls=len(group),
        weight=weight,
        bias=bias,
        constant_bias=shift if bias is None and not flipout else None,
        mean_weight=mean_weight,
        mean_bias=mean_bias,
        norm=norm,
        taps=taps,
        border=layer.border,
    )


def _takes_rows_apart(plan: LayerPlan) -> bool:
    """Return whether a row of the weight decides an output channel alone, of all inputs."""
    name = plan.function.__name__
    groups = plan.keywords.get("groups", plan.rest[3] if len(plan.rest) > 3 else 1)
    return name == "linear" or (name in ("conv1d", "conv2d", "conv3d") and groups == 1)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return factor and shift of a BatchNorm in eval mode, for each channel."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = torch.rsqrt(norm.running_var.detach().double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale.float(), shift.float()


def padded(size: int) -> int:
    """Round a number of floats up to whole cache lines."""
    return -(-size // 16) * 16
