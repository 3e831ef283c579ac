"""A forward that does not do what the posterior says is never replaced by the engine, which would hide it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from bayesian_torch import layers as library
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert
from pytest_bnn.sampling.bank import PassBank

Draw = Callable[[Any, Tensor], Tensor]


class Network(nn.Module):
    """Two convolutions with BatchNorm and a head: 3,706 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(x)))
        x = functional.relu(self.norm2(self.conv2(x)))
        out: Tensor = self.head(functional.adaptive_avg_pool2d(x, (2, 3)).flatten(1))
        return out


def network() -> nn.Module:
    model = Network().eval()
    for norm in (model.norm1, model.norm2):
        assert norm.running_mean is not None
        norm.running_mean.normal_()
    return convert(model, moped_delta=0.3)


IMAGES = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def drawing(monkeypatch: pytest.MonkeyPatch, draw: Draw, sigma: float = 1.0) -> None:
    """Let the library's own classes draw their noise with ``draw(layer, eps)``, whatever instance."""

    def weights(layer: Any) -> tuple[Tensor, Tensor | None]:
        name = "kernel" if hasattr(layer, "mu_kernel") else "weight"
        found: list[Tensor | None] = []
        for part in (name, "bias"):
            mu = getattr(layer, f"mu_{part}")
            if mu is None:
                found.append(None)
                continue
            scale = torch.log1p(torch.exp(getattr(layer, f"rho_{part}")))
            found.append(mu + sigma * scale * draw(layer, getattr(layer, f"eps_{part}")))
        assert found[0] is not None
        return found[0], found[1]

    def conv(layer: Any, input: Tensor, return_kl: bool = True) -> Tensor:
        weight, bias = weights(layer)
        return functional.conv2d(input, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def linear(layer: Any, input: Tensor, return_kl: bool = True) -> Tensor:
        return functional.linear(input, *weights(layer))

    monkeypatch.setattr(library.Conv2dReparameterization, "forward", conv)
    monkeypatch.setattr(library.LinearReparameterization, "forward", linear)


def cached(patch: pytest.MonkeyPatch, model: Any) -> None:
    kept: dict[int, Tensor] = {}
    drawing(patch, lambda _, eps: kept.setdefault(eps.numel(), torch.randn_like(eps)))


def halved_sigma(patch: pytest.MonkeyPatch, model: Any) -> None:
    drawing(patch, lambda _, eps: torch.randn_like(eps), sigma=0.5)


def one_layer_only(patch: pytest.MonkeyPatch, model: Any) -> None:
    drawing(patch, lambda layer, eps: torch.randn_like(eps) if layer is model.conv2 else torch.zeros_like(eps))


def uniform(patch: pytest.MonkeyPatch, model: Any) -> None:
    drawing(patch, lambda _, eps: (torch.rand_like(eps) - 0.5) * 12**0.5)


def shared(patch: pytest.MonkeyPatch, model: Any) -> None:
    kept = torch.zeros(3000)

    def draw(layer: Any, eps: Tensor) -> Tensor:
        if layer is model.conv1:
            kept.normal_()
        return kept[: eps.numel()].view_as(eps).clone()

    drawing(patch, draw)


def of_the_pass_before(patch: pytest.MonkeyPatch, model: Any) -> None:
    kept = torch.randn(3000)

    def draw(layer: Any, eps: Tensor) -> Tensor:
        if layer is model.conv2:
            kept[: eps.numel()] = torch.randn(eps.numel())
            return kept[: eps.numel()].view_as(eps).clone()
        return kept[: eps.numel()].view_as(eps).clone() if layer is model.conv1 else torch.randn_like(eps)

    drawing(patch, draw)


def every_second_pass(patch: pytest.MonkeyPatch, model: Any) -> None:
    kept: dict[int, Tensor] = {}
    count: dict[int, int] = {}

    def draw(layer: Any, eps: Tensor) -> Tensor:
        number = count[eps.numel()] = count.get(eps.numel(), -1) + 1
        if number % 2 == 0:
            kept[eps.numel()] = torch.randn_like(eps)
        return kept[eps.numel()]

    drawing(patch, draw)


def hook(patch: pytest.MonkeyPatch, model: Any) -> None:
    model.conv1.register_forward_hook(lambda module, inputs, output: output + 1)


def overridden_on_the_instance(patch: pytest.MonkeyPatch, model: Any) -> None:
    forward = model.head.forward
    model.head.forward = lambda x: forward(x) + 1


def overridden_in_the_class(patch: pytest.MonkeyPatch, model: Any) -> None:
    forward = library.LinearReparameterization.forward
    patch.setattr(library.LinearReparameterization, "forward", lambda layer, x: 1 + forward(layer, x))


def batchnorm_in_train_mode(patch: pytest.MonkeyPatch, model: Any) -> None:
    model.norm2.train()


def batchnorm_of_the_batch(patch: pytest.MonkeyPatch, model: Any) -> None:
    model.norm2.running_mean = model.norm2.running_var = None


def batchnorm_without_its_mean(patch: pytest.MonkeyPatch, model: Any) -> None:
    def forward(norm: Any, x: Tensor) -> Tensor:
        return functional.batch_norm(x, torch.zeros_like(norm.running_mean), norm.running_var, norm.weight, norm.bias)

    patch.setattr(nn.BatchNorm2d, "forward", forward)


def dropout(patch: pytest.MonkeyPatch, model: Any) -> None:
    patch.setattr(nn.functional, "relu", lambda x: functional.dropout(x.clamp_min(0), 0.01))


def seldom_doubled(patch: pytest.MonkeyPatch, model: Any) -> None:
    patch.setattr(nn.functional, "relu", lambda x: x.clamp_min(0) * (1 + (torch.rand(()) < 1e-6)))


def numpy_draw_without_effect(patch: pytest.MonkeyPatch, model: Any) -> None:
    patch.setattr(nn.functional, "relu", lambda x: x.clamp_min(0) + 0 * numpy.random.random())


TAMPERED = [
    (cached, r"uses related noise in passes 1 and|drawn with 0 times its sigma"),
    (halved_sigma, r"is drawn with 0\.[45]\d* times its sigma"),
    (one_layer_only, r"is drawn with 0 times its sigma"),
    (uniform, r"not drawn from a normal distribution"),
    (shared, r"share their noise"),
    (of_the_pass_before, r"conv1\.weight and conv2\.weight of the pass before share their noise"),
    (every_second_pass, r"uses related noise in passes|not drawn from a normal distribution"),
    (hook, r"conv1 \(Conv2dReparameterization\) has a forward hook"),
    (overridden_on_the_instance, r"head \(LinearReparameterization\) has a forward of its own"),
    (overridden_in_the_class, r"the engine's outputs differ by"),
    (batchnorm_in_train_mode, r"norm2 \(BatchNorm2d\) is in train mode"),
    (batchnorm_of_the_batch, r"depends on the images beside it"),
    (batchnorm_without_its_mean, r"the engine's outputs differ by"),
    (dropout, r"draws random numbers outside of its Bayesian layers"),
    (seldom_doubled, r"draws random numbers outside of its Bayesian layers"),
    (numpy_draw_without_effect, r"draws random numbers outside of its Bayesian layers"),
]


@pytest.mark.parametrize(("tamper", "reason"), TAMPERED, ids=[tamper.__name__ for tamper, _ in TAMPERED])
def test_a_tampered_forward_is_sampled_as_it_is(
    tamper: Callable[[pytest.MonkeyPatch, Any], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults are put into the classes where they can be, so that nothing but the handshake can see them."""
    model = network()
    tamper(monkeypatch, model)
    bank = PassBank(model, IMAGES, 0)
    bank.draw(0, 2)
    assert bank.sampler.startswith("own forward (")
    assert re.search(reason, bank.sampler), bank.sampler


def test_without_tampering_the_engine_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network, and the same patched classes with nothing wrong in them."""
    bank = PassBank(network(), IMAGES, 0)
    bank.draw(0, 2)
    drawing(monkeypatch, lambda _, eps: torch.randn_like(eps))
    patched = PassBank(network(), IMAGES, 0)
    patched.draw(0, 2)
    assert bank.sampler == patched.sampler
    assert bank.sampler.startswith("engine (")
