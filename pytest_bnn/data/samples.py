"""The examples that users hand over, as their own data set or loader structures them; read once, up to a limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler, default_collate

from pytest_bnn.data.batch import per_example, rows_of, taken
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
    """

    item: Any
    rows: int
    dim: int = 0
    first: Any = None
    places: Tensor

    @property
    def batch_rows(self) -> int | None:
        """The size of the loader's own batches; None where no loader made batches."""
        return None if self.first is None else rows_of(self.first, self.dim)

    def take(self, rows: int) -> Any:
        """Return the first examples in the structure in which they were given."""
        return _some(self.item, torch.arange(min(rows, self.rows)), self.rows, self.dim)


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
            fix="give its numbers: torch.as_tensor(data.to_numpy())"
            if hasattr(data, "to_numpy")
            else "give (images, labels) as tensors, a Dataset of (image tensor, label), or a DataLoader",
        )
    try:
        _require_labels(item)
    except TypeError as error:
        raise InputError(f"{source}: {error}", fix="give one label for each image, as a tensor") from error
    try:
        rows = rows_of(item, dim)
    except ValueError:
        return Samples(item=item, rows=0, dim=dim, places=torch.arange(0))  # refused by `Subject`, which has the words
    return _limited(item, rows, limit, seed, dim)


def as_tensors(tree: Any) -> Any:
    """Return a tree with its numpy arrays, and its lists of numbers, as tensors."""
    if type(tree) in (list, tuple):
        if tree and _all_numbers(tree):
            return torch.as_tensor(tree)
        return type(tree)(as_tensors(value) for value in tree)
    if type(tree) is dict:
        return {key: as_tensors(value) for key, value in tree.items()}

    return mapped(tree, _of_numpy)


