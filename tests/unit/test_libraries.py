"""Adapters: layers of known libraries, copies of their code, and layers that nobody knows; torch and autograd judge."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import bayesian_torch.layers.variational_layers.linear_variational as library_file
import pytest
import torch
from bayesian_torch.layers import Conv2dReparameterization, LinearFlipout, LinearReparameterization
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional
from torch.nn.utils import parametrize

from pytest_bnn import convert
from pytest_bnn.libraries.gaussian import EXP, SOFTPLUS, PosteriorTensor
from pytest_bnn.libraries.posterior import bayesian_layers, kl, lacking, unknown_layers, zero_noise, zero_sigma
from pytest_bnn.libraries.protocol import CAPABILITIES, tensors_of


class Vendored(nn.Module):
    """The library's linear layer as people copy it into their own code: its attributes, and no class of its."""

    def __init__(self, inputs: int, outputs: int, *, sigma: Callable[[Tensor], Tensor] = functional.softplus) -> None:
        super().__init__()
        self.mu_weight = nn.Parameter(torch.randn(outputs, inputs))
        self.rho_weight = nn.Parameter(torch.full((outputs, inputs), -3.0))
        self.mu_bias = nn.Parameter(torch.randn(outputs))
        self.rho_bias = nn.Parameter(torch.full((outputs,), -3.0))
        for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            self.register_buffer(f"eps_{name}", torch.zeros(shape))
            self.register_buffer(f"prior_{name}_mu", torch.zeros(shape))
            self.register_buffer(f"prior_{name}_sigma", torch.ones(shape))
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        weight = self.mu_weight + self.sigma(self.rho_weight) * self.get_buffer("eps_weight").normal_()
        bias = self.mu_bias + self.sigma(self.rho_bias) * self.get_buffer("eps_bias").normal_()
        return functional.linear(x, weight, bias)


class Local(Vendored):
    """A fork whose draws are its own, in no buffer."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.mu_weight + self.sigma(self.rho_weight) * torch.randn_like(self.mu_weight)
        return functional.linear(x, weight, self.mu_bias + self.sigma(self.rho_bias) * torch.randn_like(self.mu_bias))


class Sampling(Vendored):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, Normal(self.mu_weight, self.sigma(self.rho_weight)).rsample(), self.mu_bias)


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mu_kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.rho_kernel = nn.Parameter(torch.full((4, 3, 3, 3), -3.0))

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(self.mu_kernel.shape)
        return functional.conv2d(x, self.mu_kernel + functional.softplus(self.rho_kernel) * noise)


class Flipping(Vendored):
    """A copy of Flipout: the mean and the perturbation are two calls."""

    def forward(self, x: Tensor) -> Tensor:
        noise = self.sigma(self.rho_weight) * torch.randn_like(self.mu_weight)
        signs = torch.empty_like(x).uniform_(-1, 1).sign()
        out = functional.linear(x, self.mu_weight, self.mu_bias)
        return out + functional.linear(x * signs, noise) * torch.empty_like(out).uniform_(-1, 1).sign()


def loaded_twice() -> nn.Module:
    """The library's own file under another name, as after importlib.reload or a second path to it."""
    name = "bayesian_torch.layers.variational_layers.a_second_copy"
    spec = importlib.util.spec_from_file_location(name, library_file.__file__)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    layer: nn.Module = module.LinearReparameterization(3, 2)
    return layer


