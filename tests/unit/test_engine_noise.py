"""The engine's noise: Philox as its authors publish it, normal and independent as far as can be seen."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable

import numpy
import pytest
import scipy.stats
import torch
from torch import Tensor

from pytest_bnn.sampling.engine import kernels
from pytest_bnn.sampling.engine.noise import BLOCK, Noise, PhiloxNoise, Scratch, TorchNoise, make_noise
from tests.philox import KNOWN_ANSWERS

#: How unlikely a number must be before a test fails: about six standard deviations.
UNLIKELY = 1e-9


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
@pytest.mark.parametrize("lane", [0, 1, BLOCK - 1])
def test_known_answers_of_philox(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...], lane: int
) -> None:
    """The vectors that Random123 publishes for Philox4x32-10, in any lane of a block."""
    first = (counter[0] - lane) % 2**32
    found = numpy.empty((4, BLOCK), dtype=numpy.uint32)
    kernels.philox_block(first, *counter[1:], *key, found)
    assert found[:, lane].tolist() == list(words)


def normals(seed: int = 0, stream: int = 0, index: int = 0, count: int = 1 << 22, noise: Noise | None = None) -> Tensor:
    out = torch.empty(count)
    (noise or PhiloxNoise(seed)).draw(out, None, torch.ones(count), stream, index, Scratch())
    return out.double()


def unlikely(deviate: float) -> bool:
    return math.erfc(abs(deviate) / math.sqrt(2)) < UNLIKELY


def test_moments_up_to_the_sixth() -> None:
    """Those of the standard normal distribution, each within its own standard error."""
    z = normals()
    for order in range(1, 7):
        wanted = float(scipy.stats.norm.moment(order))
        error = math.sqrt((float(scipy.stats.norm.moment(2 * order)) - wanted**2) / len(z))
        assert not unlikely((float((z**order).mean()) - wanted) / error), order


def test_tails_up_to_five_sigma() -> None:
    """As many numbers lie beyond 1 to 5 sigma, on either side, as should, and none beyond what is possible."""
    z = normals(count=1 << 24)
    for bound, side in itertools.product(range(1, 6), (1, -1)):
        count = int((side * z > bound).sum())
        share = float(scipy.stats.norm.sf(bound))
        assert scipy.stats.binomtest(count, len(z), share).pvalue > UNLIKELY, (bound, side, count)
    assert 4.9 < float(z.abs().max()) < 6.8


def test_distribution() -> None:
    """Kolmogorov and Smirnov on a million numbers; the uniform distribution of the same variance would fail."""
    z = normals(seed=5, count=1 << 20)
    assert scipy.stats.kstest(z.numpy(), "norm").pvalue > UNLIKELY
    uniform = (scipy.stats.norm.cdf(z[:10000].numpy()) - 0.5) * math.sqrt(12)
    assert scipy.stats.kstest(uniform, "norm").pvalue < UNLIKELY


@pytest.mark.parametrize("noise", [PhiloxNoise, TorchNoise])
def test_layers_passes_and_seeds_are_independent(noise: Callable[[int], Noise]) -> None:
    """Of the numbers and of their squares: neither products nor sizes are related."""
    places = [(0, 0, 0), (0, 1, 0), (0, 4, 0), (0, 0, 1), (0, 0, 2), (1, 0, 0), (2**32, 0, 0), (2**63 - 1, 0, 0)]
    drawn = [normals(*place, count=1 << 18, noise=noise(place[0])) for place in places]
    for a, b in itertools.combinations(drawn, 2):
        _require_unrelated(a, b)


@pytest.mark.parametrize("lag", [1, 2, 3, 127, 128, 129, 256, 384, 511, 512, 513, 1024, 2048, 4096])
def test_neighbours_are_independent(lag: int) -> None:
    """Within a block, between the words of a counter, and between blocks."""
    z = normals(seed=3)
    _require_unrelated(z[:-lag], z[lag:])


def _require_unrelated(a: Tensor, b: Tensor) -> None:
    n = math.sqrt(len(a))
    assert not unlikely(float((a * b).mean()) * n)
    assert not unlikely(float(((a**2 - 1) * (b**2 - 1)).mean()) * n / 2)


@pytest.mark.parametrize("noise", [PhiloxNoise(7), TorchNoise(7)], ids=lambda noise: type(noise).__name__)
def test_draws_are_mean_plus_spread_times_eps_and_the_same_again(noise: Noise) -> None:
    """Without a mean it is 0; the length of a tensor does not change a number; another place, other numbers."""
    spread, mean = torch.rand(5000) + 0.5, torch.randn(5000)
    eps = normals(count=5000, stream=3, index=2, noise=noise).float()
    out, centred = torch.empty(5000), torch.empty(5000)
    noise.draw(out, mean, spread, 3, 2, Scratch())
    noise.draw(centred, None, spread, 3, 2, Scratch())
    torch.testing.assert_close(out, mean + spread * eps)
    torch.testing.assert_close(centred, spread * eps)
    again = torch.empty(5000)
    noise.draw(again, mean, spread, 3, 2, Scratch())
    assert torch.equal(again, out)


@pytest.mark.parametrize("noise", [PhiloxNoise(7), TorchNoise(7)], ids=lambda noise: type(noise).__name__)
def test_signs_are_fair_and_belong_to_their_row(noise: Noise) -> None:
    """A row's signs depend on its number alone, and the numbers themselves only change sign."""
    values = torch.rand(6, 3, 50, 50) + 0.1
    rows = torch.tensor([4, 0, 2, 9, 1, 7])
    flipped = noise.flipped(values, rows, 2, 5, Scratch())
    assert torch.equal(flipped.abs(), values)
    signs = flipped.sign().flatten(1).double()
    assert not unlikely(float(signs.mean()) * math.sqrt(signs.numel()))
    for a, b in itertools.combinations(signs, 2):
        assert not unlikely(float((a * b).mean()) * math.sqrt(len(a)))
    for lag in (1, 32, 2048):
        assert not unlikely(float((signs[:, :-lag] * signs[:, lag:]).mean()) * math.sqrt(signs[:, lag:].numel()))
    one = noise.flipped(values[3:4], rows[3:4], 2, 5, Scratch())
    assert torch.equal(one[0], flipped[3])


def test_without_numba_torch_draws_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a dependency, and it can still be missing or unable to compile."""
    assert make_noise(0)[1] == ""
    monkeypatch.setitem(sys.modules, "numba", None)
    noise, warning = make_noise(0)
    assert noise.name == "torch's generator"
    assert warning.startswith("numba cannot be used: ModuleNotFoundError")
