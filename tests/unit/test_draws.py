"""The tests behind `noise.posterior` against oracles that are not ours: scipy, closed forms, and their own null."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

from pytest_bnn import convert
from pytest_bnn.checks.noise._draws import TensorDraws, across_passes, between_layers
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.stats.normal import Sums, correlation_scores, draws_needed, effect, score_p, shape_p


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sums(z: torch.Tensor, slack: float = 0.0) -> Sums:
    return Sums(count=z.numel(), total=float(z.sum()), squares=float((z * z).sum()), slack=slack)


def test_mean_and_variance_by_closed_forms() -> None:
    """The tails of a normal are erfc; with two draws, chi-square's upper tail is exp(-x / 2)."""
    assert Sums(count=25, total=10.0, squares=25.0).mean_p() == pytest.approx(math.erfc(2 / math.sqrt(2)))
    assert Sums(count=2, total=0.0, squares=30.0).variance_p() == pytest.approx(2 * math.exp(-15))
    assert Sums(count=100, total=0.0, squares=25.0).scale == 0.5


def test_shape_is_scipys_kolmogorov_smirnov() -> None:
    for seed in range(5):
        z = normals(200, seed=seed)
        assert shape_p(z, 0.0) == pytest.approx(stats.kstest(z.numpy(), "norm", method="exact").pvalue, rel=1e-6)
    assert shape_p(normals(200) + 0.01, 0.5) == 1.0  # what rounding may move is allowed


def test_correlation_of_two_numbers_is_an_angle() -> None:
    """Two isotropic vectors in the plane enclose a uniform angle, so P(|cos| >= c) = 2 arccos(c) / pi."""
    cosines = torch.tensor([0.1, 0.9, -0.99], dtype=torch.float64)
    found = score_p(correlation_scores(cosines, torch.full((3,), 2.0)))
    for c, p in zip(cosines.tolist(), found.tolist(), strict=True):
        assert p == pytest.approx(2 * math.acos(abs(c)) / math.pi, rel=1e-9)


@pytest.mark.parametrize("name", ["mean", "variance", "shape", "correlation"])
def test_p_values_of_right_draws_are_uniform(name: str) -> None:
    """A budget of 1e-6 is credible where p-values are uniform: 400 samples of 50 draws, fixed."""
    values = []
    for row, other in zip(normals(400, 50), normals(400, 50, seed=1), strict=True):
        if name == "mean":
            values.append(sums(row).mean_p())
        elif name == "variance":
            values.append(sums(row).variance_p())
        elif name == "shape":
            values.append(shape_p(row, 0.0))
        else:
            cosine = (row @ other / row.norm() / other.norm()).reshape(1)
            values.append(float(score_p(correlation_scores(cosine, torch.tensor([50.0])))))
    assert stats.kstest(values, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("ratio", [1.05, 0.95])
def test_the_stated_effect_has_the_stated_power(ratio: float) -> None:
    """Draws that are that far off are found: the power by simulation of the chi-square statistic itself."""
    level, power = 1e-4, 0.999
    count = draws_needed(0.05, level, power)
    assert effect(count, level, power) <= 0.05
    squares = stats.chi2.rvs(count, size=20_000, random_state=0) * ratio**2
    found = sum(Sums(count=count, total=0.0, squares=float(s)).variance_p() < level for s in squares[:2000])
    assert found / 2000 > power - 0.004  # five standard errors


def draws_of(passes: list[torch.Tensor], calls: int = 1) -> TensorDraws:
    layer = bayesian_layers(convert(nn.Sequential(nn.Linear(20, 30))))[0]
    tensor = next(tensor for tensor in layer.tensors if tensor.role == "weight")
    noises = [(z.reshape(30, 20) * tensor.sigma).float() for z in passes]
    draws = TensorDraws.of(tensor, noises[0], about_mu=True)
    for index, noise in enumerate(noises):
        draws.take(noise, index // calls)
    return draws


def test_reuse_and_sharing_are_seen_and_fresh_noise_is_not() -> None:
    fresh = [normals(600, seed=seed) for seed in range(4)]
    assert draws_of(fresh).reused()[0] > 1e-6
    p, words = draws_of([fresh[0], fresh[1], fresh[0], fresh[2]]).reused()
    assert p < 1e-100
    assert words.startswith("the noise of draw 3 correlates with that of draw 1: 1")
    one, other, third = draws_of(fresh), draws_of(fresh[::-1]), draws_of(fresh[:2] + [normals(600, seed=9)] * 2)
    values, cosines = between_layers([one, other, third])
    assert values[0, 1] > 1e-6  # the same numbers, but in other passes
    assert values[0, 2] < 1e-100
    assert cosines[0, 2] == pytest.approx(0.5, abs=0.05)


def test_noise_of_another_in_the_pass_before_is_seen() -> None:
    """The row is who uses it again, the column whose it was; the other way round nothing is wrong."""
    fresh = [normals(600, seed=seed) for seed in range(9)]
    leader, follower = draws_of(fresh[:4]), draws_of([fresh[8], *fresh[:3]])
    values, cosines = across_passes([leader, follower])
    assert values[1, 0] < 1e-100
    assert cosines[1, 0] == pytest.approx(1, abs=1e-4)
    assert values[0, 1] > 1e-6
    assert float(between_layers([leader, follower])[0][0, 1]) > 1e-6
    # Called twice a pass, a layer leaves its second draw behind.
    twice = draws_of(fresh[:8], calls=2)
    follower = draws_of([fresh[8], fresh[1], fresh[3], fresh[5]])
    assert across_passes([twice, follower])[0][1, 0] < 1e-100
    follower = draws_of([fresh[8], fresh[0], fresh[2], fresh[4]])
    assert across_passes([twice, follower])[0][1, 0] > 1e-6


def test_across_passes_is_stouffers_method_on_exact_tails() -> None:
    """Two isotropic vectors of n numbers have a cosine r with (1 + r) / 2 of Beta((n - 1) / 2, (n - 1) / 2)."""
    noise = [[normals(600, seed=10 * layer + index) for index in range(5)] for layer in range(2)]
    one, other = (draws_of(passes) for passes in noise)
    values, cosines = across_passes([one, other])
    pairs = list(zip(one.heads[1:], other.heads[:-1], strict=True))
    found = [float(torch.cosine_similarity(a.double(), b.double(), dim=0)) for a, b in pairs]
    tails = stats.beta(599 / 2, 599 / 2).sf([(1 + r) / 2 for r in found])
    combined = float(stats.combine_pvalues(tails, method="stouffer").pvalue)
    assert float(values[0, 1]) == pytest.approx(2 * min(combined, 1 - combined), rel=1e-6)
    assert float(cosines[0, 1]) == pytest.approx(sum(found) / 4)
    assert across_passes([draws_of(noise[0][:1]), draws_of(noise[1][:1])])[0].tolist() == [[1, 1], [1, 1]]


def test_memory_is_one_draw_and_the_heads() -> None:
    """A pass of a large network cannot be kept: its sums can."""
    draws = draws_of([normals(600, seed=seed) for seed in range(4)])
    assert draws.draws == 4
    assert all(head.numel() <= 4096 for head in draws.heads)
    assert draws.sums.count == 2400
