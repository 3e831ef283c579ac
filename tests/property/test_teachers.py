"""`teachers`: torchvision's ResNets, small, with weights that no initialisation gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from scipy import stats
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from pytest_bnn import convert
from pytest_bnn.checks import measure_layers_replaced
from pytest_bnn.libraries.posterior import zero_sigma
from pytest_bnn.network.isolation import preserved_random_state
from pytest_bnn.strategies import inputs_for, source, teachers

#: Explaining a failure, which nobody reads here, takes most of a find(). What is rare comes in clumps.
FIND = settings(max_examples=2000, database=None, phases=[Phase.generate, Phase.shrink])


def run(code: str) -> ResNet:
    namespace: dict[str, Any] = {}
    with preserved_random_state():
        exec(code, namespace)
    network = namespace["network"]
    assert isinstance(network, ResNet)
    return network


def initial(teacher: nn.Module) -> ResNet:
    """The same network before its weights were moved: the seed draws the initial weights first."""
    code = source(teacher)
    assert "network = trained(" in code
    return run(code.replace("network = trained(", "network = ("))


def weights(network: nn.Module) -> list[Tensor]:
    return [m.weight.detach().double().flatten() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@given(teachers())
def test_a_teacher_tells_images_apart(teacher: nn.Module) -> None:
    """Also others than the 16 that it was chosen by, save for a few on which all its ReLU are 0."""
    images = torch.randn((32, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    reference = next(teacher.parameters())
    with torch.no_grad():
        out = teacher(images.to(reference))
    assert isinstance(teacher, ResNet)
    assert not any(module.training for module in teacher.modules())
    assert out.dtype == reference.dtype
    assert 2 <= out.shape[1] <= 10
    assert bool(torch.isfinite(out).all())
    assert bool((out.std(0) > 0).all())
    assert len(torch.unique(out, dim=0)) > 16


def test_weights_keep_their_scale_and_get_heavier_tails() -> None:
    """Initial weights times log-normal factors of mean square 1, by scipy's moments; at 1e-6 a network.

    The fourth moment of such a factor is e, so many times is the kurtosis that of the initial weights; a fourth moment
    takes more of them than one network has.
    """
    trained, initially = list[Tensor](), list[Tensor]()

    @given(teachers())
    def draw(teacher: nn.Module) -> None:
        pairs = list(zip(weights(teacher), weights(initial(teacher)), strict=True))
        factors = torch.cat([w / w0 for w, w0 in pairs])
        assert bool((factors > 0).all())
        assert stats.kstest(factors.log().numpy(), stats.norm(-0.25, 0.5).cdf).pvalue > 1e-6
        trained.extend(w / w0.square().mean().sqrt() for w, w0 in pairs)
        initially.extend(w0 / w0.square().mean().sqrt() for _, w0 in pairs)

    draw()
    tails, initial_tails = (
        stats.kurtosis(torch.cat(several).numpy(), fisher=False) for several in (trained, initially)
    )
    assert 0.7 * math.e < tails / initial_tails < 1.4 * math.e


@given(teachers())
def test_every_batchnorm_is_moved(teacher: nn.Module) -> None:
    norms = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for values, start in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
            assert len(set(values.tolist())) > 1, "constant"
            assert bool((values != start).all())
        assert norm.momentum == 0.1
        assert float(norm.running_var.min()) >= 0.1
    assert isinstance(teacher, ResNet)
    assert bool((teacher.fc.bias != 0).all())


@given(teachers(dtypes=[torch.float64]))
def test_running_statistics_are_those_of_the_activations(teacher: nn.Module) -> None:
    """On other images than theirs, so only about: nine tenths, plus a tenth of where BatchNorm starts."""
    assert isinstance(teacher, ResNet)
    images = torch.randn((64, 3, 16, 16), generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        activations = teacher.conv1(images).transpose(0, 1).flatten(1)
    scale = activations.std(1)
    mean, variance = 0.9 * activations.mean(1), 0.1 + 0.9 * scale**2
    assert isinstance(teacher.bn1.running_mean, Tensor)
    assert isinstance(teacher.bn1.running_var, Tensor)
    assert float(((teacher.bn1.running_mean - mean) / scale).abs().max()) < 0.25
    assert float((teacher.bn1.running_var / variance - 1).abs().max()) < 0.25


@given(teachers(), st.sampled_from(["Reparameterization", "Flipout"]), st.data())
def test_a_teacher_converts_completely_and_is_its_mean(teacher: nn.Module, estimator: Any, data: st.DataObject) -> None:
    x = data.draw(inputs_for(teacher))
    converted = convert(teacher, type=estimator)
    replaced = measure_layers_replaced(converted, teacher=teacher, images=x)
    assert replaced.verdict == "pass", replaced.headline
    with torch.no_grad(), zero_sigma(converted), preserved_random_state():
        mean, expected = converted(x), teacher(x)
    torch.testing.assert_close(mean, expected)


@given(teachers())
def test_the_shown_code_rebuilds_a_teacher_to_the_bit(teacher: nn.Module) -> None:
    twin = run(source(teacher)).state_dict()
    assert repr(teacher) == source(teacher)
    state = teacher.state_dict()
    assert state.keys() == twin.keys()
    assert all(torch.equal(state[name], twin[name]) for name in state)


def blocks(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]


@pytest.mark.parametrize(
    "trait",
    [
        lambda network: isinstance(blocks(network)[0], Bottleneck),
        lambda network: isinstance(network.layer4, nn.Sequential),
        lambda network: len(network.layer1) == 2,
        lambda network: network.fc.out_features == 10,
        lambda network: network.fc.weight.dtype is torch.float64,
    ],
    ids=["Bottleneck", "four stages", "two blocks a stage", "ten classes", "float64"],
)
def test_every_kind_of_teacher_shows_up(trait: Callable[[nn.Module], bool]) -> None:
    """find() shrinks too: what has nothing to do with the trait is gone."""
    found = find(teachers(), trait, settings=FIND)
    assert len(blocks(found)) <= 4


def test_the_smallest_teacher_is_one_stage_of_one_block() -> None:
    """And drawing leaves the global random state alone."""
    before = torch.get_rng_state()
    smallest = find(teachers(), lambda network: True, settings=FIND)
    assert source(smallest).endswith("network = trained(SmallResNet(resnet.BasicBlock, [1], 2, 2))")
    assert torch.equal(torch.get_rng_state(), before)


@given(teachers(max_stages=1, min_channels=1, max_channels=1))
def test_one_channel_is_enough(teacher: nn.Module) -> None:
    """With it some seeds leave a ReLU dead for every image, which drawing passes over."""
    with torch.no_grad():
        images = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
        out = teacher(images.to(next(teacher.parameters())))
    assert float(out.std(0).min()) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"blocks": ["Residual"]},
        {"blocks": "BasicBlock"},
        {"max_stages": 0},
        {"max_stages": 5},
        {"max_depth": 0},
        {"min_channels": 0},
        {"min_channels": 5},
        {"min_classes": 11},
        {"dtypes": []},
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong)).replace("min", "(min|max)")):
        teachers(**wrong)
