"""Faults of what a network says: too sure, not sure enough, sure of the wrong things. Each beside its healthy twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn import checks, convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.subject import Subject
from tests.checks.predicting import following, generator

EXAMPLES, CLASSES = 1500, 5


def teacher() -> Any:
    """Scores whose size grows with that of the input, so that small inputs leave it unsure."""
    network: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = nn.Sequential(nn.Linear(8, 48, bias=False), nn.ReLU(), nn.Linear(48, CLASSES))
    with torch.no_grad():
        network[2].weight.mul_(5)
        network[2].bias.zero_()
    return network.eval()


def inputs(count: int = EXAMPLES, size: float = 3.0, seed: int = 0) -> Tensor:
    return size * torch.randn(count, 8, generator=generator(seed))


def bayesian(delta: float = 0.03) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return convert(teacher(), moped_delta=delta)


class Then(nn.Module):
    """A network whose outputs are changed, knowing its inputs."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.network(x), x)


def given(**changed: Any) -> dict[str, Any]:
    """Examples with labels that follow the teacher, and inputs from outside, of which it is unsure."""
    images = inputs()
    with torch.no_grad():
        labels = following(teacher()(images))
    return {"images": images, "labels": labels, "ood": inputs(400, 0.2, seed=7), **changed}


MEASURES: dict[str, Callable[..., Evidence]] = {
    "calibration.temperature": checks.measure_calibration_temperature,
    "calibration.classes": checks.measure_calibration_classes,
    "scores.against_teacher": checks.measure_scores_against_teacher,
    "uncertainty.ood": checks.measure_uncertainty_ood,
}


def failing(model: nn.Module, **arguments: Any) -> dict[str, Evidence]:
    """Return what fails of the four claims, beside the teacher where one is given."""
    subject = Subject(model, **arguments)
    found = {id: measure(subject) for id, measure in MEASURES.items()}
    return {id: evidence for id, evidence in found.items() if evidence.verdict is Verdict.FAIL}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_healthy_network_passes_all_four(threads: int) -> None:
    """The twin of every fault here, with one thread and with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        subject = Subject(bayesian(), teacher=teacher(), **given())
        found = {id: measure(subject) for id, measure in MEASURES.items()}
    finally:
        torch.set_num_threads(before)
    assert {id: e.verdict for id, e in found.items()} == dict.fromkeys(MEASURES, Verdict.PASS), found


@pytest.mark.fault("B54", "calibration.temperature")
@pytest.mark.parametrize("factor", [4.0, 3.0])
def test_scores_times_a_factor(factor: float) -> None:
    found = failing(Then(bayesian(), lambda scores, _: factor * scores), **given())
    assert found.keys() == {"calibration.temperature"}
    assert "too sure of itself" in found["calibration.temperature"].headline


@pytest.mark.fault("B55", "calibration.temperature")
def test_scores_divided_by_a_factor() -> None:
    found = failing(Then(bayesian(), lambda scores, _: scores / 3), **given())
    assert found.keys() == {"calibration.temperature"}
    assert "less sure of itself than it may be" in found["calibration.temperature"].headline
    assert "a temperature left in the head" in found["calibration.temperature"].remedy


@pytest.mark.fault("B56", "calibration.temperature")
def test_a_softmax_that_is_applied_twice() -> None:
    """Once is a head that gives probabilities, and is read as that."""
    twice = failing(Then(bayesian(), lambda scores, _: scores.softmax(1).softmax(1)), **given())
    assert "calibration.temperature" in twice
    assert "less sure of itself than it may be" in twice["calibration.temperature"].headline
    assert "a softmax that is applied twice" in twice["calibration.temperature"].remedy
    assert failing(Then(bayesian(), lambda scores, _: scores.softmax(1)), **given()) == {}


class Averaged(nn.Module):
    """Several passes in one: the mean of their scores, or of their probabilities."""

    def __init__(self, network: nn.Module, *, of_scores: bool, passes: int = 32) -> None:
        super().__init__()
        self.network, self.of_scores, self.passes = network, of_scores, passes

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.stack([self.network(x) for _ in range(self.passes)])
        return scores.mean(0) if self.of_scores else scores.softmax(2).mean(0)


class Wide(nn.Module):
    """Scores with one draw of noise for all examples of a pass, as the posterior of a wide last layer has it."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x + self.size * torch.randn_like(x)


