"""What a report shows of the predictions: reliability, risk and coverage, entropies by set, scores, worst mistakes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy
from torch import Tensor

from pytest_bnn.audit.pictures import class_name, thumbnail
from pytest_bnn.audit.scoring import scores
from pytest_bnn.checks._labelled import Labelled, labelled
from pytest_bnn.checks._predictions import Predicted, passes_known, predicted
from pytest_bnn.checks.finding import NotHereError
from pytest_bnn.errors import InputError
from pytest_bnn.network.calling import ForwardError
from pytest_bnn.records.charts import (
    Chart,
    ChartBand,
    ChartCounts,
    ChartLine,
    Mistake,
    PredictionSummary,
    Ridge,
    Ridges,
    Whose,
)
from pytest_bnn.stats.reliability import BAND, RESAMPLES, consistency_band, reliability
from pytest_bnn.stats.selective import RiskCoverage, risk_coverage
from pytest_bnn.subject import Subject

#: How many wrong predictions are shown.
MISTAKES = 10

#: Bins of a histogram, and the most points of a line.
_BINS, _POINTS = 20, 60

#: Above this rank correlation two parts of the uncertainty order the examples all but alike.
_ALIKE = 0.9


def predictive(subject: Subject) -> PredictionSummary | None:
    """Summarise the predictions that checks have computed already; None where no check has."""
    sets = _sets(subject)
    if not sets:
        return None
    ridges = _ridges(sets)
    try:
        judged = next((one for one in sets.values() if one.subject is subject.evaluated), None)
        if judged is None:
            raise NotHereError("no check that ran looks at labels")
        passes = judged.predicted.mixture.passes
        found = labelled(subject, passes)
    except (NotHereError, InputError, ForwardError) as error:
        passes = max(one.predicted.mixture.passes for one in sets.values())
        return PredictionSummary(passes=passes, ridges=ridges, missing=str(error))
    own = _Answers.of(found.mixture.log_shares, found.labels)
    teacher = found.predicted.teacher
    its = None if teacher is None else _Answers.of(teacher, found.labels)
    place = judged.subject
    return PredictionSummary(
        passes=passes,
        examples=len(found),
        left_out=found.left_out,
        scores=scores(place, found),
        charts=(_reliability(own, its, place.seed), _risk(own, its)),
        ridges=ridges,
        errors=int((~own.right).sum()),
        mistakes=_mistakes(place, found, own, its),
        examples_of="data" if place is subject else "evaluation",
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Set:
    """A set of examples, what is predicted for them, and whether they are of the model's task."""

    subject: Subject
    predicted: Predicted
    inside: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """The class that is said of each example, how probable it is said to be, and whether it is right, ``[N]``."""

    said: Tensor
    confidence: Tensor
    right: Tensor

    @classmethod
    def of(cls, log_shares: Tensor, labels: Tensor) -> _Answers:
        confidence, said = log_shares.max(1)
        return cls(said, confidence.double().exp().clamp_max(1), said == labels)


def _sets(subject: Subject) -> dict[str, _Set]:
    """Return the sets of examples for which predictions are known, by name; those of the model's task first."""
    places = [("data", subject, True)]
    with suppress(InputError, ForwardError):  # what cannot be used, the checks have reported
        if subject.evaluated is not subject:
            places.append(("evaluation", subject.evaluated, True))
    with suppress(InputError, ForwardError):
        places += [(name, other, False) for name, other in subject.outside.items()]
    found = {}
    for name, place, inside in places:
        passes = passes_known(place)
        if passes is not None:
            free = name if name not in found else f"{name} (--ood)"
            found[free] = _Set(subject=place, predicted=predicted(place, passes), inside=inside)
    return found


def _reliability(own: _Answers, teacher: _Answers | None, seed: int) -> Chart:
    line = _blocks("BNN", "model", own)
    at = numpy.linspace(line.x[0], line.x[-1], _BINS * 2 + 1)
    low, high = consistency_band(own.confidence, at, seed=seed)
    edges = numpy.linspace(0, 1, _BINS + 1)
    counts, _ = numpy.histogram(own.confidence.numpy(), edges)
    lines = [line] if teacher is None else [_blocks("teacher", "teacher", teacher), line]
    return Chart(
        title="Reliability of the leading class",
        x_name="probability of the leading class",
        y_name="share that is right",
        lines=tuple(lines),
        band=ChartBand(
            name=f"{100 * BAND:.0f} % band if the probabilities are right",
            x=_floats(at),
            low=_floats(low),
            high=_floats(high),
        ),
        counts=ChartCounts(name="examples", edges=_floats(edges), counts=tuple(int(count) for count in counts)),
        diagonal="as probable as said",
        x_ends=(0.0, 1.0),
        y_ends=(0.0, 1.0),
        caption=(
            "Isotonic regression of being right on the BNN's leading probability. Below the diagonal it is too sure of "
            f"itself, above it not sure enough. The band holds {100 * BAND:.0f} % of the curves of {RESAMPLES} sets of "
            "labels drawn from the BNN's own probabilities, at each place on its own."
        ),
    )


