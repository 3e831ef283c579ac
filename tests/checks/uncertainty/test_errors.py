"""``uncertainty.errors``: the order of the errors, by chance and beside the teacher's; figures by scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pytest_bnn.checks import measure_uncertainty_errors
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.checks.predicting import Says, following, scores


def judged(model: Says, teacher: Says | None = None, count: int = 600, **given: Any) -> Evidence:
    logits = scores(count)
    arguments = {"images": logits, "labels": following(logits), **given}
    return measure_uncertainty_errors(model, teacher=teacher, **arguments)


def turned_around(logits: Tensor) -> Tensor:
    """The same answers, the surer the less sure they were."""
    gap = logits.amax(1, keepdim=True) - logits
    size = gap.sort(1).values[:, 1:2]
    return -gap / size * (4 / (1 + size))


def test_a_model_that_knows_its_errors_passes() -> None:
    """Its figures are those of scikit-learn, and AUGRC follows from them by the formula of Traub et al."""
    evidence = judged(Says(noise=0.02), Says())
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    logits = scores(600)
    labels = following(logits)
    shares = logits.double().softmax(1)
    wrong = shares.argmax(1) != labels
    auroc = roc_auc_score(wrong, 1 - shares.amax(1))
    assert evidence["AUROC of the teacher's errors"] == pytest.approx(auroc, abs=1e-4), "but for ties within rounding"
    risk = float(wrong.double().mean())
    augrc = (1 - auroc) * risk * (1 - risk) + risk**2 / 2  # equation 6
    assert evidence["AUGRC of the teacher"] == pytest.approx(augrc, abs=1e-6)
    kept = wrong[shares.amax(1).argsort(descending=True)][: math.ceil(0.8 * 600)]
    assert evidence["errors at coverage 0.8"] == pytest.approx(float(kept.double().mean()), abs=0.01)


def test_without_a_teacher_the_order_is_held_against_chance() -> None:
    evidence = judged(Says())
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert evidence.threshold is not None
    assert evidence.threshold.allowed == 0.5


@pytest.mark.parametrize("teacher", [None, Says()])
def test_an_order_that_is_turned_around_fails(teacher: Says | None) -> None:
    evidence = judged(Says(turned_around), teacher, 1500)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "The wrong answers are the confident ones" in evidence.headline


def test_a_teacher_of_the_same_order_is_where_it_comes_from() -> None:
    evidence = judged(Says(turned_around, noise=1e-4), Says(turned_around), 1500)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "so it is with the teacher, and the model has inherited it" in evidence.headline


def alike(logits: Tensor) -> Tensor:
    """The same answers, in an order that knows nothing."""
    generator = torch.Generator().manual_seed(5)
    sizes = 1 + 4 * torch.rand(len(logits), 1, generator=generator)
    return torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]) * sizes


def test_an_order_that_the_model_lost_fails_beside_its_teacher() -> None:
    """By chance alone it might be; the bound is Hoeffding's with the ranges of each example, by hand."""
    evidence = judged(Says(alike), Says(), 3000)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "The model knows its errors less well than its teacher" in evidence.headline
    logits = scores(3000)
    labels = following(logits)
    wrong = (logits.argmax(1) != labels).double()

    def places(values: Tensor) -> Tensor:
        return values.double().argsort().argsort().add(0.5) / len(values)

    mine, its = places(alike(logits).softmax(1).amax(1)), places(logits.double().softmax(1).amax(1))
    gap = float((wrong * (mine - its)).mean())
    bound = gap - math.sqrt(math.log(2e6) * float(((mine - its) ** 2).sum()) / 2) / 3000
    assert evidence.certainty is not None
    assert evidence.certainty.low == pytest.approx(bound, abs=1e-3)


def test_too_few_errors_are_a_warning_that_asks_for_more() -> None:
    logits = 4 * scores(100)
    evidence = measure_uncertainty_errors(Says(), images=logits, labels=logits.argmax(1))
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "0 of 100 answers are wrong" in evidence.headline
    assert "of which the model gets some wrong" in evidence.remedy
    few = judged(Says(), None, 40)
    assert few.verdict is Verdict.WARN, few.explain()
    assert "are too few to decide" in few.headline


def test_ranges_hold_whatever_the_labels_are() -> None:
    """Each difference, for every label that an example may have, lies within its range."""
    from pytest_bnn.checks.uncertainty.errors import _Order, ranges

    one, other = scores(50, seed=1).log_softmax(1), scores(50, seed=2).log_softmax(1)
    gaps = []
    for label in range(5):
        labels = torch.full((50,), label)
        mine, its = _Order.of(one, labels), _Order.of(other, labels)
        gaps.append(mine.wrong * mine.places - its.wrong * its.places)
    found = torch.stack(gaps)
    reach = found.amax(0) - found.amin(0)
    assert bool((reach <= ranges(mine, its) + 1e-12).all())
    assert float(reach.max()) == pytest.approx(float(ranges(mine, its).max()))


def test_claims_about_the_truth_need_labels() -> None:
    evidence = measure_uncertainty_errors(Says(), images=scores(50))
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "--evaluation" in evidence.headline
