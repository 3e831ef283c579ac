"""The scores of a model beside those of its teacher, of itself at its mean, and of a single pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks._predictions import Labelled, log_shares_of, ruled_out
from pytest_bnn.checks.scores.against_teacher import brier
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.network.calling import ForwardError
from pytest_bnn.network.comparing import difference, tolerance
from pytest_bnn.records.charts import Score, ScoreRow, ScoreTable
from pytest_bnn.stats.bootstrap import INSIDE, RESAMPLES, percentile_interval, resampled_means
from pytest_bnn.stats.likelihoods import temperature
from pytest_bnn.subject import Subject

#: On so many examples a second pass shows that the network at its mean is a function.
_SAME = 16

_MODEL, _TEACHER = "BNN", "teacher"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Scored:
    """What one predictor is worth on each example, ``[N]``; None where a label has no probability at all."""

    name: str
    right: Tensor
    brier: Tensor
    loss: Tensor | None
    temperature: float | None
    cooled_brier: Tensor | None
    cooled_loss: Tensor | None


def scores(judged: Subject, found: Labelled) -> ScoreTable:
    """Score the BNN, its teacher, the network at its mean and a single pass on the same labelled examples.

    Args:
        judged: The subject with the examples that ``found`` is about.
        found: What the model predicts for them.
    """
    labels = found.labels
    scored = [_scored(name, log_shares, labels) for name, log_shares in _others(judged, found)]
    scored.append(_scored(_MODEL, found.mixture.log_shares, labels, fair=found.mixture.brier(labels)))
    names = tuple(one.name for one in scored)
    intervals: dict[str, list[Tensor | None]] = {
        "accuracy": [one.right for one in scored],
        "Brier score": [one.brier for one in scored],
        "negative log likelihood, nats": [one.loss for one in scored],
        "Brier score at the best temperature": [one.cooled_brier for one in scored],
        "negative log likelihood at the best temperature, nats": [one.cooled_loss for one in scored],
    }
    rows = [_row(name, values, names, judged.seed) for name, values in intervals.items()]
    best = tuple(None if one.temperature is None else Score(value=one.temperature) for one in scored)
    rows.insert(3, ScoreRow(name="best temperature", scores=best))
    return ScoreTable(predictors=names, rows=tuple(rows), note=_note(found, names))


def _others(judged: Subject, found: Labelled) -> list[tuple[str, Tensor]]:
    """Return the other predictors by name, with their log probabilities of the labelled examples."""
    teacher = found.predicted.teacher
    others = [] if teacher is None else [(_TEACHER, teacher)]
    try:
        mean = _at_its_mean(judged)
        one = judged.bank.first(1)[0] if judged.bank.drawn else judged.bank.draw(0, 1)[0]
    except (ForwardError, PytestBnnError):
        return others
    for name, outputs in (("mean network", mean), ("one pass", one)):
        if outputs is not None and bool(torch.isfinite(outputs).all()):
            others.append((name, log_shares_of(judged, outputs)[found.rows]))
    return others


def _at_its_mean(judged: Subject) -> Tensor | None:
    """Return the outputs with every sigma at 0; None where these still vary, so that there is no one such network."""
    outputs = judged.bank.draw(0, 1, noisy=())[0]
    few = torch.arange(min(_SAME, len(outputs)))
    again = judged.bank.draw(1, 2, few, noisy=())[0]
    same = 0 <= difference(outputs[few], again) <= tolerance(outputs[few], again)
    return outputs if same else None


def _scored(name: str, log_shares: Tensor, labels: Tensor, *, fair: Tensor | None = None) -> _Scored:
    log_shares = log_shares.double()
    right = (log_shares.argmax(1) == labels).double()
    own = brier(log_shares, labels) if fair is None else fair
    if ruled_out(log_shares, labels):
        return _Scored(
            name=name, right=right, brier=own, loss=None, temperature=None, cooled_brier=None, cooled_loss=None
        )
    best = math.exp(temperature(log_shares, labels).best)
    cooled = torch.log_softmax(log_shares / best, 1)
    return _Scored(
        name=name,
        right=right,
        brier=own,
        loss=-log_shares.gather(1, labels[:, None])[:, 0],
        temperature=best,
        cooled_brier=brier(cooled, labels),
        cooled_loss=-cooled.gather(1, labels[:, None])[:, 0],
    )


def _row(name: str, values: list[Tensor | None], predictors: tuple[str, ...], seed: int) -> ScoreRow:
    known = [value for value in values if value is not None]
    if not known:
        return ScoreRow(name=name, scores=(None,) * len(values))
    means = iter(resampled_means(torch.stack(known, 1), seed=seed).unbind(1))
    resampled = [None if value is None else next(means) for value in values]
    found = [_score(value, means) for value, means in zip(values, resampled, strict=True)]
    difference = None
    if _TEACHER in predictors:
        at, its = predictors.index(_MODEL), predictors.index(_TEACHER)
        one, other, drawn, others = values[at], values[its], resampled[at], resampled[its]
        if one is not None and other is not None and drawn is not None and others is not None:
            difference = _score(one - other, drawn - others)
    return ScoreRow(name=name, scores=tuple(found), difference=difference)


def _score(values: Tensor | None, means: Tensor | None) -> Score | None:
    if values is None or means is None:
        return None
    low, high = percentile_interval(means)
    return Score(value=float(values.mean()), low=low, high=high)


def _note(found: Labelled, names: tuple[str, ...]) -> str:
    said = (
        f"In brackets approximate {100 * INSIDE:.0f} % intervals: percentiles of {RESAMPLES:,} bootstrap resamples of "
        f"the {len(found)} examples, the same for every column. Best temperatures are fitted to these very labels, so "
        "that what stands at them is a little too good; their own error is not in the intervals."
    )
    if found.predicted.task.kind in ("classification", "binary") and "mean network" not in names:
        said += " The network at its mean is left out: its outputs vary with every sigma at 0, or it does not run."
    return said
