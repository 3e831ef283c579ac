"""Batches: rows of any tree are taken, split and moved together, and nothing else is touched."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.utils.data import default_collate

from pytest_bnn.data.batch import Batch, call, described, device_of, per_example, rows_of, taken
from pytest_bnn.network.tree import tensors

ROWS = 5
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Record:
    x: Tensor
    scale: Tensor


def items(count: int = ROWS) -> list[dict[str, Any]]:
    """Return examples as a data set has them, of which a loader makes a batch."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "x": torch.randn(3, generator=generator),
            "nested": [torch.tensor(index), {"mask": torch.arange(4) < index}],
            "path": f"{index}.png",
            "pair": (torch.tensor(float(index)), f"id{index}"),
        }
        for index in range(count)
    ]


@pytest.mark.parametrize("numbers", [[0], [4, 1], [2, 2, 2], list(range(ROWS))])
def test_rows_of_any_tree(numbers: list[int]) -> None:
    """Oracle: torch's own collation of those examples alone."""
    batch = Batch.of(**default_collate(items()))
    few = batch[torch.tensor(numbers)]
    expected = default_collate([items()[index] for index in numbers])
    assert (len(batch), len(few)) == (ROWS, len(numbers))
    for one, other in zip(tensors(few.keywords), tensors(expected), strict=True):
        assert torch.equal(one, other)
    assert list(few.keywords["path"]) == list(expected["path"])
    assert list(few.keywords["pair"][1]) == list(expected["pair"][1])


@given(st.lists(st.integers(-ROWS, ROWS - 1), min_size=1, max_size=8), st.integers(0, 4), st.integers(1, 5))
def test_rows_are_those_of_plain_indexing(numbers: list[int], start: int, length: int) -> None:
    """By numbers, from the end too, and by slices."""
    x, y = torch.arange(10.0).reshape(5, 2), torch.arange(5)
    batch = Batch.of(x, y=[y])
    assert torch.equal(batch[torch.tensor(numbers)].arguments[0], x[torch.tensor(numbers)])
    part = batch[start : start + length]
    assert torch.equal(part.arguments[0], x[start : start + length])
    assert torch.equal(part.keywords["y"][0], y[start : start + length])
    assert torch.equal(batch[y % 2 == 0].arguments[0], x[y % 2 == 0])


def test_what_is_no_row_passes_unchanged() -> None:
    """A matrix of neighbours, a number, a flag and an object are the same for every example, the very same."""
    shared: dict[str, Any] = {
        "edges": torch.zeros(2, 7),
        "scale": torch.tensor(2.0),
        "flag": True,
        "none": None,
        "object": object(),
    }
    few = Batch.of(torch.zeros(ROWS, 3), **shared)[:2]
    assert all(few.keywords[key] is value for key, value in shared.items())
    assert few.rows == 2


def test_records_and_dictionaries_of_others() -> None:
    """They stay what they are."""
    few = Batch.of(Record(torch.arange(5.0), torch.ones(2)), more=UserDict(y=torch.arange(5)))[1:3]
    assert isinstance(few.arguments[0], Record)
    assert few.arguments[0].x.tolist() == [1, 2]
    assert isinstance(few.keywords["more"], UserDict)
    assert few.keywords["more"]["y"].tolist() == [1, 2]


def test_time_first() -> None:
    """Rows are the second dimension; of what has one dimension, the first."""
    x, lengths = torch.arange(24.0).reshape(4, 3, 2), torch.tensor([4, 3, 2])
    batch = Batch.of(x, lengths, dim=1)
    assert len(batch) == 3
    few = batch[torch.tensor([2, 0])]
    assert torch.equal(few.arguments[0], x[:, [2, 0]])
    assert few.arguments[1].tolist() == [2, 4]


def test_packed_sequences() -> None:
    """Sequences of different lengths, in any order, are those that were packed."""
    sequences = [torch.arange(2.0 * n).reshape(n, 2) for n in (2, 4, 1, 3)]
    batch = Batch.of(pack_sequence(sequences, enforce_sorted=False))
    assert len(batch) == 4
    few = batch[torch.tensor([2, 0])].arguments[0]
    assert isinstance(few, PackedSequence)
    for one, other in zip(unpack_sequence(few), (sequences[2], sequences[0]), strict=True):
        assert torch.equal(one, other)
    moved = batch.to(CPU, torch.float64).arguments[0]
    assert moved.data.dtype == torch.float64
    assert [len(part) for part in unpack_sequence(moved)] == [2, 4, 1, 3]


