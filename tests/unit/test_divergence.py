"""The KL term and its gradient, against torch's own divergence of Gaussians, the library's call and autograd."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bayesian_torch.layers import LSTMReparameterization
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn

import pytest_bnn
from pytest_bnn.conversion import convert
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.training import divergence

SUM, MEAN = "sum", "mean per tensor"


def network(size: int = 700) -> nn.Module:
    """Three kinds of prior: one number, one number for each weight, and a mean alone for each weight."""
    torch.manual_seed(0)
    model: Any = convert(nn.Sequential(nn.Linear(size, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 3)))
    model[2].prior_weight_mu = torch.randn(4, 5)
    model[2].prior_weight_sigma = torch.rand(4, 5) + 0.1
    model[3].prior_weight_mu = torch.randn(3, 4)
    assert isinstance(model, nn.Module)
    return model


def by_torch(model: nn.Module, convention: str) -> Tensor:
    """In float64, by torch.distributions, with its graph."""
    found = []
    for layer in bayesian_layers(model):
        for t in layer.tensors:
            posterior = torch.distributions.Normal(t.mu.double(), torch.log1p(torch.exp(t.rho.double())))
            prior = torch.distributions.Normal(t.prior_mu.double(), t.prior_sigma.double())
            each = torch.distributions.kl_divergence(posterior, prior)
            found.append(each.sum() if convention == SUM else each.mean())
    return torch.stack(found).sum()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("convention", [SUM, MEAN])
def test_value_and_gradient(convention: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    if not compiled:
        monkeypatch.setattr(divergence, "_kernels", lambda: None)
    monkeypatch.setattr(divergence, "_PART", 2048)  # so that a tensor has parts
    value = pytest_bnn.kl(model, convention=convention)
    wanted = by_torch(model, convention)
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    parameters = list(model.parameters())
    found = torch.autograd.grad(3 * value, parameters)
    for one, other in zip(found, torch.autograd.grad(3 * wanted, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))
    with torch.no_grad():
        assert float(pytest_bnn.kl(model, convention=convention)) == pytest.approx(float(value.detach()), rel=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("convention", [SUM, MEAN])
def test_where_sigma_is_known_only_mu_is_read(convention: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number and the same gradient to mu, for every kind of prior, after mu has moved."""
    model = network()
    if not compiled:
        monkeypatch.setattr(divergence, "_kernels", lambda: None)
    monkeypatch.setattr(divergence, "_PART", 2048)
    sigma = pytest_bnn.fixed_sigma(model)
    means = [t.mu for layer in bayesian_layers(model) for t in layer.tensors]
    with torch.no_grad():
        for mu in means:
            mu += torch.randn_like(mu)
    wanted = by_torch(model, convention)
    value = pytest_bnn.kl(model, convention=convention, sigma=sigma)
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    for one, other in zip(torch.autograd.grad(3 * value, means), torch.autograd.grad(3 * wanted, means), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))
    rho = next(p for name, p in model.named_parameters() if "rho" in name)
    pytest_bnn.kl(model, sigma=sigma).backward()
    assert rho.grad is None


def test_the_sigma_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"another network.*fixed_sigma\(model\)"):
        pytest_bnn.kl(network(), sigma=pytest_bnn.fixed_sigma(network()))


def test_the_default_is_the_librarys_term() -> None:
    model = network()
    library = get_kl_loss(model)
    assert library is not None
    assert float(pytest_bnn.kl(model).detach()) == pytest.approx(float(library.detach()), rel=1e-5)


def test_a_layer_inside_a_layer_counts_once() -> None:
    """bayesian-torch's LSTM adds its parts' KL, and ``get_kl_loss`` adds them again (faults.md, A12)."""
    model = LSTMReparameterization(3, 4)
    assert float(pytest_bnn.kl(model).detach()) == pytest.approx(float(by_torch(model, MEAN).detach()), rel=1e-5)


@pytest.mark.parametrize("rho", [-120.0, -90.0, -50.0, 20.0, 86.0, 89.0])
def test_extreme_sigmas(rho: float) -> None:
    """Beyond what the compiled loop takes, torch computes: a sigma of 0 has no finite divergence."""
    model: Any = network()
    with torch.no_grad():
        model[0].rho_weight[0, 0] = rho
        model[0].mu_weight.zero_()
    wanted = float(by_torch(model, SUM).detach())
    found = float(pytest_bnn.kl(model, convention="sum").detach())
    if rho == -120.0:  # float32 has no such sigma
        assert found == float("inf")
    else:
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("rho", "wanted"), [("nan", "nan"), ("-inf", "inf"), ("inf", "nan")])
def test_no_sigma(rho: str, wanted: str) -> None:
    model: Any = network()
    with torch.no_grad():
        model[0].rho_weight[0, 0] = float(rho)
    assert str(float(pytest_bnn.kl(model).detach())) == wanted


def test_other_dtypes_and_frozen_parameters() -> None:
    model: Any = network().double()
    assert pytest_bnn.kl(model).dtype is torch.float64
    assert float(pytest_bnn.kl(model).detach()) == pytest.approx(float(by_torch(model, MEAN).detach()), rel=1e-12)
    frozen: Any = network()
    frozen[0].rho_weight.requires_grad_(False)
    pytest_bnn.kl(frozen).backward()
    assert frozen[0].rho_weight.grad is None
    assert frozen[0].mu_weight.grad is not None
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    assert not pytest_bnn.kl(frozen).requires_grad


def test_without_numba_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest_bnn.sampling.engine.posterior_kernels", None)
    assert float(pytest_bnn.kl(network()).detach()) == pytest.approx(
        float(by_torch(network(), MEAN).detach()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("module", "use"),
    [
        pytest.param(
            *("posterior_kernels", "kl(convert(torch.nn.Linear(2, 2)))"),
            marks=pytest.mark.nightly("two processes that compile; every push has the other module"),
        ),
        ("kernels", "assert make_noise(0)[1]"),
    ],
)
def test_the_compilers_cache_stays_whole_where_a_module_is_blocked(module: str, use: str, tmp_path: Path) -> None:
    """As by the test above. Its package still has it as an attribute; what is compiled then breaks all processes."""
    code = f"""
import sys
import torch
from pytest_bnn import convert, kl
from pytest_bnn.sampling.engine.noise import make_noise
import pytest_bnn.sampling.engine.{module}

sys.modules["pytest_bnn.sampling.engine.{module}"] = None
{use}
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        code = code.replace("= None", "").replace("assert make_noise(0)[1]", "assert not make_noise(0)[1]")


def test_what_it_refuses() -> None:
    for function in (pytest_bnn.kl, pytest_bnn.fixed_sigma):
        with pytest.raises(InputError, match=r"no Bayesian layer.*convert"):
            function(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'mean per tensor' or 'sum', not 'mean'"):
        pytest_bnn.kl(network(), convention="mean")  # type: ignore[arg-type]
