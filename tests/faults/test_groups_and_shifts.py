"""Faults of what a network says of groups of examples, of growing shifts and of its own errors."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_bnn.checks import (
    measure_slices_scores,
    measure_slices_temperature,
    measure_uncertainty_errors,
    measure_uncertainty_shift,
)
from pytest_bnn.records.evidence import Verdict
from tests.checks.predicting import Says, following, scores
from tests.checks.slices.test_slices import Broken, by_three, data
from tests.checks.uncertainty.test_errors import alike, turned_around
from tests.checks.uncertainty.test_shift import blind, noisy


@pytest.mark.fault("B64", "slices.temperature", "slices.scores")
def test_a_group_that_is_broken() -> None:
    """Its scores are six times as large as they should be, or those of the next class."""
    images, labels = data()
    given: dict[str, Any] = {"images": images, "labels": labels, "slices": by_three}
    evidence = measure_slices_temperature(Broken(lambda x: 6 * x), **given)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "in 1 of 3 groups: city" in evidence.headline
    evidence = measure_slices_scores(Broken(lambda x: x.roll(1, 1)), teacher=Broken(), **given)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "in 1 of 3 groups: city" in evidence.headline


@pytest.mark.fault("B65", "uncertainty.shift")
def test_an_entropy_that_does_not_notice_a_shift() -> None:
    inputs = scores(300)
    given: dict[str, Any] = {"images": inputs, "labels": following(inputs), "shifts": noisy(inputs)}
    evidence = measure_uncertainty_shift(Says(blind), examples=300, **given)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "the model does not notice" in evidence.headline


@pytest.mark.fault("B66", "uncertainty.errors")
def test_errors_of_which_the_model_is_surest_or_knows_nothing() -> None:
    inputs = scores(3000)
    given: dict[str, Any] = {"images": inputs, "labels": following(inputs)}
    evidence = measure_uncertainty_errors(Says(turned_around), **given)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "The wrong answers are the confident ones" in evidence.headline
    evidence = measure_uncertainty_errors(Says(alike), teacher=Says(), **given)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "The model knows its errors less well than its teacher" in evidence.headline
