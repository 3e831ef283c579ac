"""How exactly a device multiplies float32 numbers: NVIDIA's cards may round them to TF32 first, and users choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: What torch calls the full precision of float32, and the two that are coarser.
_FULL, _TF32, _BF16 = "ieee", "tf32", "bf16"


def coarse(device: torch.device) -> str:
    """Return what float32 numbers may be rounded to in a product: "bf16", "tf32", or "" where they are not."""
    # Each of torch's two ways to ask raises where the user has set what the other way cannot say.
    try:
        medium = torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:
        medium = _BF16 in _chosen()
    if medium:
        return _BF16
    if device.type != "cuda":
        return ""
    try:
        tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        tf32 = _TF32 in _chosen()
    return _TF32 if tf32 else ""


@contextmanager
def full(device: torch.device) -> Iterator[None]:
    """Let a card multiply float32 numbers in full precision inside; elsewhere change nothing."""
    if device.type != "cuda":
        yield
        return
    places, name = _places()
    value: object = _FULL if name == "fp32_precision" else False
    before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, value)
        yield
    finally:
        for place, chosen in zip(places, before, strict=True):
            setattr(place, name, chosen)


def _places() -> tuple[tuple[Any, ...], str]:
    """Return where torch keeps the choices, and under which name: from 2.9 on there is a new one."""
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if convolutions is not None and hasattr(convolutions, "fp32_precision"):
        return (torch.backends.cuda.matmul, convolutions), "fp32_precision"
    return (torch.backends.cuda.matmul, torch.backends.cudnn), "allow_tf32"


def _chosen() -> list[object]:
    places, name = _places()
    return [getattr(place, name) for place in places]
