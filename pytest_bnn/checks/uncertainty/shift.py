"""``uncertainty.shift``: where examples become harder step by step, do errors and uncertainty grow together?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks._first import on_others
from pytest_bnn.checks._predictions import Predicted, in_two_looks, learned_classes, naming
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.uncertainty._series import Series, series_of
from pytest_bnn.checks.values import Count, FewPasses, Share
from pytest_bnn.records.charts import Chart, ChartLine
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.sampling.mixture import entropy_of
from pytest_bnn.stats.betting import log_capital_of
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import Subject

#: Of the rank correlation of an example's entropy with the amount, in [-1, 1].
LEAST = 0.25

#: By how much the share of errors must certainly grow for a series to be judged.
_HARMFUL = 0.05

#: Examples of each step, which show a trend of their own.
_EXAMPLES = 128

#: Passes of each step, of which there are many; before anything is accused, and else the few that may pass a model.
_PASSES = 16
_FEW = 4


@check(
    claim="Where examples become harder step by step, the model's uncertainty grows with its errors.",
    needs=("images",),
    sampled=True,
    after="uncertainty.ood",
    of_data=True,
)
def shift(
    subject: Subject,
    *,
    min_trend: Share = LEAST,
    examples: Count = _EXAMPLES,
    max_passes: FewPasses = _PASSES,
    budget: Budget,
) -> Finding:
    """Measure whether the model's uncertainty grows with its errors where examples become harder step by step.

    The same examples are given at growing amounts: of noise, blur, lost contrast and rotation, which are made here for
    images, or in a user's own series. The trend is the rank correlation (Kendall) of an example's predictive entropy
    with the amount, in the mean over examples: 1 where it grows with each step, 0 where it stays. It must reach
    ``min_trend`` wherever errors certainly grow by more than five in a hundred; a series that hardly harms asks nothing
    of the model. An error is an answer that is not the label, or, where there are no labels of classes, not the answer
    to the example as it was. Where the teacher's trend certainly is too small, too, it is inherited, which is a
    warning.

    Args:
        subject: images, and a series of one's own (``shifts``) where they are no images; see `Subject`.
        min_trend: The least trend.
        examples: How many are used, from the first on.
        max_passes: The passes that the prediction is the mean of.
        budget: Error rates; those in force when None.

    Source: Ovadia et al. 2019, "Can you trust your model's uncertainty?"; Waudby-Smith and Ramdas 2024 for the bounds
    of a mean.
    """
    series = series_of(subject, examples)
    each = budget.split(len(series))

    def look(passes: int) -> Finding:
        with naming("--shifts" if subject.shifted else ""):
            found = [(one, one.predicted(passes)) for one in series]
        if presumed := found[0][1][0].presumed:
            return not_applicable(presumed)
        labels = learned_classes(subject, passes)
        if subject.task.kind == "dense" and not subject.shifted and _moved(series[0].rows):
            labels = None  # their places are drawn for the examples as they were given
        judged = [
            _of(one, steps, None if labels is None else labels[one.rows], min_trend, each) for one, steps in found
        ]
        return _judge(judged, min_trend, budget, passes)

    steps = [step for steps in subject.shifted.values() for step in steps]
    return on_others(subject, in_two_looks(look, max_passes, _FEW), "--shifts", steps)


def _moved(rows: Tensor) -> bool:
    return not torch.equal(rows, torch.arange(len(rows)))


measure_uncertainty_shift, assert_uncertainty_shift = shift.measure, shift.assert_


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trend:
    """What one series shows; errors and entropies are means by step, that of the examples as they were first."""

    series: Series
    errors: tuple[float, ...]
    entropies: tuple[float, ...]
    trend: float
    teacher: float | None
    harms: bool
    certainly_harms: bool
    grows: bool
    too_small: bool
    inherited: bool
    needed: int | None


def trends(entropies: Tensor) -> Tensor:
    """Return the rank correlation of each example's entropy with the step, ``[N]`` of ``[steps, N]``; ties count 0."""
    steps = len(entropies)
    # Differences within the rounding of a sum over classes are none.
    slack = 1e-6 * entropies.abs().amax(0)
    pairs = [entropies[j] - entropies[i] for i in range(steps) for j in range(i + 1, steps)]
    signs = [torch.where(gap.abs() <= slack, 0.0, gap.sign().double()) for gap in pairs]
    return torch.stack(signs).mean(0)


