"""The scores of a model beside those of its teacher, of itself at its mean, and of a single pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import suppress

import torch
from torch import Tensor

from pytest_bnn.checks._labelled import Labelled
from pytest_bnn.checks._predictions import log_shares_of
from pytest_bnn.checks._sides import brier, brier_at, ruled_out
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.network.calling import ForwardError
from pytest_bnn.network.comparing import difference, tolerance
from pytest_bnn.records.charts import Score, ScoreRow, ScoreTable
from pytest_bnn.sampling.mixture import by_rows
from pytest_bnn.stats.bootstrap import INSIDE, RESAMPLES, percentile_interval, resampled_means
from pytest_bnn.stats.likelihoods import temperature
from pytest_bnn.subject import Subject

#: On so many examples a second pass shows that the network at its mean is a function.
_SAME = 16

_MODEL, _TEACHER, _MEAN, _ONE = "BNN", "teacher", "mean network", "one pass"

_TEMPERATURE = "best temperature"

#: The most numbers in the outputs of a pass for which passes are drawn again: beyond it they take too long.
_MOST = 16_000_000


def scores(judged: Subject, found: Labelled) -> ScoreTable:
    """Score the BNN, its teacher, the network at its mean and a single pass on the same labelled examples.

    Args:
        judged: The subject with the examples that ``found`` is about.
        found: What the model predicts for them.
    """
    labels = found.labels
    scored = {name: _scored(log_shares, labels) for name, log_shares in _others(judged, found)}
    scored[_MODEL] = _scored(found.mixture.log_shares, labels, fair=found.mixture.brier(labels))
    known = {
        (row, who): values
        for who, rows in scored.items()
        for row, values in rows.items()
        if values is not None and row != _TEMPERATURE
    }
    drawn = resampled_means(torch.stack(list(known.values()), 1), seed=judged.seed).unbind(1)
    resampled = dict(zip(known, drawn, strict=True))

    def score(row: str, who: str) -> Score | None:
        values = scored[who][row]
        if values is None:
            return None
        return _score(values, resampled[row, who]) if row != _TEMPERATURE else Score(value=float(values))

    def gap(row: str) -> Score | None:
        one, other = (row, _MODEL), (row, _TEACHER)
        both = one in known and other in known
        return _score(known[one] - known[other], resampled[one] - resampled[other]) if both else None

    rows = (
        ScoreRow(name=row, scores=tuple(score(row, who) for who in scored), difference=gap(row))
        for row in scored[_MODEL]
    )
    return ScoreTable(predictors=tuple(scored), rows=tuple(rows), note=_note(found, scored))


def _others(judged: Subject, found: Labelled) -> list[tuple[str, Tensor]]:
    """Return the other predictors by name, with their log probabilities of the labelled examples."""
    teacher = found.predicted.teacher
    others = [] if teacher is None else [(_TEACHER, teacher)]
    if judged.forward_once().numel() > _MOST:
        return others
    ways: tuple[tuple[str, Callable[[Subject], Tensor | None]], ...] = ((_MEAN, _at_its_mean), (_ONE, _of_one_pass))
    for name, way in ways:
        with suppress(ForwardError, PytestBnnError):  # a model may raise with every sigma at 0
            outputs = way(judged)
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


def _of_one_pass(judged: Subject) -> Tensor:
    return next(judged.bank.blocks(0, 1))[0]


def _scored(log_shares: Tensor, labels: Tensor, *, fair: Tensor | None = None) -> dict[str, Tensor | None]:
    """Return the scores of one predictor by name, ``[N]``; None where a label has no probability at all."""
    possible = not ruled_out(log_shares, labels)
    best = math.exp(temperature(log_shares, labels).best) if possible else 1.0

    def loss_at(logs: Tensor, y: Tensor) -> Tensor:
        return -_own(torch.log_softmax(logs / best, 1), y)

    return {
        "accuracy": (log_shares.argmax(1) == labels).double(),
        "Brier score": brier(log_shares, labels) if fair is None else fair,
        "negative log likelihood (nats)": -_own(log_shares, labels) if possible else None,
        _TEMPERATURE: torch.tensor(best) if possible else None,
        "Brier score, best temperature": brier_at(best, log_shares, labels) if possible else None,
        "negative log likelihood (nats), best temperature": by_rows(loss_at, log_shares, labels) if possible else None,
    }


def _own(log_shares: Tensor, labels: Tensor) -> Tensor:
    return log_shares.gather(1, labels[:, None])[:, 0].double()


def _score(values: Tensor, means: Tensor) -> Score:
    low, high = percentile_interval(means)
    return Score(value=float(values.mean()), low=low, high=high)


def _note(found: Labelled, names: Collection[str]) -> str:
    said = (
        f"In brackets approximate {100 * INSIDE:.0f} % intervals: percentiles of {RESAMPLES:,} bootstrap resamples of "
        f"the {len(found)} examples, the same for every column. The BNN's Brier score is without the bias of a mean of "
        f"{found.mixture.passes} passes. Best temperatures are fitted to these very labels, so "
        "that what stands at them is a little too good; their own error is not in the intervals."
    )
    if _MEAN in names:
        return said
    if _ONE in names:
        return f"{said} With every sigma at 0 the model still varies, or does not run: no mean network."
    return f"{said} Of so many outputs no pass was drawn again: neither a mean network nor a single pass."
