"""What is not applicable says so in words that name a premise and how to meet it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn import checks
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Evidence, Verdict

IMAGES = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def loss(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = model(batch[0]).square().mean()
    return found


def without_gradient(model: nn.Module, batch: Any) -> Tensor:
    return loss(model, batch).detach()


def sick(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for layer in bayesian_layers(model):
            for tensor in layer.tensors:
                tensor.rho.fill_(math.nan)
    return model


def silent(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for layer in bayesian_layers(model):
            for tensor in layer.tensors:
                tensor.rho.fill_(-math.inf)
    return model


#: How a headline tells what to do: in the imperative, or what the claim would apply to.
REMEDY = re.compile(r"\b(give|audit|convert|load|make|let|name|say|compute|allow|wrap|applies to|needs a layer)\b")

ABSTAINING: dict[str, tuple[Callable[[], Evidence], str]] = {
    "no Flipout": (
        lambda: checks.measure_estimator_flipout(convert(network()), images=IMAGES),
        r"no Flipout layer.*applies to conversions with type='Flipout'",
    ),
    "Flipout, not finite": (
        lambda: checks.measure_estimator_flipout(sick(convert(network(), type="Flipout")), images=IMAGES),
        r"see kl\.present, and load or train",
    ),
    "Flipout, silent": (
        lambda: checks.measure_estimator_flipout(silent(convert(network(), type="Flipout")), images=IMAGES),
        r"no Flipout layer with noise.*a sigma that is not 0",
    ),
    "no posterior: its draws": (
        lambda: checks.measure_noise_posterior(network(), images=IMAGES),
        r"no Bayesian layer.*give the converted model",
    ),
    "no posterior: its memory": (
        lambda: checks.measure_memory_separate(network()),
        r"no Bayesian layer.*give the converted model",
    ),
    "no posterior: its gradients": (
        lambda: checks.measure_gradient_samples(network(), images=IMAGES, loss=loss),
        r"no Bayesian layer.*give the converted model",
    ),
    "nothing drawn": (
        lambda: checks.measure_noise_posterior(silent(convert(network())), images=IMAGES),
        r"no layer's noise can be seen.*needs a layer that the forward calls",
    ),
    "no gradient": (
        lambda: checks.measure_gradient_samples(convert(network()), images=IMAGES, loss=without_gradient),
        r"no gradient of the loss reaches.*see kl\.loss, and compute the loss",
    ),
    "gradients, not finite": (
        lambda: checks.measure_gradient_samples(sick(convert(network())), images=IMAGES, loss=loss),
        r"NaN or infinite in 32 of 32 places\): see kl\.present, and load or train",
    ),
    "cannot vary": (
        lambda: checks.measure_noise_varies(convert(nn.Sequential(network(), nn.Threshold(99.0, 0.0))), images=IMAGES),
        r"the outputs cannot vary.*let the network return.*--output",
    ),
    "unknown task": (
        lambda: checks.measure_teacher_agreement(
            convert(nn.Linear(4, 2)), teacher=nn.Linear(4, 2), images=IMAGES
        ),
        r"two numbers.*--task.*or give labels",
    ),
    "nothing given": (
        lambda: checks.measure_noise_varies(convert(network())),
        r"no images were given: --data MODULE:FACTORY, or images= in Python",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSTAINING)
def test_a_premise_and_how_to_meet_it(name: str) -> None:
    """In one headline, since a list of verdicts shows no more."""
    measure, words = ABSTAINING[name]
    evidence = measure()
    assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.headline
    assert re.search(words, evidence.headline, re.I), evidence.headline
    assert REMEDY.search(evidence.headline) or "--" in evidence.headline
