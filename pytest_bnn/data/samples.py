"""The examples that users hand over, as their own data set or loader structures them; read once, up to a limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pytest_bnn.data.batch import per_example, rows_of, taken
from pytest_bnn.data.joining import (
    FORMS,
    ItemError,
    as_tensors,
    at,
    batch_at,
    collated,
    item_of,
    joined,
    length_of,
    no_batch,
    require_labels,
)
from pytest_bnn.data.loaders import (
    batch_of,
    draws_at_random,
    in_order,
    is_plain,
    numbers_of,
    own_generators_kept,
)
from pytest_bnn.errors import InputError
from pytest_bnn.network.isolation import preserved_random_state, seed_everything
from pytest_bnn.network.tree import describe, is_inner, kind, leaves, mapped

#: How many examples of a larger data set an audit takes.
MAX_EXAMPLES = 512


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Samples:
    """Examples in the structure in which they were given.

    Attributes:
        item: All of them, as one batch: a tensor, ``(inputs, labels)``, a dictionary, any tree of tensors.
        rows: How many they are.
        dim: The dimension that counts them, 0 or 1.
        first: The loader's own first batch, as the training loss gets it; None where no loader made batches.
        places: The number of each example in the user's data, ``[rows]``.
        cut: Whether they are the first ones of a stream that goes on, which may be sorted.
    """

    item: Any
    rows: int
    dim: int = 0
    first: Any = None
    places: Tensor
    cut: bool = False

    @property
    def batch_rows(self) -> int | None:
        """The size of the loader's own batches; None where no loader made batches."""
        return None if self.first is None else rows_of(self.first, self.dim)

    def take(self, rows: int) -> Any:
        """Return the first examples in the structure in which they were given."""
        return some(self.item, torch.arange(min(rows, self.rows)), self.rows, self.dim)


def samples_of(data: Any, source: str = "data", limit: int = MAX_EXAMPLES, *, seed: int = 0, dim: int = 0) -> Samples:
    """Read examples from what users hold.

    Of more than ``limit`` examples a random subset is taken, in their order, from a seed: a data set may be sorted by
    class. Of a stream, or a loader that shuffles or draws by itself, the first ones are.

    Args:
        data: A tensor or numpy array, any tree of them (a tuple, a dictionary, ...), a Dataset of such items, or a
            DataLoader of such batches.
        source: How messages call it.
        limit: The most examples to take.
        seed: The seed of the subset, from which the random generators start, too, while the data are read.
        dim: The dimension that counts the examples: 1 where time comes first.

    Raises:
        InputError: It is none of these, or is empty, or its items do not fit together.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, Dataset | DataLoader):
        return _read(data, source, limit, seed, dim)
    item = as_tensors(data)
    require_dense(item, source)
    if not any(isinstance(leaf, Tensor) for _, leaf in leaves(item)):
        raise InputError(
            f"{source} gave {kind(data)} from which no batch can be made (it is no tensor, Dataset or DataLoader"
            + (f", but {describe(data)})" if is_inner(data) and leaves(data) else ")"),
            fix="give its numbers: torch.as_tensor(data.to_numpy())" if hasattr(data, "to_numpy") else FORMS,
        )
    try:
        require_labels(item)
    except TypeError as error:
        raise InputError(f"{source}: {error}", fix="give one label for each image, as a tensor") from error
    try:
        rows = rows_of(item, dim)
    except ValueError:
        return Samples(item=item, rows=0, dim=dim, places=torch.arange(0))  # refused by `Subject`, which has the words
    return _limited(item, rows, limit, seed, dim)


def require_dense(tree: Any, source: str = "images") -> None:
    """Refuse sparse tensors: rows cannot be taken of them in every layout.

    Raises:
        InputError: The message has the layout.
    """
    for name, leaf in leaves(tree):
        if isinstance(leaf, Tensor) and leaf.layout is not torch.strided:
            where = f" {name}" if name else ""
            layout = str(leaf.layout).removeprefix("torch.")
            raise InputError(
                f"{source}: the tensor{where} of shape {list(leaf.shape)} is sparse ({layout})",
                fix="give it with .to_dense(), and let the network make it sparse again where it needs that",
            )


def _limited(item: Any, rows: int, limit: int, seed: int, dim: int) -> Samples:
    places = _subset(rows, limit, seed)
    if len(places) == rows:
        return Samples(item=item, rows=rows, dim=dim, places=places)
    return Samples(item=some(item, places, rows, dim), rows=len(places), dim=dim, places=places)


def some(tree: Any, numbers: Tensor, rows: int, dim: int) -> Any:
    """Return some of the examples in a tree.

    Args:
        tree: All of them.
        numbers: Those that are taken, int64.
        rows: How many there are.
        dim: The dimension that counts them.
    """
    return mapped(tree, lambda leaf: taken(leaf, numbers, rows=rows, dim=dim), per_example(rows))


def _subset(rows: int, limit: int, seed: int) -> Tensor:
    if rows <= limit:
        return torch.arange(rows)
    return order_of(rows, seed)[:limit].sort().values


def order_of(rows: int, seed: int) -> Tensor:
    """Return the numbers of examples in the random order of a seed, of which the first ones are a random subset."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))


