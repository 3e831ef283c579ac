"""Examples that users hand over: which of them are taken, their numbers, and whether they are a stream's first ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pytest_bnn.data.samples import samples_of
from pytest_bnn.errors import InputError

IMAGES, LABELS = torch.arange(100.0)[:, None].repeat(1, 3), torch.arange(100) // 25
SORTED = TensorDataset(IMAGES, LABELS)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """So many examples in the order of their classes; for ever where there is no number."""

    def __init__(self, examples: int | None = 100, says: int | None = None) -> None:
        self.examples, self.says = examples, says

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        numbers = count() if self.examples is None else range(self.examples)
        return ((torch.full((3,), float(number)), torch.tensor(number // 25)) for number in numbers)


class Lying(Stream):
    def __len__(self) -> int:
        assert self.says is not None
        return self.says


class Batches(Stream):
    """Gives five examples at a time."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        items = super().__iter__()
        while part := [item for _, item in zip(range(5), items, strict=False)]:
            images, labels = zip(*part, strict=True)
            yield torch.stack(images), torch.stack(labels)


class Breaks(Stream):
    """Raises behind its examples."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from super().__iter__()
        raise OSError("connection reset")


class Odd(Stream):
    """Gives something else behind its examples."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        yield "the end"


class Backwards(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(99, -1, -1))


@pytest.mark.parametrize(
    ("data", "cut"),
    [
        pytest.param(Stream(100), True, id="sorted stream"),
        pytest.param(Stream(None), True, id="stream without an end"),
        pytest.param(Stream(40), False, id="exactly the limit"),
        pytest.param(Stream(41), True, id="one more"),
        pytest.param(Stream(39), False, id="one fewer"),
        pytest.param(Lying(40, says=9000), False, id="stream that is shorter than it says"),
        pytest.param(Lying(100, says=3), True, id="stream that is longer than it says"),
        pytest.param(Breaks(40), True, id="raises behind the limit"),
        pytest.param(Odd(40), True, id="gives something else behind the limit"),
        pytest.param(DataLoader(Stream(100), batch_size=1), True, id="loader of one"),
        pytest.param(DataLoader(Stream(40), batch_size=1), False, id="loader of one, to its end"),
        pytest.param(DataLoader(Stream(100), batch_size=16), True, id="loader whose batch goes over the limit"),
        pytest.param(DataLoader(Stream(40), batch_size=16), False, id="loader whose last batch is short"),
        pytest.param(DataLoader(Stream(40), batch_size=20), False, id="loader that ends at the limit"),
        pytest.param(DataLoader(Stream(60), batch_size=20), True, id="loader with one batch more"),
        pytest.param(DataLoader(Batches(100), batch_size=None), True, id="items that are batches"),
        pytest.param(DataLoader(Batches(40), batch_size=None), False, id="items that are batches, to their end"),
        pytest.param(DataLoader(Stream(100), batch_size=None), True, id="items without batches"),
        pytest.param(DataLoader(Stream(40), batch_size=None), False, id="items without batches, to their end"),
        pytest.param(DataLoader(SORTED, batch_size=8), False, id="loader in order: a random subset"),
        pytest.param(DataLoader(SORTED, batch_size=8, shuffle=True), False, id="loader that shuffles"),
        pytest.param(DataLoader(SORTED, batch_size=8, sampler=Backwards()), True, id="order of one's own"),
        pytest.param(DataLoader(SORTED, batch_size=40, sampler=range(40)), False, id="order that ends at the limit"),
        pytest.param(
            DataLoader(SORTED, batch_sampler=BatchSampler(RandomSampler(SORTED), 8, False)), False, id="random batches"
        ),
        pytest.param(
            DataLoader(SORTED, batch_sampler=BatchSampler(Backwards(), 8, False)), True, id="batches in order"
        ),
        pytest.param(
            DataLoader(SORTED, batch_size=8, sampler=WeightedRandomSampler([1.0] * 100, 90)), False, id="weights"
        ),
        pytest.param(
            DataLoader(SORTED, batch_size=8, sampler=SubsetRandomSampler(range(90))), False, id="random subset"
        ),
        pytest.param(
            DataLoader(SORTED, batch_size=8, sampler=RandomSampler(SORTED, replacement=True)), False, id="replacement"
        ),
        pytest.param(
            DataLoader(SORTED, batch_size=4, sampler=DistributedSampler(SORTED, 2, 0, shuffle=False)), True, id="rank"
        ),
        pytest.param(
            DataLoader(SORTED, batch_size=4, sampler=DistributedSampler(SORTED, 2, 0)), False, id="shuffled rank"
        ),
    ],
)  # fmt: skip
def test_the_first_ones_of_a_stream_that_goes_on_may_be_sorted(data: Any, cut: bool) -> None:
    found = samples_of(data, limit=40)
    assert found.cut is cut
    assert found.rows == min(40, found.rows)
    assert found.item[0].shape == (found.rows, 3)
    assert found.item[1].shape == (found.rows,)
    assert len(found.places) == found.rows


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_a_loader_of_a_stream_that_lies_is_read_to_its_end() -> None:
    found = samples_of(DataLoader(Lying(30, says=10), batch_size=5), limit=40)
    assert (found.rows, found.cut) == (30, False)


