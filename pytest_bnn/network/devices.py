"""The devices that torch computes on: which are there, what they are called, and how a network gets to another one."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.errors import InputError

#: What torch says where tensors of two devices meet; where a convolution's types differ, one of them is the CPU's.
_MIXED = re.compile(
    r"tensors? to be on the same device|on the same device as the indexed tensor|Placeholder storage has not been "
    r"allocated on MPS|is on (?:CPU|cpu), but expected"
)
_TYPES = re.compile(r"type \((\S+)\) and (?:weight|bias) type \((\S+)\) should be the same")
_LACKS = re.compile(r"not (?:currently )?(?:implemented|supported) (?:for|on) (?:the )?'?(?:MPS|CUDA|XPU|Cuda)")


def find(name: str, source: str = "the device") -> torch.device:
    """Return the device of a name, with its number where it has one.

    Args:
        name: ``auto`` for an accelerator that is there, else the CPU; ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        source: What named it, for messages.

    Raises:
        InputError: It is not there.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cards else "mps" if apple else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if apple:
            return torch.device("mps", 0)
        why = "was built without it" if not torch.backends.mps.is_built() else "finds none"
        raise _not_there(name, source, f"torch {torch.__version__} {why}")
    if not cards:
        built = torch.version.cuda or torch.version.hip
        why = "finds no such card or driver" if built else "was built for the CPU alone"
        raise _not_there(name, source, f"torch {torch.__version__} {why}")
    number = int(name.partition(":")[2]) if ":" in name else torch.cuda.current_device()
    if number >= cards:
        raise _not_there(name, source, f"this process sees {cards}, of which the last is cuda:{cards - 1}")
    return torch.device("cuda", number)


def _not_there(name: str, source: str, why: str) -> InputError:
    return InputError(
        f"{source} is {name!r}, and there is no such device: {why}",
        fix="take auto, which uses the accelerator that is there and else the CPU, or install a build of torch for it",
    )


def where(network: nn.Module) -> torch.device | None:
    """Return the device of a network's first parameter or buffer; None where it has none."""
    return next((tensor.device for tensor in itertools.chain(network.parameters(), network.buffers())), None)


def named(device: torch.device) -> str:
    """Return what people call a device: ``cuda:0 (NVIDIA H200)``."""
    if device.type == "cuda" and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64."""
    return device.type != "mps"


def is_on(network: nn.Module, device: torch.device) -> bool:
    """Return whether all of a network is on a device."""
    return all(tensor.device == device for tensor in (*network.parameters(), *network.buffers()))


def move(networks: Sequence[nn.Module], device: torch.device) -> None:
    """Move networks to a device, in place; what shared memory before shares it there, across networks too.

    Args:
        networks: What is moved.
        device: Where to.
    """
    groups = _sharing(networks)
    for network in networks:
        network.to(device)
    _share(groups, networks, device)


def copies(networks: Sequence[nn.Module], device: torch.device) -> list[nn.Module]:
    """Return copies of networks on a device; what shares memory shares it there, across networks too.

    Raises:
        Exception: Whatever copying a network raises.
    """
    groups = _sharing(networks)
    copied = copy.deepcopy(list(networks))
    for network in copied:
        network.to(device)
    _share(groups, copied, device)
    return copied


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a network holds a tensor, with that tensor's identity and its memory as it was."""

    network: int
    path: str
    kind: Literal["_parameters", "_buffers"]
    name: str
    key: int
    tensor: Tensor


def _sharing(networks: Sequence[nn.Module]) -> list[list[_Place]]:
    """Return the places of tensors that share their memory with another one."""
    groups: dict[int, list[_Place]] = {}
    kinds: tuple[Literal["_parameters", "_buffers"], ...] = ("_parameters", "_buffers")
    for number, network in enumerate(networks):
        for path, module in network.named_modules():
            for kind in kinds:
                for name, tensor in module.__dict__[kind].items():
                    if tensor is None or is_lazy(tensor) or tensor.layout is not torch.strided or not tensor.numel():
                        continue
                    memory = tensor.untyped_storage().data_ptr()
                    groups.setdefault(memory, []).append(_Place(number, path, kind, name, id(tensor), tensor.detach()))
    return [places for memory, places in groups.items() if memory and len(places) > 1]


def _share(groups: list[list[_Place]], networks: Sequence[nn.Module], device: torch.device) -> None:
    """Let tensors share memory as those at the same places did."""
    for places in groups:
        first = places[0].tensor
        memory = torch.empty(0, dtype=torch.uint8, device=first.device).set_(first.untyped_storage())
        storage = memory.to(device, copy=True).untyped_storage()
        made: dict[int, Tensor] = {}
        for place in places:
            tensor = place.tensor
            held: dict[str, Any] = networks[place.network].get_submodule(place.path).__dict__[place.kind]
            at = torch.empty(0, dtype=tensor.dtype, device=device)
            at = at.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
            if place.kind == "_parameters":
                held[place.name].data = at
            else:
                held[place.name] = made.setdefault(place.key, at)


def trouble(error: BaseException) -> str:
    """Say what a device has to do with an exception: "mixed", "float64", "lacks", or "" for nothing.

    "mixed" is two devices that met; "float64" and "lacks" are what a device cannot do.
    """
    if not isinstance(error, NotImplementedError | RuntimeError | TypeError):
        return ""
    text = str(error)
    if "MPS" in text and "float64" in text:
        return "float64"
    types = _TYPES.search(text)
    apart = types is not None and any(
        (word in types[1]) != (word in types[2]) for word in ("cuda", "CUDA", "MPS", "mps", "xpu")
    )
    if apart or _MIXED.search(text):
        return "mixed"
    return "lacks" if _LACKS.search(text) else ""
