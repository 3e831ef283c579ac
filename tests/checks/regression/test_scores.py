"""``regression.scores``: predictions of numbers are as good as the teacher's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pytest_bnn
from pytest_bnn.checks import measure_regression_scores
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.checks.regression.network import converted, examples, figure, teacher

INPUTS, LABELS = examples(600)


def judged(model: nn.Module, **given: Any) -> Evidence:
    return measure_regression_scores(model, **{"teacher": teacher(), "images": INPUTS, "labels": LABELS, **given})


def test_healthy() -> None:
    """The scores are those of scoringrules, in units of the scale of the teacher's means."""
    scoringrules = pytest.importorskip("scoringrules")
    evidence = judged(converted())
    assert evidence.verdict is Verdict.PASS, evidence.headline
    with torch.no_grad():
        output = teacher()(INPUTS)
    mean, deviation = output["mean"].double()[:, 0], (output["log_variance"].double() / 2).exp()[:, 0]
    scale = float(mean.std())
    its = scoringrules.crps_normal(LABELS[:, 0].double().numpy(), mean.numpy(), deviation.numpy()).mean() / scale
    assert evidence["CRPS of the teacher"] == pytest.approx(its, rel=1e-6)
    error = float((LABELS[:, 0].double() - mean).square().mean().sqrt()) / scale
    assert evidence["root mean square error of the teacher"] == pytest.approx(error, rel=1e-6)
    assert evidence["CRPS of the mean network"] == pytest.approx(its, rel=1e-4)
    assert figure(evidence, "CRPS of one pass") > figure(evidence, "CRPS")


@pytest.mark.parametrize("wrong", [{"shift": 0.8}, {"wider": 8.0}])
def test_worse_than_the_teacher(wrong: dict[str, Any]) -> None:
    evidence = judged(converted(**wrong))
    assert evidence.verdict is Verdict.FAIL, evidence.headline
    assert "The model is worse than its teacher" in evidence.headline


def test_a_posterior_that_drowns_the_prediction() -> None:
    """What it may lose is large, and so is the number of labels that shows that it does."""
    inputs, labels = examples(1600)
    evidence = judged(converted(delta=2.0), images=inputs, labels=labels, max_passes=16)
    assert evidence.verdict is Verdict.FAIL, evidence.headline


def test_numbers_alone() -> None:
    """Without a noise the teacher's score is its absolute error, and with one it is that of a normal distribution."""
    torch.manual_seed(3)
    x = torch.randn(300, 4)
    network = nn.Sequential(nn.Linear(4, 1)).eval()
    y = network(x).detach() + 0.3 * torch.randn(300, 1)
    bnn = pytest_bnn.convert(network, moped_delta=0.01)
    bare = judged(bnn, teacher=network, images=x, labels=y)
    scale = float(network(x).detach().double().std())
    absolute = float((y - network(x)).detach().abs().mean()) / scale
    assert bare["CRPS of the teacher"] == pytest.approx(absolute, rel=1e-5)
    assert bare.verdict is Verdict.PASS, bare.headline
    noisy = judged(bnn, teacher=network, images=x, labels=y, noise=0.3)
    assert figure(noisy, "CRPS of the teacher") < absolute
    assert noisy.verdict is Verdict.PASS, noisy.headline


def test_too_few_labels_say_how_many() -> None:
    """Whichever way it goes."""
    for model in (converted(delta=0.15), converted(shift=0.2)):
        evidence = judged(model, images=INPUTS[:60], labels=LABELS[:60])
        assert evidence.verdict is Verdict.WARN, evidence.headline
        assert "60 labels are too few to decide" in evidence.headline
        assert int(evidence.remedy.split()[2]) > 60


class OnlyMean(nn.Module):
    """A teacher that gives the mean alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)["mean"]


def test_a_teacher_without_a_variance() -> None:
    """Its score is its absolute error, which a head that knows its noise beats."""
    evidence = judged(converted(), teacher=OnlyMean(teacher()).eval())
    assert evidence.verdict is Verdict.PASS, evidence.headline
    assert figure(evidence, "difference") < -0.05


def test_another_teacher() -> None:
    torch.manual_seed(0)
    other = nn.Linear(2, 5).eval()
    evidence = judged(converted(), teacher=other)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "The teacher's outputs are not those of the model" in evidence.headline


def test_classes() -> None:
    evidence = judged(nn.Linear(2, 3), teacher=nn.Linear(2, 3), labels=torch.arange(600) % 3)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "the task is classification" in evidence.headline
