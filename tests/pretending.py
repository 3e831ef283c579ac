"""An accelerator that is not there: tensors that compute on the CPU and behave as if they were elsewhere.

Inside `pretending` a tensor that is moved to the device says that it is there, and so does whatever is computed from
it. As on a real one, tensors of the two places must not meet, a number of it is no numpy array, a generator of the CPU
draws nothing there, and with ``"mps"`` there is no float64. Each copy between the places is counted. Real numbers come
out, which torch's meta and fake devices cannot give: a whole audit can be compared with that of the CPU.

The places are those of the memory: marks on storages, which views share. What it cannot show: that a device's kernels
exist, and what they round.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_TENSOR: Any = torch.Tensor
_MARK = "pretended"
_DEVICE = Tensor.__base__.__dict__["device"]

#: Operators that take tensors of both places: copies, and numbers of rows on the CPU. Under vmap torch lays running
#: statistics out where no mode sees it, so that their mark is lost.
_MAY_MIX = ("copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index",
            "native_batch_norm")  # fmt: skip


class Pretended:
    """What happened on the device: copies between it and the CPU, and numbers that were read off it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copies = 0
        self.reads = 0
        #: Whether the function that runs was given a tensor of the device: what it makes itself is there too.
        self.inside = False


def _storage(tensor: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        return None if tensor.layout is not torch.strided or tensor.is_meta else tensor.untyped_storage()


def _is_there(tensor: Tensor) -> bool:
    return getattr(_storage(tensor), _MARK, False)


def _put(value: Any) -> Any:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) and (storage := _storage(leaf)) is not None:
            setattr(storage, _MARK, True)
    return value


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


class _Operators(TorchDispatchMode):
    """Sees every operator, in backward passes and inside vmap too."""

    def __init__(self, seen: Pretended) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = _tensors(args, kwargs)
        there = [tensor for tensor in given if _is_there(tensor)]
        name = func._schema.name.partition("::")[2]
        if there:
            here = [
                tensor
                for tensor in given
                if not _is_there(tensor) and tensor.dim() and tensor.numel() and not tensor.is_meta
            ]
            if here and name not in _MAY_MIX:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{self.seen.device} and cpu! (when calling {func})"
                )
            if isinstance(kwargs.get("generator"), torch.Generator):
                raise RuntimeError(f"Expected a '{self.seen.device.type}' generator device but found 'cpu'")
            if here:
                self.seen.copies += 1
            if name in ("_local_scalar_dense", "equal", "nonzero", "is_nonzero"):
                self.seen.reads += 1
        found = func(*args, **kwargs)
        if not given and self.seen.inside and name not in ("scalar_tensor",):
            _put(found)
        if there and not (name == "copy_" and not _is_there(args[0])):
            _put(found)
            if self.seen.device.type == "mps" and any(
                leaf.dtype in (torch.float64, torch.complex128) for leaf in _tensors(found)
            ):
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
                    "Please use float32 instead."
                )
        return found


class _Calls(TorchFunctionMode):
    """Sees what names a device: factories and moves."""

    def __init__(self, seen: Pretended) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.numpy, Tensor.__array__) and _is_there(args[0]):
            raise TypeError(f"can't convert {self.seen.device} device type tensor to numpy. Use Tensor.cpu()")
        if func is Tensor.cpu:
            return self._moved(args[0], torch.device("cpu"), args[0].dtype)
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        device = kwargs.get("device")
        if func is torch._C._nn._parse_to:
            return func(*args, **kwargs)
        if device is None:
            before, self.seen.inside = self.seen.inside, any(map(_is_there, _tensors(args, kwargs)))
            try:
                return func(*args, **kwargs)
            finally:
                self.seen.inside = before
        device = torch.device(device)
        if device.type not in ("cpu", self.seen.device.type):
            return func(*args, **kwargs)
        found = func(*args, **{**kwargs, "device": "cpu"})
        if not isinstance(found, Tensor) or func in (torch.tensor, torch.as_tensor, torch.asarray):
            return self._moved(found, device, found.dtype) if isinstance(found, Tensor) else found
        setattr(_storage(found), _MARK, device.type != "cpu")  # it was made there
        return found

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        copied = kwargs.pop("copy", False)
        device: Any
        dtype: Any
        names = ("device", "dtype", "non_blocking", "memory_format")
        if args and isinstance(args[0], Tensor):
            device, dtype = args[0].device, args[0].dtype
        elif args and isinstance(args[0], str | torch.device):
            device, dtype = torch.device(args[0]), kwargs.get("dtype", args[1] if len(args) > 1 else None)
        elif args and isinstance(args[0], torch.dtype):
            device, dtype = kwargs.get("device"), args[0]
        elif args and args[0] is None:
            device, dtype = None, args[1] if len(args) > 1 else kwargs.get("dtype")
        else:
            device, dtype = kwargs.get("device"), kwargs.get("dtype")
        device = tensor.device if device is None else torch.device(device)
        form = {"memory_format": kwargs["memory_format"]} if kwargs.get("memory_format") is not None else {}
        assert set(kwargs) <= {*names}, kwargs
        if device.type not in ("cpu", self.seen.device.type):
            return tensor.to(device=device, dtype=dtype, copy=copied, **form)
        if copied and _is_there(tensor) == (device.type != "cpu"):
            tensor = tensor.clone()
        return self._moved(tensor, device, dtype or tensor.dtype, **form)

    def _moved(self, tensor: Tensor, device: torch.device, dtype: torch.dtype, **form: Any) -> Tensor:
        if tensor.is_meta:
            return tensor
        if _is_there(tensor) == (device.type != "cpu"):
            return tensor if tensor.dtype is dtype and not form else tensor.type(dtype).contiguous(**form)
        out = torch.empty_like(tensor.detach(), dtype=dtype, **form)
        setattr(_storage(out), _MARK, device.type != "cpu")
        if not tensor.requires_grad:
            return out.copy_(tensor) if tensor.numel() else out
        return _Move.apply(tensor, out)  # type: ignore[no-any-return]


class _Move(torch.autograd.Function):
    """A copy that a gradient finds its way back through."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, out: Tensor) -> Tensor:
        ctx.like = tensor.detach()
        return out.copy_(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(device=ctx.like.device, dtype=ctx.like.dtype), None


@contextmanager
def pretending(kind: str = "cuda") -> Iterator[Pretended]:
    """Let there be an accelerator inside: ``cuda:0`` or ``mps:0``."""
    seen = Pretended(torch.device(kind, 0))

    def device(tensor: Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            return seen.device if _is_there(tensor) else _DEVICE.__get__(tensor)

    there = {
        "torch.cuda.is_available": lambda: kind == "cuda",
        "torch.cuda.device_count": lambda: int(kind == "cuda"),
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_name": lambda *_: "a card that is not there",
        "torch.cuda.get_rng_state": lambda *_: torch.get_rng_state(),
        "torch.backends.mps.is_available": functools.cache(lambda: kind == "mps"),
    }
    with _in_place(there), _Operators(seen), _Calls(seen):
        _TENSOR.device = property(device)
        _TENSOR.is_cuda = property(lambda tensor: kind == "cuda" and _is_there(tensor))
        _TENSOR.is_cpu = property(lambda tensor: not _is_there(tensor))
        try:
            yield seen
        finally:
            del _TENSOR.device, _TENSOR.is_cuda, _TENSOR.is_cpu


@contextmanager
def _in_place(values: dict[str, Any]) -> Iterator[None]:
    """Put functions in the place of others."""
    patches = [mock.patch(name, value) for name, value in values.items()]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()