def _exp(rho: Tensor) -> Tensor:
    return rho.exp()


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (lambda: Vendored(3, 2), SOFTPLUS),
        (lambda: Vendored(3, 2, sigma=_exp), EXP),
        (lambda: Local(3, 2), SOFTPLUS),
        (lambda: Local(3, 2, sigma=_exp), EXP),
        (lambda: Sampling(3, 2), SOFTPLUS),
        (lambda: Flipping(3, 2), SOFTPLUS),
        (Convolving, SOFTPLUS),
        (loaded_twice, SOFTPLUS),
    ],
    ids=["vendored", "exp", "randn_like", "exp and randn_like", "rsample", "Flipout", "convolution", "loaded twice"],
)
def test_copies_are_recognised_by_what_they_compute(make: Callable[[], nn.Module], how: object) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(make())
    state = torch.get_rng_state()
    (layer,) = bayesian_layers(model)
    assert torch.equal(state, torch.get_rng_state())
    assert layer.path == "0"
    assert {tensor.map for tensor in layer.tensors} == {how}
    assert unknown_layers(model) == ()
    assert all(lacking(model, capability) == "" for capability in CAPABILITIES)


def _scaled(rho: Tensor) -> Tensor:
    return 2 * functional.softplus(rho)


def _floored(rho: Tensor) -> Tensor:
    return functional.softplus(rho) + 0.1


class Silent(Vendored):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.mu_weight, self.mu_bias)


class Doubled(Vendored):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, 2 * self.mu_weight, self.mu_bias)


