"""``estimator.flipout``: the library's signs per pixel (A24), signs per example, and noise of another law."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bayesian_torch.layers import Conv2dFlipout, ConvTranspose2dFlipout, LinearFlipout
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.checks import measure_estimator_flipout
from pytest_bnn.checks.estimator.flipout import _Row, _spread
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Verdict

IMAGES = torch.linspace(0.1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)


class PerExampleFlipout(Conv2dFlipout):  # type: ignore[misc]
    """Flipout as its paper has it: one sign for each example and channel, kept over positions."""

    scale, shift = 1.0, 0.0

    def forward(self, x: Tensor, return_kl: bool = True) -> Any:
        mean = functional.conv2d(x, self.mu_kernel, self.mu_bias, self.stride, self.padding)
        signs = x[:, :, :1, :1].clone().uniform_(-1, 1).sign()
        others = mean[:, :, :1, :1].clone().uniform_(-1, 1).sign()
        delta = functional.softplus(self.rho_kernel) * self.eps_kernel.data.normal_()
        delta = torch.where(delta == 0, delta, delta * self.scale)
        return (
            mean
            + functional.conv2d(x * signs, delta, None, self.stride, self.padding) * others
            + self.shift * delta.std()
        )


def network(kind: type[nn.Module] = PerExampleFlipout, **values: Any) -> nn.Module:
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False)).eval(), type="Flipout")
    layer: Any = model[0]  # type: ignore[index]
    layer.__class__ = kind
    for name, value in values.items():
        setattr(layer, name, value)
    return model


def test_signs_of_each_example_pass() -> None:
    found = measure_estimator_flipout(network(), images=IMAGES)
    assert found.verdict is Verdict.PASS, found.explain()
    assert found["signs for each example"] == 1
    assert float(str(found["smallest pooled spread"])) == pytest.approx(1, abs=0.15)  # 256 draws: 3.4 standard errors


@pytest.mark.fault("A24", "estimator.flipout")
def test_signs_of_each_pixel_are_a_warning_with_the_factor() -> None:
    """All but constant images: per pixel the signs leave about one in sqrt(64 * 27) of what is pooled."""
    found = measure_estimator_flipout(network(Conv2dFlipout), images=IMAGES)
    assert found.verdict is Verdict.WARN, found.explain()
    assert "signs for each position" in found.headline
    assert found.threshold is not None
    assert (found.threshold.observed, found.threshold.allowed) == (1, 0)
    assert float(str(found["largest pooled spread"])) < 0.3
    assert [layer.path for layer in found.layers] == ["0"]
    assert "Reparameterization" in found.remedy


@pytest.mark.parametrize(("values", "words"), [({"scale": 3.0}, "times the spread"), ({"shift": 20.0}, "has the mean")])
def test_noise_that_is_not_the_posteriors_fails(values: dict[str, Any], words: str) -> None:
    found = measure_estimator_flipout(network(**values), images=IMAGES)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert words in found.headline


class PerPixelFlipout(Conv2dFlipout):  # type: ignore[misc]
    """The library's, with noise that is not finite."""

    def forward(self, x: Tensor, return_kl: bool = True) -> Any:
        out = super().forward(x, return_kl)
        mean = functional.conv2d(x, self.mu_kernel, self.mu_bias, self.stride, self.padding)
        return torch.where(out == mean, out, math.nan)


@pytest.mark.parametrize(("kind", "values"), [(PerExampleFlipout, {"scale": math.nan}), (PerPixelFlipout, {})])
def test_noise_that_is_not_finite_fails(kind: type[nn.Module], values: dict[str, Any]) -> None:
    found = measure_estimator_flipout(network(kind, **values), images=IMAGES)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert found.headline == "The noise of `0` is not the posterior's: it is NaN or infinite."
    assert "NaN" in found.remedy


