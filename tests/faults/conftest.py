"""Healthy patients for the injectors: two small networks that know the digits, and one audit of all checks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn import checks
from pytest_bnn.checks import registry
from pytest_bnn.checks.noise.spread import BAND
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.recorder import Recorder, recording
from pytest_bnn.subject import Subject
from tests.faults.injectors import patient
from tests.faults.injectors.networks import NETWORKS, Network, sure_of, train


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(id, *checks): injects a row of faults.md, which these checks accuse")


#: Each small network, and each estimator, is in every push; the other pairs of them wait.
PUSH = {("residual", "Reparameterization"), ("plain", "Flipout")}
OTHERS = {(network, estimator) for network in NETWORKS for estimator in patient.ESTIMATORS} - PUSH
HERE = Path(__file__).parent
LATER = pytest.mark.nightly("each network, and each estimator, runs in every push; this pair of them does not")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave half of the pairs of a network and an estimator to the nightly tier, before it is told apart."""
    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {})
        pair = values.get("teacher"), values.get("estimator")
        if item.path.is_relative_to(HERE) and all(isinstance(name, str) for name in pair) and pair in OTHERS:
            item.add_marker(LATER)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """What a test's ``fault`` marks claim is what its checks found: each named check accused something."""
    marks = list(item.iter_markers("fault"))
    if not marks:
        return (yield)
    with recording(Recorder()) as recorder:
        result = yield
    accusing = (Verdict.FAIL, Verdict.WARN, Verdict.INCONCLUSIVE)
    found = {evidence.id for evidence in recorder.checks if evidence.verdict in accusing}
    claimed = {check for mark in marks for check in mark.args[1:]}
    assert claimed <= found, f"no evidence that {', '.join(sorted(claimed - found))} sees {marks[0].args[0]}"
    return result


@pytest.fixture(scope="session")
def trained(once: Callable[[str, Callable[[], Any]], Any]) -> Mapping[str, nn.Module]:
    """Both networks, briefly trained, so that their predictions are confident; never hand one out uncopied."""
    states = once("trained", lambda: {name: network.state_dict() for name, network in train().items()})
    networks: dict[str, nn.Module] = {name: Network(residual=name == "residual").eval() for name in NETWORKS}
    for name, network in networks.items():
        network.load_state_dict(states[name])
    return networks


@pytest.fixture(scope="session")
def batch(trained: Mapping[str, nn.Module]) -> tuple[Tensor, Tensor]:
    """Held-out images, with labels, of which both networks are sure: agreement can be decided on every one."""
    return sure_of(trained)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """What a test draws (new layers, traced noise) is the same in every run and in every order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        yield


@pytest.fixture(params=["residual", "plain"])
def teacher(request: pytest.FixtureRequest, trained: Mapping[str, nn.Module]) -> nn.Module:
    return deepcopy(trained[request.param])


@pytest.fixture(params=["Reparameterization", "Flipout"])
def estimator(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def bare() -> Callable[..., nn.Module]:
    """The library's own conversion of a copy, with nothing of ours around it."""
    return patient.bare


@pytest.fixture(scope="session")
def measures() -> Mapping[str, Callable[..., Evidence]]:
    return {
        "layers.replaced": checks.measure_layers_replaced,
        "memory.separate": checks.measure_memory_separate,
        "posterior.start": checks.measure_posterior_start,
        "mean.equals_teacher": checks.measure_mean_equals_teacher,
        "noise.varies": checks.measure_noise_varies,
        "noise.source": checks.measure_noise_source,
        "noise.spread": checks.measure_noise_spread,
        "noise.posterior": checks.measure_noise_posterior,
        "noise.fresh": checks.measure_noise_fresh,
        "estimator.flipout": checks.measure_estimator_flipout,
        "kl.present": checks.measure_kl_present,
        "kl.loss": checks.measure_kl_loss,
        "gradient.samples": checks.measure_gradient_samples,
        "loss.data": checks.measure_loss_data,
        "data.sane": checks.measure_data_sane,
        "teacher.agreement": checks.measure_teacher_agreement,
        "calibration.temperature": checks.measure_calibration_temperature,
        "calibration.classes": checks.measure_calibration_classes,
        "scores.against_teacher": checks.measure_scores_against_teacher,
        "uncertainty.ood": checks.measure_uncertainty_ood,
        "uncertainty.errors": checks.measure_uncertainty_errors,
        "uncertainty.shift": checks.measure_uncertainty_shift,
        "slices.temperature": checks.measure_slices_temperature,
        "slices.scores": checks.measure_slices_scores,
        "regression.coverage": checks.measure_regression_coverage,
        "regression.scores": checks.measure_regression_scores,
        "predictions.rows": checks.measure_predictions_rows,
        "teacher.tensors": checks.measure_teacher_tensors,
    }


@pytest.fixture(scope="session")
def audit(measures: Mapping[str, Callable[..., Evidence]]) -> Callable[..., dict[str, Evidence]]:
    """Run checks, all unless some are named, on one subject."""

    def run(
        model: nn.Module,
        *,
        only: tuple[str, ...] = (),
        num_batches: int | None = None,
        kl_weight: float | None = None,
        band: tuple[float, float] = BAND,
        **given: Any,
    ) -> dict[str, Evidence]:
        subject = Subject(model, **given)
        # Each has a file of its own: it warns of every Flipout convolution of the library; a few images decide nothing
        # about predictions.
        by_default = [id for id in measures if id != "estimator.flipout" and not registry.load(id).declaration.of_data]
        options: dict[str, dict[str, Any]] = {
            "kl.loss": {"num_batches": num_batches, "kl_weight": kl_weight},
            "noise.spread": {"band": band},
        }
        return {id: measures[id](subject, **options.get(id, {})) for id in only or by_default}

    return run
