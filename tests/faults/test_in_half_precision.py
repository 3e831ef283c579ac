"""What rounding hides in half precision is not taken for a fault, and what shows all the same is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert
from pytest_bnn.checks import (
    measure_loss_data,
    measure_mean_equals_teacher,
    measure_noise_posterior,
    measure_posterior_start,
)
from pytest_bnn.libraries.alignment import stage_of
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.subject import Subject

HALF = torch.bfloat16


def network(dtype: torch.dtype = HALF, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).to(dtype).eval()


def trained(model: nn.Module, steps: int, rate: float, kind: str) -> nn.Module:
    torch.manual_seed(7)
    optimizer: Any = torch.optim.AdamW if kind == "AdamW" else torch.optim.SGD
    optimizer = optimizer(model.parameters(), lr=rate)
    x, y = torch.randn(24, 6), torch.arange(24) % 3
    x = x.to(next(model.parameters()).dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        (functional.cross_entropy(model(x), y) + get_kl_loss(model) / 30).backward()
        optimizer.step()
    return model.eval()


def changed(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for layer in bayesian_layers(model):
            layer.tensors[0].mu.mul_(factor)
    return model


# --- a few steps, of which sigma tells nothing ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["Reparameterization", "Flipout"])
@pytest.mark.parametrize(("steps", "rate", "kind"), [(1, 0.01, "AdamW"), (3, 0.01, "AdamW"), (4, 0.1, "SGD")])
def test_a_few_steps_are_not_taken_for_another_weight(steps: int, rate: float, kind: str, how: Any) -> None:
    """Sigma's share of abs(mu) is known to a tenth in bfloat16: it cannot show that no step was taken."""
    subject = Subject(
        trained(convert(network(), type=how, moped_delta=0.05), steps, rate, kind),
        teacher=network(),
        images=torch.randn(24, 6).to(HALF),
    )
    assert subject.stage in ("unknown", "finetuned")
    for evidence in (measure_mean_equals_teacher(subject), measure_posterior_start(subject)):
        assert evidence.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE), evidence.explain()
        if evidence.verdict is Verdict.NOT_APPLICABLE and subject.stage == "unknown":
            assert "--stage" in f"{evidence.headline} {evidence.remedy}"


@pytest.mark.parametrize("seed", range(3))
def test_small_biases_that_few_steps_moved_far_are_not_another_network_s(seed: int) -> None:
    """Steps of one size move a small bias by a third, and weights by what sigma does not show."""
    torch.manual_seed(seed)
    teacher = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
    with torch.no_grad():
        for parameter in teacher.parameters():
            size = 0.3 + torch.rand_like(parameter)
            parameter.copy_(torch.randn_like(parameter).sign() * size * (1.0 if parameter.ndim > 1 else 0.1))
    teacher = teacher.to(HALF).eval()
    model = convert(teacher, moped_delta=0.05)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter).sign())
    subject = Subject(model, teacher=teacher, images=torch.randn(24, 6).to(HALF))
    assert subject.stage == "unknown"
    evidence = measure_mean_equals_teacher(subject)
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    evidence = measure_posterior_start(subject)
    assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.explain()
    assert "rounding hides whether sigma was trained" in evidence.headline
    assert "--stage" in evidence.headline


def test_steps_of_plain_descent_that_are_tiny_are_not_either() -> None:
    """In float32 sigma moves by less than its rounding where mu moves by a few units of its own."""
    model = trained(convert(network(torch.float32), moped_delta=0.05), 3, 1e-5, "SGD")
    evidence = measure_mean_equals_teacher(model, teacher=network(torch.float32), images=torch.randn(24, 6))
    assert evidence.verdict is not Verdict.FAIL, evidence.explain()


