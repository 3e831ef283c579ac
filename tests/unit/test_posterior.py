"""KL, its gradient and the ways to silence a posterior, against torch.distributions, autograd and the plain network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
import torchvision
from bayesian_torch.layers import LinearReparameterization, LSTMReparameterization
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.overrides import TorchFunctionMode
from torchvision.models.feature_extraction import create_feature_extractor

from pytest_bnn.conversion import convert
from pytest_bnn.libraries import posterior
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers

ESTIMATORS = ("Reparameterization", "Flipout")


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def inputs() -> Tensor:
    return torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(1))


def free_tensor(mu: Tensor, rho: Tensor, prior_mu: float, prior_sigma: float) -> PosteriorTensor:
    """A posterior tensor of its own, in double precision, owned by a bare module."""
    module = nn.Module()
    module.mu_weight, module.rho_weight = nn.Parameter(mu), nn.Parameter(rho)
    module.register_buffer("eps_weight", torch.zeros_like(mu))
    module.register_buffer("prior_weight_mu", torch.full_like(mu, prior_mu))
    module.register_buffer("prior_weight_sigma", torch.full_like(mu, prior_sigma))
    return PosteriorTensor(
        "a.b", "weight", module, "mu_weight", "rho_weight", "eps_weight", "prior_weight_mu", "prior_weight_sigma"
    )


def true_kl(mu: Tensor, rho: Tensor, prior_mu: Tensor, prior_sigma: Tensor) -> Tensor:
    """torch's own KL of two Gaussians, with sigma by the definition log(1 + exp(rho))."""
    return kl_divergence(Normal(mu, torch.log1p(torch.exp(rho))), Normal(prior_mu, prior_sigma))


