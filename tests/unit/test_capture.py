"""`capture` sees the weights that a forward used: the outputs they give are the outputs that came."""

from __future__ import annotations

import weakref
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn import convert
from pytest_bnn.conversion import Estimator
from pytest_bnn.libraries.capture import LayerCall, capture
from pytest_bnn.libraries.posterior import bayesian_layers, zero_sigma
from pytest_bnn.network.isolation import undisturbed


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(4, 4, 2, bias=False),
        nn.Flatten(),
        nn.Linear(4 * 25, 7),
    ).eval()


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_the_noise_of_every_layer_is_seen_and_scales_with_sigma(estimator: Estimator) -> None:
    bnn = convert(network(), type=estimator)
    with undisturbed(bnn, seed=3), torch.no_grad(), capture(bnn) as calls:
        bnn(torch.ones(2, 3, 4, 4))
    assert [call.layer.path for call in calls] == [layer.path for layer in bayesian_layers(bnn)]
    seen = [(tensor, noise) for call in calls for tensor, noise in call.noise()]
    assert [t.name for t, _ in seen] == ["0.weight", "0.bias", "1.weight", "3.weight", "3.bias"]
    pooled = torch.cat([(noise / tensor.sigma).flatten() for tensor, noise in seen])
    # 872 standard normals: five standard errors of the mean and of the variance.
    assert abs(float(pooled.mean())) < 5 * len(pooled) ** -0.5
    assert abs(float(pooled.var()) - 1) < 5 * (2 / len(pooled)) ** 0.5


def test_the_weights_seen_give_the_output_seen() -> None:
    bnn = convert(network())
    x = torch.ones(2, 3, 4, 4)
    inputs: list[torch.Tensor] = []
    last = bayesian_layers(bnn)[-1]
    with undisturbed(bnn, seed=3), torch.no_grad(), capture(bnn) as calls:
        last.module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        out = bnn(x)
    used = calls[-1].functional[-1]
    assert calls[-1].output is out
    torch.testing.assert_close(nn.functional.linear(inputs[0], used.weight, used.bias), out)


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_at_sigma_zero_there_is_no_noise(estimator: Estimator) -> None:
    bnn = convert(network(), type=estimator)
    with undisturbed(bnn, seed=3), zero_sigma(bnn), torch.no_grad(), capture(bnn) as calls:
        bnn(torch.ones(2, 3, 4, 4))
    noises = [noise for call in calls for _, noise in call.noise()]
    assert len(noises) == 5
    assert all(float(noise.abs().max()) == 0 for noise in noises)


def test_nothing_is_left_behind() -> None:
    bnn = convert(network())
    with pytest.raises(ZeroDivisionError), capture(bnn):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in bnn.modules())


def test_each_call_is_told_and_none_is_kept() -> None:
    """Whoever lets go of it lets go of its weights."""
    bnn = convert(network())
    told: list[tuple[str, Tensor]] = []
    alive: list[weakref.ref[Tensor]] = []

    def tell(call: LayerCall) -> None:
        assert not any(weight() is not None for weight in alive)
        alive.append(weakref.ref(call.functional[-1].weight))
        told.append((call.layer.path, call.functional[-1].weight.sum()))

    with undisturbed(bnn, seed=3), torch.no_grad(), capture(bnn) as calls:
        bnn(torch.ones(2, 3, 4, 4))
    with undisturbed(bnn, seed=3), torch.no_grad(), capture(bnn, told=tell) as kept:
        bnn(torch.ones(2, 3, 4, 4))
    assert kept == []
    assert told == [(call.layer.path, call.functional[-1].weight.sum()) for call in calls]
