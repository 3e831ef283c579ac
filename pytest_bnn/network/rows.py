"""Whether a network answers each example by itself: the same one among others, at another place, in another number.

Knows no Bayesian word: whoever asks makes sure that the network draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isinf
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pytest_bnn.network.calling import ForwardError
from pytest_bnn.network.isolation import replaced
from pytest_bnn.network.meeting import Run, Seat
from pytest_bnn.network.precision import coarse
from pytest_bnn.network.tree import tensors

#: What an example's output depends on beside the example.
Dependence: TypeAlias = Literal["company", "place", "size", "batch"]

#: Below this share of how much an output varies over the examples a difference moves no decision.
NEGLIGIBLE = 1e-4

#: Roundings of an output's own size that two orders of the same sums may differ by.
_ROUNDINGS = 16

#: By how much more than one rounding of every weight moves an output, other kernels may.
_KERNELS = 20

#: The number of examples in small batches: the first that no other dimension of the outputs could be mistaken for.
_SMALL = (7, 3, 5, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependent:
    """An example whose output depends on more than the example.

    Attributes:
        on: The others in its batch, its place in it, how many they are, or its batch, where none of them is shown.
        example: The number of the example.
        seats: Two batches, with the place of the example in each, in which its outputs differ.
        gap: By how much, in units of what the output varies by over the examples.
    """

    on: Dependence
    example: int
    seats: tuple[Seat, Seat]
    gap: float


@dataclass(slots=True, kw_only=True)
class Rows:
    """What batches of several kinds showed of a network.

    Attributes:
        gap: The largest difference of an output, in units of what it varies by over the examples.
        allowed: The most that rounding explains there, in the same units.
        compared: The sizes of the batches whose outputs were compared with those of the whole.
        raised: The sizes that the network does not take, each with its error.
        unlike: The sizes in which outputs have another shape, so that they do not compare.
        dependent: The example that depends on more than itself most clearly; None where there is none.
        varies: Whether two calls with the same batch gave different outputs, so that nothing can be said.
        equal: Whether all examples have the same output, NaN too, whatever they are.
    """

    gap: float = 0.0
    allowed: float = 0.0
    compared: set[int] = field(default_factory=set)
    raised: dict[int, str] = field(default_factory=dict)
    unlike: set[int] = field(default_factory=set)
    dependent: Dependent | None = None
    varies: bool = False
    equal: bool = False


def look_at_rows(network: nn.Module, run: Run, count: int, *, size: int | None = None) -> Rows:
    """Compare the outputs of examples in one batch with those in smaller ones, alone and in another order.

    Use it within `isolation.undisturbed`, and with the network's noise off.

    Args:
        network: What runs; its weights are moved by one rounding for a while where that is needed to tell rounding
            from a difference.
        run: Calls it; where it takes one size only, with batches of that size.
        count: The number of examples, at least 2.
        size: The number of examples that the network takes at once, where it takes no other.

    Raises:
        ForwardError: The network does not take all examples at once.
    """
    with _kinds(network) as kinds:
        whole = run(torch.arange(count))
    eps = _rounding(network, whole, kinds)
    measure = _Measure.of(whole, eps)
    found = Rows(equal=not bool(_gaps(measure.whole, measure.whole[:1]).any()))
    if bool((measure.gaps(run(torch.arange(count)), torch.arange(count)) > measure.allowed).any()):
        found.varies = True
        return found
    suspects: list[tuple[float, Tensor, int, int]] = []
    clearest = -1.0
    for numbers in _batches(whole, count, size):
        try:
            outputs = run(numbers)
        except ForwardError as error:
            found.raised.setdefault(len(numbers), str(error))
            continue
        if outputs.shape[1:] != whole.shape[1:] or len(outputs) != len(numbers):
            found.unlike.add(len(numbers))  # padded to the longest of a batch, for example
            continue
        found.compared.add(len(numbers))
        gaps = measure.gaps(outputs, numbers)
        place, column = divmod(int((gaps / measure.allowed).argmax()), gaps.shape[1])
        excess = float(gaps[place, column] / measure.allowed[column])
        if excess > 1:
            suspects.append((excess, numbers, place, column))
        if excess > clearest:
            clearest, unit = excess, float(measure.unit[column])
            found.gap, found.allowed = float(gaps[place, column]) / unit, float(measure.allowed[column]) / unit
    suspects.sort(key=lambda suspect: (isinf(suspect[0]), -suspect[0]))
    for _, numbers, place, column in suspects[:2]:
        gap, allowed = _settled(network, run, measure, numbers, place, column)
        unit = float(measure.unit[column])
        found.gap, found.allowed = gap / unit, allowed / unit
        if gap > allowed:
            on, seats = _dependence(run, measure, (numbers, place), column, allowed, size)
            found.dependent = Dependent(on=on, example=int(numbers[place]), seats=seats, gap=gap / unit)
            break
    return found


@dataclass(slots=True, eq=False)
class _Measure:
    """The outputs of all examples in one batch, flat, in float64, with what a difference of each number may be.

    ``unit`` is by how much a number varies over the examples, ``allowed`` what rounding or nothing explains.
    """

    whole: Tensor
    unit: Tensor
    allowed: Tensor
    eps: float

    @classmethod
    def of(cls, outputs: Tensor, eps: float) -> _Measure:
        flat = _flat(outputs)
        finite = flat.masked_fill(~torch.isfinite(flat), 0.0)
        largest = finite.abs().amax(0)
        spread = (finite - finite.mean(0)).abs().amax(0)
        unit = torch.where(spread > 0, spread, torch.where(largest > 0, largest, 1.0))
        return cls(flat, unit, torch.maximum(NEGLIGIBLE * spread, _ROUNDINGS * eps * largest).clamp_min(1e-300), eps)

    def gaps(self, outputs: Tensor, numbers: Tensor, *, whole: Tensor | None = None) -> Tensor:
        """Return the difference of outputs from those of the same examples in the whole batch."""
        return _gaps(_flat(outputs), (self.whole if whole is None else whole)[numbers])


def _flat(outputs: Tensor) -> Tensor:
    return outputs.detach().double().reshape(len(outputs), -1).cpu()


def _gaps(one: Tensor, other: Tensor) -> Tensor:
    gaps = (one - other).abs().nan_to_num(torch.inf, torch.inf)
    return gaps.masked_fill((one == other) | (one.isnan() & other.isnan()), 0.0)


def _batches(whole: Tensor, count: int, size: int | None) -> Iterator[Tensor]:
    """Return the numbers of the examples of each batch that is compared with the whole."""
    order = torch.arange(count)
    # Half of them, each twice, from the back: other company at other places.
    yield (order % -(-count // 2)).flip(0)
    if size is not None:
        yield order.roll(1)
        return
    for small in _sizes(whole, count)[:1]:
        yield torch.tensor([count - 1, *range(small - 1)])
    yield torch.tensor([count - 1])


def _sizes(whole: Tensor, count: int) -> list[int]:
    """Return small numbers of examples that no other dimension of the outputs is a multiple of."""
    return [s for s in _SMALL if s < count and not any(d > 1 and d % s == 0 for d in whole.shape[1:-1])]


def _settled(
    network: nn.Module, run: Run, measure: _Measure, numbers: Tensor, place: int, column: int
) -> tuple[float, float]:
    """Return the difference of a number that rounding leaves, and what rounding explains of it.

    The difference is the least of three: as it is, and with the weights moved by one rounding in two ways. A sum in
    another order moves an output about as much as these do.
    """
    count = len(measure.whole)
    gaps, allowed = [], float(measure.allowed[column])
    for seed in range(2):
        with _moved(network, measure.eps, seed):
            whole, outputs = run(torch.arange(count)), run(numbers)
        moved = measure.gaps(whole, torch.arange(count))[:, column].max()
        allowed = max(allowed, _KERNELS * float(moved))
        gaps.append(float(measure.gaps(outputs, numbers, whole=_flat(whole))[place, column]))
    gaps.append(float(measure.gaps(run(numbers), numbers)[place, column]))
    return min(gaps), allowed


def _dependence(
    run: Run, measure: _Measure, seat: Seat, column: int, allowed: float, size: int | None
) -> tuple[Dependence, tuple[Seat, Seat]]:
    """Say what a number of an example's output depends on, and two batches that show it."""
    numbers, place = seat
    example, count = int(numbers[place]), len(measure.whole)
    small = size or next(iter(_sizes(measure.whole, count)), 2)
    for kind, one, other in _pairs(example, count, small):
        try:
            first, second = _flat(run(one[0]))[one[1]], _flat(run(other[0]))[other[1]]
        except ForwardError:
            continue
        if first.shape == second.shape and float(_gaps(first, second)[column]) > allowed:
            return kind, (one, other)
    seats = seat, (torch.arange(count), example)
    if len(numbers) == count:
        return "batch", seats
    try:
        among = [_flat(run(torch.tensor([example] * number)))[0, column] for number in (len(numbers), count)]
    except ForwardError:
        return "batch", seats
    # Among copies of itself nobody else is in the batch.
    return "size" if float(_gaps(*among)) > allowed else "company", seats


