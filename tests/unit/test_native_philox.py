"""The native sampler's noise: Philox as its authors publish it, and number by number that of the compiled kernels."""

from __future__ import annotations

import math

import numpy
import pytest
import scipy.stats
import torch
from torch import Tensor

from pytest_bnn.sampling.engine import kernels
from pytest_bnn.sampling.engine.noise import BLOCK, Key, PhiloxNoise, Scratch, key_of
from pytest_bnn.sampling.native.philox import Layout, signs, words
from tests.philox import KNOWN_ANSWERS

SEED = 0x1234567890ABCDEF


def normals(size: int, stream: int, passes: Tensor, key: Key) -> Tensor:
    """Draw for a tensor that has others before and behind it."""
    return Layout.of([(1, 700), (stream, size), (2, 5)], torch.device("cpu")).draw(passes, key)[1]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN_ANSWERS)
def test_known_answers_of_philox(counter: tuple[int, ...], key: tuple[int, int], wanted: tuple[int, ...]) -> None:
    """The vectors that Random123 publishes for Philox4x32-10, whether a word is a number or a tensor."""
    first = torch.tensor([counter[0]])
    for rest in (counter[1:], [torch.tensor([word]) for word in counter[1:]]):
        found = words((first, rest[0], rest[1], rest[2]), key)
        assert [int(word) for word in found] == list(wanted)


def test_words_are_those_of_the_compiled_kernels() -> None:
    """To the bit, for many counters at once: there is one layout."""
    found = numpy.empty((4, BLOCK), dtype=numpy.uint32)
    kernels.philox_block(7 * BLOCK, 5, 11, 3, *key_of(SEED), found)
    ours = words((torch.arange(7 * BLOCK, 8 * BLOCK), 5, 11, 3), key_of(SEED))
    assert torch.equal(torch.stack(ours), torch.from_numpy(found.astype(numpy.int64)))


@pytest.mark.parametrize("size", [1, 3, 4 * BLOCK, 4 * BLOCK + 1, 40_000])
def test_normal_numbers_are_those_of_the_engine(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each pass alike, in whatever portions: the logarithm's last digit shows where the radius is near 0."""
    monkeypatch.setattr("pytest_bnn.sampling.native.philox._AT_ONCE", 3 * BLOCK)
    found = normals(size, 6, torch.tensor([0, 3, 2**31]), key_of(SEED))
    for row, index in zip(found, (0, 3, 2**31), strict=True):
        wanted = torch.empty(size)
        PhiloxNoise(SEED).draw(wanted, None, torch.ones(size), 6, index, Scratch())
        torch.testing.assert_close(row, wanted, rtol=1e-5, atol=2e-4)
        assert float((row - wanted).abs().median()) < 1e-6


def test_normal_numbers_are_normal_and_passes_independent() -> None:
    """By scipy's tests: distribution within a pass and over passes, mean, variance, and no correlation of two."""
    found = normals(200_000, 0, torch.arange(4), key_of(1)).double()
    assert [scipy.stats.kstest(row.numpy(), "norm").pvalue > 1e-6 for row in found] == [True] * 4
    size = found.shape[1]
    assert float(found.mean(1).abs().max()) < 6 / math.sqrt(size)
    assert float((found.var(1) - 1).abs().max()) < 6 * math.sqrt(2 / size)
    off = torch.corrcoef(found) - torch.eye(4)
    assert float(off.abs().max()) < 6 / math.sqrt(size)


def test_signs_are_those_of_the_engine() -> None:
    """Keyed by the number of a row, whichever rows are beside it; fair."""
    rows, size = torch.tensor([5, 0, 9]), 20_000
    found = signs(size, 2, 4, rows, key_of(SEED))
    wanted = PhiloxNoise(SEED).flipped(torch.ones(3, size), rows, 2, 4, Scratch())
    assert torch.equal(found, wanted)
    assert torch.equal(signs(size, 2, torch.tensor(4), rows[1:2], key_of(SEED)), found[1:2])
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    assert float(found.mean(1).abs().max()) < 6 / math.sqrt(size)


def test_numbers_of_other_places_are_other_numbers() -> None:
    """Pass, stream and seed each count."""

    def some(stream: int = 0, index: int = 0, seed: int = 0) -> Tensor:
        return normals(64, stream, torch.tensor([index]), key_of(seed))

    assert torch.equal(some(), some())
    for other in (some(stream=1), some(index=1), some(seed=1), some(seed=2**32)):
        assert not (some() == other).any()
