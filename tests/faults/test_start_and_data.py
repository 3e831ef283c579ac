"""``posterior.start`` and ``data.sane``: what was loaded and trained, and what the data can carry (B28 to B35)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.checks import (
    measure_data_sane,
    measure_mean_equals_teacher,
    measure_posterior_start,
    measure_teacher_agreement,
)
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Verdict
from tests.faults.injectors import patient

Bare = Callable[..., nn.Module]


@pytest.fixture(params=["Reparameterization", "Flipout"])
def bare(request: pytest.FixtureRequest) -> Bare:
    """The library's own conversion under one estimator."""
    return partial(patient.bare, estimator=request.param)


@pytest.fixture
def network(trained: Mapping[str, nn.Module]) -> nn.Module:
    return deepcopy(trained["residual"])


def taught(model: nn.Module, batch: tuple[Tensor, Tensor], only: str = "") -> nn.Module:
    """Take a few steps on held-out images, in eval mode as somebody who keeps BatchNorm does."""
    optimizer = torch.optim.Adam([p for name, p in model.named_parameters() if only in name], 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.fault("B28", "posterior.start")
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_checkpoint_whose_keys_match_nothing(
    network: nn.Module, bare: Bare, batch: tuple[Tensor, Tensor], prefix: str
) -> None:
    state = {f"{prefix}{name}": value for name, value in taught(bare(network), batch).state_dict().items()}
    served = bare(network)
    served.load_state_dict(state, strict=False)
    found = measure_posterior_start(served, teacher=network, stage="finetuned")
    assert found.verdict is Verdict.FAIL
    assert "declared finetuned" in found.headline
    assert "fresh conversion" in found.headline
    served.load_state_dict({name.removeprefix(prefix): value for name, value in state.items()})
    assert measure_posterior_start(served, teacher=network, stage="finetuned").verdict is Verdict.PASS


@pytest.mark.fault("B29", "posterior.start")
def test_one_layer_that_a_checkpoint_calls_otherwise(
    network: nn.Module, bare: Bare, batch: tuple[Tensor, Tensor]
) -> None:
    state = taught(bare(network), batch).state_dict()
    inner = next(layer for layer in bayesian_layers(bare(network)) if layer.path != "head" and layer.weights > 500).path
    served = bare(network, moped=False)
    served.load_state_dict({k: v for k, v in state.items() if not k.startswith(f"{inner}.")}, strict=False)
    found = measure_posterior_start(served, teacher=network, images=batch[0])
    assert found.verdict is Verdict.FAIL
    assert {layer.path for layer in found.layers} == {inner}
    served.load_state_dict(state)
    assert measure_posterior_start(served, teacher=network, images=batch[0]).verdict is Verdict.PASS


@pytest.mark.fault("B30", "posterior.start")
def test_an_optimizer_that_got_the_means_alone(network: nn.Module, bare: Bare, batch: tuple[Tensor, Tensor]) -> None:
    found = measure_posterior_start(taught(bare(network), batch, only="mu"), teacher=network)
    assert found.verdict is Verdict.WARN
    assert "Rho was never trained" in found.headline


@pytest.mark.fault("B31", "posterior.start")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_of_mu_and_sigma_in_different_orders(network: nn.Module, bare: Bare, dtype: torch.dtype) -> None:
    model = bare(network).to(dtype)
    weight = next(t for layer in bayesian_layers(model) for t in layer.tensors if t.count > 500)
    assert measure_posterior_start(model).verdict is Verdict.PASS
    with torch.no_grad():
        weight.rho.copy_(weight.rho.roll(1, 0))
    found = measure_posterior_start(model)
    assert found.verdict is Verdict.FAIL
    assert found.layers[0].path == weight.path


@pytest.mark.fault("B32", "mean.equals_teacher")
def test_the_checkpoint_after_the_best_one(network: nn.Module, bare: Bare, batch: tuple[Tensor, Tensor]) -> None:
    """What was converted is another network than the one that was validated: fresh, and not this teacher's."""
    last = taught(deepcopy(network), batch)
    model = bare(last)
    start = measure_posterior_start(model, teacher=network)
    assert start.verdict is Verdict.PASS
    assert "fresh conversion" in start.headline
    assert measure_mean_equals_teacher(model, teacher=network, images=batch[0]).verdict is Verdict.FAIL


class Reader(nn.Module):
    """Tells four classes by the sign of two numbers, surely; far from what it was made for it says one class."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 4)
        corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        with torch.no_grad():
            self.first.weight.copy_(4 * corners)
            self.first.bias.zero_()
            self.last.weight.copy_(4 * torch.eye(4) + 0.01)
            self.last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x)))
        return out


def points(n: int = 400) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return x, 2 * (x[:, 0] < 0).long() + (x[:, 1] < 0).long()


def sane(x: Tensor, y: Tensor | None) -> Any:
    teacher = Reader()
    return measure_data_sane(convert(teacher), teacher=teacher, images=x, labels=y)


@pytest.mark.fault("B33", "data.sane")
def test_examples_without_the_normalisation_of_the_training() -> None:
    x, y = points()
    assert sane(x, y).verdict is Verdict.PASS
    raw = sane(x + 40, y)
    assert raw.verdict is Verdict.FAIL
    assert "says class 0 for 400 of 400 examples and is sure of it" in raw.headline
    assert "normalisation" in raw.remedy


@pytest.mark.fault("B34", "data.sane")
def test_classes_in_another_order_than_the_outputs() -> None:
    x, y = points()
    found = sane(x, torch.tensor([0, 2, 1, 3])[y])
    assert found.verdict is Verdict.FAIL
    assert "its 1 is the labels' 2, its 2 is the labels' 1" in found.headline


@pytest.mark.fault("B35", "data.sane")
def test_a_population_that_is_one_example() -> None:
    x, _ = points(1)
    copies = x.repeat(128, 1)
    assert sane(copies, None).verdict is Verdict.WARN
    teacher = Reader()
    found = measure_teacher_agreement(
        convert(teacher), teacher=teacher, images=copies, task="classification", population=True
    )
    assert found.verdict is Verdict.NOT_APPLICABLE
    assert "one image" in found.headline
