"""Where the examples of a batch meet inside of a network: the first module whose output for one follows the others.

No Bayesian word here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pytest_bnn.network.comparing import difference
from pytest_bnn.network.naming import called
from pytest_bnn.network.tree import tensors

#: Gives the outputs ``[len(numbers), ...]`` of the examples with these numbers, called as one batch.
Run: TypeAlias = Callable[[Tensor], Tensor]

#: The numbers of the examples of a batch, and the place of one of them in it.
Seat: TypeAlias = tuple[Tensor, int]

#: The relative difference from which rows inside of a network differ.
_APART = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """The module in which examples meet: what comes in is one example's, and what comes out is not."""

    path: str
    module: nn.Module

    @property
    def kind(self) -> str:
        """The class of the module."""
        return type(self.module).__name__

    def __str__(self) -> str:
        mode = ", in train mode" if self.module.training else ""
        return f"{called(self.path)} ({self.kind}{mode})"


def meeting(network: nn.Module, run: Run, one: Seat, other: Seat) -> Meeting | None:
    """Find the innermost module, the first in the order of the calls, in which an example's row starts to differ.

    Use it within `isolation.undisturbed`, which removes the hooks.

    Args:
        network: What runs.
        run: Calls it.
        one: A batch, and the place of the example in it.
        other: Another with the same example.
    """
    first, second = ([*_calls(network, run, seat)] for seat in (one, other))
    paths = {id(module): path for path, module in network.named_modules()}
    for (module, came, went), (twin, came_too, went_too) in zip(first, second, strict=False):
        if module is not twin:
            return None
        if _agree(came, came_too) and _agree(went, went_too) is False:
            return Meeting(paths[id(module)], module)
    return None


#: A module, and the rows of the example in what came in and in what went out.
_Call: TypeAlias = tuple[nn.Module, list[Tensor | None], list[Tensor | None]]


def _calls(network: nn.Module, run: Run, seat: Seat) -> list[_Call]:
    numbers, place = seat
    rows = len(numbers)
    running: list[list[Tensor | None]] = []
    calls: list[_Call] = []

    def start(_module: nn.Module, args: Any, kwargs: Any) -> None:
        running.append([_row(tensor, rows, place) for tensor in tensors((args, kwargs))])

    def stop(module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        calls.append((module, running.pop(), [_row(tensor, rows, place) for tensor in tensors(output)]))

    handles: list[Any] = []
    for module in network.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(start, with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(stop, with_kwargs=True))
    try:
        run(numbers)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _row(tensor: Tensor, rows: int, place: int) -> Tensor | None:
    """Return the part of a tensor inside of a network that is one example's; None where none is known to be."""
    if not tensor.ndim:
        return None
    if len(tensor) == rows:
        return tensor[place].detach().clone()
    if rows > 1 and len(tensor) % rows == 0:
        several: Tensor = tensor.unflatten(0, (rows, -1))[place]
        return several.detach().clone()
    if tensor.ndim > 1 and tensor.shape[1] == rows:
        return tensor[:, place].detach().clone()
    return None


def _agree(one: list[Tensor | None], other: list[Tensor | None]) -> bool | None:
    """Return whether rows agree; None where nothing can be compared."""
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a is not None and b is not None]
    gaps = [difference(a, b) for a, b in pairs if a.shape == b.shape]
    return None if not gaps else max(gaps) <= _APART
