"""`capture` sees the weights that a forward used: the outputs they give are the outputs that came."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from pytest_bnn import convert
from pytest_bnn.conversion import Estimator
from pytest_bnn.libraries.capture import capture
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


@pytest.mark.parametrize("estimator", get_args(Estimator))
@pytest.mark.parametrize("room", [1.0, 0.5])
def test_drawn_weights_move_where_they_are_told_to(estimator: Estimator, room: float) -> None:
    """One behind the other, as far as there is room, and the same numbers; the next pass begins anew."""
    bnn = convert(network(), type=estimator)
    weights = sum(tensor.count for layer in bayesian_layers(bnn) for tensor in layer.tensors)
    memory = torch.empty(int(room * weights))
    for seed in (3, 4):
        with undisturbed(bnn, seed=seed), torch.no_grad(), capture(bnn) as calls:
            bnn(torch.ones(2, 3, 4, 4))
        with undisturbed(bnn, seed=seed), torch.no_grad(), capture(bnn, memory=memory) as moved:
            bnn(torch.ones(2, 3, 4, 4))
        places = []
        for one, other in zip(calls, moved, strict=True):
            found = other.functional[-1].weight
            assert torch.equal(found, one.functional[-1].weight)
            if found.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr():
                places.append((found.storage_offset(), found.numel()))
        assert len(places) == len(calls) if room == 1 else 0 < len(places) < len(calls)
        assert [start for start, _ in places] == [sum(size for _, size in places[:i]) for i in range(len(places))]
