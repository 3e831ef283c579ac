"""What the audit says of predictions: computed from what checks drew already, and right by scikit-learn and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import pytest
import scipy.stats
import sklearn.metrics
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pytest_bnn.audit import scoring
from pytest_bnn.audit.description import describe
from pytest_bnn.audit.predictive import MISTAKES, predictive
from pytest_bnn.audit.run import audit_model
from pytest_bnn.checks import registry
from pytest_bnn.checks._labelled import labelled
from pytest_bnn.checks._predictions import predicted
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding
from pytest_bnn.conversion import convert
from pytest_bnn.records.charts import Chart, ChartLine, PredictionSummary, Score
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.sampling import mixture
from pytest_bnn.subject import Subject

Floats = NDArray[numpy.float64]

PASSES = 4
CLASSES = 5


def teacher(head: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, CLASSES)]
    return nn.Sequential(*layers, *([] if head is None else [head])).eval()


def examples(count: int = 90, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Pictures, and labels that the teacher knows two thirds of."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 4, 4, generator=generator)
    with torch.no_grad():
        known = teacher()(images).argmax(1)
    others = torch.randint(CLASSES, (count,), generator=generator)
    return images, torch.where(torch.rand(count, generator=generator) < 0.67, known, others)


def subject(**others: object) -> Subject:
    images, labels = examples()
    given: dict[str, object] = {
        "teacher": teacher(), "images": images, "labels": labels, "task": "classification",
        "ood": {"far": 4 * torch.randn(30, 3, 4, 4, generator=torch.Generator().manual_seed(8))},
        "class_names": tuple("abcde"),
    }  # fmt: skip
    given.update(others)
    return Subject(convert(teacher(), moped_delta=0.5), **given)  # type: ignore[arg-type]


def looked_at(one: Subject) -> Subject:
    """Let the predictions be known, as after a check."""
    predicted(one.evaluated, PASSES)
    for other in one.outside.values():
        predicted(other, PASSES)
    return one


@pytest.fixture(scope="module")
def judged() -> Subject:
    return looked_at(subject())


@pytest.fixture(scope="module")
def found(judged: Subject) -> PredictionSummary:
    found = predictive(judged)
    assert found is not None
    return found


def score(found: PredictionSummary, row: str, who: str) -> Score:
    assert found.scores is not None
    [scores] = [one.scores for one in found.scores.rows if one.name == row]
    score = scores[found.scores.predictors.index(who)]
    assert score is not None
    return score


def test_scores_by_scikit_learn(judged: Subject, found: PredictionSummary) -> None:
    """Accuracy, log loss and Brier score of each predictor, from its own outputs."""
    assert found.scores is not None
    assert found.scores.predictors == ("teacher", "mean network", "one pass", "BNN")
    images, labels = examples()
    passes = torch.softmax(judged.bank.draw(0, PASSES).double(), -1)
    with torch.no_grad():
        of_teacher = torch.softmax(teacher()(images).double(), -1)
    shares = {"teacher": of_teacher, "mean network": of_teacher, "one pass": passes[0], "BNN": passes.mean(0)}
    truth = nn.functional.one_hot(labels, CLASSES).double()
    for who, of in shares.items():
        accuracy = sklearn.metrics.accuracy_score(labels, of.argmax(1))
        loss = sklearn.metrics.log_loss(labels, of.numpy(), labels=range(CLASSES))
        brier = float((of - truth).square().sum(1).mean())
        if who == "BNN":  # Ferro's: less the variance of the mean
            brier -= float(passes.var(0, unbiased=True).sum(1).mean()) / PASSES
        assert score(found, "accuracy", who).value == pytest.approx(accuracy)
        assert score(found, "negative log likelihood (nats)", who).value == pytest.approx(loss, rel=1e-5)
        assert score(found, "Brier score", who).value == pytest.approx(brier, rel=1e-5)
        best = score(found, "best temperature", who).value
        losses = [sklearn.metrics.log_loss(labels, torch.softmax(of.log() / t, 1), labels=range(CLASSES))
                  for t in (best / 1.02, best, best * 1.02)]  # fmt: skip
        assert losses[1] == min(losses)
        cooled = score(found, "negative log likelihood (nats), best temperature", who).value
        assert cooled == pytest.approx(losses[1], rel=1e-5)


def test_intervals_hold_their_scores_and_differences_are_paired(found: PredictionSummary) -> None:
    """The difference to a teacher that errs on the same examples is known far better than either score."""
    assert found.scores is not None
    for row in found.scores.rows:
        if row.name == "best temperature":
            assert row.difference is None
            continue
        for one in (*row.scores, row.difference):
            assert one is not None
            assert one.low is not None
            assert one.high is not None
            assert one.low <= one.value <= one.high
    [row] = [row for row in found.scores.rows if row.name == "Brier score"]
    own, difference = score(found, "Brier score", "BNN"), row.difference
    assert difference is not None
    assert difference.value == pytest.approx(own.value - score(found, "Brier score", "teacher").value)
    assert difference.high is not None
    assert difference.low is not None
    assert own.high is not None
    assert own.low is not None
    assert difference.high - difference.low < (own.high - own.low) / 2
    assert "approximate" in found.scores.note
    assert "bootstrap" in found.scores.note


def test_curves_are_those_of_the_mean_prediction(judged: Subject, found: PredictionSummary) -> None:
    reliability, risk = found.charts
    _, labels = examples()
    shares = torch.softmax(judged.bank.draw(0, PASSES).double(), -1).mean(0)
    confidence, said = shares.max(1)
    assert reliability.lines[-1].whose == risk.lines[-1].whose == "model"
    assert [line.name for line in reliability.lines] == [line.name for line in risk.lines] == ["teacher", "BNN"]
    assert reliability.lines[-1].x[0] == pytest.approx(float(confidence.min()), rel=1e-6)
    assert reliability.lines[-1].x[-1] == pytest.approx(float(confidence.max()), rel=1e-6)
    assert list(reliability.lines[-1].x) == sorted(reliability.lines[-1].x)
    assert reliability.counts is not None
    assert sum(reliability.counts.counts) == 90
    assert reliability.band is not None
    assert all(low <= high for low, high in zip(reliability.band.low, reliability.band.high, strict=True))
    assert risk.lines[-1].x[-1] == 1.0
    assert risk.lines[-1].y[-1] == pytest.approx(float((said != labels).double().mean()))
    order = confidence.argsort(descending=True)
    wrong = (said != labels)[order].double().cumsum(0)
    for coverage, at in zip(risk.lines[-1].x[1::2], risk.lines[-1].y[1::2], strict=True):  # a multiple of 1 / 30
        accepted = round(coverage * 90)
        assert at == pytest.approx(float(wrong[accepted - 1]) / accepted)
    assert risk.lines[0].x == risk.lines[1].x, "one table holds both"
    auroc = sklearn.metrics.roc_auc_score((said == labels).numpy(), confidence.numpy())
    accuracy = float((said == labels).double().mean())
    augrc = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert f"AUGRC of the BNN {augrc:.3g}" in risk.caption


def test_entropies_by_set_by_scipy(judged: Subject, found: PredictionSummary) -> None:
    entropy, information = found.ridges
    assert [(row.name, row.inside) for row in entropy.rows] == [("data", True), ("far", False)]
    for place, row, other in zip((judged, judged.outside["far"]), entropy.rows, information.rows, strict=True):
        passes = torch.softmax(place.bank.draw(0, PASSES).double(), -1).numpy()
        total = scipy_entropy(passes.mean(0))
        assert row.mean == pytest.approx(total.mean(), rel=1e-5)
        assert other.mean == pytest.approx((total - scipy_entropy(passes).mean(0)).mean(), rel=1e-4)
        assert sum(row.counts) == sum(other.counts) == passes.shape[1]
        expected, _ = numpy.histogram(total, numpy.array(entropy.edges))
        assert numpy.abs(expected - row.counts).sum() <= 2, "what rounding puts into the next bin"


def scipy_entropy(shares: Floats) -> Floats:
    return numpy.asarray(scipy.stats.entropy(shares, axis=-1))


def test_the_most_confident_errors_come_first(judged: Subject, found: PredictionSummary) -> None:
    _, labels = examples()
    shares = torch.softmax(judged.bank.draw(0, PASSES).double(), -1).mean(0)
    confidence, said = shares.max(1)
    wrong = [index for index in range(90) if said[index] != labels[index]]
    wrong.sort(key=lambda index: -float(confidence[index]))
    assert found.errors == len(wrong) > MISTAKES
    assert [one.index for one in found.mistakes] == wrong[:MISTAKES]
    for one in found.mistakes:
        assert one.image.startswith("data:image/png;base64,")
        assert one.label == "abcde"[int(labels[one.index])]
        assert one.predicted == "abcde"[int(said[one.index])]
        assert one.confidence == pytest.approx(float(confidence[one.index]), rel=1e-5)
        assert one.of_label == pytest.approx(float(shares[one.index, labels[one.index]]), rel=1e-4)
        assert one.teacher in tuple("abcde")


def test_nothing_is_drawn_for_the_report_alone() -> None:
    """An audit of one claim about layers draws no passes for charts."""
    images, labels = examples()
    model = convert(teacher(), moped_delta=0.5)
    run = audit_model(model, teacher=teacher(), data=(images, labels), checks=["layers.replaced"])
    assert run.subjects[0].prediction_summary is None
    run = audit_model(model, teacher=teacher(), data=(images, labels), checks=["calibration.temperature"])
    assert run.subjects[0].prediction_summary is not None
    assert run.subjects[0].prediction_summary.scores is not None


def test_neither_the_model_nor_the_global_generator_is_disturbed() -> None:
    one = looked_at(subject())
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, second = predictive(one), predictive(one)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in one.model.state_dict().items())
    assert repr(first) == repr(second)


def test_why_there_are_no_scores_is_said() -> None:
    unlabelled = predictive(looked_at(subject(labels=None)))
    assert unlabelled is not None
    assert "no labels were given" in unlabelled.missing
    assert (unlabelled.scores, unlabelled.charts, unlabelled.mistakes) == (None, (), ())
    assert len(unlabelled.ridges) == 2
    guessed = torch.randint(CLASSES, (90,), generator=torch.Generator().manual_seed(3))
    unknown = predictive(looked_at(subject(labels=guessed)))
    assert unknown is not None
    assert "more often than by chance" in unknown.missing
    assert unknown.scores is None


def test_predictions_of_other_examples_than_the_labelled_ones_do_not_draw_these() -> None:
    one = subject(evaluation=examples(40, 5))
    predicted(one, PASSES)
    found = predictive(one)
    assert found is not None
    assert found.missing == "no check that ran looks at labels"
    assert [row.name for row in found.ridges[0].rows] == ["data"]
    looked_at(one)
    found = predictive(one)
    assert found is not None
    assert (found.missing, found.examples) == ("", 40)
    assert [row.name for row in found.ridges[0].rows] == ["data", "evaluation", "far"]


def test_copies_and_foreign_labels_are_left_out_and_numbers_stay_those_of_the_data() -> None:
    images, labels = examples()
    labels = labels.clone()
    labels[0] = 99
    found = predictive(
        looked_at(subject(images=images[[0, 1, 1, *range(2, 90)]], labels=labels[[0, 1, 1, *range(2, 90)]]))
    )
    assert found is not None
    assert (found.examples, found.left_out) == (89, 2)
    assert all(one.index not in (0, 2) for one in found.mistakes)


class _Wobbling(nn.Module):
    """Noise that no posterior knows of."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores + 0.3 * torch.randn_like(scores)


