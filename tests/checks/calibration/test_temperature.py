"""``calibration.temperature``: labels follow the predictions, or they do not, or it cannot be known."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pytest_bnn
from pytest_bnn.checks import measure_calibration_temperature
from pytest_bnn.errors import InputError
from pytest_bnn.options import Settings, using
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.checks.predicting import Says, following, generator, scores


def judged(logits: Tensor, labels: Tensor | None = None, model: nn.Module | None = None, **given: Any) -> Evidence:
    """Judge what is said of labels that follow these scores."""
    labels = following(logits) if labels is None else labels
    return measure_calibration_temperature(model or Says(), images=logits, labels=labels, **given)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_labels_that_follow_the_predictions_pass(noise: float) -> None:
    evidence = judged(scores(600), model=Says(noise=noise))
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert 0.5 <= evidence["temperature, lowest"] < 1 < evidence["temperature, highest"] <= 2  # type: ignore[operator]
    assert evidence.samples == 8


@pytest.mark.parametrize(
    ("factor", "words"),
    [(4.0, "too sure of itself"), (0.25, "less sure of itself than it may be")],
    ids=["times", "divided"],
)
def test_scores_of_another_scale_fail(factor: float, words: str) -> None:
    """The temperature that would mend it is the factor, the bound is beyond the band, and more passes confirmed it."""
    evidence = judged(scores(600), model=Says(lambda x: factor * x))
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert words in evidence.headline
    assert "dividing the scores by" in evidence.remedy
    assert evidence["temperature"] == pytest.approx(factor, rel=0.3)
    assert evidence.samples == 64


def test_a_binary_model_is_judged_like_one_of_two_classes() -> None:
    logits = scores(900, 1, 3.0).double()
    labels = (torch.rand(900, generator=generator(1)) < logits[:, 0].sigmoid()).long()
    for factor, verdict in ((1.0, Verdict.PASS), (5.0, Verdict.FAIL)):
        for change in (lambda x, f=factor: f * x, lambda x, f=factor: torch.sigmoid(f * x)):
            evidence = judged(logits, labels, Says(change), task="binary")
            assert evidence.verdict is verdict, evidence.explain()


def test_dense_outputs_count_one_place_of_each_example() -> None:
    maps = 2 * torch.randn(400, 3, 2, 2, generator=generator())
    labels = following(maps.movedim(1, -1).reshape(-1, 3)).reshape(400, 2, 2)
    evidence = judged(maps, labels, task="dense")
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert evidence["labels"] == 400
    assert judged(maps, labels, Says(lambda x: 5 * x), task="dense").verdict is Verdict.FAIL


def test_few_labels_are_a_warning_that_says_how_many_it_would_take() -> None:
    evidence = judged(scores(60))
    assert evidence.verdict is Verdict.WARN
    assert "60 labels are too few to decide" in evidence.headline
    assert "labels like these, or fewer of which the model is less sure" in evidence.remedy
    assert "--evaluation" in evidence.remedy
    with using(Settings(inconclusive="fail")):
        assert judged(scores(60)).verdict is Verdict.WARN, "the default of everything else"


def test_where_every_answer_is_right_no_number_is_made_up() -> None:
    logits = scores(200, size=30.0)
    evidence = judged(logits, logits.argmax(1))
    assert evidence.verdict is Verdict.WARN
    assert "Give more labels, or fewer of which the model is less sure" in evidence.remedy


def test_a_teacher_that_is_as_wrong_is_inherited() -> None:
    """Which is a warning; a teacher that errs to the other side is none."""
    logits = scores(600)
    same = judged(logits, model=Says(lambda x: 4 * x), teacher=Says(lambda x: 5 * x))
    assert same.verdict is Verdict.WARN, same.explain()
    assert "inherited" in same.headline
    other = judged(logits, model=Says(lambda x: 4 * x), teacher=Says(lambda x: x / 5))
    assert other.verdict is Verdict.FAIL


def test_the_mean_of_few_passes_accuses_nobody() -> None:
    """Its passes differ so much that the mean of eight is too sure; labels follow the mean of all."""
    logits, noise = scores(400, 2, 6.0), 3.0
    drawn = logits + noise * torch.randn(2000, 400, 2, generator=generator(2))
    labels = torch.multinomial(drawn.softmax(2).mean(0), 1, generator=generator(3))[:, 0]
    assert judged(logits, labels, Says(noise=noise)).verdict is not Verdict.FAIL


def test_other_examples_may_be_given_for_it() -> None:
    """The data are too easy; the evaluation set decides, and is judged alone."""
    easy, hard = scores(100, size=60.0), scores(600)
    given: dict[str, Any] = {"labels": easy.argmax(1), "evaluation": (hard, following(hard))}
    assert judged(easy, **given).verdict is Verdict.PASS
    assert judged(easy, model=Says(lambda x: 4 * x), **given).verdict is Verdict.FAIL


ABSTAINING: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"labels": None}, r"no labels were given: let --data or --evaluation return \(images, labels\)"),
    "regression": ({"task": "regression"}, r"the task is regression: say --task classification.*--output"),
    "labels of nothing learned": ({"labels": following(torch.zeros(300, 5))}, r"by chance.*see data\.sane"),
    "no such classes": ({"labels": torch.full((300,), 9), "task": "classification"}, "no label is a class"),
    "not finite": ({"model": Says(lambda x: x * math.nan)}, r"NaN or infinite.*see noise\.varies"),
    "the teacher alone knows": (
        {"model": Says(lambda x: x.roll(1, 1)), "teacher": Says()},
        r"its teacher is: .*see teacher\.agreement",
    ),
    "rounded to 0": (
        {"model": Says(lambda x: (20 * x).softmax(1).half().float())},
        r"probability of exactly 0.*return the scores before its softmax",
    ),
}


@pytest.mark.parametrize("name", ABSTAINING)
def test_what_cannot_be_known_is_not_judged(name: str) -> None:
    """And the message says what it would take."""
    given, words = ABSTAINING[name]
    logits = scores(300)
    arguments: dict[str, Any] = {"images": logits, "labels": following(logits), **given}
    evidence = measure_calibration_temperature(arguments.pop("model", Says()), **arguments)
    assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.explain()
    assert re.search(words, evidence.headline, re.I), evidence.headline


def test_probabilities_of_0_that_never_occur_do_no_harm() -> None:
    """A class that is masked, in scores and in probabilities; its labels are a fault where scores rule them out."""
    logits = scores(600)

    def masked(x: Tensor) -> Tensor:
        return x.masked_fill(torch.arange(5) == 4, -math.inf)

    labels = following(masked(logits))
    for change in (masked, lambda x: masked(x).softmax(1)):
        evidence = judged(logits, labels, Says(change))
        assert evidence.verdict is Verdict.PASS, evidence.explain()
    labels[:7] = 4
    evidence = judged(logits, labels, Says(masked))
    assert evidence.verdict is Verdict.FAIL
    assert "7 of 600 labels are of classes to which the model gives a probability of 0" in evidence.headline


def test_examples_of_another_shape_are_refused_by_the_name_of_their_option() -> None:
    """In an audit that is the verdict of the checks that need them, and the others are judged."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    images, labels = torch.randn(40, 6), torch.arange(40) % 3
    bnn = pytest_bnn.convert(teacher)
    wrong = (torch.randn(40, 5), labels)
    with pytest.raises(InputError, match=r"--evaluation: .*--evaluation MODULE:FACTORY has to give examples of the"):
        measure_calibration_temperature(bnn, teacher=teacher, images=images, labels=labels, evaluation=wrong)
    ids = ["calibration.temperature", "noise.varies"]
    run = pytest_bnn.audit_model(bnn, teacher=teacher, data=(images, labels), evaluation=wrong, checks=ids)
    assert [check.verdict for check in run.checks if check.id == ids[0]] == [Verdict.ERROR]
    assert run["noise.varies"].verdict is Verdict.PASS


