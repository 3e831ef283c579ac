"""``uncertainty.ood``: is the model more uncertain about what is none of its task?"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_bnn.checks._first import on_others
from pytest_bnn.checks._predictions import (
    PASSES,
    Predicted,
    in_two_looks,
    learned_classes,
    naming,
    part_of,
    predicted,
)
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, NotHereError, not_applicable
from pytest_bnn.checks.values import FewPasses, Share
from pytest_bnn.data.repeats import repeats
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.sampling.mixture import entropy_of
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import pairs_bounds
from pytest_bnn.stats.order import auroc
from pytest_bnn.subject import Subject

#: Half is chance, 1 is a perfect order.
LEAST = 0.7

#: The share of the model's own examples that are accepted, where the false positives are counted.
_ACCEPTED = 0.95


@check(
    claim="Examples that are none of the model's task get more uncertainty than its own.",
    needs=("images",),
    sampled=True,
    after="scores.against_teacher",
    of_data=True,
)
def ood(subject: Subject, *, min_auroc: Share = LEAST, max_passes: FewPasses = PASSES, budget: Budget) -> Finding:
    """Measure whether examples that are none of the model's task get more uncertainty than its own.

    The figure is the chance that an example from outside has the larger predictive entropy of the two (AUROC, half of
    equal ones counted): 1 is a perfect order, one half is chance. Each set that was given must reach ``min_auroc``;
    bounds hold for all pairs of the two samples, at the rate of as many independent pairs as the smaller sample has.
    A set on which the teacher, too, certainly falls short is inherited, which is a warning. Mutual information and the
    leading probability stand beside it.

    Args:
        subject: images, and sets of other examples (``ood``); see `Subject`.
        min_auroc: The least chance.
        max_passes: The passes that the prediction is the mean of, at most: few show that all is well.
        budget: Error rates; those in force when None.

    Source: Hendrycks and Gimpel 2017, "A baseline for detecting misclassified and out-of-distribution examples";
    `pytest_bnn.stats.intervals.pairs_bounds`.
    """
    with naming("--ood"):
        sets = subject.outside
    if not sets:
        return not_applicable(
            "no examples from outside of the task were given: --ood MODULE:FACTORY, or ood= in Python", ("ood",)
        )

    def look(passes: int) -> Finding:
        own, each = _distinct(subject, passes), budget.split(len(sets))
        with naming("--ood"):
            others = {name: _distinct(other, passes) for name, other in sets.items()}
        learned_classes(subject, passes)
        found = _judge([_of(name, own, other, each) for name, other in others.items()], min_auroc, budget, passes)
        if own.presumed and found.verdict is Verdict.FAIL:
            raise NotHereError(own.presumed)
        return found

    return on_others(subject, in_two_looks(look, max_passes), "--ood", list(sets.values()))


measure_uncertainty_ood, assert_uncertainty_ood = ood.measure, ood.assert_


def _distinct(subject: Subject, passes: int) -> Predicted:
    """Return the predictions for each distinct example: copies are no further examples."""
    return part_of(predicted(subject, passes), repeats(subject.require_images()).first)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    """How well the entropy tells one set from the model's own examples."""

    name: str
    examples: int
    auroc: float
    surely_below: float
    likely_above: float
    teacher: float | None
    teacher_below: float | None
    information: float
    leading: float
    passed: float


def _of(name: str, own: Predicted, other: Predicted, budget: Budget) -> _Set:
    inside, outside = own.mixture, other.mixture
    pairs = min(len(inside.squares), len(outside.squares))
    found = auroc(inside.entropy, outside.entropy)
    teacher = None
    if own.teacher is not None and other.teacher is not None:
        teacher = auroc(entropy_of(own.teacher), entropy_of(other.teacher))
    return _Set(
        name=name,
        examples=len(outside.squares),
        auroc=found,
        surely_below=pairs_bounds(found, pairs, budget.alpha)[1],
        likely_above=pairs_bounds(found, pairs, budget.beta)[0],
        teacher=teacher,
        teacher_below=None if teacher is None else pairs_bounds(teacher, pairs, budget.alpha)[1],
        information=auroc(inside.mutual_information, outside.mutual_information),
        leading=auroc(-inside.log_shares.amax(1).double(), -outside.log_shares.amax(1).double()),
        passed=float((outside.entropy <= inside.entropy.quantile(_ACCEPTED)).double().mean()),
    )


