"""Examples that are read when they are needed: some of them by their number, or the next ones of a stream."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pytest_bnn.data.batch import rows_of
from pytest_bnn.data.digests import of_examples
from pytest_bnn.data.holdings import of_data_set, of_mapped
from pytest_bnn.data.joining import (
    ItemError,
    alone,
    as_tensors,
    at,
    checked,
    collated,
    joined,
    length_of,
)
from pytest_bnn.data.loaders import draws_at_random, gives_single_items, own_generators_kept
from pytest_bnn.data.samples import Samples, require_dense, some
from pytest_bnn.errors import InputError, in_a_line
from pytest_bnn.network.isolation import preserved_random_state, seed_everything
from pytest_bnn.network.tree import kind, mapped, tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An example that could not be read: its number in the data, and why."""

    place: int
    why: str

    def __str__(self) -> str:
        return f"number {self.place} ({self.why})"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Read:
    """Examples that were read.

    Attributes:
        samples: Those that could be read; None where none could.
        unreadable: The others.
    """

    samples: Samples | None
    unreadable: tuple[Unreadable, ...] = ()


#: Why an example cannot be used whose image was read.
NOT_FINITE = "it holds NaN or infinity"


@runtime_checkable
class Source(Protocol):
    """Examples that are read by their number."""

    @property
    def travels(self) -> bool:
        """Whether a worker reads them by itself; else they are read here and sent to it."""

    def __len__(self) -> int:
        """Return how many there are."""

    def read(self, places: Sequence[int], seed: int) -> Read:
        """Read some of them, from where the random generators start at ``seed``."""

    def digest(self) -> str:
        """Return a digest of all of them, as far as it can be told without reading them one by one."""


class Stream(Protocol):
    """Examples that are read one after the other."""

    @property
    def way(self) -> str:
        """Which ones come first, in words."""

    def digest(self) -> str:
        """Return a digest of what they are read from, as far as it can be told without reading them."""

    def parts(self, size: int, seed: int) -> Iterator[Read]:
        """Read all of them from the start, ``size`` at a time; fewer at the end."""


class Held:
    """`Source` of tensors or arrays, which may lie in a file that is mapped into memory."""

    travels = False

    def __init__(self, tree: Any, source: str, dim: int) -> None:
        self._given, self._tree, self._dim = tree, mapped(tree, _view), dim
        require_dense(self._tree, source)
        try:
            self._rows = rows_of(self._tree, dim)
        except ValueError as error:
            if not tensors(self._tree):
                raise InputError(
                    f"{source} gave {kind(tree)}, which is no tensor, array, Dataset or DataLoader",
                    fix="give (images, labels), a Dataset of such, or a stream as an IterableDataset, whose __iter__ "
                    "begins anew",
                ) from error
            raise InputError(
                f"{source} gave {kind(tree)} without examples", fix="give (images, labels), or a Dataset of such"
            ) from error

    def __len__(self) -> int:
        return self._rows

    def read(self, places: Sequence[int], seed: int) -> Read:
        """Read some of them; ``seed`` changes nothing."""
        del seed
        numbers = torch.as_tensor(places, dtype=torch.long)
        item = as_tensors(some(self._tree, numbers, self._rows, self._dim))
        return Read(samples=Samples(item=item, rows=len(places), dim=self._dim, places=numbers))

    def digest(self) -> str:
        """Return the digest of the numbers; of arrays that are mapped into memory, of the state of their files."""
        return of_examples(mapped(self._given, lambda leaf: of_mapped(leaf) or _view(leaf)), objects=True)


class Indexed:
    """`Source` of a data set whose items are had by their number."""

    travels = True

    def __init__(self, data: Any, source: str, dim: int, collate: Any = None, batch: int = 1) -> None:
        self._data, self._source, self._dim, self._collate, self._batch = data, source, dim, collate, batch

    def __len__(self) -> int:
        return length_of(self._data) or 0

    def read(self, places: Sequence[int], seed: int) -> Read:
        """Read some of them; an item that raises, or holds NaN or infinity, is unreadable."""
        items, numbers, unreadable = [], [], []
        with preserved_random_state(), own_generators_kept(self._data):
            seed_everything(seed)
            for place in places:
                try:
                    item = at(self._data, place)
                except ItemError as error:
                    cause = error.__cause__
                    assert cause is not None
                    unreadable.append(Unreadable(place=place, why=in_a_line(cause)))
                    continue
                if why := _nothing(item) or not_finite(item):
                    unreadable.append(Unreadable(place=place, why=why))
                    continue
                items.append(item)
                numbers.append(place)
            batches = self._batches(items, numbers)
        samples = None
        if batches:
            item = joined(batches, f"{self._source} gave {kind(self._data)} with", self._dim, torch.tensor(numbers))
            require_dense(item, self._source)
            if (rows := rows_of(item, self._dim)) != len(numbers):
                raise InputError(
                    f"{self._source}: the loader's collate_fn makes {rows} examples of {len(numbers)} items",
                    fix="let it make one example of each item: items that are None are left out before",
                )
            samples = Samples(item=item, rows=len(numbers), dim=self._dim, places=torch.tensor(numbers))
        return Read(samples=samples, unreadable=tuple(unreadable))

    def _batches(self, items: list[Any], numbers: list[int]) -> list[Any]:
        given, size = f"{self._source} gave items", self._batch
        if self._collate is None:
            named = zip(items, numbers, strict=True)
            return [alone(item, f"{given} (number {number} is one)") for item, number in named]
        return [
            collated(items[at : at + size], self._collate, given, self._dim, numbers[at : at + size])
            for at in range(0, len(items), size)
        ]

    def digest(self) -> str:
        """Return the digest of the files and tensors that the data set holds."""

        def read() -> None:
            with preserved_random_state(), own_generators_kept(self._data), contextlib.suppress(ItemError):
                seed_everything(0)
                at(self._data, len(self) - 1)

        return of_data_set(self._data, read)


