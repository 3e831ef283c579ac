"""Items of large data that cannot be used: they are counted and named, or refused by their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from pytest_bnn.data.large import LargeData
from pytest_bnn.errors import InputError


class Items(Dataset[Any]):
    def __init__(self, odd: dict[int, Any] | None = None, count: int = 60) -> None:
        self.odd, self.count = odd or {}, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        item = self.odd.get(number, (torch.full((3, 4), float(number)), number % 2))
        if isinstance(item, Exception):
            raise item
        return item


class Stream(IterableDataset[Any]):
    def __init__(self, items: Items) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return (self.items[number] for number in range(len(self.items)))


def without_none(items: list[Any]) -> Any:
    """As many leave out what cannot be read."""
    return default_collate([item for item in items if item is not None])


def parts(data: Any, size: int = 16, **given: Any) -> Iterator[Any]:
    for part in (large := LargeData.of(data, shard_size=size, few=4, unreadable=0.5, **given)).parts():
        yield part.read or large.data.read(part.places, 0)  # type: ignore[union-attr]


WAYS: list[Callable[[Items], Any]] = [
    lambda items: items,
    Stream,
    lambda items: DataLoader(items, batch_size=8),
    lambda items: DataLoader(items, batch_size=8, shuffle=True, collate_fn=without_none),
    lambda items: DataLoader(items, batch_size=8, sampler=SubsetRandomSampler(range(60))),
    lambda items: DataLoader(items, batch_sampler=BatchSampler(RandomSampler(items), 8, False)),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (None, "it is None"),
        ((None, 3), "its image is None"),
        ((torch.full((3, 4), torch.nan), 3), "it holds NaN or infinity"),
    ],
)  # fmt: skip
def test_an_item_without_an_image_is_left_out_counted_and_named(
    way: Callable[[Items], Any], odd: Any, why: str
) -> None:
    read = [*parts(way(Items({7: odd, 41: odd})))]
    unreadable = [one for part in read for one in part.unreadable]
    assert sorted((one.place, one.why) for one in unreadable) == [(7, why), (41, why)]
    numbers = torch.cat([part.samples.places for part in read])
    images = torch.cat([part.samples.item[0] for part in read])
    assert sorted(numbers.tolist()) == [number for number in range(60) if number not in (7, 41)]
    assert torch.equal(images[:, 0, 0].long(), numbers)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ((torch.zeros(3, 5), 1), r"images of different sizes: \(3, 4\) and \(3, 5\); number 7 has \(3, 5\)"),
        ((torch.zeros(3, 4), torch.zeros(2)), r"labels of different shapes: .*number 7 has \(2,\)"),
        ((torch.zeros(3, 4), 1, 2), r"items of different structure: number 7 is"),
        ("a picture", r"(item|number) 7 is one.*an image is a str"),
        ((torch.zeros(3, 4), "cat"), r"(item|number) 7 is one.*a str given as labels"),
    ],
)  # fmt: skip
def test_an_item_that_fits_none_of_the_others_is_an_error_with_its_number(
    way: Callable[[Items], Any], odd: Any, words: str
) -> None:
    if getattr(way(Items()), "collate_fn", None) is without_none:
        words = r"\b7\b"  # it makes its batches in a way of its own, so that all items of one are named
    with pytest.raises(InputError, match=words):
        [*parts(way(Items({7: odd})))]


class Growing(Sampler[int]):
    """Goes up for ever."""

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number % 60
            number += 1


@pytest.mark.parametrize(
    "sampler",
    [
        lambda items: SubsetRandomSampler(range(30, 60)),
        lambda items: WeightedRandomSampler([0.0] * 30 + [1.0] * 30, 50),
        lambda items: RandomSampler(items, replacement=True, generator=torch.Generator().manual_seed(3)),
        lambda items: range(59, -1, -1),
        lambda items: Growing(),
    ],
)  # fmt: skip
def test_a_sampler_of_ones_own_gives_the_numbers_of_the_data_set(sampler: Callable[[Items], Any]) -> None:
    """Groups are told by these; the same again, and the user's generator as it was."""
    chosen = sampler(Items())
    generator = getattr(chosen, "generator", None)
    before, state = torch.get_rng_state(), None if generator is None else generator.get_state()
    loader = DataLoader(Items(), batch_size=7, sampler=chosen)
    found, again = ([*parts(loader, limit=45)] for _ in range(2))
    for part, other in zip(found, again, strict=True):
        assert torch.equal(part.samples.item[0][:, 0, 0].long(), part.samples.places)
        assert torch.equal(part.samples.places, other.samples.places)
    assert sum(part.samples.rows for part in found) in (30, 45)
    assert torch.equal(torch.get_rng_state(), before)
    assert state is None or torch.equal(generator.get_state(), state)  # type: ignore[union-attr]


def test_an_item_that_raises_in_a_loader_with_a_sampler_is_left_out_alone() -> None:
    items = Items({7: OSError("broken file")})
    (found, *_) = parts(DataLoader(items, batch_size=8, sampler=SubsetRandomSampler(range(10))))
    assert [str(one) for one in found.unreadable] == ["number 7 (OSError: broken file)"]
    assert found.samples.rows == 9


def pairs(items: list[Any]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(items)
    return torch.cat([images, images.flip(1)]), torch.cat([labels, labels])


def test_a_loader_that_makes_more_of_its_items_is_refused() -> None:
    with pytest.raises(InputError, match="collate_fn makes 8 examples of 4 items"):
        LargeData.of(DataLoader(Items(), batch_size=8, collate_fn=pairs), few=4)


@pytest.mark.parametrize("batches", [True, False])
def test_a_loader_without_batches_gives_what_its_items_are(batches: bool) -> None:
    class Packed(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            if batches:
                return ((torch.zeros(5, 3, 4), torch.arange(5)) for _ in range(4))
            return ((torch.zeros(3, 4), number) for number in range(20))

    found = [*parts(DataLoader(Packed(), batch_size=None), 8)]
    assert [part.samples.rows for part in found] == [8, 8, 4]
    assert found[0].samples.item[0].shape == (8, 3, 4)


class ManyThenNone(IterableDataset[Any]):
    """Ends where something behind the few that memory holds cannot be read."""

    def __iter__(self) -> Iterator[Any]:
        yield from ((torch.zeros(3), 0) for _ in range(20))
        raise OSError("connection reset")


def test_what_cannot_be_read_behind_the_few_in_memory_makes_no_error_of_them() -> None:
    large = LargeData.of(ManyThenNone(), 20, few=20)
    assert (large.few.rows, large.few.cut) == (20, True)
    with pytest.raises(InputError, match="the stream raised OSError: connection reset at example 20"):
        LargeData.of(ManyThenNone(), few=21)