def _read(data: Any, source: str, limit: int, seed: int, dim: int) -> Samples:
    with preserved_random_state(), own_generators_kept(data):
        seed_everything(seed)
        try:
            batches, places, more = _batches(data, source, limit, seed, dim)
        except InputError:
            raise
        except ItemError as error:
            raise error.told(source, data) from error.__cause__
        except (Exception, SystemExit) as error:
            raise no_batch(f"{source} gave {kind(data)}", error) from error
    for batch in batches:
        require_dense(batch, source)
    if not batches or not all(map(_has_rows, batches)):
        raise InputError(f"{source} is empty", fix="give at least one image")
    item = joined(batches, f"{source} gave {kind(data)} with", dim, places)
    rows = rows_of(item, dim)
    places = torch.arange(rows) if places is None or len(places) != rows else places
    first = as_tensors(batches[0]) if isinstance(data, DataLoader) and data.batch_size is not None else None
    few = item if rows <= limit else some(item, torch.arange(limit), rows, dim)
    cut = more and not draws_at_random(data)
    return Samples(item=few, rows=min(rows, limit), dim=dim, first=first, places=places[:limit], cut=cut)


def _has_rows(batch: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.numel() for _, leaf in leaves(batch)) or not any(
        isinstance(leaf, Tensor) for _, leaf in leaves(batch)
    )


def _batches(data: Any, source: str, limit: int, seed: int, dim: int) -> tuple[list[Any], Tensor | None, bool]:
    """Return batches of at least ``limit`` examples, or of all; the places of these, where known; whether more follow.

    What follows is not read, but for one step of a stream.
    """
    if isinstance(data, DataLoader):
        return _of_loader(data, source, limit, seed, dim)
    length = length_of(data)
    if length is None:
        stream = iter(data)
        found = [item_of(item) for item in islice(stream, limit)]
        return found, None, len(found) == limit and goes_on(stream)
    places = _subset(length, limit, seed)
    return [batch_at(data, int(index)) for index in places], places, False


def _of_loader(
    data: DataLoader[Any], source: str, limit: int, seed: int, dim: int
) -> tuple[list[Any], Tensor | None, bool]:
    if is_plain(data):
        try:
            return _by_number(data, source, limit, seed, dim)
        except ItemError:
            if not data.num_workers or data.worker_init_fn is None:  # which may open what items are read from
                raise
    found, rows, stream = [], 0, iter(data)
    while rows < limit and (batch := next(stream, stream)) is not stream:
        found.append(batch_of(data, batch))
        rows += rows_of(found[-1], dim)
    return found, None, rows > limit or (rows == limit and goes_on(stream))


def _by_number(
    data: DataLoader[Any], source: str, limit: int, seed: int, dim: int
) -> tuple[list[Any], Tensor | None, bool]:
    length = length_of(data.dataset) or 0
    if in_order(data) and length > limit:
        places = _subset(length, limit, seed)
        numbers = map(Tensor.tolist, places.split(data.batch_size or 1))
        return [_batch(data, part, source, dim) for part in numbers], places, False
    found: list[Any] = []
    read: list[Any] = []
    rows, stream = 0, numbers_of(data)
    while rows < limit and (part := next(stream, stream)) is not stream:
        read += part if isinstance(part, list) else [part]
        found.append(_batch(data, part, source, dim))
        rows += rows_of(found[-1], dim)
    known = len(read) == rows and all(isinstance(number, int | numpy.integer) for number in read)
    return found, torch.tensor(read) if known else None, rows > limit or (rows == limit and goes_on(stream))


def _batch(loader: DataLoader[Any], numbers: Any, source: str, dim: int) -> Any:
    """Return what a plain loader makes of the items with these numbers."""
    if loader.batch_sampler is not None:
        items = [at(loader.dataset, number) for number in numbers]
        return collated(items, loader.collate_fn, f"{source} gave {kind(loader)}", dim, numbers)
    return batch_of(loader, loader.collate_fn(at(loader.dataset, numbers)))


def goes_on(stream: Iterator[Any]) -> bool:
    """Return whether more follows in a stream, be it an error; one step of it is taken."""
    try:
        next(stream)
    except StopIteration:
        return False
    except (Exception, SystemExit):
        return True  # whatever it is, nobody asked for it
    return True
