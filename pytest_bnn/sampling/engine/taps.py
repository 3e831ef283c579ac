"""The part of a convolution's kernel that reaches its input: the other entries meet nothing but padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pytest_bnn.libraries.capture import FunctionalCall

#: Positions of stride, padding, dilation and groups in a functional call, behind input, weight and bias.
_NAMES = ("stride", "padding", "dilation", "groups")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taps:
    """The part of a kernel that is used on inputs of one size, and the padding that goes with it."""

    kernel: tuple[slice, ...]
    padding: tuple[int, ...]
    input_size: tuple[int, ...]

    def fit(self, input: Tensor) -> bool:
        """Return whether an input has the size."""
        return tuple(input.shape[-len(self.input_size) :]) == self.input_size

    def cut(self, call: FunctionalCall) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a call's further arguments, positional and by keyword, with this padding in them."""
        at = _NAMES.index("padding")
        if len(call.rest) > at:
            return (*call.rest[:at], self.padding, *call.rest[at + 1 :]), call.keywords
        return call.rest, {**call.keywords, "padding": self.padding}


def used_taps(call: FunctionalCall) -> Taps | None:
    """Return the part of a convolution's kernel that reaches its input; None where all of it does or it cannot be told.

    A ResNet's last stage sees one pixel of a small image: of each 3x3 kernel, eight weights of nine meet padding alone.
    The outputs with the part alone are the same.
    """
    if call.function.__name__ not in ("conv1d", "conv2d", "conv3d"):
        return None
    sizes, widths = call.input_size[-(call.weight.ndim - 2) :], call.weight.shape[2:]
    given = {**dict(zip(_NAMES, call.rest, strict=False)), **call.keywords}
    if isinstance(given.get("padding"), str):
        return None
    numbers = (
        _each(given.get(name, default), len(sizes))
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    parts = [_part(*each) for each in zip(sizes, widths, *numbers, strict=True)]
    if [part.stop - part.start for part, _ in parts] == list(widths):
        return None
    return Taps(
        kernel=tuple(part for part, _ in parts),
        padding=tuple(padding for _, padding in parts),
        input_size=tuple(sizes),
    )


def _each(value: Any, dimensions: int) -> tuple[int, ...]:
    return (value,) * dimensions if isinstance(value, int) else tuple(value) * (dimensions if len(value) == 1 else 1)


def _part(size: int, width: int, stride: int, padding: int, dilation: int) -> tuple[slice, int]:
    """Return the used part of one dimension of a kernel, and its padding; all of it where a part would not do."""
    outputs = (size + 2 * padding - dilation * (width - 1) - 1) // stride + 1
    used = [
        tap
        for tap in range(width)
        if any(0 <= place * stride - padding + tap * dilation < size for place in range(outputs))
    ]
    if used:
        first, last = used[0], used[-1]
        left = padding - first * dilation
        if left >= 0 and (size + 2 * left - dilation * (last - first) - 1) // stride + 1 == outputs:
            return slice(first, last + 1), left
    return slice(0, width), padding
