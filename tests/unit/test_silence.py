"""Every draw inside a Bayesian layer is silenced, whatever call makes it; where one is not, the proof says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from bayesian_torch.layers import LinearReparameterization
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pytest_bnn import convert
from pytest_bnn.libraries.capture import capture
from pytest_bnn.libraries.posterior import bayesian_layers, watched_noise, zero_noise, zero_sigma
from pytest_bnn.libraries.silence import unproven_silence
from pytest_bnn.network.isolation import undisturbed

Draw = Callable[[Any, Tensor, Tensor], Tensor]


def by_buffer(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    eps: Tensor = layer.eps_weight if mu.ndim == 2 else layer.eps_bias
    return mu + sigma * eps.data.normal_()


def by_new_buffer(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    return mu + sigma * torch.empty_like(mu).normal_()


def by_randn_like(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    return mu + sigma * torch.randn_like(mu)


def by_randn(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    return mu + sigma * torch.randn(mu.shape, generator=torch.default_generator)


def by_normal(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    return mu + sigma * torch.normal(0.0, 1.0, size=mu.shape)


def by_normal_of_constants(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    return mu + sigma * torch.normal(torch.zeros_like(mu), torch.ones_like(mu))


def by_rsample(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    return Normal(mu, sigma).rsample()


def by_rsample_of_a_standard(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    noise: Tensor = Normal(0.0, 1.0).sample(mu.shape)
    return mu + sigma * noise


def by_init(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    noise: Tensor = nn.init.normal_(torch.empty_like(mu))
    return mu + sigma * noise


DRAWS: list[Draw] = [
    by_buffer, by_new_buffer, by_randn_like, by_randn, by_normal, by_normal_of_constants, by_rsample,
    by_rsample_of_a_standard, by_init,
]  # fmt: skip


def by_numpy(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    return mu + sigma * torch.from_numpy(numpy.random.randn(*mu.shape)).to(mu)


def by_box_and_muller(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    one, other = torch.rand_like(mu), torch.rand_like(mu)
    return mu + sigma * (-2 * one.log()).sqrt() * (6.2831853 * other).cos()


def by_dropout(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    return mu + sigma * functional.dropout(torch.ones_like(mu), 0.5, training=True)


def by_a_constant(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    """No noise at all, and yet not the mean."""
    return mu + sigma * torch.ones_like(mu)


def by_laplace(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
    return mu + sigma * torch.empty_like(mu).exponential_()


UNSEEN: list[Draw] = [by_numpy, by_box_and_muller, by_dropout, by_a_constant, by_laplace]


class Drawing(LinearReparameterization):  # type: ignore[misc]
    """The library's layer with draws of its own."""

    def __init__(self, inputs: int, outputs: int, draw: Draw) -> None:
        super().__init__(inputs, outputs)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        weight = self.draw(self, self.mu_weight, functional.softplus(self.rho_weight))
        return functional.linear(x, weight, self.draw(self, self.mu_bias, functional.softplus(self.rho_bias)))


