"""Exact figures where a device has no float64: there they are computed on the CPU, in one place for all who ask."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pytest_bnn.network.devices import has_float64

_WIDE = (torch.float64, torch.complex128)
#: What may meet tensors of the device here: exact figures, and what was asked of them. All else stays an error.
_OURS = (*_WIDE, torch.bool)
_CPU = torch.device("cpu")


def float64_for(device: torch.device | None) -> AbstractContextManager[object]:
    """Let float64 be computed inside for tensors of a device: on the CPU where it has none; else change nothing.

    Inside, what is turned into float64 goes to the CPU, and so does what meets it there. What is written into a tensor
    of the device goes back to it, in that tensor's dtype.
    """
    return nullcontext() if device is None or has_float64(device) else _OnTheCpu(device)


class _OnTheCpu(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to:
            return self._to(args, kwargs)
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "__delete__", "cpu", "copy_", "backward", "type_as"):
            return func(*args, **kwargs)
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        theirs = [tensor for tensor in given if self._is_theirs(tensor)]
        if name == "double" or kwargs.get("dtype") in _WIDE:
            if self._is_device(kwargs.get("device")):
                kwargs = {**kwargs, "device": _CPU}
            args, kwargs = self._moved((args, kwargs), _CPU)
        elif name == "__getitem__" and self._is_theirs(args[0]):
            pass  # numbers of rows may be on the CPU
        elif theirs and any(t.dim() and t.dtype in _OURS and t.device.type == "cpu" for t in given):
            args, kwargs = self._together(name, args, kwargs)
        return func(*args, **kwargs)

    def _together(self, name: str, args: Any, kwargs: Any) -> Any:
        """Bring tensors of the device and of the CPU to one place: that of what is written to, else the CPU."""
        written = (name.endswith("_") and not name.startswith("__")) or (
            name.startswith("__i") and name != "__invert__"
        )
        if (written or name == "__setitem__") and args and isinstance(args[0], Tensor) and self._is_theirs(args[0]):
            return (args[0], *self._moved(args[1:], self.device)), self._moved(kwargs, self.device)
        return self._moved((args, kwargs), _CPU)

    def _moved(self, tree: Any, device: torch.device) -> Any:
        def move(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.is_meta or leaf.device == device:
                return leaf
            if device == self.device and leaf.dtype in _WIDE:
                leaf = leaf.to(torch.float32 if leaf.dtype is torch.float64 else torch.complex64)
            return leaf.to(device)

        return pytree.tree_map(move, tree)

    def _to(self, args: Any, kwargs: Any) -> Any:
        tensor, *rest = args
        like = rest[0] if rest and isinstance(rest[0], Tensor) else None
        named = [each for each in (*rest, *kwargs.values()) if isinstance(each, str | torch.device)]
        kinds = [each for each in (*rest, *kwargs.values()) if isinstance(each, torch.dtype)]
        device = like.device if like is not None else torch.device(named[0]) if named else tensor.device
        dtype = like.dtype if like is not None else kinds[0] if kinds else tensor.dtype
        if dtype in _WIDE and device.type == self.device.type:
            return tensor.cpu().to(dtype, copy=bool(kwargs.get("copy")))
        return Tensor.to(*args, **kwargs)

    def _is_theirs(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device.type

    def _is_device(self, device: Any) -> bool:
        return device is not None and torch.device(device).type == self.device.type
