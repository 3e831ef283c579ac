"""``scores.against_teacher``: as good as the teacher, worse by a margin, or undecided; the figures by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from pytest_bnn.checks import measure_scores_against_teacher
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.checks.predicting import Says, following, scores


def judged(model: Says, teacher: Says | None, count: int = 600, **given: object) -> Evidence:
    logits = scores(count)
    arguments = {"images": logits, "labels": following(logits), **given}
    return measure_scores_against_teacher(model, teacher=teacher, **arguments)  # type: ignore[arg-type]


def test_a_model_that_says_the_same_passes_on_few_labels() -> None:
    """Both predictions fix how far the scores can differ: next to nothing."""
    evidence = judged(Says(noise=0.02), Says(), 60)
    assert evidence.verdict is Verdict.PASS, evidence.explain()


def test_a_model_that_is_worse_fails() -> None:
    """The bound is Hoeffding's, computed here by hand; the score of one pass and the teacher's stand beside it."""
    evidence = judged(Says(lambda x: x / 8), Says(), 3000)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    logits = scores(3000)
    labels = following(logits)

    def brier(p: Tensor) -> Tensor:
        return ((p - torch.nn.functional.one_hot(labels, 5)) ** 2).sum(1)

    mine, its = (logits / 8).double().softmax(1), logits.double().softmax(1)
    gap = float((brier(mine) - brier(its)).mean())
    assert evidence["difference"] == pytest.approx(gap, abs=1e-6)
    assert evidence["Brier score of one pass"] == pytest.approx(float(brier(mine).mean()), abs=1e-6)
    ranges = 2 * ((mine - its).amax(1) - (mine - its).amin(1))
    bound = gap - math.sqrt(math.log(1e6) * float((ranges**2).sum()) / 2) / 3000
    assert evidence.certainty is not None
    assert evidence.certainty.low == pytest.approx(bound, abs=1e-6)
    assert evidence["negative log likelihood of the teacher"] == pytest.approx(log_loss(labels, its), rel=1e-6)
    cold, warm = (evidence[f"Brier score{of} at its best temperature"] for of in ("", " of the teacher"))
    assert cold == pytest.approx(warm, rel=1e-3), "at its best temperature it is the teacher's"


def test_too_few_labels_are_a_warning_with_their_number() -> None:
    evidence = judged(Says(lambda x: x / 1.2), Says(), 60)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "labels like these, which would decide" in evidence.remedy
    assert judged(Says(lambda x: x / 1.2), Says(), 60, margin=0.5).verdict is Verdict.PASS


def test_labels_that_are_ruled_out_leave_no_infinite_figures() -> None:
    """Of a masked class: the score has a value, the likelihood none."""
    evidence = judged(Says(lambda x: x.masked_fill(torch.arange(5) == 4, -math.inf)), Says())
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert evidence["labels of a probability of 0"] > 0  # type: ignore[operator]
    assert all(math.isfinite(m.value) for m in evidence.measurements if isinstance(m.value, float))


def test_another_head_or_no_teacher_is_not_judged() -> None:
    other = judged(Says(), Says(lambda x: x[:, :3]), labels=following(scores(600)[:, :3]))
    assert other.verdict is Verdict.NOT_APPLICABLE
    assert "The teacher knows other classes than the model: see teacher.agreement" in other.headline
    none = judged(Says(), None)
    assert none.verdict is Verdict.NOT_APPLICABLE
    assert "--teacher" in none.headline