def test_a_network_that_varies_at_its_mean_has_no_mean_network() -> None:
    images, labels = examples()
    model = nn.Sequential(convert(teacher(), moped_delta=0.5), _Wobbling()).eval()
    one = looked_at(Subject(model, teacher=teacher(), images=images, labels=labels, task="classification"))
    found = predictive(one)
    assert found is not None
    assert found.scores is not None
    assert found.scores.predictors == ("teacher", "one pass", "BNN")
    assert "no mean network" in found.scores.note


def test_of_many_outputs_none_is_drawn_again_and_blocks_are_one(
    judged: Subject, found: PredictionSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million predictions are neither computed three times more nor held in double precision at once."""
    monkeypatch.setattr(mixture, "_BLOCK", 7 * CLASSES)
    assert repr(predictive(judged)) == repr(found)
    monkeypatch.setattr(scoring, "_MOST", 90 * CLASSES - 1)
    monkeypatch.setattr(judged.bank, "draw", None)
    few = predictive(judged)
    assert few is not None
    assert few.scores is not None
    assert few.scores.predictors == ("teacher", "BNN")
    assert "no pass was drawn again" in few.scores.note
    assert found.scores is not None
    assert few.scores.rows[0].difference == found.scores.rows[0].difference


class _Hard(nn.Module):
    """Probabilities of which all but the largest are exactly 0."""

    def forward(self, scores: Tensor) -> Tensor:
        return nn.functional.one_hot(scores.argmax(-1), CLASSES).to(scores)


def test_a_teacher_that_rules_labels_out_has_no_likelihood() -> None:
    """Its log likelihood is no number; accuracy and Brier score are."""
    found = predictive(looked_at(subject(teacher=teacher(_Hard()))))
    assert found is not None
    assert found.scores is not None
    assert score(found, "Brier score", "teacher").value > 0
    for row in found.scores.rows:
        known = row.scores[found.scores.predictors.index("teacher")] is not None
        assert known == (row.name in ("accuracy", "Brier score"))
        assert (row.difference is not None) == known


@pytest.mark.parametrize("delta", [1e-6, 0.5])
def test_two_kinds_of_uncertainty_that_are_one_ranking_are_called_so(delta: float) -> None:
    """Where weights hardly vary, what varies follows the entropy."""
    one = looked_at(subject())
    found = predictive(one)
    assert found is not None
    mixture = predicted(one, PASSES).mixture
    rank = rank_correlation(mixture.expected_entropy, mixture.mutual_information)
    assert ("Wimmer" in found.ridges[1].caption) == (rank >= 0.9)


def rank_correlation(one: Tensor, other: Tensor) -> float:
    return float(numpy.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1])


def binary() -> Subject:
    """One number, whose side of 0 counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    rows = torch.randn(80, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = (network(rows)[:, 0] + 0.2 * rows[:, 0] > 0).long()
    return Subject(convert(network, moped_delta=0.3), teacher=network, images=rows, labels=labels, task="binary")


def dense() -> Subject:
    """A class for each place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).eval()
    images = torch.randn(70, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = (network(images) + 0.3 * torch.randn(70, 4, 5, 5, generator=torch.Generator().manual_seed(2))).argmax(
            1
        )
    return Subject(convert(network, moped_delta=0.3), teacher=network, images=images, labels=labels, task="dense")


@pytest.mark.parametrize("make", [binary, dense])
def test_other_tasks_with_classes_have_charts_too(make: Callable[[], Subject]) -> None:
    one = make()
    labelled(one, PASSES)
    found = predictive(one)
    assert found is not None
    assert found.missing == ""
    assert found.scores is not None
    assert found.scores.predictors == ("teacher", "mean network", "one pass", "BNN")
    assert len(found.charts) == 2
    assert math.isfinite(score(found, "negative log likelihood (nats)", "BNN").value)
    assert all(mistake.image == "" for mistake in found.mistakes)
    assert make is binary or found.mistakes == ()


def test_a_regression_has_none() -> None:
    """Its charts come from its own checks."""
    images, _ = examples()
    one = Subject(convert(teacher()), images=images, labels=torch.randn(90, CLASSES), task="regression")
    assert describe(one).prediction_summary is None


def test_charts_of_a_finding_are_in_its_evidence() -> None:
    """From there they reach the JSON and the report."""
    chart = Chart(title="t", x_name="x", y_name="y", lines=(ChartLine(name="a", x=(0.0, 1.0), y=(1.0, 2.0)),))
    with registry.kept():

        @check("test.curve", claim="There is a curve.")
        def curve(subject: Subject) -> Finding:
            """Show a curve."""
            return Finding(verdict=Verdict.PASS, headline="there is", charts=(chart,))

        assert curve.measure(teacher()).charts == (chart,)