class Flow:
    """`Stream` of a loader that draws by itself, or of a data set without a length.

    ``may_be_sorted`` says whether its first examples are no random choice; ``way`` which ones come first, in words.
    """

    def __init__(self, data: Any, source: str, dim: int) -> None:
        self._data, self._source, self._dim = data, source, dim
        self.may_be_sorted = not draws_at_random(data)
        self.way = f"the first ones of {'a stream, in its' if self.may_be_sorted else 'a loader, in its random'} order"

    def digest(self) -> str:
        """Return the digest of the files and tensors that the data set behind it holds."""
        return of_data_set(self._data.dataset if isinstance(self._data, DataLoader) else self._data)

    def parts(self, size: int, seed: int) -> Iterator[Read]:
        """Read all of them; an item that raises or holds NaN is unreadable, as long as the stream goes on behind it."""
        with own_generators_kept(self._data):
            yield from self._parts(size, seed)

    def _parts(self, size: int, seed: int) -> Iterator[Read]:
        held: list[Any] = []
        unreadable: list[Unreadable] = []
        place = told = waiting = 0
        with preserved_random_state():
            seed_everything(seed)
            items = iter(self._data)
        while True:
            item, why = None, ""
            with preserved_random_state():
                seed_everything(seed + place)
                try:
                    item = next(items)
                except StopIteration:
                    break
                except (Exception, SystemExit) as error:
                    self._require_going_on(items, place, error)
                    why = in_a_line(error)
            if not why and not isinstance(self._data, DataLoader):
                why = _nothing(item) or not_finite(item)
            if why:
                unreadable.append(Unreadable(place=place, why=why))
                place += 1
                if len(unreadable) - told >= size:  # it may raise for ever
                    yield Read(samples=None, unreadable=tuple(unreadable[told:]))
                    told = len(unreadable)
                continue
            rows, batch = self._batch(item, place)
            held.append((batch, torch.arange(place, place + rows)))
            place, waiting = place + rows, waiting + rows
            while waiting >= size:
                part, held = self._cut(held, size)
                waiting -= size
                yield Read(samples=part, unreadable=tuple(unreadable[told:]))
                told = len(unreadable)
        if held or unreadable[told:]:
            last = self._cut(held, size)[0] if held else None
            yield Read(samples=last, unreadable=tuple(unreadable[told:]))

    def _require_going_on(self, items: Any, place: int, error: BaseException) -> None:
        """Refuse a stream that ends where it raises, or of which more than one example is lost by it."""
        if isinstance(items, Generator) or isinstance(self._data, DataLoader):
            raise InputError(
                f"{self._source}: the stream raised {in_a_line(error)} at example {place} or soon after it",
                fix="let it leave out what it cannot read, or give a Dataset with a length, of which items that cannot "
                "be read are left out and counted",
            ) from error

    def _batch(self, item: Any, place: int) -> tuple[int, Any]:
        single = not isinstance(self._data, DataLoader) or gives_single_items(self._data, item)
        words = f"{self._source} gave items (number {place} is one)"
        batch = alone(item, words) if single else as_tensors(checked(item))
        return rows_of(batch, self._dim), batch

    def _cut(self, held: list[Any], size: int) -> tuple[Samples, list[Any]]:
        """Return the first examples, and the rest."""
        numbers = torch.cat([places for _, places in held])
        given = f"{self._source} gave {kind(self._data)} with"
        item = joined([batch for batch, _ in held], given, self._dim, numbers)
        rows = len(numbers)
        first, rest = torch.arange(min(size, rows)), torch.arange(min(size, rows), rows)
        head = some(item, first, rows, self._dim)
        samples = Samples(item=head, rows=len(first), dim=self._dim, places=numbers[first])
        return samples, [(some(item, rest, rows, self._dim), numbers[rest])] if len(rest) else []


def not_finite(item: Any) -> str:
    """Say that an image holds NaN or infinity; empty where it does not, or is not a single tensor."""
    image = item[0] if isinstance(item, tuple | list) and len(item) in (1, 2) else item
    image = image if isinstance(image, Tensor) else torch.as_tensor(image) if isinstance(image, numpy.ndarray) else None
    if image is None or not image.is_floating_point() or bool(torch.isfinite(image).all()):
        return ""
    return NOT_FINITE


def _nothing(item: Any) -> str:
    """Say that an item holds no image, as data sets do that hide what they cannot read; empty where it does."""
    image = item[0] if isinstance(item, tuple | list) and item else item
    return "it is None" if item is None else "its image is None" if image is None else ""


def _view(leaf: Any) -> Any:
    """Return an array of numbers as a tensor of the same memory, which is only read; all else as it is."""
    if not isinstance(leaf, numpy.ndarray) or leaf.dtype.kind not in "biufc":
        return leaf
    native = leaf if leaf.dtype.isnative else leaf.astype(leaf.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it may not be written to, and is not
        return torch.from_numpy(numpy.asarray(native))
