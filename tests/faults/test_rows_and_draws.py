"""``predictions.rows`` and ``noise.fresh``: rows that meet (B36 to B38), and draws that repeat (B39 to B42).

The kinds of each are in tests/checks; here one of each is found among the other checks.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.around import Around

Measures = Mapping[str, Callable[..., Evidence]]

#: What has to see the rows, and what was there before and does not.
SEEING = ("predictions.rows", "noise.fresh", "mean.equals_teacher", "noise.source", "noise.varies")


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).eval()


def accusing(measures: Measures, model: nn.Module, **given: Any) -> dict[str, Evidence]:
    found = {id: measures[id](model, **given) for id in SEEING}
    return {id: evidence for id, evidence in found.items() if evidence.verdict in (Verdict.FAIL, Verdict.WARN)}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.att = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.att(x, x, x, need_weights=False)[0].mean(1)


@pytest.mark.fault("B36", "predictions.rows")
def test_attention_across_the_batch(measures: Measures) -> None:
    teacher = Tokens().eval()
    found = accusing(measures, convert(teacher), teacher=teacher, images=images(12, 5, 8))
    assert found.keys() == {"predictions.rows"}
    assert found["predictions.rows"].verdict is Verdict.WARN
    assert "examples meet in `att`" in found["predictions.rows"].headline


@pytest.mark.fault("B37", "predictions.rows")
def test_outputs_standardised_over_the_batch(measures: Measures) -> None:
    def standardised(network: nn.Module, x: Tensor) -> Any:
        y = network(x)
        return (y - y.mean(0)) / y.std(0)

    found = accusing(measures, Around(convert(network()), standardised), images=images(12, 6), teacher=network())
    assert "which others are in its batch" in found["predictions.rows"].headline
    assert found["predictions.rows"].verdict is Verdict.FAIL


@pytest.mark.fault("B38", "predictions.rows")
def test_a_path_of_its_own_for_one_example(measures: Measures) -> None:
    teacher = network()
    model = Around(convert(teacher), lambda n, x: n(x) if len(x) > 1 else n(x).clamp(-0.1, 0.1))
    found = accusing(measures, model, images=images(12, 6), teacher=teacher)
    assert found.keys() == {"predictions.rows"}
    assert "how many are in its batch" in found["predictions.rows"].headline


@pytest.mark.fault("B39", "noise.fresh")
def test_a_repeated_batch_as_samples(measures: Measures) -> None:
    def mean(network: nn.Module, x: Tensor) -> Any:
        return network(x.repeat(8, 1)).view(8, len(x), -1).mean(0)

    found = accusing(measures, Around(convert(network()), mean), images=images(12, 6))
    assert found.keys() == {"noise.fresh"}
    assert "The 8 samples of a call are one draw" in found["noise.fresh"].headline


def seeded() -> nn.Module:
    model = convert(network())
    for number, layer in enumerate(bayesian_layers(model)):
        generator = torch.Generator().manual_seed(number)

        def forward(self: Any, x: Tensor, generator: torch.Generator = generator) -> Tensor:
            sigma = functional.softplus(self.rho_weight)
            noise = torch.empty_like(sigma).normal_(generator=generator)
            return functional.linear(x, self.mu_weight + sigma * noise, self.mu_bias)

        layer.module.forward = types.MethodType(forward, layer.module)
    return model


@pytest.mark.fault("B40", "noise.fresh")
def test_generators_that_are_seeded_with_the_model(measures: Measures) -> None:
    model, x = seeded(), images(12, 6)
    found = measures["noise.fresh"](model, images=x, factory=seeded)
    assert "start from fixed seeds" in found.headline
    assert not accusing(measures, model, images=x)  # without the factory nobody sees it


@pytest.mark.fault("B41", "noise.fresh")
def test_a_forward_that_seeds_when_it_is_done(measures: Measures) -> None:
    def seeding(network: nn.Module, x: Tensor) -> Any:
        y = network(x)
        torch.manual_seed(77)
        return y

    found = accusing(measures, Around(convert(network()), seeding), images=images(12, 6))
    assert found.keys() == {"noise.fresh"}
    assert "resets the global random generator" in found["noise.fresh"].headline


@pytest.mark.fault("B41", "noise.fresh")
def test_a_layer_that_puts_the_generator_back(measures: Measures) -> None:
    """B41: meant to leave no trace, and what comes next draws the layer's numbers; between tensors of other shapes."""
    model: Any = convert(network(), type="Flipout")
    layer = bayesian_layers(model)[0]
    kind: Any = type(layer.module)

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            out: Tensor = kind.forward(self, x)
        return out

    layer.module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    found = accusing(measures, model, images=images(12, 6))
    assert found.keys() == {"noise.fresh"}
    assert f"The forward of `{layer.path}` puts back the global random generator" in found["noise.fresh"].headline


@pytest.mark.fault("B42", "noise.fresh")
def test_a_backward_that_seeds(measures: Measures) -> None:
    def seeding(network: nn.Module, x: Tensor) -> Any:
        y = network(x)
        if y.requires_grad:
            y.register_hook(lambda _: torch.manual_seed(77) and None)
        return y

    found = accusing(measures, Around(convert(network()), seeding), images=images(12, 6))
    assert found.keys() == {"noise.fresh"}
    assert "The backward pass repeats draws" in found["noise.fresh"].headline