def _pairs(example: int, count: int, size: int) -> Iterator[tuple[Dependence, Seat, Seat]]:
    """Yield pairs of batches of one size that differ in one thing: who is in it, and where the example is."""
    rest = [number for number in range(count) if number != example]
    some = [example, *(rest * size)[: size - 1]]
    others = rest[size - 1 :][: size - 1]
    others += [example] * (size - 1 - len(others))
    yield "company", (torch.tensor(some), 0), (torch.tensor([example, *others]), 0)
    yield "place", (torch.tensor(some), 0), (torch.tensor(some[1:] + some[:1]), size - 1)


@contextmanager
def _kinds(network: nn.Module) -> Iterator[set[torch.dtype]]:
    """Collect the dtypes in which modules compute: under autocast they are not those of the weights."""
    kinds: set[torch.dtype] = set()

    def see(_module: nn.Module, _inputs: object, output: object) -> None:
        kinds.update(tensor.dtype for tensor in tensors(output) if tensor.is_floating_point())

    handles = [
        module.register_forward_hook(see)
        for module in network.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield kinds
    finally:
        for handle in handles:
            handle.remove()


def _rounding(network: nn.Module, outputs: Tensor, kinds: set[torch.dtype]) -> float:
    """Return the relative rounding of the coarsest numbers that a network computes with."""
    weights = [p.dtype for p in network.parameters() if p.is_floating_point()]
    found = {kind for kind in (*kinds, *weights, outputs.dtype) if kind.is_floating_point} or {torch.float32}
    eps = max(torch.finfo(kind).eps for kind in found)
    return max(eps, {"bf16": torch.finfo(torch.bfloat16).eps, "tf32": 2.0**-10}.get(coarse(outputs.device), 0.0))


@contextmanager
def _moved(network: nn.Module, eps: float, seed: int) -> Iterator[None]:
    """Move every weight of a network by one rounding, up or down: what that does to an output is its rounding."""
    generator = torch.Generator().manual_seed(seed)
    moved: dict[int, Tensor] = {}
    entries: list[tuple[dict[str, Any], str, Any]] = []
    for module in network.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, weight in module._parameters.items():
            if weight is None or not weight.is_floating_point() or nn.parameter.is_lazy(weight):
                continue
            if id(weight) not in moved:
                signs = torch.randint(0, 2, weight.shape, generator=generator, dtype=torch.int8).to(weight.device)
                value = weight.detach() * (1 + eps * (2 * signs.to(weight.dtype) - 1))
                moved[id(weight)] = nn.Parameter(value, requires_grad=False)
            entries.append((module._parameters, name, moved[id(weight)]))
    with replaced(entries):
        yield
