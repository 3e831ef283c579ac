"""`losses` know what they are, and ``kl.loss`` finds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from pytest_bnn import convert
from pytest_bnn.checks import measure_kl_loss
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers, shifted_prior, zero_noise, zero_sigma
from pytest_bnn.records.evidence import Evidence
from pytest_bnn.strategies import (
    CONVENTIONS,
    DATA_TERMS,
    LOSS_KINDS,
    WEIGHTINGS,
    ConversionExample,
    ExampleLoss,
    conversions,
    losses,
)

#: Explaining a failure, which nobody reads here, takes most of a find(). What is rare comes in clumps.
FIND = settings(max_examples=2000, database=None, phases=[Phase.generate, Phase.shrink])

TEACHER = nn.Linear(2, 3)


def tensors_of(model: nn.Module) -> list[PosteriorTensor]:
    return [tensor for layer in bayesian_layers(model) for tensor in layer.tensors]


def with_kind(loss: ExampleLoss, kind: str) -> ExampleLoss:
    values = {name: getattr(loss, name) for name in ("teacher", "data_term", "weighting", "number", "convention")}
    return ExampleLoss(**values, kind=kind)


def found_weight(evidence: Evidence, loss: ExampleLoss, counts: set[int]) -> float:
    """The weight that was found, in the loss's convention: among tensors of one size, both are the same statement."""
    weight, convention = evidence["weight"], evidence["convention"]
    assert isinstance(weight, float)
    if convention in (loss.convention, "none"):
        return weight
    (count,) = counts
    return weight * count if convention == "sum" else weight / count


def hides_its_kl(loss: ExampleLoss, example: ConversionExample) -> bool:
    """Whether the data term is so large that the loss is the same number with or without a KL term."""
    with torch.no_grad(), zero_noise(example.converted):
        before = loss(example.converted, (example.x, None))
        with shifted_prior(example.converted, 1e4):
            return bool(before == loss(example.converted, (example.x, None)))


@given(conversions(), st.data())
def test_the_check_finds_what_a_loss_is(example: ConversionExample, data: st.DataObject) -> None:
    loss = data.draw(losses(example.teacher, kinds=LOSS_KINDS))
    tensors = tensors_of(example.converted)
    counts = {tensor.count for tensor in tensors}
    evidence = measure_kl_loss(example.converted, loss=loss, images=example.x, kl_weight=loss.expected_weight)
    headline, weight = evidence.headline, found_weight(evidence, loss, counts)
    said = evidence["weight"]
    assert isinstance(said, float)
    assert math.isclose(weight, loss.weight, rel_tol=1e-3), f"{weight} instead of {loss.weight}: {headline}"
    if loss.kind == "missing":
        assert headline == "the KL term is missing from the loss"
    elif loss.kind == "detached":
        assert "in the loss but detached" in headline or hides_its_kl(loss, example)
    elif any(not tensor.rho.requires_grad for tensor in tensors):
        assert "rho is frozen" in headline
    elif loss.kind == "negative":
        assert "negative weight" in headline
    elif loss.kind == "undivided" and not math.isclose(said, loss.expected_weight, rel_tol=1e-3):
        assert "times the expected" in headline
    else:
        assert evidence.verdict == "pass", headline
        return
    assert evidence.verdict == "fail"


@given(conversions(), st.data())
def test_without_an_expectation_the_weight_is_reported(example: ConversionExample, data: st.DataObject) -> None:
    loss = data.draw(losses(example.teacher))
    evidence = measure_kl_loss(example.converted, loss=loss, images=example.x)
    counts = {tensor.count for tensor in tensors_of(example.converted)}
    assert math.isclose(found_weight(evidence, loss, counts), loss.weight, rel_tol=1e-3)


@given(conversions(), st.data())
def test_a_loss_is_its_data_term_and_the_weighted_closed_form(example: ConversionExample, data: st.DataObject) -> None:
    loss = data.draw(losses(example.teacher, kinds=LOSS_KINDS))
    batch = (example.x, None)
    with torch.no_grad(), zero_noise(example.converted):
        value = float(loss(example.converted, batch))
        data_term = float(with_kind(loss, "missing")(example.converted, batch))
    kls = [t.kl_sum() / (t.count if loss.convention == "mean per tensor" else 1) for t in tensors_of(example.converted)]
    weight = loss.expected_weight if loss.kind == "detached" else loss.weight
    assert math.isclose(value, data_term + weight * sum(kls), rel_tol=1e-3, abs_tol=1e-4 * abs(data_term))


