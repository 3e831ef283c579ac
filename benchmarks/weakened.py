"""Small models that are broken by a given amount, judged by the check that should see it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn import checks, convert
from pytest_bnn.records.evidence import Evidence

IMAGES = torch.linspace(-1, 1, 24).reshape(12, 2)

#: Outputs, and inputs, of the linear layers whose noise is of the wrong size.
WIDTH = 64


class Noisy(nn.Module):
    """Its input with noise of a known size."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x + self.size * torch.randn_like(x)


class Common(nn.Module):
    """Its input with noise of a known size from a Bayesian layer, the same for all images of a pass."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.layer = convert(nn.Linear(1, 2, bias=False).eval())
        with torch.no_grad():
            self.get_parameter("layer.mu_weight").zero_()
            self.get_parameter("layer.rho_weight").fill_(math.log(math.expm1(size)) if size else -math.inf)

    def forward(self, x: Tensor) -> Tensor:
        noise: Tensor = self.layer(torch.ones(1, 1))
        return x + noise


class Voting(nn.Module):
    """Probabilities of two classes from a Beta law: the first leads where an image is 0, the second where it is 1."""

    def forward(self, x: Tensor) -> Tensor:
        leads = torch.distributions.Beta(4 - 3 * x[:, 0], 1 + 3 * x[:, 0]).sample()
        return torch.stack([leads, 1 - leads], dim=1)


class Sure(nn.Module):
    """The first class, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.9, 0.1]).expand(len(x), 2)


def scaled_noise(effect: float, seed: int) -> Evidence:
    """Let a layer of 4,160 weights use ``1 + effect`` times the sigma of its posterior."""
    torch.manual_seed(seed)
    model = convert(nn.Sequential(nn.Linear(WIDTH, WIDTH)).eval())
    layer: Any = model.get_submodule("0")

    def forward(x: Tensor) -> Tensor:
        drawn = {}
        for role in ("weight", "bias"):
            sigma = nn.functional.softplus(getattr(layer, f"rho_{role}"))
            eps = getattr(layer, f"eps_{role}").data.normal_()
            drawn[role] = getattr(layer, f"mu_{role}") + (1 + effect) * sigma * eps
        return nn.functional.linear(x, drawn["weight"], drawn["bias"])

    layer.forward = forward
    return checks.measure_noise_posterior(model, images=torch.rand(2, WIDTH), seed=seed)


def scaled_flipout(effect: float, seed: int) -> Evidence:
    """Let a Flipout layer, whose signs are those of examples, add ``1 + effect`` times its posterior's noise."""
    torch.manual_seed(seed)
    model = convert(nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False)).eval(), type="Flipout")
    layer: Any = model.get_submodule("0")

    def forward(x: Tensor) -> Tensor:
        signs, others = (torch.empty(len(x), WIDTH).uniform_(-1, 1).sign() for _ in range(2))
        noise = (1 + effect) * nn.functional.softplus(layer.rho_weight) * layer.eps_weight.data.normal_()
        mean = nn.functional.linear(x, layer.mu_weight)
        return mean + nn.functional.linear(x * signs, noise) * others

    layer.forward = forward
    return checks.measure_estimator_flipout(model, images=torch.rand(2, WIDTH), seed=seed)


def no_source(effect: float, seed: int) -> Evidence:
    """Let the typical spread of every image lie below the floor by the share ``effect``; its law is `low_spread`'s.

    All images have the same noise, so that the one that varies most varies no more than the others.
    """
    size = 0.01 * (1 - effect) * float(IMAGES.double().std()) / math.sqrt(math.log(2))
    return checks.measure_noise_source(Common(size), images=IMAGES, min_spread=0.01, seed=seed)


def wide_spread(effect: float, seed: int) -> Evidence:
    """Let the spread exceed the band by the share ``effect``."""
    torch.manual_seed(seed)
    model = convert(nn.Sequential(nn.Linear(2, 2)).eval())
    with torch.no_grad():
        for name, rho in model.named_parameters():
            if "rho_" in name:
                rho.fill_(math.log(math.expm1(0.1)))
    free = checks.measure_noise_spread(model, images=IMAGES, band=(1e-9, 1e9), max_passes=1000, seed=0)
    typical = float(str(free["spread"]))
    return checks.measure_noise_spread(model, images=IMAGES, band=(1e-9, typical / (1 + effect)), seed=seed + 1)


def low_spread(effect: float, seed: int) -> Evidence:
    """Let the typical spread lie below the floor by the share ``effect``.

    Half the squared difference of two passes, averaged over two outputs, is the noise's variance times an exponential
    variable, whose median is log 2.
    """
    size = 0.01 * (1 - effect) * float(IMAGES.double().std()) / math.sqrt(math.log(2))
    return checks.measure_noise_varies(Noisy(size), images=IMAGES, min_spread=0.01, seed=seed)


def disagreement(effect: float, seed: int, other: float = 1.0) -> Evidence:
    """Let the agreement of 100 images fall short of .9 by ``effect``; single passes say something else now and then.

    ``other`` says how clearly the other class leads there: by .6 on average at 1, and not at all at .5.
    """
    images = torch.zeros(100, 2)
    images[: round(100 * (0.1 + effect))] = other
    return checks.measure_teacher_agreement(Voting(), teacher=Sure(), images=images, min_agreement=0.9, seed=seed)


def close_votes(effect: float, seed: int) -> Evidence:
    """Let the other class lead by no more than .24 on average, where passes differ by .4."""
    return disagreement(effect, seed, 0.7)