numbers = st.floats(-10, 10, allow_subnormal=False)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(numbers, st.floats(-30, 10)), min_size=1, max_size=8), numbers, st.floats(0.01, 100))
def test_kl_and_its_gradient_are_those_of_torch_distributions(
    entries: list[tuple[float, float]], prior_mu: float, prior_sigma: float
) -> None:
    """The closed form behind every KL check, from collapsed to very wide posteriors."""
    mu = torch.tensor([m for m, _ in entries], dtype=torch.float64, requires_grad=True)
    rho = torch.tensor([r for _, r in entries], dtype=torch.float64, requires_grad=True)
    tensor = free_tensor(mu.detach().clone(), rho.detach().clone(), prior_mu, prior_sigma)
    expected = true_kl(mu, rho, tensor.prior_mu, tensor.prior_sigma).sum()
    expected.backward()
    assert tensor.kl_sum() == pytest.approx(float(expected.detach()), rel=1e-9, abs=1e-9)
    to_mu, to_rho = tensor.kl_gradient("mu"), tensor.kl_gradient("rho")
    assert mu.grad is not None
    assert rho.grad is not None
    torch.testing.assert_close(to_mu, mu.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(to_rho, rho.grad, rtol=1e-7, atol=1e-9)
    assert to_mu.dtype == to_rho.dtype == torch.float64


def test_kl_is_zero_at_the_prior_and_the_gradient_vanishes_there() -> None:
    """An exact zero of the formula: any lost constant shows."""
    rho = torch.log(torch.expm1(torch.full((3,), 0.7, dtype=torch.float64)))
    tensor = free_tensor(torch.full((3,), 0.2, dtype=torch.float64), rho, 0.2, 0.7)
    assert tensor.kl_sum() == pytest.approx(0, abs=1e-12)
    for gradient in (tensor.kl_gradient("mu"), tensor.kl_gradient("rho")):
        torch.testing.assert_close(gradient, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_converted_networks_kl_is_the_sum_of_means(estimator: Any) -> None:
    """The library's convention (FAULTS A11) and reading of ``prior_sigma`` as a standard deviation (A10)."""
    model = convert(network(), type=estimator, prior_mu=0.3, prior_sigma=0.5)
    expected, total = torch.zeros((), dtype=torch.float64), 0.0
    for layer in bayesian_layers(model):
        for tensor in layer.tensors:
            prior = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
            values = true_kl(tensor.mu.detach().double(), tensor.rho.detach().double(), *prior)
            assert tensor.kl_sum() == pytest.approx(float(values.sum()), rel=1e-6)
            expected, total = expected + values.mean(), total + float(layer.kl().detach()) / len(layer.tensors)
    found = posterior.kl(model)
    assert found is not None
    assert found.requires_grad
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert float(sum(layer.kl().detach() for layer in bayesian_layers(model))) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_a_deterministic_network_has_no_kl() -> None:
    """None, not 0: the difference between nothing and a perfect fit (FAULTS A13)."""
    assert posterior.kl(network()) is None
    assert bayesian_layers(network()) == ()
    assert posterior.orphaned_posteriors(network()) == ()
    assert posterior.counted_twice(network()) == ()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_layers_are_found_with_path_kind_and_tensors(estimator: Any) -> None:
    """In the order of named_modules; counts are those of the plain network's layers."""
    plain = network()
    layers = bayesian_layers(convert(plain, type=estimator))
    assert [(layer.path, layer.kind, layer.estimator) for layer in layers] == [
        ("0", "Conv2d", estimator),
        ("4", "Linear", estimator),
    ]
    assert [[tensor.name for tensor in layer.tensors] for layer in layers] == [["0.weight"], ["4.weight", "4.bias"]]
    assert [layer.weights for layer in layers] == [3 * 2 * 9, 27 * 4 + 4]
    assert [tensor.count for layer in layers for tensor in layer.tensors] == [54, 108, 4]


def test_a_layer_used_at_two_places_counts_once() -> None:
    """Its weights exist once, so its KL and its share must too."""
    layer = LinearReparameterization(2, 2)
    found = bayesian_layers(nn.ModuleDict({"one": layer, "two": nn.Sequential(layer)}))
    assert [(item.path, item.module is layer) for item in found] == [("one", True)]


def test_a_layer_alone_and_a_subclass_are_layers_too() -> None:
    """Hand-made models hold layers that no conversion made, at the root even, under names of their own."""

    class Mine(LinearReparameterization):  # type: ignore[misc]
        pass

    (found,) = bayesian_layers(Mine(2, 3))
    assert (found.path, found.kind, found.estimator) == ("", "Mine", "own")
    assert [tensor.name for tensor in found.tensors] == ["weight", "bias"]


def test_an_lstm_is_its_two_inner_layers_counted_twice() -> None:
    """The library's LSTM adds up its children's KL, and get_kl_loss adds the children again (FAULTS A12)."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"lstm": LSTMReparameterization(3, 4), "head": LinearReparameterization(4, 2)})
    assert [layer.path for layer in bayesian_layers(model)] == ["lstm.ih", "lstm.hh", "head"]
    assert posterior.counted_twice(model) == ("lstm.ih", "lstm.hh")
    assert posterior.counted_twice(LSTMReparameterization(3, 4)) == ("ih", "hh")
    assert posterior.counted_twice(convert(network())) == ()
    once = sum(float(layer.kl().detach()) for layer in bayesian_layers(model))
    twice = sum(float(layer.kl().detach()) for layer in bayesian_layers(model) if layer.path.startswith("lstm."))
    found = posterior.kl(model)
    assert found is not None
    assert float(found.detach()) == pytest.approx(once + twice, rel=1e-5)
    assert posterior.is_bayesian(model["lstm"])


class WeightsSeen(TorchFunctionMode):
    """Collects the weights with which linear and convolution functions are really called."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.functional.linear, nn.functional.conv2d):
            self.weights.append((args[1] if len(args) > 1 else kwargs["weight"]).detach().clone())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_zero_sigma_runs_on_mu_to_the_bit(estimator: Any) -> None:
    """Every weight that reaches a linear or convolution function is mu; Flipout's second one is exactly 0."""
    model = convert(network(), type=estimator, moped_delta=0.5)
    with torch.no_grad(), posterior.zero_sigma(model), WeightsSeen() as seen:
        model(inputs())
    expected = []
    for layer in bayesian_layers(model):
        expected.append(layer.tensors[0].mu.detach())
        if estimator == "Flipout":
            expected.append(torch.zeros_like(layer.tensors[0].mu))
    assert len(seen.weights) == len(expected)
    assert all(torch.equal(found, wanted) for found, wanted in zip(seen.weights, expected, strict=True))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("silence", [posterior.zero_sigma, posterior.zero_noise])
def test_a_silenced_network_is_the_plain_one(
    estimator: Any, silence: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    """The oracle is the network before the conversion; outside, the noise is back."""
    plain = network()
    model = convert(plain, type=estimator, moped_delta=0.5)
    with torch.no_grad():
        with silence(model):
            torch.testing.assert_close(model(inputs()), plain(inputs()))
            torch.testing.assert_close(model(inputs()), plain(inputs()))
        assert not torch.allclose(model(inputs()), plain(inputs()), rtol=1e-2)
        assert not torch.equal(model(inputs()), model(inputs()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_noise_the_data_term_has_no_gradient_to_rho(estimator: Any) -> None:
    """Exactly 0, element by element: the identity that reads the KL weight off a loss. To mu it is the plain one."""
    plain = network()
    model = convert(plain, type=estimator, moped_delta=0.5)
    with posterior.zero_noise(model):
        model(inputs()).square().sum().backward()
    plain(inputs()).square().sum().backward()
    weights = dict(plain.named_parameters())
    for layer in bayesian_layers(model):
        for tensor in layer.tensors:
            assert tensor.rho.grad is not None
            assert int(torch.count_nonzero(tensor.rho.grad)) == 0
            expected = weights[tensor.name].grad
            assert expected is not None
            assert tensor.mu.grad is not None
            torch.testing.assert_close(tensor.mu.grad, expected, rtol=1e-4, atol=1e-4)


def test_without_noise_rho_gets_the_gradient_of_kl_alone() -> None:
    """The other half of that identity: what is left is weight * dKL/drho, here from torch.distributions."""
    model = convert(network(), moped_delta=0.5, prior_sigma=0.5)
    with posterior.zero_noise(model):
        kl = posterior.kl(model)
        assert kl is not None
        (model(inputs()).square().sum() + 0.25 * kl).backward()
    for layer in bayesian_layers(model):
        for tensor in layer.tensors:
            rho = tensor.rho.detach().double().requires_grad_()
            prior = tensor.prior_mu.double(), tensor.prior_sigma.double()
            true_kl(tensor.mu.detach().double(), rho, *prior).mean().backward()
            assert rho.grad is not None
            assert tensor.rho.grad is not None
            torch.testing.assert_close(tensor.rho.grad.double(), 0.25 * rho.grad, rtol=1e-4, atol=1e-6)


@contextmanager
def shifted(model: nn.Module) -> Iterator[None]:
    with posterior.shifted_prior(model, 2.0):
        yield


@pytest.mark.parametrize("change", [posterior.zero_sigma, posterior.zero_noise, shifted])
def test_every_change_is_undone_also_after_an_exception(
    change: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    """The same tensor objects with the same values: an optimizer that holds them goes on working."""
    model = convert(network())
    before = [(t, t.mu, t.rho, t.prior_mu, t.rho.detach().clone()) for b in bayesian_layers(model) for t in b.tensors]
    with pytest.raises(RuntimeError, match="stop"), change(model):
        raise RuntimeError("stop")
    for tensor, mu, rho, prior_mu, value in before:
        assert tensor.mu is mu
        assert tensor.rho is rho
        assert tensor.prior_mu is prior_mu
        assert torch.equal(rho, value)
        assert rho.requires_grad
    assert not torch.equal(model(inputs()), model(inputs()))


def test_a_shifted_prior_moves_kl_by_the_closed_form_and_nothing_else() -> None:
    """The data term cannot notice a prior; the KL term changes by by * (by + 2 (m - mu)) / (2 s^2) on average."""
    model = convert(network(), prior_mu=0.5, prior_sigma=2.0)
    before = posterior.kl(model)
    assert before is not None
    with posterior.shifted_prior(model, 1.5), posterior.zero_sigma(model), torch.no_grad():
        moved = model(inputs())
    with posterior.shifted_prior(model, 1.5):
        assert all(
            float(t.prior_mu.min()) == float(t.prior_mu.max()) == 2 for b in bayesian_layers(model) for t in b.tensors
        )
        after = posterior.kl(model)
    assert after is not None
    expected = sum(
        float((1.5 * (1.5 + 2 * (0.5 - t.mu.detach().double())) / (2 * 2.0**2)).mean())
        for b in bayesian_layers(model)
        for t in b.tensors
    )
    assert float((after - before).detach()) == pytest.approx(expected, rel=1e-4)
    with posterior.zero_sigma(model), torch.no_grad():
        assert torch.equal(moved, model(inputs()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_layers_that_draw_are_seen(estimator: Any) -> None:
    """A layer that the forward never calls must not be among them (FAULTS A17)."""
    model = nn.Sequential(*convert(network(), type=estimator).children())
    model.register_module("unused", convert(nn.Sequential(nn.Linear(2, 2)), type=estimator))
    used = model[:5]
    with torch.no_grad(), posterior.watched_noise(model) as drawn:
        assert drawn == set()
        used(inputs())
    assert drawn == {"0", "4"}
    assert "unused.0" in {layer.path for layer in bayesian_layers(model)}


def test_watching_changes_no_number() -> None:
    """The check that watches must measure the network that the user has."""
    model = convert(network())
    state = torch.get_rng_state()
    plain = model(inputs())
    torch.set_rng_state(state)
    with posterior.watched_noise(model):
        watched = model(inputs())
    assert torch.equal(plain, watched)


def test_posteriors_without_a_layer_are_found_after_tracing() -> None:
    """torch.fx keeps mu and rho and loses the layers: constant features, no KL, no error (FAULTS A2)."""
    torch.manual_seed(0)
    model = convert(torchvision.models.resnet18(num_classes=3).eval())
    assert posterior.orphaned_posteriors(model) == ()
    extracted = create_feature_extractor(model, ["avgpool"])
    expected = {layer.path for layer in bayesian_layers(model)} - {"fc"}
    assert len(expected) == 20
    assert set(posterior.orphaned_posteriors(extracted)) == expected
    assert bayesian_layers(extracted) == ()


def test_a_posterior_at_the_root_without_its_layer_is_found_too() -> None:
    """A traced model can own the parameters itself; its path is the empty one."""
    module = nn.Module()
    module.mu_weight, module.rho_weight = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    assert posterior.orphaned_posteriors(module) == ("",)
    del module.mu_weight
    assert posterior.orphaned_posteriors(module) == ()