def test_three_times_a_teachers_temperature_is_not_inherited_from_it() -> None:
    """Both are too sure; the model by much more than its teacher."""
    logits = scores(1500)
    given: dict[str, Any] = {"images": logits, "labels": following(logits)}
    once, thrice = Says(lambda x: 3 * x), Says(lambda x: 9 * x)
    assert measure_calibration_temperature(once, teacher=once, **given).verdict is Verdict.WARN
    assert measure_calibration_temperature(thrice, teacher=once, **given).verdict is Verdict.FAIL


def test_a_mask_of_the_teachers_is_inherited() -> None:
    logits = scores(300)
    masked = Says(lambda x: x.index_fill(1, torch.tensor([1]), -torch.inf))
    given: dict[str, Any] = {"images": logits, "labels": following(logits)}
    assert measure_calibration_temperature(masked, **given).verdict is Verdict.FAIL
    assert measure_calibration_temperature(masked, teacher=masked, **given).verdict is Verdict.WARN


def test_rare_classes_may_be_known_by_their_order() -> None:
    """One in fourteen, never said first, and yet told apart: it is judged, and four times as sure is found."""
    logit = 1.2 * torch.randn(4000, generator=generator(8)) - 3.2
    labels = (torch.rand(4000, generator=generator(9)) < torch.sigmoid(logit)).long()
    inputs = torch.stack([torch.zeros(4000), logit], 1)
    given: dict[str, Any] = {"images": inputs, "labels": labels, "task": "classification"}
    assert measure_calibration_temperature(Says(), **given).verdict is Verdict.PASS
    assert measure_calibration_temperature(Says(lambda x: 4 * x), **given).verdict is Verdict.FAIL
