"""Single layers as code, each with the shape that it makes of the shape before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from torch import nn

from pytest_bnn.strategies._parts import definition
from pytest_bnn.strategies._source import IMPORTS, Shape, build

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[T]], T]

#: What `layers` and `architectures` are made of; the first is what examples shrink to.
KINDS = ("Linear", "Conv", "ConvTranspose", "LSTM", "activation", "normalisation", "pooling", "dropout")
DTYPES = (torch.float32, torch.float64)

_ACTIVATIONS = ("ReLU", "Tanh", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU", "Softplus", "PReLU")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some modules as one expression, the shape they give, and the definitions and statements they stand on."""

    code: str
    shape: Shape
    definitions: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()


def linear(draw: Draw[Any], shape: Shape, most: int, *, out: int | None = None) -> Piece:
    """Draw a Linear; it works on the last axis of any shape."""
    out = draw(st.integers(1, most)) if out is None else out
    bias = draw(st.sampled_from(("", ", bias=False")))
    return Piece(f"nn.Linear({shape[-1]}, {out}{bias})", (*shape[:-1], out))


def conv(draw: Draw[Any], shape: Shape, most: int, *, out: int | None = None, same: bool = False) -> Piece:
    """Draw a convolution of as many dimensions as the shape has beside its channels; ``same`` keeps their sizes."""
    channels, *sizes = shape
    out = draw(st.integers(1, most)) if out is None else out
    arguments = []
    kernel = [draw(st.integers(1, min(3, size))) for size in sizes]
    dilation = draw(st.sampled_from((1, 1, 2)))
    padding: Any = "same" if same else draw(st.sampled_from((0, 1, "valid", "same")))
    reach = [dilation * (k - 1) for k in kernel]
    pads = [r // 2 + r % 2 for r in reach] if padding == "same" else [0 if padding == "valid" else padding] * len(sizes)
    stride = 1 if padding == "same" else draw(st.sampled_from((1, 1, 2)))
    if padding != "same" and any(r + 1 > size + 2 * p for r, size, p in zip(reach, sizes, pads, strict=True)):
        dilation, reach = 1, [k - 1 for k in kernel]
    if stride > 1:
        arguments.append(f"stride={stride}")
    if padding != 0:
        arguments.append(f"padding={padding!r}")
    if dilation > 1:
        arguments.append(f"dilation={dilation}")
    arguments += _groups(draw, channels, out)
    if draw(st.integers(0, 5)) == 5 and any(pads) and all(p < size for p, size in zip(pads, sizes, strict=True)):
        arguments.append(f"padding_mode={draw(st.sampled_from(('circular', 'reflect', 'replicate')))!r}")
    after = sizes
    if padding != "same":
        after = [(size + 2 * p - r - 1) // stride + 1 for size, p, r in zip(sizes, pads, reach, strict=True)]
    code = ", ".join([str(channels), str(out), _axes(kernel), *arguments])
    return Piece(f"nn.Conv{len(sizes)}d({code})", (out, *after))


def conv_transpose(draw: Draw[Any], shape: Shape, most: int) -> Piece:
    """Draw a transposed convolution."""
    channels, *sizes = shape
    out = draw(st.integers(1, most))
    kernel = [draw(st.integers(1, 3)) for _ in sizes]
    stride = draw(st.sampled_from((1, 2)))
    dilation = draw(st.sampled_from((1, 1, 2)))
    padding = draw(st.sampled_from((0, 0, 1)))
    extra = draw(st.integers(0, 2)) == 2 and max(stride, dilation) > 1

    def after(padding: int) -> list[int]:
        return [
            (size - 1) * stride - 2 * padding + dilation * (k - 1) + extra + 1
            for size, k in zip(sizes, kernel, strict=True)
        ]

    if min(after(padding)) < 1:
        padding = 0
    named = {"stride": (stride, 1), "padding": (padding, 0), "output_padding": (int(extra), 0)}
    arguments = [f"{name}={value}" for name, (value, default) in named.items() if value != default]
    arguments += _groups(draw, channels, out)
    if dilation > 1:
        arguments.append(f"dilation={dilation}")
    code = ", ".join([str(channels), str(out), _axes(kernel), *arguments])
    return Piece(f"nn.ConvTranspose{len(sizes)}d({code})", (out, *after(padding)))


def lstm(draw: Draw[Any], shape: Shape, most: int) -> Piece:
    """Draw an LSTM, of whose results the outputs are kept."""
    hidden = draw(st.integers(1, most))
    options = {
        "num_layers=2": draw(st.booleans()),
        "bias=False": draw(st.booleans()),
        "batch_first=True": draw(st.booleans()),
        "bidirectional=True": draw(st.booleans()),
    }
    chosen = [code for code, wanted in options.items() if wanted]
    code = ", ".join([str(shape[-1]), str(hidden), *chosen])
    size = 2 * hidden if options["bidirectional=True"] else hidden
    return Piece(f"nn.Sequential(nn.LSTM({code}), First())", (*shape[:-1], size), (definition("First"),))


def activation(draw: Draw[Any], shape: Shape, most: int) -> Piece:
    """Draw an activation."""
    return Piece(f"nn.{draw(st.sampled_from(_ACTIVATIONS))}()", shape)


def normalisation(draw: Draw[Any], shape: Shape, most: int) -> Piece:
    """Draw a normalisation; those that average over an input need more than one value there."""
    channels, *sizes = shape
    dims = max(1, len(sizes))
    options = [f"nn.BatchNorm{dims}d({channels})", f"nn.LayerNorm({shape[-1]})"]
    options.append(f"nn.BatchNorm{dims}d({channels}, affine=False)")
    if prod(shape) > 1:
        options.append(f"nn.GroupNorm(1, {channels})")
    if prod(sizes) > 1:
        options += [f"nn.InstanceNorm{dims}d({channels}, affine=True)"]
        options += [f"nn.BatchNorm{dims}d({channels}, track_running_stats=False)"]
    return Piece(draw(st.sampled_from(options)), shape)


def pooling(draw: Draw[Any], shape: Shape, most: int) -> Piece:
    """Draw a pooling."""
    channels, *sizes = shape
    dims = len(sizes)
    if min(sizes) > 1 and draw(st.booleans()):
        name = draw(st.sampled_from(("MaxPool", "AvgPool")))
        return Piece(f"nn.{name}{dims}d(2)", (channels, *(size // 2 for size in sizes)))
    name = draw(st.sampled_from(("AdaptiveAvgPool", "AdaptiveMaxPool")))
    return Piece(f"nn.{name}{dims}d(1)", (channels, *(1 for _ in sizes)))


def dropout(draw: Draw[Any], shape: Shape, most: int) -> Piece:
    """Draw a dropout."""
    names = ["Dropout", "AlphaDropout", *([f"Dropout{len(shape) - 1}d"] if len(shape) > 1 else [])]
    return Piece(f"nn.{draw(st.sampled_from(names))}(0.5)", shape)


_DRAWERS: dict[str, Callable[[Draw[Any], Shape, int], Piece]] = {
    "Linear": linear,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "LSTM": lstm,
    "activation": activation,
    "normalisation": normalisation,
    "pooling": pooling,
    "dropout": dropout,
}


def fitting(kinds: Collection[str], shape: Shape) -> list[str]:
    """Return the kinds that can take a shape, in the order of `KINDS`."""
    return [
        kind
        for kind in KINDS
        if kind in kinds
        and (len(shape) > 1 or kind not in ("Conv", "ConvTranspose", "LSTM", "pooling"))
        and (len(shape) == 2 or kind != "LSTM")
        and (max(shape[1:], default=0) <= 6 or kind != "ConvTranspose")
    ]


def piece(draw: Draw[Any], kind: str, shape: Shape, most: int) -> Piece:
    """Draw one layer of a kind."""
    return _DRAWERS[kind](draw, shape, most)


def shapes(draw: Draw[Any], *, dims: Collection[int], most: int) -> Shape:
    """Draw the shape of one input: channels or features first, no batch."""
    chosen = draw(st.sampled_from(sorted(dims)))
    size = {0: (), 1: (1, 6), 2: (1, 5), 3: (1, 3)}[chosen]
    return (draw(st.integers(1, most)), *(draw(st.integers(*size)) for _ in range(chosen)))


@st.composite
def _layers(draw: Draw[Any], kinds: tuple[str, ...], dtypes: tuple[torch.dtype, ...], most: int) -> nn.Module:
    kind = draw(st.sampled_from(kinds))
    shape = shapes(draw, dims=_dims(kind), most=most)
    layer = piece(draw, kind, shape, most)
    if kind == "LSTM":  # a layer by itself is no Sequential
        layer = replace(layer, code=layer.code.removeprefix("nn.Sequential(").removesuffix(", First())"))
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 9))
    code = f"{IMPORTS}\n\ntorch.manual_seed({seed})\nnetwork = {layer.code}{suffix(dtype)}.eval()"
    return build(code, shape)


def layers(
    *,
    kinds: Collection[str] = KINDS,
    dtypes: Collection[torch.dtype] = DTYPES,
    max_channels: int = 4,
) -> st.SearchStrategy[nn.Module]:
    """Generate single layers, each of exactly torch's own class, in eval mode.

    Args:
        kinds: What to choose from, of `KINDS`.
        dtypes: Floating-point types to choose from.
        max_channels: The most channels or features on either side of a layer, at least 1.

    Raises:
        InvalidArgument: An argument is out of its range.
    """
    check_choice("kinds", kinds, KINDS)
    check_dtypes(dtypes)
    check_bound("max_channels", max_channels, 1)
    return _layers(tuple(kind for kind in KINDS if kind in kinds), tuple(dtypes), max_channels)


def suffix(dtype: torch.dtype) -> str:
    """Return the call that casts a module."""
    return "" if dtype is torch.float32 else ".double()" if dtype is torch.float64 else f".to({dtype})"


def check_choice(name: str, given: Collection[str], allowed: Collection[str]) -> None:
    """Refuse what is no subset of the allowed words."""
    if isinstance(given, str) or not given or not set(given) <= set(allowed):
        raise InvalidArgument(f"{name}={given!r} must be a collection of some of {tuple(allowed)}")


def check_dtypes(dtypes: Collection[torch.dtype]) -> None:
    """Refuse what is no collection of floating-point types."""
    if not dtypes or not all(isinstance(dtype, torch.dtype) and dtype.is_floating_point for dtype in dtypes):
        raise InvalidArgument(f"dtypes={dtypes!r} must be a collection of floating-point torch.dtypes")


def check_bound(name: str, value: int, least: int, most: float = math.inf) -> None:
    """Refuse what is no integer of at least ``least`` and at most ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        above = "" if most == math.inf else f" and at most {most}"
        raise InvalidArgument(f"{name}={value!r} must be an integer of at least {least}{above}")


def _dims(kind: str) -> tuple[int, ...]:
    if kind in ("Conv", "ConvTranspose", "pooling"):
        return (1, 2, 3)
    return (1,) if kind == "LSTM" else (0, 1, 2, 3)


def _groups(draw: Draw[Any], channels: int, out: int) -> list[str]:
    common = gcd(channels, out)
    groups = draw(st.sampled_from([g for g in range(1, common + 1) if common % g == 0]))
    bias = draw(st.sampled_from(("", "bias=False")))
    return [*([f"groups={groups}"] if groups > 1 else []), *([bias] if bias else [])]


def _axes(values: list[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else str(tuple(values))
