"""Faults in what a regression says of its own uncertainty (B67 to B71), and calibrated ones, which none may fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.checks import measure_regression_coverage, measure_regression_scores
from pytest_bnn.checks.regression._standard import Standard
from pytest_bnn.checks.regression.coverage import BAND, MOST_DISTANT
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.sampling.normals import Normals, ranges_of_difference
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import hoeffding_radius
from tests.checks.regression.network import converted, examples, figure, teacher

INPUTS, LABELS = examples(600)


def coverage(model: nn.Module, **given: Any) -> Evidence:
    return measure_regression_coverage(model, teacher=teacher(), images=INPUTS, labels=LABELS, **given)


def scores(model: nn.Module, **given: Any) -> Evidence:
    return measure_regression_scores(model, teacher=teacher(), images=INPUTS, labels=LABELS, **given)


def test_the_healthy_one() -> None:
    assert coverage(converted()).verdict is Verdict.PASS
    assert scores(converted()).verdict is Verdict.PASS


@pytest.mark.fault("B67", "regression.coverage")
def test_intervals_half_as_wide() -> None:
    """B67: found and named by the factor, which a score hardly shows."""
    evidence = coverage(converted(wider=0.5))
    assert evidence.verdict is Verdict.FAIL
    assert "The predicted intervals are too narrow" in evidence.headline
    assert evidence["factor of the spread"] == pytest.approx(2, abs=0.3)
    assert figure(evidence, "coverage at 0.95") < 0.8


class PassesApart(nn.Module):
    """Each pass is moved as a whole: a posterior that is too wide, in its last bias."""

    def __init__(self, inner: nn.Module, by: float) -> None:
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, x: Tensor) -> Any:
        output = self.inner(x)
        return {**output, "mean": output["mean"] + self.by * torch.randn(1)}


@pytest.mark.fault("B68", "regression.coverage", "regression.scores")
def test_a_spread_too_wide() -> None:
    """B68: the passes disagree by more than the labels scatter, and the remedy is about them."""
    evidence = coverage(PassesApart(converted(), 2.0))
    assert evidence.verdict is Verdict.FAIL
    assert "The predicted intervals are too wide" in evidence.headline
    assert "noise.spread" in evidence.remedy
    assert scores(PassesApart(converted(), 4.0)).verdict is Verdict.FAIL


@pytest.mark.fault("B69", "regression.coverage", "regression.scores")
@pytest.mark.parametrize("by", [-0.8, 0.8])
def test_a_shift(by: float) -> None:
    """B69: the cause is the shift, and not the width."""
    evidence = coverage(converted(shift=by))
    assert evidence.verdict is Verdict.FAIL
    assert evidence.headline.startswith("The predictions are shifted")
    assert ("above them" if by < 0 else "below them") in evidence.headline
    assert scores(converted(shift=by)).verdict is Verdict.FAIL


@pytest.mark.fault("B70", "regression.coverage")
def test_a_log_variance_that_is_called_a_log_deviation() -> None:
    """B70: the loss reads it as one, and what the network is used with as another."""
    evidence = measure_regression_coverage(converted(), images=INPUTS, labels=LABELS, head="log_std")
    assert evidence.verdict is Verdict.FAIL
    assert "a variance taken for a deviation, or for its logarithm" in evidence.remedy


@pytest.mark.fault("B71", "regression.coverage")
def test_a_declared_noise_that_is_a_variance() -> None:
    """B71: of deviation .2 the variance .04 is declared."""
    torch.manual_seed(2)
    network, x = nn.Sequential(nn.Linear(3, 1)).eval(), torch.randn(300, 3)
    y = network(x).detach() + 0.2 * torch.randn(300, 1)
    given = {"images": x, "labels": y, "head": "mean"}
    assert measure_regression_coverage(network, noise=0.2, **given).verdict is Verdict.PASS
    evidence = measure_regression_coverage(network, noise=0.04, **given)
    assert evidence.verdict is Verdict.FAIL
    assert "not its square" in evidence.remedy


def test_healthy_designs_are_not_accused() -> None:
    """Outputs in the units of a loss that scales its labels, a softplus in the loss, another likelihood, few digits."""

    class Scaled(nn.Module):
        def __init__(self, factor: float, offset: float) -> None:
            super().__init__()
            self.inner, self.factor, self.offset = teacher(), factor, offset

        def forward(self, x: Tensor) -> Any:
            output = self.inner(x)
            return {
                "mean": (output["mean"] - self.offset) / self.factor,
                "log_variance": output["log_variance"] - 2 * torch.tensor(self.factor).log(),
            }

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher("pair")

        def forward(self, x: Tensor) -> Any:
            mean, log_variance = self.inner(x)
            return torch.cat([mean, torch.expm1(log_variance.exp()).log()], 1)

    def softplus(model: nn.Module, batch: Any) -> Tensor:
        mean, raw = model(batch[0]).chunk(2, 1)
        return functional.gaussian_nll_loss(mean, batch[1], functional.softplus(raw))

    for factor, offset in ((20.0, 0.0), (5.0, -3.0), (1.0, 40.0), (0.05, 0.0)):
        evidence = measure_regression_coverage(Scaled(factor, offset).eval(), images=INPUTS, labels=LABELS)
        assert evidence.verdict is Verdict.NOT_APPLICABLE, (factor, offset, evidence.headline)
    evidence = measure_regression_coverage(Raw().eval(), images=INPUTS, labels=LABELS, loss=softplus, task="regression")
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    half = LABELS.half().float()
    assert measure_regression_coverage(converted(), images=INPUTS, labels=half).verdict is Verdict.PASS
    heavy = teacher()(INPUTS)["mean"].detach() + 0.3 * torch.from_numpy(stats.t(4).rvs((600, 1), random_state=1)) / 1.4
    assert measure_regression_coverage(
        teacher("pair"), images=INPUTS, labels=heavy.float(), output="0", noise=0.3
    ).verdict in (Verdict.PASS, Verdict.WARN)


def calibrated(seed: int, count: int) -> tuple[Normals, Tensor]:
    """Mixtures of any spread, and a number drawn from each."""
    random = torch.Generator().manual_seed(seed)
    between = 10 ** (4 * torch.rand(1, generator=random).double() - 2)
    means = between * torch.randn(4, count, generator=random, dtype=torch.float64)
    deviations = 0.1 + torch.rand(4, count, generator=random, dtype=torch.float64)
    which = torch.randint(4, (count,), generator=random), torch.arange(count)
    drawn = means[which] + deviations[which] * torch.randn(count, generator=random, dtype=torch.float64)
    return Normals(means=means, deviations=deviations), drawn


def rejected(seeds: range, alpha: float, *, sharp: bool) -> int:
    """Count calibrated regressions that fail; where the claim is sharp, nothing but exact calibration is allowed."""
    budget, wrong = Budget(alpha=alpha), 0
    for seed in seeds:
        mixture, drawn = calibrated(seed, 20 + seed % 300)
        found = Standard.of(mixture, drawn, torch.ones_like(drawn), budget)
        band, most = ((1.0, 1.0), 0.0) if sharp else (BAND, MOST_DISTANT)
        wrong += found.surely.outside(*band) or found.surely_apart > most
    return wrong


def test_calibrated_regressions_do_not_fail() -> None:
    """At an error rate of 5 %, of a claim without any room."""
    assert stats.binom.sf(rejected(range(300), 0.05, sharp=True) - 1, 300, 0.05) > 1e-3


@pytest.mark.nightly("10,000 simulated regressions; 300 run in every push")
def test_ten_thousand_calibrated_regressions() -> None:
    """None at the default error rate, and at 5 % no more than that, of a claim without any room."""
    seeds = range(1000, 11000)
    assert rejected(seeds, 1e-6, sharp=True) == 0
    assert rejected(seeds, 0.05, sharp=True) <= 500
    assert rejected(seeds, 0.05, sharp=False) == 0


@pytest.mark.parametrize("trials", [60, pytest.param(2000, marks=pytest.mark.nightly("60 run in every push"))])
def test_a_difference_of_scores_at_its_margin_is_wrong_no_more_often_than_it_says(trials: int) -> None:
    """Labels drawn from the teacher's prediction, and the margin is what is lost in the mean over these."""
    random, wrong = torch.Generator().manual_seed(4), 0
    for seed in range(trials):
        mixture, _ = calibrated(seed, 25)
        its = Normals(
            means=torch.randn(1, 25, generator=random, dtype=torch.float64),
            deviations=0.1 + torch.rand(1, 25, generator=random, dtype=torch.float64),
        )
        drawn = its.means + its.deviations * torch.randn(400, 25, generator=random, dtype=torch.float64)
        each = torch.arange(25).repeat(400)
        gaps = (mixture[each].crps(drawn.flatten()) - its[each].crps(drawn.flatten())).reshape(400, 25)
        radius = hoeffding_radius(ranges_of_difference(mixture, its), 0.05)
        wrong += int(float(gaps[0].mean()) - radius > float(gaps[1:].mean()))
    assert stats.binom.sf(wrong - 1, trials, 0.05) > 1e-3


