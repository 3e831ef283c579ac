"""``regression.coverage``: intervals hold as much as they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pytest_bnn
from pytest_bnn.checks import measure_regression_coverage, measure_regression_scores
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.checks.regression.network import Form, converted, examples, figure, likelihood, teacher, weights

INPUTS, LABELS = examples(600)


def judged(model: nn.Module, inputs: Any = INPUTS, labels: Any = LABELS, **given: Any) -> Evidence:
    return measure_regression_coverage(model, images=inputs, labels=labels, **given)


def of_one(mean: Any, **given: Any) -> Evidence:
    """Judge a network whose forward is a function of ``x``, on numbers around 2 x with the deviation .5."""
    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(5))
    y = 2 * x + 0.5 * torch.randn(400, 1, generator=torch.Generator().manual_seed(6))
    return judged(Function(mean), x, given.pop("labels", y), **given)


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        return self.function(x * self.gain)


def test_healthy() -> None:
    """Of the conversion and of its teacher the observed coverage is the nominal one, within its bounds."""
    evidence = judged(converted(), teacher=teacher())
    assert evidence.verdict is Verdict.PASS, evidence.headline
    assert evidence["factor of the spread"] == pytest.approx(1, abs=0.15)
    for level in (0.5, 0.8, 0.9, 0.95):
        assert evidence[f"coverage at {level:g}"] == pytest.approx(level, abs=0.07)
    observed, pit = (chart.lines[0] for chart in evidence.charts)
    at = [round(x, 2) for x in observed.x].index(0.9)
    assert observed.y[at] == evidence["coverage at 0.9"]
    assert all(low <= y <= high for low, y, high in zip(observed.low, observed.y, observed.high, strict=True))
    band = evidence.charts[1].band
    assert band is not None
    assert all(low <= y <= high for low, y, high in zip(band.low, pit.y, band.high, strict=True)), "inside of its band"


@pytest.mark.parametrize(
    ("wider", "words"), [(0.5, "too narrow: the labels' spread is"), (2.0, "too wide: the labels' spread is")]
)
def test_intervals_of_another_width(wider: float, words: str) -> None:
    evidence = judged(converted(wider=wider), teacher=teacher())
    assert evidence.verdict is Verdict.FAIL
    assert words in evidence.headline
    assert figure(evidence, "factor of the spread") == pytest.approx(1 / wider, rel=0.15)
    assert "Multiplying the predicted standard deviations" in evidence.remedy


def test_a_shift() -> None:
    """The cause is the shift, and not that intervals are too narrow."""
    evidence = judged(converted(shift=-0.8), teacher=teacher())
    assert evidence.verdict is Verdict.FAIL
    assert evidence.headline.startswith("The predictions are shifted: on average the labels lie")
    assert "above them" in evidence.headline
    assert "too narrow" not in evidence.headline


def test_inherited_from_the_teacher() -> None:
    evidence = judged(converted(wider=0.5), teacher=teacher(wider=0.5))
    assert evidence.verdict is Verdict.WARN
    assert "so it is with the teacher, and the model has inherited it" in evidence.headline
    assert judged(converted(wider=0.5), teacher=teacher(wider=2.0)).verdict is Verdict.FAIL


def test_a_posterior_that_is_too_wide() -> None:
    """The variance is that which the passes disagree on, and the remedy is about the posterior."""
    evidence = of_one(lambda x: {"mean": 2 * x + 3 * torch.randn(1), "std": torch.full_like(x, 0.5)})
    assert evidence.verdict is Verdict.FAIL
    assert "too wide" in evidence.headline
    assert "noise.spread" in evidence.remedy
    assert figure(evidence, "share of the passes") > 0.9


@pytest.mark.parametrize("form", ["pair", "columns"])
def test_the_loss_tells_what_the_second_output_is(form: Form) -> None:
    """Without it, and without a name, it is asked for; whoever says it is believed."""
    task: dict[str, Any] = {"output": "0"} if form == "pair" else {"task": "regression"}
    assert judged(converted(form), loss=likelihood, **task).verdict is Verdict.PASS
    asked = judged(converted(form), **task)
    assert asked.verdict is Verdict.NOT_APPLICABLE
    assert "may be the variance of the prediction, its logarithm" in asked.headline
    assert "--set regression.coverage.head=variance, log_variance, std or log_std" in asked.headline
    assert judged(converted(form), head="log_variance", **task).verdict is Verdict.PASS
    wrong = judged(converted(form), head="log_std", **task)
    assert wrong.verdict is Verdict.FAIL


def test_a_declared_noise() -> None:
    """Where the head has none: a right one passes, a wrong one fails with how to declare it."""
    silent = of_one(lambda x: 2 * x)
    assert silent.verdict is Verdict.NOT_APPLICABLE
    assert "regression.coverage.noise=0.3" in silent.headline
    assert "'log_variance'" in silent.headline
    assert of_one(lambda x: 2 * x, noise=0.5).verdict is Verdict.PASS
    squared = of_one(lambda x: 2 * x, noise=0.25)
    assert squared.verdict is Verdict.FAIL
    assert "not its square" in squared.remedy


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("variance", 0.25, Verdict.PASS),
        ("logvar", -1.386, Verdict.PASS),
        ("std", 0.5, Verdict.PASS),
        ("log_scale", -0.693, Verdict.PASS),
        ("std", 0.25, Verdict.FAIL),
    ],
)
def test_names_tell_what_an_output_is(name: str, value: float, verdict: Verdict) -> None:
    evidence = of_one(lambda x: {"mean": 2 * x, name: torch.full_like(x, value)})
    assert evidence.verdict is verdict, evidence.headline


def test_several_outputs_and_missing_labels() -> None:
    """One number of each row counts, in units of its own; a label that is missing does not."""
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    units = torch.tensor([1.0, 100.0, 0.01])
    y = (x + 0.3 * torch.randn(500, 3, generator=torch.Generator().manual_seed(2))) * units
    y[:60, 1] = torch.nan
    network = Function(lambda x: {"mean": x * units, "std": 0.3 * units.expand(len(x), 3)})
    evidence = judged(network, x, y)
    assert evidence.verdict is Verdict.PASS, evidence.headline
    assert 1 <= figure(evidence, "examples left out") <= 60
    assert judged(network, torch.cat([x, x]), torch.cat([y, y]))["labels"] == evidence["labels"]


UNFIT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a variance that is negative": (
        lambda x: {"mean": 2 * x, "variance": torch.full_like(x, -1.386)}, {}, "no variance is"
    ),
    "a deviation of 0": (lambda x: {"mean": 2 * x, "std": torch.zeros_like(x)}, {}, "cannot be told from rounding"),
    "outputs in other units than the labels": (
        lambda x: {"mean": 0.2 * x, "std": torch.full_like(x, 0.05)}, {}, "other units than the outputs"
    ),
    "nothing that is known": (lambda x: {"mean": torch.sin(99 * x), "std": torch.ones_like(x)}, {}, "nothing learned"),
    "whole numbers": (
        lambda x: {"mean": 2 * x, "std": torch.full_like(x, 0.5)},
        {"labels": (2 * torch.randn(400, 1, generator=torch.Generator().manual_seed(5))).round()},
        "of 400 labels are 0, and",
    ),
    "no labels": (lambda x: {"mean": 2 * x, "std": torch.ones_like(x)}, {"labels": None}, "no labels were given"),
    "quantiles": (lambda x: torch.cat([2 * x - 1, 2 * x, 2 * x + 1], 1), {"task": "regression"}, "have 3 numbers"),
    "NaN": (lambda x: {"mean": 2 * x * torch.nan, "std": torch.ones_like(x)}, {}, "NaN or infinite"),
    "classes": (
        lambda x: torch.cat([x, -x], 1), {"labels": torch.arange(400) % 2}, "The claim is about numbers"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_abstains(name: str) -> None:
    function, given, words = UNFIT[name]
    evidence = of_one(function, **given)
    assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.headline
    assert words in evidence.headline


def test_labels_far_outside_are_a_warning() -> None:
    """Two errors in the data do not make the intervals of the others too narrow."""
    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(5))
    y = 2 * x + 0.5 * torch.randn(400, 1, generator=torch.Generator().manual_seed(6))
    y[:2] += 60
    evidence = of_one(lambda x: {"mean": 2 * x, "std": torch.full_like(x, 0.5)}, labels=y)
    assert evidence.verdict is Verdict.WARN
    assert "2 of 400 labels lie far outside" in evidence.headline


def test_few_labels() -> None:
    """They say how many would decide; as many do."""
    few = judged(converted(), INPUTS[:60], LABELS[:60])
    assert few.verdict is Verdict.WARN
    assert "60 labels are too few to decide" in few.headline
    needed = int(few.remedy.split()[2])
    assert 60 < needed < 1000
    assert judged(converted(), *examples(2 * needed, 7)).verdict is Verdict.PASS


def test_labels_beside_the_data() -> None:
    """Of the examples of --evaluation, where there are such."""
    evidence = judged(converted(wider=0.5), labels=None, evaluation=(INPUTS, LABELS))
    assert evidence.verdict is Verdict.FAIL
    assert evidence["labels"] == 600


def test_a_healthy_model_in_an_audit() -> None:
    """With one budget for all checks, both claims about numbers are decided, and those about classes are not made."""
    run = pytest_bnn.audit_model(converted(), teacher=teacher(), data=(INPUTS, LABELS), loss=likelihood)
    assert run["regression.coverage"].verdict == "pass", run["regression.coverage"].headline
    assert run["regression.scores"].verdict == "pass", run["regression.scores"].headline
    assert run["calibration.temperature"].verdict == "not_applicable"


@pytest.mark.parametrize("breaks", [False, True])
def test_nothing_is_disturbed(breaks: bool) -> None:
    """Neither network, nor the examples, nor torch's random state; also where the loss raises."""

    def loss(network: nn.Module, batch: Any) -> Tensor:
        found = likelihood(network, batch)
        found.backward()
        if breaks:
            raise RuntimeError("broken")
        return likelihood(network, batch)

    model, other = converted("columns").train(), teacher("columns").train()
    before = [tensor.clone() for tensor in (*model.state_dict().values(), *other.state_dict().values())]
    inputs, labels, state = INPUTS.clone(), LABELS.clone(), torch.get_rng_state()
    for measure in (measure_regression_coverage, measure_regression_scores):
        measure(model, teacher=other, images=inputs, labels=labels, loss=loss, task="regression", max_passes=4)
    after = [*model.state_dict().values(), *other.state_dict().values()]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in (*model.parameters(), *other.parameters()))
    assert torch.equal(inputs, INPUTS)
    assert torch.equal(labels, LABELS)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert other.training


def test_weights_are_known() -> None:
    """The network of these tests is the same in every one of them."""
    assert weights() is weights()
