"""The examples that users hand over, as their own data set or loader structures them; read once, up to a limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from pytest_bnn.data.batch import per_example, rows_of, taken
from pytest_bnn.data.joining import (
    FORMS,
    ItemError,
    as_tensors,
    at,
    checked,
    item_of,
    joined,
    length_of,
    no_batch,
    require_labels,
)
from pytest_bnn.errors import InputError
from pytest_bnn.network.isolation import preserved_random_state
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
        seed: The seed of the subset.
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
        try:
            batches, places = _batches(data, limit, seed, dim)
            in_its_order = places is None and not _shuffles(data)
        except ItemError as error:
            cause = error.__cause__
            raise InputError(
                f"{source}: item {error.place} of {kind(data)} raised {type(cause).__name__}: {cause}",
                fix="mend or leave out that item: the audit reads it as data[number]",
            ) from cause
        except (Exception, SystemExit) as error:
            raise no_batch(f"{source} gave {kind(data)}", error) from error
    for batch in batches:
        require_dense(batch, source)
    if not batches or not all(map(_has_rows, batches)):
        raise InputError(f"{source} is empty", fix="give at least one image")
    item = joined(batches, f"{source} gave {kind(data)} with", dim)
    rows = rows_of(item, dim)
    places = torch.arange(rows) if places is None else places
    few = _limited(item, rows, limit, seed, dim) if rows <= limit else _first(item, rows, limit, dim)
    first = as_tensors(batches[0]) if isinstance(data, DataLoader) and data.batch_size is not None else None
    cut = in_its_order and rows > limit
    return Samples(item=few.item, rows=few.rows, dim=dim, first=first, places=places[:limit], cut=cut)


def _shuffles(data: Any) -> bool:
    """Return whether a loader draws from all of its data set at random."""
    return (
        isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler) and length_of(data.dataset) is not None
    )


@contextmanager
def own_generators_kept(data: Any) -> Iterator[None]:
    """Leave the generators that a loader and its sampler were given as they were."""
    holders = (data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None))
    held = [getattr(holder, "generator", None) for holder in holders]
    states = [(generator, generator.get_state()) for generator in held if isinstance(generator, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _first(item: Any, rows: int, limit: int, dim: int) -> Samples:
    places = torch.arange(limit)
    return Samples(item=some(item, places, rows, dim), rows=limit, dim=dim, places=places)


def _has_rows(batch: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.numel() for _, leaf in leaves(batch)) or not any(
        isinstance(leaf, Tensor) for _, leaf in leaves(batch)
    )


def _batches(data: Any, limit: int, seed: int, dim: int) -> tuple[list[Any], Tensor | None]:
    """Return batches of at least ``limit`` examples, or of all, and the places of the examples where they are known.

    Of a stream that goes on they have more.
    """
    if isinstance(data, DataLoader):
        length = length_of(data.dataset)
        in_order = isinstance(data.sampler, SequentialSampler) and data.batch_size is not None
        if in_order and length is not None and length > limit:
            places = _subset(length, limit, seed)
            found = [
                checked(data.collate_fn([at(data.dataset, int(index)) for index in part]))
                for part in places.split(data.batch_size or 1)
            ]
            return found, places
        found, taken_rows = [], 0
        for batch in data:
            found.append(checked(as_tensors(batch)))
            taken_rows += rows_of(found[-1], dim)
            if taken_rows > limit:  # one more tells whether it goes on
                break
        return found, None
    length = length_of(data)
    if length is None:
        return [item_of(item) for item in islice(iter(data), limit + 1)], None
    places = _subset(length, limit, seed)
    return [item_of(at(data, int(index))) for index in places], places
