"""Healthy subjects by the hundred: nobody accuses or warns of them, and whoever abstains says what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from torch import Tensor, nn
from torch.nn import functional

import pytest_bnn
from pytest_bnn import Evidence, Verdict
from pytest_bnn.checks import registry
from tests.property.odd.architectures import ARCHITECTURES
from tests.property.odd.losses import KLS, TERMS, DataTerm
from tests.property.odd.making import subject
from tests.property.odd.recipe import ALL, Recipe, healthy, recipes, term_of
from tests.property.odd.shapes import CLASSES, SHAPES, Meaning

#: The examples of a push.
FEW = 20

#: Explaining a failure, which nobody reads here, takes most of a find().
FIND = settings(max_examples=500, database=None, phases=[Phase.generate])

TRAITS: dict[str, Callable[[Recipe], bool]] = {
    "together": lambda recipe: term_of(recipe).together,
    "backward": lambda recipe: recipe.backward and term_of(recipe).several,
    "trained": lambda recipe: recipe.steps > 0 and recipe.optimizer == "SGD",
    "train mode": lambda recipe: recipe.train and recipe.type == "Flipout",
    "large": lambda recipe: recipe.shape == "ResNet" and recipe.dtype == "bfloat16",
    **{name: lambda recipe, name=name: recipe.shape == name for name in ARCHITECTURES},  # type: ignore[misc]
}

#: What can be done about a premise: an option, an argument in Python, a function of ours, or a page to read.
WAY = re.compile(r"--[a-z]|\b[a-z_]+=|\b(?:convert|pytest_bnn\.\w+)\(|docs/|\.md\b|https?://")

#: What healthy subjects are told that is no pass, by check: the words, and why they are right.
SAID: dict[str, dict[str, str]] = {
    "estimator.flipout": {
        "draw signs for each position": "the library's Flipout does so for images and tokens, and it narrows or widens "
        "what is pooled over positions: a choice that its user should know",
    },
    "data.sane": {
        r"All \d+ labels are class": "the labels are the answers of a teacher of random weights, which may say one "
        "class of everything",
    },
    "teacher.agreement": {
        "inconclusive": "a model that was trained may be unsure of examples that its teacher is sure of, and then the "
        "passes that there are do not decide them",
    },
    "noise.varies": {
        "inconclusive.* vary by 0.0": "in bfloat16 a sigma of a fiftieth moves outputs by about their rounding: "
        "neither above nor below it",
    },
}


def accusations(checks: tuple[Evidence, ...]) -> list[str]:
    return [e.explain() for e in checks if e.verdict in (Verdict.FAIL, Verdict.ERROR)]


def warnings(checks: tuple[Evidence, ...]) -> list[str]:
    """Return what neither passes nor abstains, but for what is right to say: few examples decide little about data."""
    doubtful = [
        e
        for e in checks
        if e.verdict in (Verdict.WARN, Verdict.INCONCLUSIVE) and not registry.load(e.id).declaration.of_data
    ]
    return [
        e.explain()
        for e in doubtful
        if not any(re.search(words, f"{e.verdict}: {e.headline}") for words in SAID.get(e.id, {}))
    ]


def without_a_way(checks: tuple[Evidence, ...]) -> list[str]:
    """Return the evidence that abstains and names no premise, or no way to meet it."""
    abstaining = [e for e in checks if e.verdict is Verdict.NOT_APPLICABLE]
    return [e.explain() for e in abstaining if not e.headline.strip() or not WAY.search(f"{e.headline} {e.remedy}")]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(recipes())
def test_a_healthy_subject_is_not_accused(recipe: Recipe) -> None:
    given = subject(recipe)
    # What takes half of an audit of small networks: a push has it with fewer draws, the nightly run as it is.
    few = {} if settings().max_examples > FEW else {"noise.posterior": {"max_passes": 8}}
    run = pytest_bnn.audit_model(**{**given, "options": {**given.get("options", {}), **few}}, name="odd")
    assert accusations(run.checks) == []
    assert without_a_way(run.checks) == []
    assert warnings(run.checks) == []


def outputs_of(recipe: Recipe, network: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        found = ALL[recipe.shape].call(network, inputs)
    parts = found.values() if isinstance(found, dict) else [found] if isinstance(found, Tensor) else found
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("shape", ALL)
def test_every_network_is_healthy(shape: str) -> None:
    """By torch alone: the mean is the teacher's, the passes vary. Or nothing here would prove anything."""
    recipe = Recipe(shape=shape, delta=0.1)
    given = subject(recipe)
    inputs = ALL[shape].inputs()
    passes = torch.stack([outputs_of(recipe, given["model"], inputs) for _ in range(100)])
    wanted = outputs_of(recipe, given["teacher"], inputs)
    scale = float(wanted.abs().max())
    assert 0.1 < scale < 30
    # All but a few features that a Tanh holds at its end.
    assert float((passes.std(0) > 1e-3 * scale).float().mean()) > 0.95
    # Deeper networks bend the noise: the mean of their passes is not quite the pass of the mean.
    assert float((passes.mean(0) - wanted).abs().max()) < (0.1 if shape in SHAPES else 0.4) * scale


