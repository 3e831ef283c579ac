"""Copies of the examples that a network makes inside of a call, and whether it takes their mean.

A network may repeat its batch, call a module with all copies at once and average what comes out. No Bayesian word
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pytest_bnn.network.tree import tensors

#: How copies lie in a tensor: one batch after the other, each example's side by side, in a dimension of their own
#: before or behind that of the examples, or in the dimension that ``torch.vmap`` hides.
Layout: TypeAlias = Literal["batches", "neighbours", "before", "behind", "vmap"]

#: Roundings by which equal rows of one product may differ.
_ROUNDINGS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """The last call of some modules got copies of rows, and gave equal rows for them.

    Attributes:
        module: What was called.
        call: Which of the module's calls it was, from 0.
        number: How many copies of a row there are.
        layout: How they lie in the output.
    """

    module: nn.Module
    call: int
    number: int
    layout: Layout


def last_copies(modules: Sequence[nn.Module], run: Callable[[], object], rows: int) -> Copies | None:
    """Run a network on distinct examples; return the copies that the last call of some modules got and gave equally.

    Registers hooks for as long as it runs.

    Args:
        modules: The modules that count, such as all that draw.
        run: Runs the network on ``rows`` examples.
        rows: Their number, at least 2.
    """
    last: list[tuple[nn.Module, int, list[tuple[int, Layout]], list[tuple[int, Layout]]]] = []
    calls: dict[int, int] = {}

    def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        number = calls[id(module)] = calls.get(id(module), -1) + 1
        came, went = tensors((args, kwargs))[:1], tensors(output)[:1]
        ways = [_copies(found[0], rows) if found else [] for found in (came, went)]
        last[:] = [(module, number, ways[0], ways[1])]

    handles = [module.register_forward_hook(see, with_kwargs=True) for module in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for module, call, came, went in last:
        for number, layout in went:
            if (number, layout) in came:
                return Copies(module, call, number, layout)
    return None


def takes_their_mean(copies: Copies, run: Callable[[], Tensor], rows: int) -> bool:
    """Return whether what a network makes of copies changes equally with each of them, as their mean does.

    Args:
        copies: What `last_copies` gave.
        run: Runs the network from the same random state each time and gives its outputs.
        rows: The number of examples.
    """
    plain = run().double()
    if not bool((plain == run().double()).all()):
        return False
    changes = []
    for copy in dict.fromkeys((0, 1, copies.number - 1)):
        with _changed(copies, copy, rows):
            changes.append(run().double() - plain)
    largest = max(float(change.abs().nan_to_num(torch.inf).max()) for change in changes)
    if not 1e-4 * float(plain.abs().max()) < largest < torch.inf:
        return False
    return all(float((change - changes[0]).abs().max()) <= 1e-2 * largest for change in changes[1:])


@contextmanager
def _changed(copies: Copies, copy: int, rows: int) -> Iterator[None]:
    """Add the same to the rows of one copy, and to no other, in the output of the call."""
    calls = -1

    def change(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != copies.call:
            return None
        if isinstance(output, Tensor):
            return output + _addition(output, copies, copy, rows)
        first = next(iter(tensors(output)), None)
        if first is None or type(output) not in (tuple, list):
            return None
        other = first + _addition(first, copies, copy, rows)
        return type(output)(other if value is first else value for value in output)

    handle = copies.module.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def _addition(output: Tensor, copies: Copies, copy: int, rows: int) -> Tensor:
    """Return what is added to each row: other amounts to its numbers, since a softmax cancels a constant."""
    number, layout = copies.number, copies.layout
    chosen = torch.zeros(number, dtype=output.dtype, device=output.device)
    chosen[copy] = 1.0
    held = _physical(output)[0].detach()
    lead = 1 if layout in ("batches", "neighbours") else 2
    row = held.shape[lead:]
    pattern = torch.cos(torch.arange(row.numel(), dtype=torch.float64, device=output.device)).reshape(row)
    pattern = (pattern * held.double().std()).to(output.dtype)
    if layout == "vmap":
        functorch: Any = torch._C._functorch
        hidden: Tensor = functorch._add_batch_dim(chosen, 0, functorch.maybe_current_level())
        return hidden * pattern.expand(output.shape)
    if layout in ("batches", "neighbours"):
        mask = chosen.repeat_interleave(rows) if layout == "batches" else chosen.repeat(rows)
        return mask.reshape(-1, *[1] * len(row)) * pattern
    mask = chosen.reshape(-1, 1) if layout == "before" else chosen.reshape(1, -1)
    return mask.reshape(*mask.shape, *[1] * len(row)) * pattern


def _copies(tensor: Tensor, rows: int) -> list[tuple[int, Layout]]:
    """Return the ways in which a tensor holds equal copies of rows that are not all equal, with their number."""
    physical, hidden = _physical(tensor)
    if hidden:
        ways: list[tuple[Layout, Tensor]] = [("vmap", physical)] if physical.ndim > 1 else []
        ways = [(layout, held) for layout, held in ways if held.shape[1] == rows]
    else:
        ways = []
        if physical.ndim and len(physical) > rows and len(physical) % rows == 0:
            ways.append(("batches", physical.unflatten(0, (-1, rows))))
            ways.append(("neighbours", physical.unflatten(0, (rows, -1)).transpose(0, 1)))
        if physical.ndim > 2 and physical.shape[1] == rows:
            ways.append(("before", physical))
        if physical.ndim > 2 and len(physical) == rows:
            ways.append(("behind", physical.transpose(0, 1)))
    return [(len(held), layout) for layout, held in ways if len(held) > 1 and _equal(held) and not _equal(held[0])]


def _equal(parts: Tensor) -> bool:
    """Return whether all parts along the first dimension are equal, up to rounding."""
    if parts.numel() == 0 or not parts.is_floating_point():
        return bool((parts == parts[:1]).all())
    values = parts.detach()
    allowed = _ROUNDINGS * torch.finfo(values.dtype).eps * float(values.abs().max())
    return float((values - values[:1]).abs().max()) <= allowed


def _physical(tensor: Tensor) -> tuple[Tensor, bool]:
    """Return the numbers behind a tensor, first the dimension that ``torch.vmap`` hides, and whether it hides one."""
    functorch: Any = torch._C._functorch
    if functorch.maybe_current_level() is None:
        return tensor, False
    if functorch.is_batchedtensor(tensor):
        return functorch.get_unwrapped(tensor).movedim(functorch.maybe_get_bdim(tensor), 0), True
    size = _vmap_size()
    return (tensor.expand(size, *tensor.shape), True) if size else (tensor, False)


def _vmap_size() -> int:
    """Return the size of the innermost ``torch.vmap`` that is running; 0 where none is."""
    functorch: Any = torch._C._functorch
    running = functorch.peek_interpreter_stack()
    if running is None or running.key() != functorch.TransformType.Vmap:
        return 0
    return int(functorch.CVmapInterpreterPtr(running).batchSize())