@pytest.mark.fault("B57", "calibration.temperature")
def test_scores_that_are_averaged_where_probabilities_should_be() -> None:
    """Where passes differ much: the mean score is surer than any mean of what they say. Labels follow the latter."""
    images, size = 4 * torch.randn(1500, 3, generator=generator(4)), 9.0
    drawn = images + size * torch.randn(512, 1500, 3, generator=generator(5))
    labels = torch.multinomial(drawn.softmax(2).mean(0), 1, generator=generator(6))[:, 0]
    for of_scores, expected in ((True, Verdict.FAIL), (False, Verdict.PASS)):
        model = Averaged(Wide(size), of_scores=of_scores)
        evidence = checks.measure_calibration_temperature(model, images=images, labels=labels)
        assert evidence.verdict is expected, evidence.explain()


@pytest.mark.fault("B58", "calibration.classes")
def test_one_class_is_confused() -> None:
    """Its row of the head lost four units of score to the others: right on average, wrong in this one."""
    model = bayesian()
    with torch.no_grad():
        bayesian_layers(model)[-1].module.get_parameter("mu_bias")[1] -= 5
    found = failing(model, **given())
    assert found.keys() == {"calibration.classes"}
    assert "The model predicts class 1 too rarely" in found["calibration.classes"].headline


@pytest.mark.fault("B59", "data.sane")
@pytest.mark.parametrize("shift", [lambda y: y.roll(1), lambda y: (y + 1) % CLASSES], ids=["rows", "classes"])
def test_labels_that_are_shifted_by_one(shift: Callable[[Tensor], Tensor]) -> None:
    """Nobody knows such labels, which is no matter of how sure one is."""
    shifted = given()
    shifted["labels"] = shift(shifted["labels"])
    sane = checks.measure_data_sane(bayesian(), teacher=teacher(), images=shifted["images"], labels=shifted["labels"])
    assert sane.verdict in (Verdict.FAIL, Verdict.WARN), sane.explain()
    for id in ("calibration.temperature", "calibration.classes", "scores.against_teacher"):
        evidence = MEASURES[id](bayesian(), teacher=teacher(), **shifted)
        assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.explain()
        assert "see data.sane" in evidence.headline


@pytest.mark.fault("B60", "noise.varies", "noise.spread")
def test_a_posterior_that_collapsed_in_training() -> None:
    """The predictions of one network: as well calibrated as that is, so that only the checks of noise see it."""
    model = bayesian()
    with torch.no_grad():
        for layer in bayesian_layers(model):
            for tensor in layer.tensors:
                tensor.rho.fill_(-25.0)
    assert checks.measure_noise_varies(model, images=inputs(32)).verdict is Verdict.FAIL
    assert checks.measure_noise_spread(model, images=inputs(32)).verdict is Verdict.FAIL
    assert failing(model, **given()) == {}


@pytest.mark.fault("B61", "uncertainty.ood")
def test_uncertainty_that_is_reversed() -> None:
    """Scores are set to one size, and the larger the input was, the smaller that is."""

    def reversed_(scores: Tensor, x: Tensor) -> Tensor:
        sizes: Tensor = 12 / (0.5 + x.norm(dim=1, keepdim=True)) / scores.norm(dim=1, keepdim=True)
        return scores * sizes

    evidence = checks.measure_uncertainty_ood(Then(bayesian(), reversed_), **given())
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "the wrong way round" in evidence.headline


@pytest.mark.fault("B62", "uncertainty.ood")
def test_an_entropy_that_is_constant() -> None:
    """The order of the classes alone is said, with the same probabilities for each input."""
    fixed = torch.tensor([0.75, 0.12, 0.06, 0.04, 0.03]).log()

    def blind(scores: Tensor, _: Tensor) -> Tensor:
        return fixed[scores.argsort(1, descending=True).argsort(1)]

    evidence = checks.measure_uncertainty_ood(Then(bayesian(0.001), blind), **given())
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "hardly" in evidence.headline
    inherited = checks.measure_uncertainty_ood(Then(bayesian(0.001), blind), teacher=Then(teacher(), blind), **given())
    assert inherited.verdict is Verdict.WARN, inherited.explain()


@pytest.mark.fault("B63", "scores.against_teacher")
def test_a_spread_that_costs_what_the_teacher_knew() -> None:
    """The mean over passes says less than the teacher, whatever it agrees on."""
    evidence = checks.measure_scores_against_teacher(bayesian(1.5), teacher=teacher(), **given())
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "The model is worse than its teacher" in evidence.headline
    assert "a smaller spread" in evidence.remedy
