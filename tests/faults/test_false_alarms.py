"""Healthy models, many of them: none accused, none undecided, and p-values that promise no more than they hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import pytest
import torch
from scipy import stats
from torch import nn

from benchmarks.false_alarms import measure
from pytest_bnn.audit.run import CHECK_IDS
from pytest_bnn.checks import measure_estimator_flipout, registry
from pytest_bnn.checks.noise._draws import TensorDraws, across_passes
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.stats.betting import BettingTest
from pytest_bnn.stats.intervals import median_bounds

#: Audits of a push.
FEW = 24

#: Chance that one of the tests here fails although all is well.
RATE = 1e-4


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest, once: Callable[[str, Callable[[], Any]], Any]) -> Mapping[str, Any]:
    """The benchmark's audits, as many as fit: `python -m benchmarks.false_alarms` makes two thousand."""

    def make() -> dict[str, Any]:
        found = measure(200 if request.config.getoption("--nightly") else FEW)
        verdicts = {id: dict(counts) for id, counts in found.verdicts.items()}
        said = [str(alarm["said"]) for alarm in found.accusations]
        return {"audits": found.audits, "said": said, "verdicts": verdicts, "smallest p": list(found.smallest_p)}

    found: Mapping[str, Any] = once("false alarms", make)
    return found


def test_healthy_models_are_accused_of_nothing(tally: Mapping[str, Any]) -> None:
    audits = tally["audits"]
    assert audits >= FEW
    assert tally["said"] == []
    for id in CHECK_IDS:
        if registry.load(id).declaration.of_data:  # these few labels decide nothing; test_calibrated_models.py has more
            continue
        judged = audits // 2 if id == "estimator.flipout" else audits
        assert tally["verdicts"][id].get("pass", 0) + tally["verdicts"][id].get("warn", 0) == judged, id


def test_the_corrected_p_values_of_whole_audits_are_not_too_small(tally: Mapping[str, Any]) -> None:
    """Under the null a p-value is at least uniform: the share below any level is at most the level."""
    audits = tally["audits"]
    assert len(tally["smallest p"]) == audits
    for level in (0.01, 0.05, 0.1, 0.3):
        below = sum(p < level for p in tally["smallest p"])
        assert stats.binom.sf(below - 1, audits, level) > RATE, (level, below)


def test_p_values_of_flipout_layers_are_not_too_small() -> None:
    """Sequences of one position have the signs of examples, so that the layers of the library are sound."""
    found = []
    for seed in range(150):
        torch.manual_seed(seed)
        model = convert(nn.Sequential(nn.Linear(4, 8)).eval(), type="Flipout")
        evidence = measure_estimator_flipout(model, images=torch.rand(2, 4) + 0.2, seed=seed)
        assert evidence.threshold is not None
        found.append(float(str(evidence.threshold.observed)))
    for level in (0.01, 0.05, 0.1, 0.3):
        below = sum(p < level for p in found)
        assert stats.binom.sf(below - 1, len(found), level) > RATE, (level, below)


LATER = pytest.mark.nightly("hundreds of audits; every push has two passes, where dependence would show the most")


@pytest.mark.parametrize("passes", [2, pytest.param(4, marks=LATER), pytest.param(12, marks=LATER)])
def test_p_values_across_passes_are_uniform(passes: int) -> None:
    """noise.posterior's tests of a layer's noise against another's in the pass before: exact, whatever the sizes.

    One network of four tensors, from 3 to 60 numbers, called once and twice a pass; 400 times its draws, by numpy. Of
    each run one p-value counts, so that all are independent.
    """
    model = convert(nn.Sequential(nn.Linear(20, 3), nn.Linear(3, 5)))
    tensors = [tensor for layer in bayesian_layers(model) for tensor in layer.tensors]
    pairs = [(row, column) for row in range(4) for column in range(4) if row != column]
    random, found = numpy.random.default_rng(passes), []
    for run in range(400):
        draws = []
        for index, tensor in enumerate(tensors):
            normal = random.standard_normal((passes * (1 + index % 2), *tensor.mu.shape))
            noises = torch.as_tensor(normal).float() * tensor.sigma
            draws.append(TensorDraws.of(tensor, noises[0], about_mu=False))
            for number, noise in enumerate(noises):
                draws[-1].take(noise, number // (1 + index % 2))
        values, _ = across_passes(draws)
        found.append(float(values[pairs[run % len(pairs)]]))
    assert stats.kstest(found, "uniform").pvalue > RATE


@pytest.mark.parametrize("level", [0.1, 0.05, 0.01])
def test_bounds_of_spreads_at_the_null_are_wrong_no_more_often_than_they_say(level: float) -> None:
    """noise.varies and noise.spread at their hardest: the median is the threshold, and they look after each pair."""
    spreads = torch.as_tensor(stats.chi2(10).rvs((64, 2000), random_state=2) ** 0.5, dtype=torch.float64)
    threshold = math.sqrt(stats.chi2(10).median())
    wrong = torch.zeros(2, 2000, dtype=torch.bool)
    for pairs in range(1, 65):
        low, high = median_bounds(spreads[:pairs], level)
        wrong |= torch.stack([low > threshold, high < threshold])
    for side in wrong.sum(1).tolist():
        assert stats.binom.sf(side - 1, 2000, level) > RATE


@pytest.mark.parametrize("level", [0.1, 0.05, 0.01])
def test_the_capital_of_a_tie_is_a_p_value(level: float) -> None:
    """teacher.agreement at its hardest: two classes tie, and one over the largest capital is at least uniform."""
    test = BettingTest((2000,))
    gaps = torch.as_tensor(stats.uniform(-1, 2).rvs((200, 2000), random_state=3))
    for gap in gaps:
        test.update(gap, torch.arange(2000))
    below = int((torch.exp(-test.log_largest) <= level).sum())
    assert stats.binom.sf(below - 1, 2000, level) > RATE