class LocalNoise(LinearReparameterization):  # type: ignore[misc]
    """Local reparameterisation: the noise of the outputs and not of the weights (Kingma, Salimans and Welling 2015)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = functional.linear(x, self.mu_weight, self.mu_bias)
        variance = functional.linear(x**2, functional.softplus(self.rho_weight) ** 2)
        out: Tensor = mean + (variance + functional.softplus(self.rho_bias) ** 2).sqrt() * torch.randn_like(mean)
        return out


class Block(nn.Module):
    """Layers around each other, run again in the backward pass or not."""

    def __init__(self, *layers: nn.Module, again: bool = False, **how: Any) -> None:
        super().__init__()
        self.layers, self.again, self.how = nn.Sequential(*layers), again, how

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.layers, x, **self.how) if self.again else self.layers(x)
        return out


def compiled() -> nn.Module:
    model = nn.Sequential(Drawing(4, 3, by_randn_like))
    model.compile(backend="eager")
    return model


def hooked() -> nn.Module:
    """Noise buffers that a hook makes anew for each call."""
    layer = Drawing(4, 3, by_buffer)

    def fresh(module: nn.Module, _inputs: Any) -> None:
        for name in ("eps_weight", "eps_bias"):
            module._buffers[name] = torch.empty_like(module.get_buffer(name))

    layer.register_forward_pre_hook(fresh)
    return layer


def drawn_in_a_hook() -> nn.Module:
    layer = Drawing(4, 3, lambda layer, mu, sigma: mu + sigma * (layer.eps_weight if mu.ndim == 2 else layer.eps_bias))

    def draw(module: nn.Module, _inputs: Any) -> None:
        for name in ("eps_weight", "eps_bias"):
            module.get_buffer(name).normal_()

    layer.register_forward_pre_hook(draw)
    return layer


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{draw.__name__: lambda draw=draw: Drawing(4, 3, draw) for draw in DRAWS},  # type: ignore[misc]
    "local reparameterisation": lambda: LocalNoise(4, 3),
    "compiled": compiled,
    "fresh buffers": hooked,
    "drawn in a hook": drawn_in_a_hook,
    "checkpoint": lambda: Block(Drawing(4, 3, by_buffer), again=True, use_reentrant=False),
    "checkpoint without a state": lambda: Block(
        Drawing(4, 3, by_buffer), again=True, use_reentrant=False, preserve_rng_state=False
    ),
    "nested": lambda: Block(Block(Drawing(4, 4, by_rsample), nn.ReLU()), Drawing(4, 3, by_randn)),
    "converted": lambda: convert(nn.Sequential(nn.Linear(4, 3))),
    "Flipout": lambda: convert(nn.Sequential(nn.Linear(4, 3)), type="Flipout"),
}


def images() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", MODELS)
def test_every_draw_is_silent_with_the_graph_of_sigma_intact(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    x = images()
    assert not torch.equal(model(x), model(x))
    with zero_noise(model):
        one = model(x)
        one.square().sum().backward()
        torch.testing.assert_close(model(x), one, rtol=0, atol=0)
    with torch.no_grad(), zero_sigma(model):
        torch.testing.assert_close(model(x), one.detach())
    for layer in bayesian_layers(model):
        for tensor in layer.tensors:
            assert tensor.rho.grad is not None, "silence keeps the graph"
            assert float(tensor.rho.grad.abs().max()) == 0, "and without noise nothing of the data comes to sigma"
            assert tensor.mu.grad is not None
    assert not torch.equal(model(x), model(x)), "the noise is back"
    with undisturbed(model, seed=0), torch.no_grad():
        assert unproven_silence(model, lambda: model(x), seed=0) == ""


@pytest.mark.parametrize("draw", UNSEEN, ids=lambda draw: draw.__name__)
def test_noise_that_cannot_be_silenced_is_told(draw: Draw) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Drawing(4, 3, draw)).eval()
    with undisturbed(model, seed=0), torch.no_grad():
        why = unproven_silence(model, lambda: model(images()), seed=0)
    assert "`1` (Drawing)" in why


class Around(nn.Module):
    """Noise beside the layer, which is none of its."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = Drawing(4, 3, by_buffer), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = functional.dropout(self.layer(x), 0.5, training=True)
        return out


class Outside(nn.Module):
    """Draws the layer's weight itself, and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Drawing(4, 3, by_buffer)

    def forward(self, x: Tensor) -> Tensor:
        sigma = functional.softplus(self.layer.rho_weight)
        return functional.linear(x, self.layer.mu_weight + sigma * torch.randn_like(sigma))


def test_noise_of_other_modules_is_no_layers() -> None:
    torch.manual_seed(0)
    model, outside = Around().eval(), Outside().eval()
    with undisturbed(model, seed=0), torch.no_grad():
        assert unproven_silence(model, lambda: model(images()), seed=0) == ""
    with undisturbed(outside, seed=0), torch.no_grad():
        assert "`layer` (Drawing) is not called" in unproven_silence(outside, lambda: outside(images()), seed=0)


def test_normal_of_a_graph_is_noticed() -> None:
    """Its result has no gradient to mean or std: the one draw that is a fault by itself."""
    layers = {name: Drawing(4, 3, lambda _, mu, sigma: torch.normal(mu, sigma)) for name in ("a", "b")}
    layers["b"].draw = by_normal_of_constants
    model = nn.ModuleDict(layers)
    with zero_noise(model) as draws:
        out = model["a"](images())
        model["b"](images())
    assert draws.cut == {"a"}
    layer: Any = model["a"]
    torch.testing.assert_close(out, functional.linear(images(), layer.mu_weight, layer.mu_bias))


@pytest.mark.parametrize("name", MODELS)
def test_watching_sees_the_layers_that_draw(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad(), watched_noise(model) as drawn:
        model(images())
    assert drawn == {layer.path for layer in bayesian_layers(model)}


def test_a_forward_called_past_its_hooks_is_silenced() -> None:
    layer = Drawing(4, 3, by_buffer)
    with torch.no_grad(), zero_noise(layer):
        assert torch.equal(layer.forward(images()), layer.forward(images()))


def test_calls_of_a_backward_pass_are_marked() -> None:
    for again, marks in ((True, [False, True]), (False, [False])):
        model = Block(Drawing(4, 3, by_buffer), again=again, use_reentrant=False)
        with capture(model) as calls:
            model(images().requires_grad_()).sum().backward()
        assert [call.again for call in calls] == marks


@pytest.mark.parametrize("silence", [zero_noise, zero_sigma, watched_noise, capture])
def test_nothing_is_left_behind_after_an_exception(silence: Callable[[nn.Module], Any]) -> None:
    def fails(layer: Any, mu: Tensor, sigma: Tensor) -> Tensor:
        raise ZeroDivisionError

    model = nn.Sequential(Drawing(4, 3, fails))
    with pytest.raises(ZeroDivisionError), silence(model):
        model(images())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not torch.overrides._get_current_function_mode_stack()
