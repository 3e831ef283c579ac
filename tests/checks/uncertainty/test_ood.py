"""``uncertainty.ood``: what is none of the task gets more uncertainty, or it does not, or nobody can say."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pytest_bnn.checks import measure_uncertainty_ood
from pytest_bnn.errors import InputError
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.checks.predicting import Says, following, scores


def constant(x: Tensor) -> Tensor:
    """The same probabilities in the order of the scores: one entropy, whatever the input."""
    return torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04])[x.argsort(1, descending=True).argsort(1)].log()


def unsure(count: int = 300, size: float = 0.3) -> Tensor:
    return scores(count, size=size, seed=5)


def judged(model: Says, ood: Any, **given: Any) -> Evidence:
    images = scores(300, size=5.0)
    return measure_uncertainty_ood(model, images=images, labels=following(images), ood=ood, **given)


def figure(evidence: Evidence, name: str) -> float:
    value = evidence[name]
    assert isinstance(value, float)
    return value


def test_more_uncertainty_outside_passes() -> None:
    """The figures are scikit-learn's, of scipy's entropies; mutual information orders passes that differ."""
    evidence = judged(Says(noise=0.01), unsure())
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    both = torch.cat([scores(300, size=5.0), unsure()]).softmax(1)
    truth = torch.arange(600) >= 300
    assert evidence["AUROC, outside"] == pytest.approx(
        roc_auc_score(truth, scipy.stats.entropy(both, axis=1)), abs=2e-3
    )
    assert evidence["AUROC of 1 - leading probability, outside"] == pytest.approx(
        roc_auc_score(truth, 1 - both.max(1).values), abs=2e-3
    )
    assert 0 <= figure(evidence, "accepted, outside") < 0.2
    assert evidence.samples == 8


def test_a_constant_uncertainty_fails() -> None:
    evidence = judged(Says(constant), unsure())
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert (
        "The predictive entropy hardly tells outside from the model's own examples: its AUROC is 0.5,"
        in evidence.headline
    )
    assert evidence.samples == 64


def test_an_order_that_is_reversed_fails() -> None:
    evidence = judged(Says(), scores(300, size=60.0, seed=4))
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "the wrong way round" in evidence.headline
    assert "See noise.spread" in evidence.remedy


def test_each_set_is_judged_and_the_worst_is_named() -> None:
    """A teacher that tells none either is a warning."""
    sets = {"far": unsure(), "near": scores(300, size=5.0, seed=6)}
    evidence = judged(Says(), sets)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "tells near from" in evidence.headline
    assert figure(evidence, "AUROC, far") > 0.9
    inherited = judged(Says(), sets, teacher=Says())
    assert inherited.verdict is Verdict.WARN, inherited.explain()
    assert "so it is with the teacher" in inherited.headline
    assert judged(Says(), sets, min_auroc=0.3).verdict is Verdict.PASS


def test_few_examples_are_a_warning() -> None:
    evidence = judged(Says(), unsure(12))
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "12 examples of outside do not decide whether" in evidence.headline
    assert "Give more examples of the set" in evidence.remedy


def test_without_sets_or_classes_it_is_not_judged() -> None:
    nothing = judged(Says(), None)
    assert nothing.verdict is Verdict.NOT_APPLICABLE
    assert "--ood MODULE:FACTORY" in nothing.headline
    numbers = judged(Says(), unsure(), task="regression")
    assert numbers.verdict is Verdict.NOT_APPLICABLE
    assert "--task classification" in numbers.headline


def test_no_model_fails_on_classes_that_are_only_presumed() -> None:
    """Without labels nothing tells that outputs are scores; what holds of them may pass."""
    images = scores(300, size=5.0)
    for ood, verdict in ((scores(300, size=60.0, seed=4), Verdict.NOT_APPLICABLE), (unsure(), Verdict.PASS)):
        evidence = measure_uncertainty_ood(Says(), images=images, ood=ood)
        assert evidence.verdict is verdict, evidence.explain()
    assert "presumed" in measure_uncertainty_ood(Says(), images=images, ood=scores(300, size=60.0, seed=4)).headline


def test_a_set_of_another_shape_is_refused_by_the_name_of_its_option() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 5).eval()
    with pytest.raises(InputError, match="--ood MODULE:FACTORY has to give examples of the form of --data"):
        measure_uncertainty_ood(model, images=scores(40), labels=torch.arange(40) % 5, ood=torch.randn(40, 7))


def test_copies_are_no_further_examples() -> None:
    """One example from outside decides nothing, however often it is given."""
    inputs = scores(300)
    outside = scores(1, size=0.1, seed=5).repeat(500, 1)
    evidence = measure_uncertainty_ood(Says(), images=inputs, labels=following(inputs), ood=outside)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "1 example of outside does not decide whether" in evidence.headline


def test_a_model_that_says_nothing_is_not_accused() -> None:
    inputs = scores(300)
    evidence = measure_uncertainty_ood(Says(lambda x: 1e-3 * x), images=inputs, ood=9 * inputs, task="classification")
    assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.explain()
    assert "train it first" in evidence.headline
