"""``noise.source``: a pair of passes that differs is enough, and only many that do not are a verdict against."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.checks import measure_noise_source
from pytest_bnn.conversion import convert
from pytest_bnn.records.evidence import Certainty, Evidence, Verdict
from pytest_bnn.stats.budget import Budget

IMAGES = torch.linspace(-1, 1, 40).reshape(20, 2)
#: Pairs that decide at one in a million: 2**-20 is the first power below.
PAIRS = 20

#: The number of a pass with noise, from 1, and the inputs; gives the noise in units of the outputs' scale.
Scripted = Callable[[int, Tensor], Tensor]


class Script(nn.Module):
    """Gives back its input, with what ``noise`` says beside it wherever its layer's sigma is not 0."""

    def __init__(self, noise: Scripted) -> None:
        super().__init__()
        self.layer = convert(nn.Linear(2, 2).eval())
        self.noise = noise
        self.calls: list[int] = []  # of images

    def forward(self, x: Tensor) -> Tensor:
        if not bool(self.get_parameter("layer.rho_weight").isfinite().all()):
            return x
        if len(x) < 4:  # a check tries first how a network takes its inputs
            return x
        self.calls.append(len(x))
        return x + float(IMAGES.double().std()) * self.noise(len(self.calls), x)


def differing(pair: int, by: float = 1.0) -> Scripted:
    """Let the two passes of one pair alone differ."""
    return lambda number, x: torch.full_like(x, by if number == 2 * pair else 0.0)


def _certainty(found: Evidence) -> Certainty:
    assert found.certainty is not None, found.explain()
    return found.certainty


@pytest.mark.parametrize("pair", [1, 2, PAIRS])
def test_one_pair_that_differs_is_enough(pair: int) -> None:
    model = Script(differing(pair))
    found = measure_noise_source(model, images=IMAGES)
    assert found.verdict is Verdict.PASS, found.explain()
    assert len(model.calls) == found.samples == 2 * pair
    assert found["largest spread"] == pytest.approx(1 / math.sqrt(2))
    assert _certainty(found).high is None


@pytest.mark.parametrize("by", [0.0, 1e-4])
def test_as_many_equal_pairs_as_bring_one_half_to_alpha_are_a_fault(by: float) -> None:
    """Equal to the bit or below the floor: a pair that came later would not be seen any more."""
    model = Script(lambda number, x: torch.full_like(x, 1.0 if number > 2 * PAIRS else by * (number % 2)))
    found = measure_noise_source(model, images=IMAGES)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "Two passes in a row do not differ" in found.headline
    assert found.samples == 2 * PAIRS
    assert _certainty(found).high == pytest.approx(by / math.sqrt(2), rel=1e-3)  # in float32
    assert _certainty(found).alpha == Budget().alpha


def test_a_looser_budget_takes_fewer_passes() -> None:
    found = measure_noise_source(Script(differing(9)), images=IMAGES, budget=Budget(alpha=0.01))
    assert (found.verdict, found.samples) == (Verdict.FAIL, 14)  # 2**-7 is the first power below .01


def test_the_images_that_varied_most_get_further_pairs() -> None:
    """Image 13 alone varies, at first below the floor: it is not among the first eight."""

    def noise(number: int, x: Tensor) -> Tensor:
        size = 1e-5 if number <= 2 else 1.0
        return size * (number % 2) * (x == IMAGES[13]).all(1, keepdim=True)

    model = Script(noise)
    found = measure_noise_source(model, images=IMAGES)
    assert (found.verdict, model.calls) == (Verdict.PASS, [20, 20, 8, 8])


def test_too_few_passes_are_no_verdict_and_say_how_many() -> None:
    """An odd number has a pass without a partner."""
    found = measure_noise_source(Script(differing(99)), images=IMAGES, max_passes=7)
    assert found.verdict is Verdict.INCONCLUSIVE, found.explain()
    assert found.samples == 6
    assert f"{2 * PAIRS} that do not differ decide" in found.remedy


@pytest.mark.parametrize("number", [2, 5])
def test_nan_is_a_fault_at_once(number: int) -> None:
    found = measure_noise_source(
        Script(lambda n, x: torch.full_like(x, math.nan if n == number else 0.0)), images=IMAGES
    )
    assert found.verdict is Verdict.FAIL
    assert f"NaN or infinite in 1 of {-(-number // 2) * 2} passes" in found.headline


def test_noise_of_another_origin_is_exact() -> None:
    """Dropout in train mode: two passes with every sigma at 0 tell, and no further ones are drawn."""
    network = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
    model = convert(network)
    model.get_submodule("1").train()
    found = measure_noise_source(model, images=IMAGES)
    assert found.verdict is Verdict.FAIL
    assert "every sigma at 0" in found.headline
    assert found.samples == 2


def test_outputs_that_are_no_batch_are_judged_as_they_are() -> None:
    """One row for all images: there are no eight of them to choose."""

    class Pooled(Script):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean(0, keepdim=True)

    model = Pooled(differing(3))
    found = measure_noise_source(model, images=IMAGES)
    assert found.verdict is Verdict.NOT_APPLICABLE, found.explain()
    assert "its outputs belong to no single example" in found.headline


@pytest.mark.parametrize("wrong", [{"max_passes": 1}, {"min_spread": 0.0}, {"min_spread": math.nan}])
def test_arguments_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"max_passes is 1\. Give a whole number from 2|min_spread is .*above 0"):
        measure_noise_source(Script(differing(1)), images=IMAGES, **wrong)