class OfTwo(Vendored):
    """Takes two inputs, so that no probe can call it."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + y)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Vendored(3, 2, sigma=_scaled),
        lambda: Vendored(3, 2, sigma=_floored),
        lambda: Silent(3, 2),
        lambda: Doubled(3, 2),
        lambda: OfTwo(3, 2),
    ],
    ids=["twice the sigma", "a floor of sigma", "no noise", "another mean", "two inputs"],
)
def test_what_the_probe_does_not_show_is_not_claimed(make: Callable[[], nn.Module]) -> None:
    """Another sigma than the library's is another layer: judged as the library's it would be accused."""
    model = nn.Sequential(make())
    assert bayesian_layers(model) == ()
    assert [path for path, _ in unknown_layers(model)] == ["0"]
    assert "nobody knows yet" in lacking(model, "mean_field")
    assert "docs/how-to/another-library.md" in lacking(model, "silence")


class Pair(nn.Module):
    """A layer of a library that nobody knows."""

    def __init__(self, mean: str, width: str) -> None:
        super().__init__()
        self.register_parameter(mean, nn.Parameter(torch.randn(2, 3)))
        self.register_parameter(width, nn.Parameter(torch.full((2, 3), -2.0)))
        self.names = mean, width

    def forward(self, x: Tensor) -> Tensor:
        mean, width = (self.get_parameter(name) for name in self.names)
        return functional.linear(x, mean + width.exp() * torch.randn_like(mean))


@pytest.mark.parametrize(
    "names",
    [
        ("weight_mu", "weight_rho"),
        ("mu", "sigma"),
        ("W_mu", "W_rho"),
        ("weight_mean", "weight_logvar"),
        ("loc", "scale"),
        ("weight_mu", "weight_log_sigma"),
    ],
)
def test_pairs_of_means_and_widths_look_bayesian(names: tuple[str, str]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), Pair(*names), convert(nn.Sequential(nn.Linear(2, 2))))
    assert unknown_layers(model) == (("1", "Pair"),)
    assert [layer.path for layer in bayesian_layers(model)] == ["2.0"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.LayerNorm(3), nn.Embedding(3, 2)),
        nn.Sequential(nn.GRU(2, 2), nn.MultiheadAttention(4, 2), nn.PReLU(), nn.RMSNorm(3)),
        convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 2)), type="Flipout"),
        nn.Sequential(LinearReparameterization(2, 2), LinearFlipout(2, 2)),
        nn.TransformerEncoderLayer(4, 2),
    ],
    ids=["plain", "recurrent", "converted", "of the library", "transformer"],
)
def test_nothing_is_unknown_in_what_is_known(model: nn.Module) -> None:
    assert unknown_layers(model) == ()
    assert lacking(model, "draws") == ""


def test_an_unknown_capability_is_refused() -> None:
    with pytest.raises(ValueError, match="no capability 'mean'"):
        lacking(nn.Linear(2, 2), "mean")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_a_scripted_layer_is_known_for_what_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(torch.jit.trace(Local(3, 2), torch.ones(1, 3), check_trace=False))
    assert bayesian_layers(model) == ()
    assert unknown_layers(model) == (("0", "Local, in TorchScript"),)
    assert "audit the Python model" in lacking(model, "mean_field")


# --- sigma, whatever it is computed from --------------------------------------------------------------------------


class Clamped(nn.Module):
    def forward(self, rho: Tensor) -> Tensor:
        return rho.clamp(-8, 1)

    def right_inverse(self, rho: Tensor) -> Tensor:
        return rho


class Halved(nn.Module):
    def forward(self, rho: Tensor) -> Tensor:
        return rho / 2

    def right_inverse(self, rho: Tensor) -> Tensor:
        return 2 * rho


def layer_with(change: str) -> LinearReparameterization:
    torch.manual_seed(1)
    layer: Any = LinearReparameterization(4, 3)
    layer.dnn_to_bnn_flag = True
    if change == "row":
        layer.rho_weight = nn.Parameter(torch.randn(3, 1) - 3)
    elif change == "column":
        layer.rho_weight = nn.Parameter(torch.randn(1, 4) - 3)
    elif change == "one":
        layer.rho_weight, layer.rho_bias = nn.Parameter(torch.tensor(-3.0)), nn.Parameter(torch.tensor(-2.0))
    elif change == "clamped":
        parametrize.register_parametrization(layer, "rho_weight", Clamped())
    elif change == "halved":
        parametrize.register_parametrization(layer, "rho_weight", Halved())
        parametrize.register_parametrization(layer, "rho_bias", Halved())
    elif change == "mu":
        parametrize.register_parametrization(layer, "mu_weight", Halved())
    elif change == "prior":
        for name in ("prior_weight_mu", "prior_weight_sigma", "prior_bias_mu", "prior_bias_sigma"):
            value = layer._buffers.pop(name)
            layer.register_parameter(name, nn.Parameter(value.clone() + 0.25))
    made: LinearReparameterization = layer
    return made


CHANGES = ["none", "row", "column", "one", "clamped", "halved", "mu", "prior"]


@pytest.mark.parametrize("change", CHANGES)
def test_kl_and_gradients_are_those_of_torch_distributions(change: str) -> None:
    """To the parameters that training moves, however mu and rho come of them."""
    layer = layer_with(change)
    (found,) = bayesian_layers(layer)
    for tensor in found.tensors:
        sigma = functional.softplus(tensor.rho).expand(tensor.mu.shape)
        expected = kl_divergence(Normal(tensor.mu, sigma), Normal(tensor.prior_mu, tensor.prior_sigma)).sum()
        assert tensor.kl_sum() == pytest.approx(float(expected.detach()), rel=1e-5)
        assert tensor.sigma.shape == tensor.mu.shape
        gradients = torch.autograd.grad(expected, [tensor.mu_parameter, tensor.rho_parameter])
        own = tensor.kl_gradient("mu"), tensor.kl_gradient("rho")
        for mine, true in zip(own, gradients, strict=True):
            torch.testing.assert_close(mine, true.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", CHANGES)
def test_the_mean_and_silence_are_the_plain_layer(change: str) -> None:
    layer: Any = layer_with(change)
    x = torch.randn(5, 4)
    expected = functional.linear(x, layer.mu_weight, layer.mu_bias)
    before = [id(p) for p in layer.parameters()]
    for silence in (zero_sigma, zero_noise):
        with torch.no_grad(), silence(layer):
            assert torch.equal(layer(x), expected)
    assert [id(p) for p in layer.parameters()] == before
    assert not torch.equal(layer(x), layer(x))


def test_a_width_that_a_hook_computes_is_silenced_too() -> None:
    """Nothing can be put in its place, so its noise is."""
    layer: Any = layer_with("none")
    layer.raw = nn.Parameter(layer.rho_weight.detach().clone())
    del layer.rho_weight
    layer.rho_weight = layer.raw - 0.0

    def compute(module: Any, _inputs: Any) -> None:
        module.rho_weight = module.raw - 0.0

    layer.register_forward_pre_hook(compute)
    x = torch.randn(5, 4)
    with torch.no_grad(), zero_sigma(layer):
        assert torch.equal(layer(x), functional.linear(x, layer.mu_weight, layer.mu_bias))


# --- torchbnn -----------------------------------------------------------------------------------------------------


def test_torchbnn_is_judged_by_its_own_loss() -> None:
    """BKLLoss is the oracle of the KL, autograd that of the gradients, exp that of sigma."""
    torchbnn = pytest.importorskip("torchbnn")
    torch.manual_seed(0)
    model = nn.Sequential(
        torchbnn.BayesConv2d(prior_mu=0.1, prior_sigma=0.2, in_channels=1, out_channels=2, kernel_size=3),
        nn.Flatten(),
        torchbnn.BayesLinear(prior_mu=0, prior_sigma=0.1, in_features=8, out_features=3, bias=False),
    )
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    layers = bayesian_layers(model)
    assert [(layer.path, layer.kind, layer.adapter.name) for layer in layers] == [
        ("0", "Conv2d", "torchbnn"),
        ("2", "Linear", "torchbnn"),
    ]
    summed, mean = (torchbnn.BKLLoss(reduction=how, last_layer_only=False)(model) for how in ("sum", "mean"))
    tensors = tensors_of(layers)
    assert sum(tensor.kl_sum() for tensor in tensors) == pytest.approx(float(summed.detach()), rel=1e-5)
    found = kl(model)
    assert found is not None
    assert float(found.detach()) == pytest.approx(float(mean.detach()), rel=1e-5)
    gradients = torch.autograd.grad(summed, [p for t in tensors for p in (t.mu_parameter, t.rho_parameter)])
    for mine, true in zip((t.kl_gradient(of) for t in tensors for of in ("mu", "rho")), gradients, strict=True):
        torch.testing.assert_close(mine, true.double(), rtol=1e-4, atol=1e-4)
    x = torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        with zero_sigma(model):
            mean_output = model(x)
        with zero_noise(model):
            torch.testing.assert_close(model(x), mean_output, rtol=0, atol=0)
        assert not torch.equal(model(x), model(x))
    for tensor in tensors:
        assert torch.equal(tensor.sigma, tensor.rho.detach().exp())


def test_a_copy_of_torchbnn_needs_no_torchbnn() -> None:
    """Recognised by its class's name and its attributes."""
    assert not any(name.startswith("torchbnn") for name in vars(sys.modules["pytest_bnn.libraries.torchbnn"]))

    class BayesLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prior_mu, self.prior_sigma, self.prior_log_sigma = 0.0, 1.0, 0.0
            self.weight_mu = nn.Parameter(torch.randn(2, 3))
            self.weight_log_sigma = nn.Parameter(torch.full((2, 3), -2.0))

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.randn_like(self.weight_mu)
            return functional.linear(x, self.weight_mu + self.weight_log_sigma.exp() * noise)

    (layer,) = bayesian_layers(BayesLinear())
    (tensor,) = layer.tensors
    expected = kl_divergence(Normal(tensor.mu, tensor.sigma), Normal(0.0, 1.0)).sum()
    assert tensor.kl_sum() == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_posterior_tensor_may_stand_alone() -> None:
    module = Conv2dReparameterization(1, 2, 3)
    names = ("mu_kernel", "rho_kernel", "eps_kernel", "prior_weight_mu", "prior_weight_sigma")
    tensor = PosteriorTensor("a", "weight", module, *names)
    assert tensor.mu_parameter is module.mu_kernel
    assert not tensor.is_prior()