def taught(meaning: Meaning, *, right: bool) -> tuple[Any, Tensor, Any]:
    """Return outputs that are near to their labels, or far from them, the labels, and the teacher's outputs."""
    places = torch.arange(24) % CLASSES
    said = places if right else (places + 1) % CLASSES
    numbers = torch.linspace(-2, 2, 24)[:, None]
    off = numbers + (0.1 if right else 2.0)
    return {
        "scores": (4 * functional.one_hot(said, CLASSES).float(), places, 4 * functional.one_hot(places, CLASSES)),
        "shares": (
            (4 * functional.one_hot(said, CLASSES).float()).softmax(1),
            places,
            (4 * functional.one_hot(places, CLASSES).float()).softmax(1),
        ),
        "sides": (torch.where((numbers > 0) == right, 3.0, -3.0), (numbers > 0).float(), numbers),
        "numbers": (off, numbers, numbers),
        "variance": ((off, torch.zeros_like(off)), numbers, numbers),
    }[meaning]


@pytest.mark.parametrize(("meaning", "name"), [(meaning, name) for meaning in TERMS for name in TERMS[meaning]])
def test_every_data_term_is_smaller_where_the_outputs_are_right(meaning: Meaning, name: str) -> None:
    term: DataTerm = TERMS[meaning][name]

    def value(*, right: bool) -> float:
        out, labels, of_the_teacher = taught(meaning, right=right)
        return float(sum(term.parts(lambda: out, labels, of_the_teacher), torch.zeros(())))

    assert value(right=True) < value(right=False)


@pytest.mark.parametrize("shape", ["scores", "ConvNeXt", "ViT"])
def test_the_kl_terms_are_what_they_are_called(shape: str) -> None:
    """The library's own is the mean over each tensor's weights; that over all of them is torch's sum."""
    model = subject(Recipe(shape=shape))["model"]
    by_library, by_modules, summed = (
        float(KLS[name][0](model).detach()) for name in ("get_kl_loss", "modules", "summed")
    )
    assert by_library == pytest.approx(by_modules, rel=1e-5)
    assert summed == pytest.approx(float(pytest_bnn.kl(model, convention="sum").detach()), rel=1e-4)


@pytest.mark.parametrize("trait", ["together", "backward", "trained", "train mode", "large", "ViT", "Swin", "ConvNeXt"])
def test_every_kind_of_subject_shows_up(trait: str) -> None:
    found = find(recipes(), TRAITS[trait], settings=FIND)
    assert healthy(found) == found


def test_several_passes_at_once_have_noise_of_their_own() -> None:
    """A1 is a fault: with the library's buffers only the last pass's noise is left for the gradient."""
    assert healthy(Recipe(term="mean shares")).noise == "fresh buffers"
    assert healthy(Recipe(term="mean of losses")).noise == "fresh buffers"
    assert healthy(Recipe(term="mean of losses", backward=True)).noise == "the library's"
    given = subject(Recipe(term="mean shares"))
    run = pytest_bnn.audit_model(**given, checks=["gradient.samples"])
    assert [e.verdict for e in run.checks] == [Verdict.FAIL]