@pytest.mark.parametrize("dtype", [HALF, torch.float32, torch.float64])
def test_what_no_step_does_is_held_to_the_teacher_all_the_same(dtype: torch.dtype) -> None:
    """Another network's conversion, weights that a mask lost, a conversion that was cast: judged as converted."""
    assert stage_of(convert(network(dtype)), network(dtype)) == "converted"
    assert stage_of(convert(network(torch.float32)).to(dtype), network(dtype)) == "converted"
    assert stage_of(convert(network(dtype)).to(torch.float32), network(torch.float32)) == "converted"
    pruned: Any = network(dtype)
    with torch.no_grad():
        pruned[0].weight[pruned[0].weight.abs() < 0.1] = 0
    assert stage_of(convert(pruned), network(dtype)) == "converted"
    images = torch.randn(24, 6).to(dtype)
    other = measure_mean_equals_teacher(convert(network(dtype, seed=1)), teacher=network(dtype), images=images)
    assert other.verdict is Verdict.FAIL, other.explain()


@pytest.mark.parametrize("factor", [1.01, 0.9, 1.5])
def test_in_full_precision_a_mean_that_was_scaled_is_still_found(factor: float) -> None:
    model, images = changed(convert(network(torch.float32)), factor), torch.randn(24, 6)
    evidence = measure_mean_equals_teacher(model, teacher=network(torch.float32), images=images)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()


# --- one entry alone ------------------------------------------------------------------------------------------------


def of_one_entry() -> nn.Module:
    """Make a model in which one entry alone has a sigma above the rounding of its mu."""
    made = convert(network(), moped_delta=0.05)
    with torch.no_grad():
        for layer in bayesian_layers(made):
            for tensor in layer.tensors:
                tensor.mu_parameter.fill_(1.0)
                tensor.rho_parameter.fill_(-5.0)
        first = bayesian_layers(made)[0].tensors[0]
        first.mu_parameter[0, 0] = 0.0
        first.rho_parameter[0, 0] = -2.0
    return made


def test_one_entry_that_can_be_judged_is_no_fault() -> None:
    """There is nothing within the tensor, and no pair of draws, to compare: no p-value is 0 for want of a test."""
    evidence = measure_noise_posterior(of_one_entry(), images=torch.randn(4, 6).to(HALF))
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert evidence["share of weights left out"] == pytest.approx(92 / 93, abs=0.02)


# --- rows that are sure of a class ----------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [2.0, 4.0, 5.0, 6.0, 8.0, 12.0])
@pytest.mark.parametrize("dtype", [HALF, torch.float32])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_a_pull_that_is_rounding_goes_no_way(margin: float, dtype: torch.dtype, with_teacher: bool) -> None:
    """A share just below 1 is known to a two-hundredth in bfloat16, so that the pull on its score is rounding."""
    teacher: Any = nn.Sequential(nn.Linear(6, 3)).eval()
    with torch.no_grad():
        torch.manual_seed(1)
        teacher[0].weight.normal_(0, 0.3)
        teacher[0].weight[:, :3] += margin * torch.eye(3)
        teacher[0].bias.zero_()
    labels = torch.arange(24) % 3
    images = functional.one_hot(labels, 6).float() + 0.2 * torch.randn(24, 6)
    teacher = teacher.to(dtype)
    model = convert(teacher, moped_delta=0.05)
    given: dict[str, Any] = {"images": images.to(dtype), "labels": labels, "teacher": teacher if with_teacher else None}

    def loss(sign: float) -> Any:
        def value(model: nn.Module, batch: Any) -> Tensor:
            out = model(batch[0]).log_softmax(1)
            found: Tensor = sign * functional.nll_loss(out, batch[1]) + get_kl_loss(model) / 30
            return found

        return value

    found = measure_loss_data(model, loss=loss(1.0), **given)
    assert found.verdict is Verdict.PASS, found.explain()
    if margin <= 2.0 and dtype is torch.float32:
        assert measure_loss_data(model, loss=loss(-1.0), **given).verdict is Verdict.FAIL