def _of_numpy(leaf: Any) -> Any:
    """Return an array of numbers as a tensor, of the same memory where that can be; all else as it is."""
    if isinstance(leaf, numpy.ndarray) and leaf.dtype.kind in "biufc":
        native = numpy.ascontiguousarray(leaf).astype(leaf.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(native if native.flags.writeable else native.copy()).reshape(leaf.shape)
    return leaf


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


def _all_numbers(values: Any) -> bool:
    return all(
        _all_numbers(value) and len(value) > 0 if type(value) in (list, tuple) else type(value) in (int, float, bool)
        for value in values
    )


def _require_labels(item: Any) -> None:
    """Refuse labels that are words.

    Raises:
        TypeError: The message has what they are.
    """
    if type(item) in (list, tuple) and len(item) == 2 and isinstance(item[0], Tensor):
        label = item[1]
        first = label[0] if type(label) in (list, tuple) and label else label
        if isinstance(first, str | bytes):
            of = kind(label) if first is label else f"{kind(label)} of {type(first).__name__}"
            raise TypeError(f"{of} given as labels is no tensor")


def _limited(item: Any, rows: int, limit: int, seed: int, dim: int) -> Samples:
    places = _subset(rows, limit, seed)
    if len(places) == rows:
        return Samples(item=item, rows=rows, dim=dim, places=places)
    return Samples(item=_some(item, places, rows, dim), rows=len(places), dim=dim, places=places)


def _some(tree: Any, numbers: Tensor, rows: int, dim: int) -> Any:
    """Take some of the examples."""
    return mapped(tree, lambda leaf: taken(leaf, numbers, rows=rows, dim=dim), per_example(rows))


def _subset(rows: int, limit: int, seed: int) -> Tensor:
    if rows <= limit:
        return torch.arange(rows)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(rows, generator=generator)[:limit].sort().values


def _read(data: Any, source: str, limit: int, seed: int, dim: int) -> Samples:
    with preserved_random_state(), _own_generators_kept(data):
        try:
            batches, places = _batches(data, limit, seed, dim)
        except _ItemError as error:
            cause = error.__cause__
            raise InputError(
                f"{source}: item {error.place} of {kind(data)} raised {type(cause).__name__}: {cause}",
                fix="mend or leave out that item: the audit reads it as data[number]",
            ) from cause
        except (Exception, SystemExit) as error:
            told = f"{error}" if isinstance(error, TypeError) else f"{type(error).__name__}: {error}"
            raise InputError(
                f"{source} gave {kind(data)} from which no batch can be made ({told})",
                fix="give (images, labels) as tensors, a Dataset of (image tensor, label), or a DataLoader",
            ) from error
    for batch in batches:
        require_dense(batch, source)
    if not batches or not all(map(_has_rows, batches)):
        raise InputError(f"{source} is empty", fix="give at least one image")
    item = _joined(batches, f"{source} gave {kind(data)} with", dim)
    rows = rows_of(item, dim)
    places = torch.arange(rows) if places is None else places
    few = _limited(item, rows, limit, seed, dim) if rows <= limit else _first(item, rows, limit, dim)
    first = as_tensors(batches[0]) if isinstance(data, DataLoader) and data.batch_size is not None else None
    return Samples(item=few.item, rows=few.rows, dim=dim, first=first, places=places[:limit])


@contextmanager
def _own_generators_kept(data: Any) -> Iterator[None]:
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
    return Samples(item=_some(item, places, rows, dim), rows=limit, dim=dim, places=places)


def _has_rows(batch: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.numel() for _, leaf in leaves(batch)) or not any(
        isinstance(leaf, Tensor) for _, leaf in leaves(batch)
    )


def _batches(data: Any, limit: int, seed: int, dim: int) -> tuple[list[Any], Tensor | None]:
    """Return batches of at least ``limit`` examples, or of all, and the places of the examples where they are known."""
    if isinstance(data, DataLoader):
        length = _length(data.dataset)
        in_order = isinstance(data.sampler, SequentialSampler) and data.batch_size is not None
        if in_order and length is not None and length > limit:
            places = _subset(length, limit, seed)
            found = [
                _checked(data.collate_fn([_at(data.dataset, int(index)) for index in part]))
                for part in places.split(data.batch_size or 1)
            ]
            return found, places
        found, taken_rows = [], 0
        for batch in data:
            found.append(_checked(as_tensors(batch)))
            taken_rows += rows_of(found[-1], dim)
            if taken_rows >= limit:
                break
        return found, None
    length = _length(data)
    if length is None:
        return [_item(item) for item in islice(iter(data), limit)], None
    places = _subset(length, limit, seed)
    return [_item(_at(data, int(index))) for index in places], places


class _ItemError(Exception):
    """One item of a data set cannot be read; the cause is chained."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


def _at(data: Any, place: int) -> Any:
    try:
        return data[place]
    except (Exception, SystemExit) as error:
        raise _ItemError(place) from error


def _length(data: Any) -> int | None:
    try:
        return len(data) if hasattr(data, "__len__") and hasattr(data, "__getitem__") else None
    except TypeError:
        return None


def _item(item: Any) -> Any:
    """Make a batch of one example, as a loader would."""
    checked = mapped(_checked(item), _of_numpy)
    _require_labels(checked)
    return default_collate([_collatable(checked)])


def _collatable(tree: Any) -> Any:
    """Let None and what else no loader can collate pass as it is, outside of the tensors."""
    if isinstance(tree, Mapping):
        return {key: value for key, value in tree.items() if value is not None}
    if type(tree) is tuple or type(tree) is list:
        return type(tree)(value for value in tree if value is not None)
    return tree


def _checked(batch: Any) -> Any:
    """Refuse pictures and other things that should have been made tensors.

    Raises:
        TypeError: The inputs are no tensors.
    """
    found = leaves(batch)
    if found and not any(isinstance(leaf, Tensor | numpy.ndarray | int | float) for _, leaf in found[:-1] or found):
        raise TypeError(f"an image is {kind(found[0][1])}; add a transform that makes tensors")
    return batch


def _joined(batches: list[Any], given: str, dim: int) -> Any:
    """Join batches of one structure into one.

    Raises:
        InputError: Their tensors differ in size beside the dimension of the examples.
    """
    if len(batches) == 1:
        return as_tensors(batches[0])
    named = [_named(as_tensors(batch), dim) for batch in batches]
    names = [name for name, _ in named[0]]
    if any([name for name, _ in parts] != names for parts in named):
        raise InputError(
            f"{given} items of different structure: {describe(batches[0])} and others",
            fix="give every item the same fields",
        )
    columns = zip(*([leaf for _, leaf in parts] for parts in named), strict=True)
    joined = iter([_column(name, list(parts), given, dim) for name, parts in zip(names, columns, strict=True)])
    first = as_tensors(batches[0])
    return mapped(first, lambda _: next(joined), per_example(rows_of(first, dim)))


def _named(batch: Any, dim: int) -> list[tuple[str, Any]]:
    return leaves(batch, stop=per_example(rows_of(batch, dim)))


def _column(name: str, parts: list[Any], given: str, dim: int) -> Any:
    if isinstance(parts[0], list | tuple):
        return type(parts[0])(value for part in parts for value in part)
    if not isinstance(parts[0], Tensor) or not parts[0].ndim:
        return parts[0]
    where = dim if parts[0].ndim > dim else 0
    shapes = {tuple(part.shape[:where] + part.shape[where + 1 :]) for part in parts}
    if len(shapes) > 1:
        words, fix = ("images of different sizes", "add a transform that makes them equal")
        if name and name not in ("0", "image", "images", "pixel_values", "input", "inputs", "x"):
            words, fix = "labels of different shapes", "give every image a label of one shape, or none"
        raise InputError(f"{given} {words}: {' and '.join(map(str, sorted(shapes)[:3]))}", fix=fix)
    return torch.cat(parts, dim=where)
