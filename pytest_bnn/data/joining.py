"""Items of data sets become batches: numbers become tensors, and what is equal in structure is joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate

from pytest_bnn.data.batch import per_example, rows_of
from pytest_bnn.errors import InputError, in_words
from pytest_bnn.network.tree import describe, kind, leaves, mapped

#: What data may be, as a remedy.
FORMS = "give (images, labels) as tensors, a Dataset of (image tensor, label), or a DataLoader"


def no_batch(given: str, error: BaseException) -> InputError:
    """Return the error of data of which no batch can be made; ``given`` says who gave what."""
    told = f"{error}" if isinstance(error, TypeError) else in_words(error)
    return InputError(f"{given} from which no batch can be made ({told})", fix=FORMS)


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


def _all_numbers(values: Any) -> bool:
    return all(
        _all_numbers(value) and len(value) > 0 if type(value) in (list, tuple) else type(value) in (int, float, bool)
        for value in values
    )


def require_labels(item: Any) -> None:
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


class ItemError(Exception):
    """One item of a data set cannot be read; the cause is chained."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


def at(data: Any, place: int) -> Any:
    """Return an item of a data set.

    Raises:
        ItemError: It raises, or ends the process.
    """
    try:
        return data[place]
    except (Exception, SystemExit) as error:
        raise ItemError(place) from error


def length_of(data: Any) -> int | None:
    """Return how many items a data set has; None where these cannot be had by their number.

    A stream may have a length, and inherits a ``__getitem__`` that only raises.
    """
    if isinstance(data, IterableDataset):
        return None
    try:
        return len(data) if hasattr(data, "__len__") and hasattr(data, "__getitem__") else None
    except TypeError:
        return None


def item_of(item: Any) -> Any:
    """Make a batch of one example, as a loader would."""
    found = mapped(checked(item), _of_numpy)
    require_labels(found)
    return default_collate([_collatable(found)])


def _collatable(tree: Any) -> Any:
    """Let None and what else no loader can collate pass as it is, outside of the tensors."""
    if isinstance(tree, Mapping):
        return {key: value for key, value in tree.items() if value is not None}
    if type(tree) is tuple or type(tree) is list:
        return type(tree)(value for value in tree if value is not None)
    return tree


def checked(batch: Any) -> Any:
    """Refuse pictures and other things that should have been made tensors.

    Raises:
        TypeError: The inputs are no tensors.
    """
    found = leaves(batch)
    if found and not any(isinstance(leaf, Tensor | numpy.ndarray | int | float) for _, leaf in found[:-1] or found):
        raise TypeError(f"an image is {kind(found[0][1])}; add a transform that makes tensors")
    return batch


def joined(batches: list[Any], given: str, dim: int) -> Any:
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
    columns_joined = iter([_column(name, list(parts), given, dim) for name, parts in zip(names, columns, strict=True)])
    first = as_tensors(batches[0])
    return mapped(first, lambda _: next(columns_joined), per_example(rows_of(first, dim)))


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
