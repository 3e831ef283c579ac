"""Items of data sets become batches: numbers become tensors, and what is equal in structure is joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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

#: Names under which data sets hold labels.
LABELS = ("labels", "label", "targets", "target", "y", "label_ids")

#: Items that are named where a batch cannot be made of them.
_NAMED = 10


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
    """One item of a data set cannot be read, or is none of which a batch can be made; the cause is chained."""

    def __init__(self, place: int, *, read: bool = False) -> None:
        super().__init__(place)
        self.place = place
        self.read = read

    def told(self, source: str, data: Any) -> InputError:
        """Return it as an error of what users gave."""
        cause = self.__cause__
        if self.read and cause is not None:
            return no_batch(f"{source}: item {self.place} of {kind(data)} is one", cause)
        return InputError(
            f"{source}: item {self.place} of {kind(data)} raised {type(cause).__name__}: {cause}",
            fix="mend or leave out that item: the audit reads it as data[number]",
        )


def at(data: Any, place: int) -> Any:
    """Return an item of a data set.

    Raises:
        ItemError: It raises, or ends the process.
    """
    try:
        return data[place]
    except (Exception, SystemExit) as error:
        raise ItemError(place) from error


def batch_at(data: Any, place: int) -> Any:
    """Return an item of a data set as a batch of one example.

    Raises:
        ItemError: It cannot be read, or no batch can be made of it.
    """
    item = at(data, place)
    try:
        return item_of(item)
    except (Exception, SystemExit) as error:
        raise ItemError(place, read=True) from error


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
        advice = "leave out what has none" if found[0][1] is None else "add a transform that makes tensors"
        raise TypeError(f"an image is {kind(found[0][1])}; {advice}")
    return batch


def collated(
    items: list[Any], collate: Callable[[list[Any]], Any], given: str, dim: int, numbers: Sequence[Any]
) -> Any:
    """Return items as a batch, made by the function of a loader.

    Args:
        items: Of a data set.
        collate: Makes batches.
        given: Who gave what, for messages.
        dim: The dimension that counts the examples.
        numbers: Those of the items in the data set, for messages.

    Raises:
        InputError: It raises, or what it makes is no batch.
    """
    plain = collate is default_collate and len(items) > 1
    try:
        made = as_tensors(checked(collate(items)))
        require_labels(made)
        if plain and rows_of(made, dim) != len(items):  # it goes by the first one alone
            _require_alike(items, given, numbers)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if plain:
            _require_alike(items, given, numbers)
        which = ", ".join(map(str, numbers[:_NAMED])) + (", ..." if len(numbers) > _NAMED else "")
        raise no_batch(f"{given} (items {which})", error) from error
    return made


def _require_alike(items: list[Any], given: str, numbers: Sequence[Any]) -> None:
    """Refuse items of which one differs, by its number."""
    each = [alone(item, f"{given}: item {number} is one") for item, number in zip(items, numbers, strict=True)]
    joined(each, f"{given} with", 0, torch.tensor([number if isinstance(number, int) else -1 for number in numbers]))


def alone(item: Any, given: str) -> Any:
    """Return an item as a batch of one example.

    Args:
        item: Of a data set.
        given: Who gave what, and which item it is, for messages.

    Raises:
        InputError: No batch can be made of it.
    """
    try:
        return item_of(item)
    except (Exception, SystemExit) as error:
        raise no_batch(given, error) from error


def joined(batches: list[Any], given: str, dim: int, numbers: Tensor | None = None) -> Any:
    """Join batches of one structure into one.

    Args:
        batches: In the order of their examples.
        given: Who gave what, for messages.
        dim: The dimension that counts the examples.
        numbers: Those of the examples in the user's data, for messages; as they come when None.

    Raises:
        InputError: Their tensors differ in size beside the dimension of the examples.
    """
    if len(batches) == 1:
        return as_tensors(batches[0])
    named = [_named(as_tensors(batch), dim) for batch in batches]
    names = [name for name, _ in named[0]]

    def which(odd: int) -> str:
        """Say which example the first one of a batch is."""
        before = sum(rows_of(batch, dim) for batch in batches[:odd])
        number = before if numbers is None or before >= len(numbers) else int(numbers[before])
        return f"number {number}" + (" or one soon after it" if rows_of(batches[odd], dim) > 1 else "")

    odd = _odd([tuple(name for name, _ in parts) for parts in named])
    if odd is not None:
        usual = batches[0] if odd else batches[1]
        raise InputError(
            f"{given} items of different structure: {which(odd)} is {describe(batches[odd])}, another one "
            f"{describe(usual)}",
            fix="give every item the same fields",
        )
    columns = zip(*([leaf for _, leaf in parts] for parts in named), strict=True)
    columns_joined = iter(
        [_column(name, list(parts), given, dim, which) for name, parts in zip(names, columns, strict=True)]
    )
    first = as_tensors(batches[0])
    return mapped(first, lambda _: next(columns_joined), per_example(rows_of(first, dim)))


def _named(batch: Any, dim: int) -> list[tuple[str, Any]]:
    return leaves(batch, stop=per_example(rows_of(batch, dim)))


def _odd(forms: list[Any]) -> int | None:
    """Return the first one that is not of the form that most have; None where all have one."""
    counts = Counter(forms)
    usual = counts.most_common(1)[0][0]
    return next((number for number, form in enumerate(forms) if form != usual), None)


def _column(name: str, parts: list[Any], given: str, dim: int, which: Callable[[int], str]) -> Any:
    if isinstance(parts[0], list | tuple):
        return type(parts[0])(value for part in parts for value in part)
    if not isinstance(parts[0], Tensor) or not parts[0].ndim:
        return parts[0]
    where = dim if parts[0].ndim > dim else 0
    shapes = [tuple(part.shape[:where] + part.shape[where + 1 :]) for part in parts]
    odd = _odd(shapes)
    if odd is not None:
        words, fix = ("images of different sizes", "add a transform that makes them equal")
        if name and name not in ("0", "image", "images", "pixel_values", "input", "inputs", "x"):
            words, fix = "labels of different shapes", "give every image a label of one shape, or none"
        told = " and ".join(map(str, sorted(set(shapes))[:3]))
        raise InputError(f"{given} {words}: {told}; {which(odd)} has {shapes[odd]}", fix=fix)
    return torch.cat(parts, dim=where)
