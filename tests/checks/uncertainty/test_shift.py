"""``uncertainty.shift``: entropy and errors along series that were given, or made of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from pytest_bnn.checks import measure_uncertainty_shift
from pytest_bnn.checks.uncertainty.shift import trends
from pytest_bnn.errors import InputError
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.checks.predicting import Says, following, generator, scores

STEPS = (0.3, 0.8, 2.0)


def noisy(inputs: Tensor) -> list[Tensor]:
    """Scores that shrink, and turn into those of other classes."""
    noise = torch.randn(inputs.shape, generator=generator(9))
    return [(inputs + step * 2 * noise) / (1 + step) ** 2 for step in STEPS]


def judged(model: nn.Module, teacher: nn.Module | None = None, count: int = 300, **given: Any) -> Evidence:
    inputs = scores(count)
    arguments = {
        "images": inputs,
        "labels": following(inputs),
        "shifts": noisy(inputs),
        "task": "classification",
        **given,
    }
    return measure_uncertainty_shift(model, teacher=teacher, examples=count, **arguments)


def blind(logits: Tensor) -> Tensor:
    """The same entropy for every input."""
    return 3.0 * torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])


def test_trends_are_kendalls() -> None:
    entropies = torch.rand(4, 30, generator=generator(), dtype=torch.float64)
    found = trends(entropies)
    for row in range(30):
        assert float(found[row]) == pytest.approx(kendalltau(range(4), entropies[:, row]).statistic)
    assert trends(torch.full((4, 3), 0.7)).tolist() == [0.0, 0.0, 0.0]


def test_an_entropy_that_grows_with_the_errors_passes() -> None:
    evidence = judged(Says(noise=0.05))
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert "The predictive entropy grows with shift" in evidence.headline
    errors, entropies = (chart.lines[0].y for chart in evidence.charts)
    assert list(errors) == sorted(errors)
    assert len(entropies) == 1 + len(STEPS)


@pytest.mark.parametrize("labels", [True, False])
def test_an_entropy_that_does_not_notice_fails(labels: bool) -> None:
    """With labels, and without them, where its own answers to the examples as they were take their place."""
    others: dict[str, Any] = {} if labels else {"labels": None}
    evidence = judged(Says(blind), **others)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "the model does not notice" in evidence.headline
    assert evidence["trend of the entropy, shift"] == 0


def test_an_entropy_that_falls_fails() -> None:
    def surer(logits: Tensor) -> Tensor:
        found: Tensor = logits / logits.norm(dim=1, keepdim=True).square() * 12
        return found

    evidence = judged(Says(surer))
    assert evidence.verdict is Verdict.FAIL, evidence.explain()


def test_a_teacher_that_does_not_notice_either_is_where_it_comes_from() -> None:
    evidence = judged(Says(blind), Says(blind))
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "so it is with the teacher" in evidence.headline


def test_a_shift_that_does_not_harm_asks_nothing() -> None:
    inputs = scores(200)
    evidence = judged(Says(blind), shifts=[inputs * 0.99, inputs * 0.98], count=200)
    assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.explain()
    assert "None of the 1 series of growing shifts makes the model wrong more often" in evidence.headline
    beside = judged(Says(), shifts={"size": [inputs * 0.99], "noise": noisy(inputs)}, count=200)
    assert beside.verdict is Verdict.PASS, beside.explain()


def test_too_few_examples_are_a_warning_with_their_number() -> None:
    evidence = judged(Says(), count=12)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "examples, which would decide it" in evidence.remedy


def test_copies_of_an_example_count_once() -> None:
    inputs = scores(12).repeat(30, 1)
    evidence = judged(Says(), images=inputs, labels=None, shifts=noisy(inputs), count=360)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "12 examples" in evidence.headline


def test_inputs_that_are_no_images_ask_for_a_series() -> None:
    evidence = judged(Says(), shifts=None)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "--shifts MODULE:FACTORY" in evidence.headline


@pytest.mark.parametrize("steps", ["few", "other"])
def test_steps_of_other_examples_are_refused(steps: str) -> None:
    inputs = scores(60)
    with pytest.raises(InputError, match="the steps of shift hold 40 examples, and the data 60"):
        judged(Says(), shifts=[inputs[:40]], count=60)
    with pytest.raises(InputError, match="the series"):
        judged(Says(), shifts=inputs if steps == "few" else [], count=60)


class Bars(nn.Module):
    """Tells a bright left half from a bright right one, by how much brighter it is."""

    def __init__(self, size: float = 4.0, *, sure: bool = False) -> None:
        super().__init__()
        self.size, self.sure = size, sure

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        # What is left of it at each pixel, and not only in the mean: blur and noise cost it.
        sides = x[..., :half].mean((1, 2, 3)) - x[..., half:].mean((1, 2, 3))
        logit = self.size * (sides.sign() * 2 if self.sure else sides)
        return torch.stack([logit, -logit], 1) + 0.01 * torch.randn(len(x), 2)


def bars(count: int = 128) -> Tensor:
    side = torch.where(torch.rand(count, generator=generator(3)) < 0.5, 1.0, -1.0)[:, None, None, None]
    shape = torch.cat([torch.full((8, 4), 0.4), torch.full((8, 4), -0.4)], 1)
    return side * shape + 0.2 * torch.randn(count, 1, 8, 8, generator=generator(4))


def test_images_are_made_harder_here() -> None:
    evidence = measure_uncertainty_shift(Bars(), images=bars(), task="classification")
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    names = {m.name for m in evidence.measurements}
    assert {f"trend of the entropy, {kind}" for kind in ("noise", "blur", "contrast", "rotation")} <= names
    blindly = measure_uncertainty_shift(Bars(sure=True), images=bars(), task="classification")
    assert blindly.verdict in (Verdict.FAIL, Verdict.NOT_APPLICABLE), blindly.explain()


class Constant(nn.Module):
    """Says next to nothing of anything."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e-3 * x


def test_a_model_that_says_nothing_is_not_accused() -> None:
    """Nothing can make it less sure; and where nobody knows the labels, its own answers do not take their place."""
    evidence = judged(Constant())
    assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.explain()
    assert "as unsure of its own examples as it can be" in evidence.headline
    unknown = judged(Says(blind), labels=torch.arange(300) % 5)
    assert unknown.verdict is Verdict.NOT_APPLICABLE, unknown.explain()
    assert "more often than by chance" in unknown.headline