def _judge(sets: list[_Set], least: float, budget: Budget, passes: int) -> Finding:
    low = [one for one in sets if one.surely_below < least]
    open_ = [one for one in sets if one.likely_above < least]
    inherited = bool(low) and all(one.teacher_below is not None and one.teacher_below < least for one in low)
    verdict = Verdict.FAIL if low else Verdict.INCONCLUSIVE if open_ else Verdict.PASS
    worst = min(low or open_ or sets, key=lambda one: one.auroc)
    return Finding(
        verdict=Verdict.WARN if inherited else verdict,
        headline=_headline(verdict, worst, least, len(sets), passes, inherited=inherited),
        measurements=tuple(m for one in sets for m in _measurements(one)),
        threshold=Threshold(
            quantity=f"AUROC of the predictive entropy, {worst.name}",
            observed=worst.auroc,
            relation=">=",
            allowed=least,
        ),
        remedy=_remedy(verdict),
        samples=passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic=f"chance that an example of {worst.name} has the larger entropy (all pairs)",
            low=None if verdict is Verdict.FAIL else worst.likely_above,
            high=worst.surely_below if verdict is Verdict.FAIL else None,
        ),
    )


def _measurements(one: _Set) -> list[Measurement]:
    rows = [
        Measurement(name=f"AUROC, {one.name}", value=one.auroc, note=f"predictive entropy, {one.examples} examples")
    ]
    if one.teacher is not None:
        rows.append(Measurement(name=f"AUROC of the teacher, {one.name}", value=one.teacher, note="entropy"))
    return [
        *rows,
        Measurement(name=f"AUROC of mutual information, {one.name}", value=one.information),
        Measurement(name=f"AUROC of 1 - leading probability, {one.name}", value=one.leading),
        Measurement(
            name=f"accepted, {one.name}", value=one.passed,
            note=f"of the set, where {100 * _ACCEPTED:.0f} % of the model's own examples are",
        ),
    ]  # fmt: skip


def _headline(verdict: Verdict, worst: _Set, least: float, count: int, passes: int, *, inherited: bool) -> str:
    if verdict is Verdict.PASS:
        return (
            "the predictive entropy tells examples from outside of the task from the model's own: its AUROC is "
            + (
                f"{worst.auroc:.3g} on {worst.name}"
                if count == 1
                else f"at least {worst.auroc:.3g} on {count} sets, the least of them on {worst.name}"
            )
            + f" ({passes} passes)"
        )
    if verdict is Verdict.INCONCLUSIVE:
        do = "example of {} does" if worst.examples == 1 else "examples of {} do"
        return (
            f"{worst.examples} {do.format(worst.name)} not decide whether the predictive entropy tells them from the "
            f"model's own: its AUROC is {worst.auroc:.3g}, certainly at least {worst.likely_above:.3g}, where "
            f"{least:g} is required"
        )
    tells = f"tells {worst.name} from the model's own examples"
    how = f"hardly {tells}" if 0.4 <= worst.auroc < 0.6 else f"{tells} "
    how += "the wrong way round" if worst.auroc < 0.4 else "too little" if worst.auroc >= 0.6 else ""
    whose = ""
    if inherited and worst.teacher is not None:
        whose = f"; so it is with the teacher (AUROC {worst.teacher:.3g}), and the model has inherited it"
    return (
        f"the predictive entropy {how}: its AUROC is {worst.auroc:.3g}, certainly at most {worst.surely_below:.3g}"
        f"{whose}"
    )


def _remedy(verdict: Verdict) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.INCONCLUSIVE:
        return "give more examples of the set, or require less: --set uncertainty.ood.min_auroc=..."
    return (
        "see noise.spread for a posterior that has collapsed; training with a wider posterior, or with examples from "
        "outside, makes a network less sure of them; a set that is all but the task's own (near) may require less: "
        "--set uncertainty.ood.min_auroc=..."
    )
