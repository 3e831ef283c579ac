"""``slices.temperature`` and ``slices.scores``: one broken group is named, healthy ones pass, small ones are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.checks import measure_slices_scores, measure_slices_temperature
from pytest_bnn.checks._slices import Judged, failing
from pytest_bnn.errors import InputError
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.checks.predicting import Says, following, scores

COUNT = 1200


class Broken(nn.Module):
    """Changes the scores of the examples whose last input is 1."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        logits = x[:, :-1] + 1e-3 * torch.randn_like(x[:, :-1])
        return torch.where(x[:, -1:] == 1, self.change(logits), logits)


def data(count: int = COUNT) -> tuple[Tensor, Tensor]:
    """A third of the examples are marked: those whose number is a multiple of 3."""
    logits = scores(count)
    marks = (torch.arange(count) % 3 == 0).float()[:, None]
    return torch.cat([logits, marks], 1), following(logits)


def by_three(number: int) -> str:
    return ("city", "night", "rain")[number % 3]


def judged(measure: Callable[..., Evidence], model: nn.Module, count: int = COUNT, **given: Any) -> Evidence:
    images, labels = data(count)
    return measure(model, images=images, labels=labels, **{"slices": by_three, **given})


def test_healthy_groups_pass() -> None:
    for measure in (measure_slices_temperature, measure_slices_scores):
        evidence = judged(measure, Broken(), teacher=Broken())
        assert evidence.verdict is Verdict.PASS, evidence.explain()
        assert "in each of 3 groups" in evidence.headline


def test_a_group_of_which_the_model_is_too_sure_is_named() -> None:
    evidence = judged(measure_slices_temperature, Broken(lambda x: 6 * x))
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "in 1 of 3 groups: city (400 labels): the model is too sure" in evidence.headline
    assert [m.note for m in evidence.measurements if "city" in m.name] == ["400 labels; fails"]
    assert evidence["temperature, city"] == pytest.approx(6, rel=0.25)


def test_a_group_that_is_worse_than_the_teachers_is_named() -> None:
    evidence = judged(measure_slices_scores, Broken(lambda x: x.roll(1, 1)), teacher=Broken())
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "in 1 of 3 groups: city (400 labels)" in evidence.headline


def test_what_the_teacher_does_in_the_same_group_is_inherited() -> None:
    evidence = judged(measure_slices_temperature, Broken(lambda x: 6 * x), teacher=Broken(lambda x: 6 * x))
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "so it is with the teacher in these groups" in evidence.headline


def test_small_groups_are_undecided_and_named() -> None:
    evidence = judged(measure_slices_temperature, Broken(), slices=lambda n: "rare" if n < 8 else "usual")
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "in 1 of 2 groups; the smallest of them, rare, has 8 labels" in evidence.headline
    left_out = judged(measure_slices_temperature, Broken(), slices=lambda n: None if n < 8 else "usual")
    assert left_out.verdict is Verdict.PASS, left_out.explain()


def test_holm_rejects_what_its_adjusted_p_values_do() -> None:
    """The step-down procedure against adjusted p-values: the running maximum of (m - i) p, Holm 1979."""
    values = [1e-4, 0.02, 0.013, 0.5, 0.01]
    groups = [
        Judged(name=str(i), labels=9, value=0, p=p, holds=False, inherited=False, words="")
        for i, p in enumerate(values)
    ]
    order = numpy.argsort(values)
    adjusted = numpy.maximum.accumulate(numpy.sort(values) * numpy.arange(len(values), 0, -1))
    wanted = {int(order[i]) for i, p in enumerate(adjusted) if p <= 0.05}
    assert {int(group.name) for group in failing(groups, 0.05)} == wanted == {0, 1, 2, 4}


@pytest.mark.parametrize(
    ("slices", "words"),
    [
        (lambda n: None, "gives no group for any example"),
        (lambda n: n, "gives 600 groups for 600 examples"),
    ],
)
def test_functions_that_give_no_groups_are_refused(slices: Callable[[int], object], words: str) -> None:
    evidence = judged(measure_slices_temperature, Broken(), 600, slices=slices)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert words in evidence.headline


def test_a_function_that_raises_is_refused() -> None:
    with pytest.raises(InputError, match="--slices raised KeyError for example 0"):
        judged(measure_slices_temperature, Broken(), 600, slices=lambda n: {}[n])


def test_groups_that_are_the_labels_are_refused() -> None:
    """No prediction follows the labels of a group that was chosen by them."""
    labels = data()[1]
    evidence = judged(measure_slices_temperature, Broken(), slices=lambda n: f"class {labels[n]}")
    assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.explain()
    assert "chosen by the label" in evidence.headline


def test_a_function_that_draws_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    judged(measure_slices_temperature, Broken(), 600, slices=lambda n: int(torch.randint(2, ())))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_groups_there_is_no_claim() -> None:
    logits = scores(50)
    evidence = measure_slices_temperature(Says(), images=logits, labels=following(logits))
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "--slices MODULE:FUNCTION" in evidence.headline
    with pytest.raises(TypeError, match="slices must be a function"):
        measure_slices_temperature(Says(), images=logits, slices="groups")  # type: ignore[arg-type]
