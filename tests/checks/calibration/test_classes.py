"""``calibration.classes``: a model that is right on average and wrong in one class."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pytest_bnn.checks import measure_calibration_classes
from pytest_bnn.checks._sides import Against
from pytest_bnn.records.evidence import Verdict
from tests.checks.predicting import Says, following, scores


def shifted(by: float, number: int = 2) -> Callable[[Tensor], Tensor]:
    return lambda x: x + by * torch.nn.functional.one_hot(torch.tensor(number), x.shape[1])


def test_classes_that_occur_as_predicted_pass() -> None:
    logits = scores(1500)
    evidence = measure_calibration_classes(Says(), images=logits, labels=following(logits))
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert "All 5 classes occur as often as they are predicted" in evidence.headline


@pytest.mark.parametrize(("by", "words"), [(-5.0, "too rarely"), (5.0, "too often")])
def test_a_class_of_other_odds_fails_and_is_named(by: float, words: str) -> None:
    """By as much as its score was shifted; more passes confirmed it."""
    logits = scores(1500)
    given = {"images": logits, "labels": following(logits), "class_names": list("abcde")}
    evidence = measure_calibration_classes(Says(shifted(by)), **given)  # type: ignore[arg-type]
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert f"The model predicts class 2 (c) {words}" in evidence.headline
    assert evidence["class 2 (c)"] == pytest.approx(math.exp(-by), rel=0.5)
    assert "Look at the examples of this class" in evidence.remedy
    assert evidence.samples == 64
    inherited = measure_calibration_classes(Says(shifted(by)), teacher=Says(shifted(1.2 * by)), **given)  # type: ignore[arg-type]
    assert inherited.verdict is Verdict.WARN, inherited.explain()
    assert "so does the teacher" in inherited.headline
    assert measure_calibration_classes(Says(shifted(by)), most=1e4, **given).verdict is not Verdict.FAIL  # type: ignore[arg-type]


def test_a_class_without_labels_is_left_open() -> None:
    """Nothing bounds how rare it is: a warning that names it, and asks for labels."""
    logits, seldom = scores(1500), shifted(-12.0, 3)
    labels = following(seldom(logits))
    evidence = measure_calibration_classes(Says(seldom), images=logits, labels=labels)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "1500 labels are too few to decide how often class 3 of 5 occurs" in evidence.headline
    assert evidence.remedy == "Give more labels of these classes, with --evaluation MODULE:FACTORY."
    never = Says(lambda x: x.masked_fill(torch.arange(5) == 3, -math.inf))
    assert measure_calibration_classes(never, images=logits, labels=labels).verdict is Verdict.PASS


def test_without_labels_it_is_not_judged() -> None:
    evidence = measure_calibration_classes(Says(), images=scores(50))
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "no labels were given" in evidence.headline


def test_what_is_left_beside_a_class_is_that_of_exact_sums() -> None:
    """Next to a probability of 1 less 1e-30 too, where one less it would be 0; by sums over the other classes."""
    logs = torch.tensor([[0.0, -70.0, -72.0], [-1.0, -1.2, -1.05], [-0.1, -3.0, -30.0]]).double().log_softmax(1)
    for number in range(3):
        others = [c for c in range(3) if c != number]
        exact = torch.stack([torch.logsumexp(logs[:, others], 1), logs[:, number]], 1)
        torch.testing.assert_close(Against(logs).of(number), exact, rtol=1e-9, atol=1e-12)
