"""Data sets of which more examples are judged than memory holds: parted into shards that are read one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pytest_bnn.data.drawn import Drawn, draws_numbers
from pytest_bnn.data.joining import length_of
from pytest_bnn.data.lazy import Flow, Held, Indexed, Read, Source, Stream, Unreadable
from pytest_bnn.data.loaders import in_order, shuffles
from pytest_bnn.data.ray_data import RayRows, is_ray_data
from pytest_bnn.data.samples import MAX_EXAMPLES, Samples, goes_on, order_of
from pytest_bnn.errors import InputError
from pytest_bnn.network.tree import tensors

#: Numbers in the examples of a shard (128 MiB of floats), and the most examples of one.
_NUMBERS, _ROWS = 2**25, 2048

#: The share of the examples that may be unreadable.
UNREADABLE = 0.001

#: Unreadable examples that are named.
NAMED = 3

#: Who does tasks side by side: an executor, or what makes one, which is called again where its workers die.
Workers: TypeAlias = Executor | Callable[[], Executor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Where what was found of each shard is kept, and a digest of all that it depends on beside the examples."""

    folder: str
    key: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Part:
    """The examples of one shard: their numbers in a source that is read elsewhere, or what was read here.

    ``cut`` says that it is the last one of a stream, which goes on behind it.
    """

    number: int
    places: tuple[int, ...] = ()
    read: Read | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LargeData:
    """Labelled examples that are judged shard by shard. Use `LargeData.of` to make one.

    Attributes:
        data: Where they are read.
        few: Some of them, held in memory, for what is not judged shard by shard.
        limit: The most that are judged; all when None.
        shard_size: How many examples a shard has.
        unreadable: Those among the few that could not be read.
        share: How many of them may be unreadable.
        seed: Of the order in which they are judged.
        workers: What judges shards side by side: an executor, or what makes one; this process when None.
        kept: Where what was found of each shard is kept, so that it is not judged again; nowhere when None.
    """

    data: Source | Stream
    few: Samples
    limit: int | None
    shard_size: int
    unreadable: tuple[Unreadable, ...]
    share: float
    seed: int
    workers: Workers | None = None
    kept: Kept | None = None

    @classmethod
    def of(
        cls,
        data: Any,
        limit: int | Literal["all"] = "all",
        *,
        source: str = "evaluation",
        few: int = MAX_EXAMPLES,
        seed: int = 0,
        dim: int = 0,
        shard_size: int | None = None,
        unreadable: float = UNREADABLE,
        workers: Workers | None = None,
    ) -> LargeData:
        """Open a data set; a few examples are read.

        The order is random, from the seed, so that the first ones are a random subset. Those of a stream come in its
        own order.

        Args:
            data: In a form that `pytest_bnn.data.samples.samples_of` takes; memory-mapped arrays stay in their file.
            limit: The most examples that are judged.
            source: How messages call it.
            few: How many are held in memory.
            seed: Of the order.
            dim: The dimension that counts the examples.
            shard_size: How many examples are read at a time; when None, as many as hold 2**25 numbers, at most 2,048.
            unreadable: The share of the examples that may be unreadable.
            workers: As in the class.

        Raises:
            InputError: It cannot be read, or is empty.
        """
        most = None if limit == "all" else limit
        for name, value in (("the number of examples", most), ("the shard size", shard_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} is {value!r}", fix="give a whole number from 1")
        if not 0 <= unreadable <= 1:
            raise InputError(f"the share of unreadable examples is {unreadable!r}", fix="give a number from 0 to 1")
        made = RayRows(data, source) if is_ray_data(data) else opened(data, source, dim)
        wanted = few if most is None else min(few, most)
        read = _few(made, wanted, seed)
        if read.samples is None:
            if not read.unreadable:
                raise InputError(f"{source} is empty", fix="give at least one image")
            why = named(list(read.unreadable))
            raise InputError(f"{source} gave no example that can be read: {why}", fix="give at least one image")
        numbers = sum(tensor.numel() for tensor in tensors(read.samples.item)) // read.samples.rows
        size = shard_size or max(1, min(_ROWS, _NUMBERS // max(1, numbers)))
        found = cls(
            data=made, few=read.samples, limit=most, shard_size=size, unreadable=read.unreadable, share=unreadable,
            seed=seed, workers=workers,
        )  # fmt: skip
        found.require_readable(list(read.unreadable), read.samples.rows + len(read.unreadable))
        return found

    def keeping(self, kept: Kept) -> LargeData:
        """Return the same examples; what is found of their shards is kept."""
        return replace(self, kept=kept)

    def by(self, workers: Workers | None) -> LargeData:
        """Return the same examples, judged by others."""
        return replace(self, workers=workers)

    @property
    def total(self) -> int | None:
        """How many examples there are to judge; None where a stream does not tell."""
        if not isinstance(self.data, Source):
            return self.limit
        return len(self.data) if self.limit is None else min(self.limit, len(self.data))

    @property
    def way(self) -> str:
        """Which examples come first, in words."""
        return "in random order" if isinstance(self.data, Source) else self.data.way

    @property
    def may_be_sorted(self) -> bool:
        """Whether the first examples are no random choice of all."""
        return isinstance(self.data, Flow) and self.data.may_be_sorted

    def places(self) -> Tensor | None:
        """Return the numbers of the examples in the order in which they are judged; None of a stream."""
        return self._order_of(self.data) if isinstance(self.data, Source) else None

    def parts(self) -> Iterator[Part]:
        """Part the examples into shards."""
        if isinstance(self.data, Source):
            for number, places in enumerate(self._order_of(self.data).split(self.shard_size)):
                chosen = tuple(places.sort().values.tolist())
                here = None if self.data.travels else self.data.read(chosen, self.seed + number)
                yield Part(number=number, places=chosen, read=here)
            return
        left, stream = self.limit, self.data.parts(self.shard_size, self.seed)
        for number, read in enumerate(stream):
            taken = read if left is None else _cut(read, left)
            left = None if left is None else left - (taken.samples.rows if taken.samples else 0)
            last = left is not None and left <= 0
            yield Part(number=number, read=taken, cut=last and (taken is not read or goes_on(stream)))
            if last:
                return

    def _order_of(self, source: Source) -> Tensor:
        return order_of(len(source), self.seed)[: self.limit]

    def require_readable(self, unreadable: list[Unreadable], seen: int) -> None:
        """Refuse data of which too much cannot be read.

        Args:
            unreadable: What could not be read so far.
            seen: How many examples were tried so far.

        Raises:
            InputError: More than the share of all examples; of a stream, of those so far.
        """
        of = self.total if isinstance(self.data, Source) and self.total else seen
        if len(unreadable) > math.ceil(self.share * of):
            raise InputError(
                f"{len(unreadable)} of {seen} examples cannot be read, more than {self.share:g} of {of}: "
                + named(unreadable),
                fix="mend or leave out these examples, or allow a larger share of them: --unreadable SHARE",
            )


def opened(data: Any, source: str, dim: int) -> Source | Stream:
    """Return examples that are read when they are needed; none is read yet.

    Args:
        data: What users hand over; see `pytest_bnn.data.samples.samples_of`.
        source: How messages call it.
        dim: The dimension that counts the examples.

    Raises:
        InputError: It is something else.
    """
    if isinstance(data, Samples):
        return Held(data.item, source, data.dim)
    if isinstance(data, DataLoader):
        if in_order(data) or shuffles(data):
            return Indexed(data.dataset, source, dim, data.collate_fn, data.batch_size or 1)
        return (Drawn if draws_numbers(data) else Flow)(data, source, dim)
    if isinstance(data, Dataset):
        return Flow(data, source, dim) if length_of(data) is None else Indexed(data, source, dim)
    return Held(data, source, dim)


def named(unreadable: list[Unreadable]) -> str:
    """Name the first ones of some examples that cannot be read."""
    more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
    return ", ".join(map(str, unreadable[:NAMED])) + more


def _few(data: Source | Stream, count: int, seed: int) -> Read:
    if isinstance(data, Source):
        places = order_of(len(data), seed)[:count].sort().values
        return data.read(places.tolist(), seed) if len(places) else Read(samples=None)
    if not isinstance(data, Flow) or not data.may_be_sorted:
        return next(data.parts(count, seed), Read(samples=None))
    try:
        read = next(data.parts(count + 1, seed), Read(samples=None))  # one more tells whether it goes on
    except InputError:
        read, more = next(data.parts(count, seed), Read(samples=None)), True  # what is behind cannot be read
    else:
        more = read.samples is not None and read.samples.rows > count
        read = _cut(read, count)
    if read.samples is None or not more:
        return read
    return replace(read, samples=replace(read.samples, cut=True))


def _cut(read: Read, most: int) -> Read:
    if read.samples is None or read.samples.rows <= most:
        return read
    samples = Samples(
        item=read.samples.take(most), rows=most, dim=read.samples.dim, places=read.samples.places[:most]
    )  # fmt: skip
    return replace(read, samples=samples)