@pytest.mark.parametrize("kind", [PerExampleFlipout, Conv2dFlipout])
def test_a_posterior_that_is_not_finite_is_left_to_others(kind: type[nn.Module]) -> None:
    model = network(kind)
    model.get_parameter("0.rho_kernel").data.view(-1)[3] = math.inf
    found = measure_estimator_flipout(model, images=IMAGES)
    assert found.verdict is Verdict.NOT_APPLICABLE, found.explain()
    assert "see kl.present" in found.headline


def test_linear_layers_of_the_library_pass() -> None:
    """On vectors every sign is an example's; on sequences it is a position's."""
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(5, 64)).eval(), type="Flipout")
    assert measure_estimator_flipout(model, images=torch.rand(2, 5) + 0.5).verdict is Verdict.PASS
    assert measure_estimator_flipout(model, images=torch.rand(2, 9, 5) + 0.5).verdict is Verdict.WARN


def test_noise_below_the_rounding_of_outputs_is_not_judged() -> None:
    """A9: float32 swallows noise of 1e-9 beside outputs of 1; what is left of it is no fault of the layer."""
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(5, 64)).eval(), type="Flipout")
    narrow: Any = model.get_submodule("0")
    with torch.no_grad():
        narrow.mu_weight.fill_(1)
        narrow.rho_weight.fill_(-20)
        narrow.rho_bias.fill_(-20)
    found = measure_estimator_flipout(model, images=torch.rand(2, 5) + 0.5)
    assert found.verdict is Verdict.NOT_APPLICABLE, found.explain()
    assert "64 output channels is below 10 times their rounding" in found.headline
    # In float64 the same noise is seen, and is right.
    found = measure_estimator_flipout(model.double(), images=torch.rand(2, 5).double() + 0.5)
    assert found.verdict is Verdict.PASS, found.explain()


def test_what_rounding_may_move_is_allowed() -> None:
    """Deviations that are all off by as much as rounding may move them: no fault, and one where nothing is rounded."""
    (layer,) = bayesian_layers(network())
    draws = torch.randn(16, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.05
    assert _Row(layer, True, draws, 0.05, 0).p()[0] > 1e-3
    assert _Row(layer, True, draws, 0.0, 0).p()[0] < 1e-6


def test_models_without_flipout_are_not_judged() -> None:
    model = convert(nn.Sequential(nn.Linear(5, 3)).eval())
    assert measure_estimator_flipout(model, images=torch.rand(2, 5)).verdict is Verdict.NOT_APPLICABLE


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearFlipout(3, 4),
        lambda: Conv2dFlipout(4, 6, 3, groups=2, stride=2),
        lambda: ConvTranspose2dFlipout(4, 6, 3, groups=2, stride=2),
    ],
    ids=["Linear", "Conv2d", "ConvTranspose2d"],
)
def test_the_closed_form_is_the_spread_of_drawn_weights(make: Callable[[], nn.Module]) -> None:
    """The oracle draws whole weights by torch.distributions and lets the mean path of the layer compute with them."""
    torch.manual_seed(0)
    module: Any = make().eval()
    module.dnn_to_bnn_flag = True
    (layer,) = bayesian_layers(module)
    x = torch.rand(1, 3) if layer.kind == "Linear" else torch.rand(1, 4, 5, 5)
    expected = _spread(layer, x)
    posteriors = {
        tensor.mu_name: torch.distributions.Normal(tensor.mu.detach().clone(), tensor.sigma) for tensor in layer.tensors
    }
    with torch.no_grad():
        for tensor in layer.tensors:
            tensor.rho.fill_(-torch.inf)
        pooled = []
        for _ in range(3000):
            for name, posterior in posteriors.items():
                getattr(module, name).copy_(posterior.sample())
            output = module(x)
            pooled.append(output[0] if layer.kind == "Linear" else output[0].flatten(1).mean(1))
    # The standard error of a standard deviation is 1 / sqrt(2 * 3000) = 1.3 %.
    torch.testing.assert_close(torch.stack(pooled).double().std(0), expected, rtol=0.07, atol=0)
