"""How data loaders draw: which of them can be read by number, and in what order the others give their examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from pytest_bnn.data.joining import LABELS, as_tensors, checked, item_of, length_of


def in_order(loader: DataLoader[Any]) -> bool:
    """Return whether a loader makes batches of all of a data set, in its order, which can be read by number."""
    return _by_number(loader) and isinstance(loader.sampler, SequentialSampler)


def shuffles(loader: DataLoader[Any]) -> bool:
    """Return whether a loader makes batches of all of a data set, each once, at random; it can be read by number."""
    return _by_number(loader) and _permutes(loader.sampler)


def draws_at_random(data: Any) -> bool:
    """Return whether the first examples of a loader are a random choice of all that it gives."""
    if not isinstance(data, DataLoader) or length_of(data.dataset) is None:
        return False
    sampler = data.sampler if data.batch_size is not None else getattr(data.batch_sampler, "sampler", data.sampler)
    if isinstance(sampler, DistributedSampler):
        return bool(sampler.shuffle)
    return isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler)


def _by_number(loader: DataLoader[Any]) -> bool:
    return is_plain(loader) and loader.batch_size is not None


def is_plain(loader: DataLoader[Any]) -> bool:
    """Return whether a loader gives what its function for batches makes of items that can be read by number."""
    own = type(loader).__iter__ is not DataLoader.__iter__  # it may change the batches
    return not own and length_of(loader.dataset) is not None


class _Numbers(Dataset[Any]):
    """A data set of the numbers of its items, whatever a sampler calls these."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: Any) -> Any:
        return number


def numbers_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return the numbers of the items of each batch that a plain loader would give now, drawn in the same way.

    They are a list; where the loader makes no batches, what its sampler gives.
    """
    asked: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
    if loader.batch_sampler is None:
        asked = {"batch_size": None, "sampler": loader.sampler}
    numbers = _Numbers(length_of(loader.dataset) or 0)
    return iter(DataLoader(numbers, collate_fn=_as_they_are, generator=loader.generator, **asked))


def _as_they_are(numbers: Any) -> Any:
    return numbers


def _permutes(sampler: Any) -> bool:
    if not isinstance(sampler, RandomSampler) or sampler.replacement:
        return False
    return sampler.num_samples == length_of(sampler.data_source)


def batch_of(loader: DataLoader[Any], given: Any) -> Any:
    """Return what a loader gives as a batch of tensors, also where that is one example.

    Raises:
        TypeError: The inputs are no tensors.
    """
    return item_of(given) if gives_single_items(loader, given) else as_tensors(checked(given))


def gives_single_items(loader: DataLoader[Any], item: Any) -> bool:
    """Return whether what a loader gives is one example, without a dimension that counts: its label is one number."""
    if loader.batch_size is not None or loader.batch_sampler is not None:
        return False
    if isinstance(item, Mapping):
        label = next((item[name] for name in LABELS if name in item), None)
    else:
        label = item[1] if isinstance(item, tuple | list) and len(item) == 2 else None
    if isinstance(label, Tensor | numpy.ndarray | numpy.generic):
        return label.ndim == 0
    return isinstance(label, int | float)


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
