"""Data sets of Ray Data, which reads Parquet, WebDataset and folders of images: columns become images and labels."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from pytest_bnn.data.joining import as_tensors
from pytest_bnn.data.lazy import NOT_FINITE, Read, Unreadable, not_finite
from pytest_bnn.data.samples import Samples
from pytest_bnn.errors import InputError, in_words

#: What columns of labels are called.
_LABELS = ("label", "labels", "cls", "class", "target", "targets", "y")

#: Shards among whose examples each one is drawn.
_BUFFER = 4


def is_ray_data(data: Any) -> bool:
    """Return whether something is a data set of Ray Data; Ray is not imported for that."""
    return type(data).__module__.partition(".")[0] == "ray" and hasattr(data, "iter_batches")


class RayRows:
    """`Stream` of a data set of Ray Data: its blocks in random order, and examples shuffled within a few shards."""

    way = "its blocks in random order, and shuffled within a few shards"

    def __init__(self, data: Any, source: str) -> None:
        self._data, self._source = data, source

    def digest(self) -> str:
        """Return nothing: what it reads from is Ray Data's own."""
        return ""

    def parts(self, size: int, seed: int) -> Iterator[Read]:
        """Read all of them; examples whose image holds NaN or infinity are unreadable."""
        batches: Iterator[Mapping[str, Any]] | None = None
        place = 0
        while True:
            try:
                with _in_order():  # not longer: between two batches others go on
                    batches = iter(self._batches(size, seed)) if batches is None else batches
                    batch = next(batches, None)
            except Exception as error:
                raise InputError(
                    f"{self._source}: Ray Data raised {in_words(error)} behind example {place}",
                    fix="leave out what cannot be read there, such as with max_errored_blocks in its DataContext",
                ) from error
            if batch is None:
                return
            item, rows = self._item(batch)
            yield _checked(item, rows, place)
            place += rows

    def _batches(self, size: int, seed: int) -> Iterable[Mapping[str, Any]]:
        found: Iterable[Mapping[str, Any]] = self._data.randomize_block_order(seed=seed).iter_batches(
            batch_size=size, batch_format="numpy", local_shuffle_buffer_size=_BUFFER * size, local_shuffle_seed=seed
        )
        return found

    def _item(self, batch: Mapping[str, Any]) -> tuple[Any, int]:
        columns = {name: numpy.asarray(values) for name, values in batch.items()}
        numbers = {name: values for name, values in columns.items() if values.dtype.kind in "biuf"}
        labels = [name for name in numbers if name.lower() in _LABELS]
        inputs = [name for name in numbers if name not in labels]
        if not inputs:
            kinds = ", ".join(f"{name} of {values.dtype}" for name, values in columns.items())
            raise InputError(
                f"{self._source} gave rows without a column of numbers of one shape ({kinds})",
                fix="let map_batches make arrays of one shape of the images",
            )
        found = {name: as_tensors(values) for name, values in numbers.items()}
        rows = len(next(iter(found.values())))
        if len(inputs) == 1 and len(labels) == 1:
            return (found[inputs[0]], found[labels[0]]), rows
        return found, rows


def _checked(item: Any, rows: int, place: int) -> Read:
    numbers = torch.arange(place, place + rows)
    if not isinstance(item, tuple) or not not_finite(item):
        return Read(samples=Samples(item=item, rows=rows, places=numbers))
    images, labels = item
    good = torch.isfinite(images).reshape(rows, -1).all(1)
    bad = tuple(Unreadable(place=int(one), why=NOT_FINITE) for one in numbers[~good])
    if not bool(good.any()):
        return Read(samples=None, unreadable=bad)
    return Read(
        samples=Samples(item=(images[good], labels[good]), rows=int(good.sum()), places=numbers[good]), unreadable=bad
    )  # fmt: skip


@contextmanager
def _in_order() -> Iterator[None]:
    """Let Ray Data give blocks in one order, whichever is read first."""
    context: Any = importlib.import_module("ray.data").DataContext.get_current()
    before = context.execution_options.preserve_order
    context.execution_options.preserve_order = True
    try:
        yield
    finally:
        context.execution_options.preserve_order = before