@given(conversions(), st.data())
def test_data_terms_against_torch(example: ConversionExample, data: st.DataObject) -> None:
    """torch.distributions for the distillation, the definition for the others; labels count where there are some."""
    loss = with_kind(data.draw(losses(example.teacher)), "missing")
    with torch.no_grad(), zero_sigma(example.converted):
        logits, target = (net(example.x).flatten(1).double() for net in (example.converted, example.teacher))
        unlabelled = float(loss(example.converted, (example.x, None)))
        labels = torch.zeros(len(example.x), dtype=torch.long)
        labelled = float(loss(example.converted, (example.x, labels)))
    log_probabilities = logits.log_softmax(1)
    if loss.data_term == "cross_entropy":
        rows = torch.arange(len(logits))
        expected = float(-log_probabilities[rows, target.argmax(1)].mean())
        assert math.isclose(labelled, float(-log_probabilities[:, 0].mean()), rel_tol=1e-4, abs_tol=1e-5)
    elif loss.data_term == "mse":
        expected = float((logits - target).square().mean())
    else:
        softened = Categorical(logits=logits / 2)
        assume(bool((softened.probs > 0).all()))  # where a probability underflows, torch.distributions says infinity
        expected = 4 * float(kl_divergence(Categorical(logits=target / 2), softened).mean())
    assert math.isclose(unlabelled, expected, rel_tol=1e-3, abs_tol=1e-5)


def test_only_right_losses_are_drawn_unless_asked() -> None:
    @given(losses(TEACHER))
    def check(loss: ExampleLoss) -> None:
        assert loss.kind == "healthy"
        assert loss.weight == loss.expected_weight

    check()


@given(losses(TEACHER, kinds=LOSS_KINDS))
def test_a_broken_loss_never_has_the_weight_that_it_should_have(loss: ExampleLoss) -> None:
    assert 1e-6 <= loss.expected_weight <= 0.5
    assert (loss.weight == loss.expected_weight) == (loss.kind == "healthy")


TRAITS: dict[str, Callable[[ExampleLoss], bool]] = {
    **{word: lambda loss, word=word: loss.data_term == word for word in DATA_TERMS},  # type: ignore[misc]
    **{word: lambda loss, word=word: loss.weighting == word for word in WEIGHTINGS},  # type: ignore[misc]
    **{word: lambda loss, word=word: loss.convention == word for word in CONVENTIONS},  # type: ignore[misc]
    **{word: lambda loss, word=word: loss.kind == word for word in LOSS_KINDS},  # type: ignore[misc]
}


@pytest.mark.parametrize("trait", TRAITS)
def test_every_kind_of_loss_shows_up(trait: str) -> None:
    found = find(losses(TEACHER, kinds=LOSS_KINDS), TRAITS[trait], settings=FIND)
    smallest = ExampleLoss(teacher=TEACHER, data_term="cross_entropy", weighting="num_batches", number=2)
    kept = [name for name in ("data_term", "weighting", "convention", "kind") if trait == getattr(found, name)]
    assert len(kept) == 1
    for name in {"data_term", "convention", "kind"} - {*kept}:
        assert getattr(found, name) == getattr(smallest, name)


def test_the_shown_call_makes_the_loss_again() -> None:
    found = find(losses(TEACHER, kinds=LOSS_KINDS), lambda loss: loss.kind == "detached", settings=FIND)
    assert repr(found) == (
        "ExampleLoss(teacher=network, data_term='cross_entropy', weighting='num_batches', number=2, "
        "convention='mean per tensor', kind='detached')"
    )
    again = eval(repr(found), {"ExampleLoss": ExampleLoss, "network": TEACHER})
    model, x = convert(TEACHER), torch.ones(2, 2)
    with zero_noise(model):
        assert torch.equal(found(model, (x, None)), again(model, (x, None)))


def test_an_argument_out_of_range_is_refused() -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("teacher", {}, "Module"),
        (TEACHER, {"kinds": ["right"]}, "kinds"),
        (TEACHER, {"kinds": "healthy"}, "kinds"),
        (TEACHER, {"data_terms": []}, "data_terms"),
        (TEACHER, {"weightings": ["1/N"]}, "weightings"),
        (TEACHER, {"conventions": ["mean"]}, "conventions"),
    ]
    for teacher, options, named in wrong:
        with pytest.raises(InvalidArgument, match=named):
            losses(teacher, **options)
    with pytest.raises(ValueError, match="kind must be one of"):
        ExampleLoss(teacher=TEACHER, kind="right")
    with pytest.raises(ValueError, match="number"):
        ExampleLoss(teacher=TEACHER, number=0)


def test_a_loss_needs_a_bayesian_model() -> None:
    for convention in CONVENTIONS:
        with pytest.raises(ValueError, match="no Bayesian layer"):
            ExampleLoss(teacher=TEACHER, convention=convention)(TEACHER, (torch.ones(1, 2), None))


def test_labels_are_optional() -> None:
    """A batch of images alone: the teacher's leading class is the label."""
    with torch.no_grad():
        labels: Tensor = TEACHER(torch.eye(2)).argmax(1)
    loss, model = ExampleLoss(teacher=TEACHER), convert(TEACHER)
    with zero_noise(model):
        assert torch.equal(loss(model, (torch.eye(2), None)), loss(model, (torch.eye(2), labels)))