def _of(series: Series, steps: Sequence[Predicted], labels: Tensor | None, least: float, budget: Budget) -> _Trend:
    entropies = torch.stack([step.mixture.entropy for step in steps])
    answers = torch.stack([step.mixture.log_shares.argmax(1) for step in steps])
    wrong = (answers != (answers[0] if labels is None else labels)).double()
    found = trends(entropies)
    growth = ((wrong[-1] - wrong[0]) - _HARMFUL) / (1 + _HARMFUL)
    harm = log_capital_of(growth)
    teacher, inherited = None, False
    own = [step.teacher for step in steps]
    logs = [one for one in own if one is not None]
    if len(logs) == len(own):
        its = trends(torch.stack([entropy_of(one) for one in logs]))
        teacher, inherited = float(its.mean()), _below(its, least) >= -math.log(budget.alpha)
    above = log_capital_of((found - least) / (1 + least))
    return _Trend(
        series=series,
        errors=tuple(wrong.mean(1).tolist()),
        entropies=tuple(entropies.mean(1).tolist()),
        trend=float(found.mean()),
        teacher=teacher,
        harms=float((wrong[-1] - wrong[0]).mean()) > _HARMFUL,
        certainly_harms=harm >= -math.log(budget.alpha),
        grows=above >= -math.log(budget.beta),
        too_small=_below(found, least) >= -math.log(budget.alpha),
        inherited=inherited,
        needed=_needed(found, least, above, harm, budget),
    )


def _below(found: Tensor, least: float) -> float:
    return log_capital_of((least - found) / (1 + least))


def _needed(found: Tensor, least: float, above: float, harm: float, budget: Budget) -> int | None:
    """Return how many examples like these would decide; None where no number can be told."""
    if float(found.mean()) > least:
        wanted = [(above, budget.beta)]
    else:
        wanted = [(_below(found, least), budget.alpha), (harm, budget.alpha)]
    if any(reached <= 0.5 for reached, _ in wanted):
        return None
    needed = max(math.ceil(len(found) * -math.log(rate) / reached) for reached, rate in wanted)
    return needed if needed > len(found) else None


def _judge(found: list[_Trend], least: float, budget: Budget, passes: int) -> Finding:
    failing = [one for one in found if one.certainly_harms and one.too_small]
    # A series that does not harm asks nothing; one of which it is open whether it harms does.
    open_ = [one for one in found if one.harms and not one.grows and one not in failing]
    passing = [one for one in found if one.grows]
    if not failing and not open_ and not passing:
        return not_applicable(
            f"none of the {len(found)} series of growing shifts makes the model wrong more often: give a stronger one, "
            "--shifts MODULE:FACTORY (shifts= in Python)"
        )
    inherited = bool(failing) and all(one.inherited for one in failing)
    verdict = Verdict.FAIL if failing else Verdict.INCONCLUSIVE if open_ else Verdict.PASS
    worst = min(failing or open_ or passing, key=lambda one: one.trend)
    return Finding(
        verdict=Verdict.WARN if inherited else verdict,
        headline=_headline(verdict, worst, least, passing, passes, inherited=inherited),
        measurements=tuple(m for one in found for m in _measurements(one)),
        threshold=Threshold(
            quantity=f"trend of the entropy, {worst.series.name}", observed=worst.trend, relation=">=", allowed=least
        ),
        remedy=_remedy(verdict, worst),
        notes=tuple(
            f"The series {one.series.name} is not judged: the share of errors grows by no more than "
            f"{100 * (one.errors[-1] - one.errors[0]):.0f} % from its first step to its last."
            for one in found
            if not one.harms and not one.grows
        ),
        charts=_charts(found),
        samples=passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic=f"trend of the entropy with {worst.series.name}, in the mean over examples (betting)",
            low=least if verdict is Verdict.PASS else None,
            high=least if verdict is Verdict.FAIL else None,
        ),
    )


