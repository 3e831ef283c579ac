"""Loaders that draw the numbers of a data set's items by a sampler of their own: they are read by these numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
from torch.utils.data import DataLoader

from pytest_bnn.data.lazy import Flow, Indexed, Read
from pytest_bnn.data.loaders import is_plain, numbers_of, own_generators_kept
from pytest_bnn.network.isolation import preserved_random_state, seed_everything


def draws_numbers(loader: DataLoader[Any]) -> bool:
    """Return whether each batch of a loader is made of items that its sampler names by whole numbers."""
    if not is_plain(loader) or loader.batch_sampler is None:
        return False
    with preserved_random_state(), own_generators_kept(loader):
        first = next(numbers_of(loader), None)
    return isinstance(first, list | tuple) and all(isinstance(number, int | numpy.integer) for number in first)


class Drawn(Flow):
    """`Stream` of a loader with a sampler of its own over a data set with a length.

    An example has the number that it has in the data set, and items that cannot be read are left out one by one.
    """

    def __init__(self, data: DataLoader[Any], source: str, dim: int) -> None:
        super().__init__(data, source, dim)
        with preserved_random_state(), own_generators_kept(data):
            rows = data.batch_size or len(next(numbers_of(data), [0]))
        self._items = Indexed(data.dataset, source, dim, data.collate_fn, rows)

    def digest(self) -> str:
        """Return the digest of the files and tensors that the data set holds."""
        return self._items.digest()

    def _parts(self, size: int, seed: int) -> Iterator[Read]:
        waiting, taken = list[int](), 0
        with preserved_random_state():
            seed_everything(seed)
            stream = numbers_of(self._data)
        while True:
            with preserved_random_state():
                seed_everything(seed + taken)
                part = next(stream, None)
            waiting += [] if part is None else [int(number) for number in part]
            while len(waiting) >= size or (waiting and part is None):
                now, waiting = waiting[:size], waiting[size:]
                yield self._items.read(now, seed + taken)
                taken += len(now)
            if part is None:
                return