@pytest.mark.parametrize(
    "loader",
    [
        pytest.param(lambda: DataLoader(SORTED, batch_size=8, shuffle=True), id="shuffle"),
        pytest.param(lambda: DataLoader(SORTED, batch_size=8, sampler=Backwards()), id="backwards"),
        pytest.param(lambda: DataLoader(SORTED, batch_size=8, sampler=WeightedRandomSampler([1.0] * 100, 90)), id="w"),
        pytest.param(lambda: DataLoader(SORTED, batch_sampler=BatchSampler(RandomSampler(SORTED), 8, True)), id="own"),
        pytest.param(lambda: DataLoader(SORTED, batch_size=None, shuffle=True), id="no batches"),
        pytest.param(
            lambda: DataLoader(SORTED, batch_size=None, sampler=BatchSampler(RandomSampler(SORTED), 8, True)), id="bulk"
        ),
    ],
)  # fmt: skip
def test_examples_of_a_loader_have_the_numbers_of_the_data_set(loader: Any) -> None:
    """Groups are named by these numbers, and a series that goes on reads the same examples again."""
    before = torch.get_rng_state()
    found, again = samples_of(loader(), limit=40), samples_of(loader(), limit=40)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.rows == 40
    assert torch.equal(found.item[0][:, 0].long(), found.places)
    assert torch.equal(found.item[0], again.item[0])
    assert not torch.equal(found.places, torch.arange(40))


class Moves(DataLoader[Any]):
    """Changes batches on their way."""

    def __iter__(self) -> Any:
        return ((images + 1000, labels) for images, labels in super().__iter__())


def test_a_loader_that_changes_its_batches_is_iterated_over() -> None:
    found = samples_of(Moves(SORTED, batch_size=8), limit=40)
    assert float(found.item[0].min()) == 1000
    assert found.cut, "in its own order, and no more is known of it"


class Opened(Dataset[tuple[Tensor, int]]):
    """Opens its file in a worker only."""

    file: Any = None

    def __len__(self) -> int:
        return 10

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if self.file is None:
            raise ValueError("the file is closed")
        return torch.full((3,), float(number)), number % 2


def _open(_worker: int) -> None:
    info = torch.utils.data.get_worker_info()
    assert info is not None
    info.dataset.file = "open"  # type: ignore[attr-defined]


@pytest.mark.nightly("a worker process is forked")
def test_what_is_opened_by_workers_is_read_by_workers() -> None:
    found = samples_of(DataLoader(Opened(), batch_size=4, num_workers=1, worker_init_fn=_open), limit=8)
    assert found.item[0][:, 0].tolist() == [*range(8)]
    with pytest.raises(InputError, match="item 0 of a DataLoader raised ValueError: the file is closed"):
        samples_of(DataLoader(Opened(), batch_size=4), limit=20)


class Items(Dataset[Any]):
    def __init__(self, **odd: Any) -> None:
        self.odd = {int(name[1:]): item for name, item in odd.items()}

    def __len__(self) -> int:
        return 60

    def __getitem__(self, number: int) -> Any:
        return self.odd.get(number, (torch.zeros(3, 4), number % 2))


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ((torch.zeros(3, 5), 1), r"images of different sizes: \(3, 4\) and \(3, 5\); number 7 has \(3, 5\)"),
        ((torch.zeros(4), 1), r"images of different sizes: \(3, 4\) and \(4,\); number 7 has \(4,\)"),
        ((torch.zeros(3, 4), torch.zeros(2)), r"labels of different shapes: .*; number 7 has \(2,\)"),
        ((torch.zeros(3, 4), 1, 2), r"items of different structure: number 7 is a "),
        ({"image": torch.zeros(3, 4)}, r"items of different structure: number 7 is a dict"),
        (None, r"item 7 .*is one from which no batch can be made .an image is None; leave out what has none"),
        ("seven", r"item 7 .*is one from which no batch can be made .an image is a str; add a transform"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("loader", [False, True])
def test_an_item_that_differs_is_named_by_its_number(odd: Any, words: str, loader: bool) -> None:
    items = Items(n7=odd)
    with pytest.raises(InputError, match=words):
        samples_of(DataLoader(items, batch_size=20) if loader else items)