@pytest.mark.nightly("the figures of docs/checks/regression.coverage.md, of 40 runs each")
def test_power() -> None:
    """At the rates that the check has in an audit of all."""
    budget = Budget().split(17)

    def verdicts(count: int, factor: float, shift: float) -> tuple[int, int]:
        passed = failed = 0
        for seed in range(40):
            z = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            one = torch.ones_like(z)
            predicted = Normals(means=0 * one[None], deviations=one[None])
            found = Standard.of(predicted, factor * z + shift, one, budget)
            failed += found.surely.outside(*BAND) or found.surely_apart > MOST_DISTANT
            passed += found.likely.within(*BAND) and found.likely_apart <= MOST_DISTANT
        return passed, failed

    assert verdicts(360, 1, 0)[0] >= 32
    assert verdicts(1000, 1, 0) == (40, 0)
    assert verdicts(100, 3, 0)[1] == verdicts(100, 1 / 3, 0)[1] == 40
    assert verdicts(360, 2, 0)[1] >= 32
    assert verdicts(360, 0.5, 0)[1] >= 26
    assert verdicts(1000, 0.5, 0)[1] == verdicts(1000, 2, 0)[1] == 40
    assert verdicts(360, 1, 1)[1] >= 34
    assert verdicts(1000, 1, 0.5) == (0, 0)