def _charts(found: list[_Trend]) -> tuple[Chart, ...]:
    """Return the errors and the mean entropies by step, with a line for each series."""

    def lines(values: Callable[[_Trend], tuple[float, ...]]) -> tuple[ChartLine, ...]:
        steps = [tuple(float(step) for step in range(len(values(one)))) for one in found]
        return tuple(ChartLine(name=one.series.name, x=x, y=values(one)) for one, x in zip(found, steps, strict=True))

    return (
        Chart(
            title="Errors under growing shifts", x_name="step", y_name="share of errors",
            lines=lines(lambda one: one.errors), y_ends=(0.0, 1.0),
            caption="The same examples, step by step harder; 0 is as they were.",
        ),
        Chart(
            title="Uncertainty under growing shifts", x_name="step", y_name="mean entropy, nats",
            lines=lines(lambda one: one.entropies),
            caption="The entropy of the mean prediction, which should grow where the errors do.",
        ),
    )  # fmt: skip


def _measurements(one: _Trend) -> list[Measurement]:
    name, shown = one.series.name, " ".join
    rows = [
        Measurement(name=f"trend of the entropy, {name}", value=one.trend, note=f"{len(one.series.rows)} examples"),
        Measurement(
            name=f"errors, {name}", value=one.errors[-1], note="by step: " + shown(f"{e:.3g}" for e in one.errors)
        ),
        Measurement(
            name=f"mean entropy, {name}", value=one.entropies[-1], unit="nats",
            note="by step: " + shown(f"{e:.3g}" for e in one.entropies),
        ),
    ]  # fmt: skip
    if one.teacher is not None:
        rows.append(Measurement(name=f"trend of the teacher's entropy, {name}", value=one.teacher))
    return rows


def _headline(
    verdict: Verdict, worst: _Trend, least: float, passing: list[_Trend], passes: int, *, inherited: bool
) -> str:
    name, count = worst.series.name, len(worst.series.rows)
    if verdict is Verdict.PASS:
        names = ", ".join(one.series.name for one in passing)
        return (
            f"the predictive entropy grows with {names}: its trend is at least {worst.trend:.2g}, certainly above "
            f"{least:g} ({count} examples, {passes} passes)"
        )
    errors = f"the share of errors grows from {worst.errors[0]:.3g} to {worst.errors[-1]:.3g}"
    entropy = f"the mean entropy goes from {worst.entropies[0]:.3g} to {worst.entropies[-1]:.3g} nats"
    if verdict is Verdict.INCONCLUSIVE:
        return (
            f"{count} examples are too few to decide whether the entropy grows with {name}: {errors}, {entropy}, and "
            f"its trend is {worst.trend:.2g}, where {least:g} is required"
        )
    whose = ""
    if inherited and worst.teacher is not None:
        whose = f"; so it is with the teacher (a trend of {worst.teacher:.2g}), and the model has inherited it"
    return (
        f"with {name} {errors}, and the model does not notice: {entropy}, and its trend is {worst.trend:.2g}, where "
        f"{least:g} is required{whose}"
    )


def _remedy(verdict: Verdict, worst: _Trend) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.INCONCLUSIVE:
        number = f"about {worst.needed} examples, which would decide it" if worst.needed else "more examples"
        return f"give {number}, with --data, and let them be used with --set uncertainty.shift.examples=..."
    return (
        "see noise.spread for a posterior that has collapsed, and uncertainty.ood; train with such examples, or with a "
        "wider posterior"
    )