def _blocks(name: str, whose: Whose, answers: _Answers) -> ChartLine:
    fit = reliability(answers.confidence, answers.right)
    x = numpy.stack([fit.low, fit.high], 1).flatten()
    y = fit.share.repeat(2)
    kept = numpy.concatenate([[True], (numpy.diff(x) > 0) | (numpy.diff(y) != 0)])
    return ChartLine(name=name, whose=whose, x=_floats(x[kept]), y=_floats(y[kept]))


def _risk(own: _Answers, teacher: _Answers | None) -> Chart:
    curve = risk_coverage(own.confidence, own.right)
    lines = [_risk_line("BNN", "model", curve, len(own.right))]
    said = f"AUGRC of the BNN {curve.augrc:.3g}"
    if teacher is not None:
        its = risk_coverage(teacher.confidence, teacher.right)
        lines.insert(0, _risk_line("teacher", "teacher", its, len(own.right)))
        said += f", of the teacher {its.augrc:.3g}"
    return Chart(
        title="Risk and coverage",
        x_name="share of examples that are accepted",
        y_name="share of the accepted that is wrong",
        lines=tuple(lines),
        x_ends=(0.0, 1.0),
        caption=(
            "Examples are accepted from the largest leading probability on. "
            f"{said}: the share of examples accepted and wrong, in the mean over all coverages: less is better."
        ),
    )


def _risk_line(name: str, whose: Whose, curve: RiskCoverage, examples: int) -> ChartLine:
    """Show the risk at even coverages; of examples that are equally confident some are accepted, by chance."""
    points = min(_POINTS, examples)
    coverage = numpy.arange(1, points + 1) / points
    accepted_and_wrong = numpy.interp(coverage, curve.coverage.numpy(), curve.errors.numpy())
    return ChartLine(name=name, whose=whose, x=_floats(coverage), y=_floats(accepted_and_wrong / coverage))


def _ridges(sets: dict[str, _Set]) -> tuple[Ridges, ...]:
    """Show entropy and mutual information by set."""
    first = next(iter(sets))
    return (
        _ridge(
            "Predictive entropy by set",
            "entropy of the mean prediction, nats",
            {name: (one.predicted.mixture.entropy, one.inside) for name, one in sets.items()},
            "All of the uncertainty about the class.",
        ),
        _ridge(
            "Mutual information by set",
            "mutual information of class and weights, nats",
            {name: (one.predicted.mixture.mutual_information, one.inside) for name, one in sets.items()},
            "The entropy of the mean prediction less the mean entropy of a pass: the part on which the passes disagree."
            + _alike(first, sets[first].predicted),
        ),
    )


def _ridge(title: str, x_name: str, values: dict[str, tuple[Tensor, bool]], caption: str) -> Ridges:
    most = max(float(of.max()) for of, _ in values.values())
    edges = numpy.linspace(0, most if most > 0 else 1.0, _BINS + 1)
    rows = []
    for name, (of, inside) in values.items():
        counts, _ = numpy.histogram(of.clamp(0, float(edges[-1])).numpy(), edges)
        rows.append(
            Ridge(
                name=name,
                counts=tuple(int(count) for count in counts),
                mean=float(of.mean()),
                median=float(of.median()),
                inside=inside,
            )
        )
    return Ridges(title=title, x_name=x_name, edges=_floats(edges), rows=tuple(rows), caption=caption)


def _alike(name: str, one: Predicted) -> str:
    """Warn where the two parts of the entropy order the examples all but alike."""
    from scipy.stats import spearmanr

    aleatoric, epistemic = one.mixture.expected_entropy.numpy(), one.mixture.mutual_information.numpy()
    if len(aleatoric) < 3 or not aleatoric.std() or not epistemic.std():
        return ""
    rank = float(spearmanr(aleatoric, epistemic).statistic)
    if rank < _ALIKE:
        return ""
    return (
        f" It orders the examples of {name} all but as the mean entropy of a pass does (rank correlation {rank:.2g}): "
        "the two cannot be read as two kinds of uncertainty (Wimmer et al. 2023)."
    )


def _mistakes(judged: Subject, found: Labelled, own: _Answers, teacher: _Answers | None) -> tuple[Mistake, ...]:
    if judged.task.kind == "dense":  # a picture would stand for one place of it
        return ()
    wrong = (~own.right).nonzero()[:, 0]
    order = own.confidence[wrong].argsort(descending=True, stable=True)
    shown = []
    for at in wrong[order][:MISTAKES].tolist():
        row, label = int(found.rows[at]), int(found.labels[at])
        shown.append(
            Mistake(
                index=int(judged.places[row]),
                image=thumbnail(judged.require_images(), row),
                label=class_name(judged, label),
                predicted=class_name(judged, int(own.said[at])),
                confidence=float(own.confidence[at]),
                of_label=float(found.mixture.log_shares[at, label].exp()),
                teacher=None if teacher is None else class_name(judged, int(teacher.said[at])),
            )
        )
    return tuple(shown)


def _floats(values: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]] | Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values.tolist())
