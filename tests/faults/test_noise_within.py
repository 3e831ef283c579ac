"""Noise beside itself, within one tensor: what repeats is found and named, what is independent is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pytest_bnn import convert
from pytest_bnn.checks import measure_noise_posterior
from pytest_bnn.checks.noise._draws import TensorDraws
from pytest_bnn.checks.noise._within import Within
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.stats.normal import any_dependence, masked_cosines, squares_p

SHAPES = [(30, 20), (8,), (12, 3, 3, 3), (64, 64), (3, 5), (1, 40), (40, 1)]


def judged(draw: Callable[[], Tensor], used: Tensor | None = None, draws: int = 4) -> tuple[float, str]:
    found = Within.of(draw().shape, used)
    for _ in range(draws):
        z = draw().flatten()
        found.take(z if used is None else z[used])
    return found.dependent()


@pytest.mark.parametrize("masked", [False, True])
def test_independent_noise_is_not_accused(masked: bool) -> None:
    """70 tensors of several shapes, whole and pruned: at a level of 1 in 100 few are rejected."""
    torch.manual_seed(0)
    values = []
    for index in range(70):
        shape = SHAPES[index % len(SHAPES)]
        used = torch.rand(torch.Size(shape).numel()) < 0.7 if masked else None
        values.append(judged(lambda shape=shape: torch.randn(shape), used)[0])  # type: ignore[misc]
    assert sum(p < 0.01 for p in values) <= stats.binom(70, 0.01).ppf(1 - 1e-6)


def lowrank(rank: int) -> Tensor:
    value: Tensor = torch.randn(48, rank) @ torch.randn(rank, 40) / rank**0.5
    return value


def halves(share: float) -> Tensor:
    one = torch.randn(30, 20)
    return torch.cat([one, share * one + (1 - share**2) ** 0.5 * torch.randn(30, 20)])


DEPENDENT: dict[str, tuple[Callable[[], Tensor], str]] = {
    "three blocks": (lambda: torch.randn(16, 24).repeat(3, 1), "third of 3 blocks of rows|second of 3 blocks of rows"),
    "eight heads": (lambda: torch.randn(4, 24).repeat(8, 1), "blocks of rows|rows of the one half"),
    "five blocks": (lambda: torch.randn(7, 20).repeat(5, 1), "row"),
    "blocks of inputs": (lambda: torch.randn(30, 10).repeat(1, 3), "blocks of columns|row"),
    "one row for all": (lambda: torch.randn(1, 40).expand(30, 40), "correlate"),
    "one column for all": (lambda: torch.randn(30, 1).expand(30, 40), "correlate"),
    "one draw for a kernel's positions": (lambda: torch.randn(8, 4, 1, 1).expand(8, 4, 3, 3), "columns"),
    "one number": (lambda: torch.randn(1).expand(30, 20), "correlate"),
    "neighbours": (lambda: torch.randn(10, 20).repeat_interleave(2, 0), "rows"),
    "one row twice": (lambda: torch.cat([(z := torch.randn(30, 20)), z[7:8]]), "row 30 correlates with row 7: 1"),
    "rank 1": (lambda: lowrank(1), "correlate"),
    "rank 4": (lambda: lowrank(4), "correlate"),
    "halves by a half": (lambda: halves(0.5), "second of 2 blocks of rows correlates with the first: 0.[45]"),
    "a bias": (lambda: torch.randn(8).repeat(2), "second of 2 blocks of rows correlates with the first: 1"),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_noise_that_repeats_is_found(name: str) -> None:
    torch.manual_seed(1)
    draw, words = DEPENDENT[name]
    p, said = judged(draw)
    assert p < 1e-9, said
    assert re.search(words, said), said


def test_a_repeat_is_found_in_pruned_weights_too() -> None:
    torch.manual_seed(1)
    used = torch.rand(48 * 24) < 0.5
    assert judged(lambda: torch.randn(16, 24).repeat(3, 1), used)[0] < 1e-30
    assert judged(lambda: torch.randn(48, 24), used)[0] > 1e-4


def test_one_odd_draw_of_many_shows_nothing_of_the_others() -> None:
    """Half of the draws have to show it, however they depend on each other."""
    torch.manual_seed(2)
    kinds = iter([True, False, False, False, False])
    found = judged(lambda: torch.ones(30, 20) if next(kinds, False) else torch.randn(30, 20), draws=5)
    assert found[0] > 1e-3, found


def test_merged_p_values_hold_under_any_dependence() -> None:
    """Oracle: their own level, for independent trials, for equal ones, and for the worst case of the median."""
    trials = torch.rand(8, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for values in (trials, trials[:1].repeat(8, 1)):
        merged = any_dependence(values)
        assert float((merged < 0.05).double().mean()) <= 0.05 + 4 * (0.05 * 0.95 / 4000) ** 0.5
    assert float(any_dependence(torch.tensor([0.3, 0.01, 0.02, 0.9]))) == pytest.approx(2 * 0.02)
    assert float(any_dependence(torch.tensor([0.3]))) == pytest.approx(0.3)


def test_squares_and_masks() -> None:
    """Oracles: scipy's chi-square, torch's cosine on what both rows have."""
    assert squares_p(30.0, 12) == pytest.approx(float(stats.chi2(12).sf(30)))
    assert squares_p(0.0, 0) == 1
    a, b = torch.randn(2, 3, 40, dtype=torch.float64)
    has_a, has_b = (torch.rand(2, 3, 40) < 0.6).double()
    cosines, common = masked_cosines((a * has_a, has_a), (b * has_b, has_b))
    both = (has_a[1] * has_b[2]).bool()
    assert float(cosines[1, 2]) == pytest.approx(float(torch.cosine_similarity(a[1][both], b[2][both], dim=0)))
    assert float(common[1, 2]) == int(both.sum())


class _Repeating(torch.overrides.TorchFunctionMode):
    """Draws the noise of a third of the rows, and repeats it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.normal_ and args[0].ndim == 2:
            return args[0].copy_(torch.randn(len(args[0]) // 3, args[0].shape[1]).repeat(3, 1))
        return func(*args, **(kwargs or {}))


@pytest.mark.fault("B49", "noise.posterior")
@pytest.mark.parametrize("kind", ["Reparameterization", "Flipout"])
def test_attention_that_draws_once_for_three_blocks(kind: Any) -> None:
    """The layer is named, and nothing else is said of it, although its draws are also fewer than they look."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 36), nn.Tanh(), nn.Linear(36, 24)).eval()
    model = convert(network, type=kind)
    images = torch.randn(2, 12)
    assert measure_noise_posterior(model, images=images).verdict is Verdict.PASS
    layer: Any = model.get_submodule("0")
    own = type(layer)

    def forward(self: Any, x: Tensor) -> Tensor:
        with _Repeating():
            out: Tensor = own.forward(self, x)
        return out

    layer.__class__ = type(own.__name__, (own,), {"forward": forward})
    found = measure_noise_posterior(model, images=images)
    assert found.verdict is Verdict.FAIL
    assert "`0.weight`: its noise is not independent within the tensor" in found.headline
    assert found.headline.endswith("of 3 blocks of rows correlates with the first: 1.")
    assert {(layer.path, "within the tensor" in layer.finding) for layer in found.layers} == {("0", True)}
    assert "repeat" in found.remedy


def test_short_draws_on_a_coarse_grid_may_repeat_a_direction() -> None:
    """A bias of two numbers in bfloat16: exact parallels among 32 draws are chance, and a draw kept for good is not."""
    model = convert(nn.Sequential(nn.Linear(6, 2)).bfloat16(), type="Flipout", moped_delta=0.05)
    tensor = next(t for layer in bayesian_layers(model) for t in layer.tensors if t.role == "bias")
    least = 1.0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        draws = TensorDraws.of(tensor, torch.ones(2), about_mu=False)
        for number in range(32):
            noise = tensor.sigma.float() * torch.randn(2, generator=generator)
            draws.take(noise.bfloat16().float(), number)
        least = min(least, draws.reused()[0])
    assert least > 1e-4
    wide = convert(nn.Sequential(nn.Linear(64, 2)).bfloat16(), type="Flipout", moped_delta=0.05)
    weight = next(t for layer in bayesian_layers(wide) for t in layer.tensors if t.role == "weight")
    kept = TensorDraws.of(weight, torch.ones(2, 64), about_mu=False)
    for number in range(4):
        kept.take(weight.sigma.float(), number)
    assert kept.reused()[0] < 1e-6