def test_only_floating_point_changes_its_dtype() -> None:
    """Tokens, masks and complex numbers stay what they are; the batch itself stays as it is."""
    batch = Batch.of(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), mask=torch.ones(3, dtype=torch.bool),
                     wave=torch.zeros(3, dtype=torch.complex64), lists=[{"x": torch.zeros(7)}] * 3)  # fmt: skip
    moved = batch.to(CPU, torch.bfloat16)
    found = [tensor.dtype for tensor in moved.tensors]
    assert found[:4] == [torch.bfloat16, torch.int64, torch.bool, torch.complex64]
    assert set(found[4:]) == {torch.bfloat16}
    assert batch.tensors[0].dtype == torch.float32


class Seen(nn.Module):
    """Notes how many rows it is called with, and writes to what it is given."""

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.sizes: list[int] = []

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        assert self.size is None or len(x) == self.size
        self.sizes.append(len(x))
        scale.mul_(2)
        return x.mul_(2)


@pytest.mark.parametrize(("rows", "counts"), [(8, [4, 4]), (5, [4, 1]), (2, [2]), (4, [4])])
def test_networks_of_one_size(rows: int, counts: list[int]) -> None:
    """They get so many rows each time, from the start again where there are not enough; what counts is each once."""
    x = torch.arange(float(rows))[:, None]
    batch = Batch(arguments=(x,), keywords={"scale": torch.ones(3)}, rows=rows, size=4, copies=True)
    network = Seen(4)
    found = [part.call(network)[:kept] for part, kept in batch.parts()]
    assert [len(part) for part in found] == counts
    assert torch.equal(torch.cat(found), 2 * x)


def test_who_writes_gets_copies() -> None:
    """Also of what is no row, and of packed sequences and lists for each example."""
    x, scale = torch.ones(3, 2), torch.ones(3)
    batch = Batch(arguments=(x,), keywords={"scale": scale}, rows=3, copies=True)
    batch.call(Seen())
    assert bool((x == 1).all() and (scale == 1).all())
    packed = pack_sequence([torch.ones(2, 1), torch.ones(1, 1)])
    copied = Batch(arguments=(packed, [{"x": x}]), keywords={}, rows=2).copied()
    for tensor in copied.tensors:
        tensor.zero_()
    assert bool((packed.data == 1).all() and (x == 1).all())


def test_how_many_rows_there_are() -> None:
    """Those of the first tensor that has the dimension; without one nobody knows."""
    assert rows_of({"scale": torch.tensor(1.0), "x": torch.zeros(4, 2)}) == 4
    assert rows_of((torch.zeros(3), torch.zeros(7, 5)), dim=1) == 5
    assert rows_of(pack_sequence([torch.zeros(2), torch.zeros(1)])) == 2
    nothing: Any
    for nothing in ({}, ["a"], torch.tensor(1.0)):
        with pytest.raises(ValueError, match="no tensor with a dimension 0"):
            Batch.of(nothing)


@pytest.mark.parametrize(
    ("node", "found"),
    [
        (["a", "b"], True),
        (("a", None), True),
        (["a", "b", "c"], False),
        ([torch.zeros(2, 3), torch.zeros(2)], False),
        ([torch.zeros(3, 4), torch.zeros(1, 4)], True),
        ((torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)), False),
        ([{"boxes": torch.zeros(3, 4)}, {"boxes": torch.zeros(2, 4)}], True),
        ([{"x": torch.zeros(2, 4)}, {"y": torch.zeros(2, 4)}], False),
        ([torch.zeros(2, 3), ["a", "b"]], False),
        ({"a": 1, "b": 2}, False),
        ("ab", False),
    ],
)
def test_what_has_an_entry_for_each_example(node: Any, found: bool) -> None:
    """Names and boxes of two examples; but not two inputs of two examples, nor a state with them in its middle."""
    assert per_example(2)(node) is found


def test_boxes_are_taken_with_their_images() -> None:
    """Labels of detection: a list with a dictionary for each image."""
    boxes = [{"boxes": torch.full((index, 4), float(index))} for index in range(5)]
    few = Batch.of(torch.zeros(5, 3), boxes)[torch.tensor([3, 1])]
    assert [len(entry["boxes"]) for entry in few.arguments[1]] == [3, 1]


def test_words_and_devices() -> None:
    """What a network is called with is said in messages."""
    batch = Batch.of(torch.zeros(2, 3), mask=torch.ones(2, dtype=torch.bool), flag=True)
    assert described(batch).startswith("inputs (float32 [2, 3], mask=bool [2], flag=")
    assert described(torch.zeros(2, 3, dtype=torch.float16)) == "images of shape [2, 3] and dtype float16"
    assert device_of(batch) == device_of(torch.zeros(1)) == CPU
    assert torch.equal(call(nn.Identity(), torch.ones(2)), torch.ones(2))
    assert taken("text", torch.tensor([0]), rows=4) == "text"
