"""Labelled predictions group by group, and which groups fail together (Holm)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pytest_bnn.checks._labelled import Labelled, Labels
from pytest_bnn.checks._tallies import MOST_GROUPS
from pytest_bnn.checks.finding import Finding, NeverHereError, NotHereError
from pytest_bnn.errors import InputError
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import Subject

#: Groups that evidence shows.
_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One group by one claim.

    Attributes:
        name: The group's.
        labels: How many there are.
        value: The claim's figure.
        p: The chance of labels like these, or worse, where the claim holds.
        holds: Whether the claim certainly holds, at the group's share of the error rate.
        inherited: Whether the teacher certainly breaks it in this group, too.
        words: The figure, in words.
    """

    name: str
    labels: int
    value: float
    p: float
    holds: bool
    inherited: bool
    words: str


def groups_of(subject: Subject, found: Labels) -> Mapping[str, Labels]:
    """Return the labelled predictions of each group, by name.

    Raises:
        NotHereError: It gives no groups, or the labels.
        NeverHereError: It gives one for each example.
        InputError: It raises.
    """
    groups = _parts(subject, found) if isinstance(found, Labelled) else found.groups
    if not groups:
        raise NotHereError("--slices gives no group for any example: let it return one for the number of an example")
    if len(groups) > MOST_GROUPS:
        raise NeverHereError(
            f"--slices gives {len(groups)} groups for {len(found)} examples: let it return one of a few groups, not "
            "something of each example's own"
        )
    _require_free_of_labels(found, groups)
    return groups


def _parts(subject: Subject, found: Labelled) -> dict[str, Labels]:
    members: dict[str, list[int]] = {}
    for row, group in enumerate(names_of(subject, subject.evaluated.places[found.rows].tolist())):
        if group is not None:
            members.setdefault(group, []).append(row)
    return {name: found.part(torch.tensor(rows)) for name, rows in sorted(members.items())}


def shared(found: Labels, budget: Budget) -> Budget:
    """Return the error rates of a look at groups, of which further labels may bring more.

    Where the number of groups grows from one look to the next, those that are there first are tested as if there were
    fewer: over all looks that adds up to at most ``1 + log(MOST_GROUPS)`` times the rates of one.
    """
    return budget.split(math.ceil(1 + math.log(MOST_GROUPS))) if found.growing else budget


def names_of(subject: Subject, numbers: Sequence[int]) -> list[str | None]:
    """Return the groups of examples by their numbers; None for those that are in none.

    Raises:
        InputError: The user's function raises.
    """
    assert subject.slices is not None
    with undisturbed(subject.model, seed=subject.seed):
        return [_group(subject.slices, number) for number in numbers]


def _require_free_of_labels(found: Labels, groups: Mapping[str, Labels]) -> None:
    """Refuse groups that are the labels: which they are has to be fixed before a label is seen."""
    several = [group for group in groups.values() if len(group) > 1]
    alone = all(_kinds(group) == 1 for group in several)
    if alone and several and _kinds(found) > 1:
        raise NotHereError(
            "the groups of --slices are chosen by the label, where no prediction can follow the labels of a group: let "
            "it return something that is known without them; for single classes see calibration.classes"
        )


def _kinds(found: Labels) -> int:
    """Return how many classes occur."""
    return sum(found.own.occurred(number) > 0 for number in found.own.classes)


def _group(slices: Callable[[int], object], number: int) -> str | None:
    try:
        found = slices(number)
        return None if found is None else str(found)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--slices raised {type(error).__name__} for example {number}: {error}",
            fix="let it take the number of an example in the data, from 0, and return its group, or None",
        ) from error


def failing(groups: Sequence[Judged], error_rate: float) -> list[Judged]:
    """Return the groups that break the claim, any of them wrongly with at most ``error_rate``.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    found = []
    for place, group in enumerate(sorted(groups, key=lambda group: group.p)):
        if group.p > error_rate / (len(groups) - place):
            break
        found.append(group)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is claimed of each group, in words."""

    figure: str
    holds: str
    breaks: str
    relation: Literal["<=", ">="]
    allowed: float
    remedy: str
    other_end: float | None = None


def together(groups: Sequence[Judged], claim: Claim, budget: Budget, passes: int) -> Finding:
    """Say which groups break a claim, and whether all others certainly keep it."""
    broken = failing(groups, budget.alpha)
    open_ = [group for group in groups if not group.holds and group not in broken]
    inherited = bool(broken) and all(group.inherited for group in broken)
    verdict = Verdict.FAIL if broken else Verdict.INCONCLUSIVE if open_ else Verdict.PASS
    shown = sorted(groups, key=lambda group: group.p)[:_SHOWN]
    left = len(groups) - len(shown)
    worst = shown[0]
    return Finding(
        verdict=Verdict.WARN if inherited else verdict,
        headline=_headline(claim, len(groups), broken, open_, inherited=inherited),
        measurements=tuple(
            Measurement(
                name=f"{claim.figure}, {group.name}", value=group.value,
                note=f"{group.labels} labels; "
                + ("fails" if group in broken else "holds" if group.holds else "undecided"),
            )
            for group in shown
        ),
        threshold=Threshold(
            quantity=f"{claim.figure}, {worst.name}", observed=worst.value, relation=claim.relation,
            allowed=claim.allowed, other_end=claim.other_end,
        ),
        remedy={
            Verdict.FAIL: claim.remedy,
            Verdict.INCONCLUSIVE: "give more labelled examples of these groups (--data, --evaluation), or put small "
            "groups together",
        }.get(verdict, ""),
        notes=(f"{left} more {'group is' if left == 1 else 'groups are'} not shown.",) if left else (),
        samples=passes,
        certainty=Certainty(
            alpha=budget.alpha, beta=budget.beta, statistic=f"{claim.figure} of {len(groups)} groups (Holm)"
        ),
    )  # fmt: skip


def _headline(
    claim: Claim, count: int, broken: Sequence[Judged], open_: Sequence[Judged], *, inherited: bool
) -> str:  # fmt: skip
    groups = "1 group" if count == 1 else f"{count} groups"
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        named = "; ".join(f"{group.name} ({group.labels} labels): {group.words}" for group in broken[:3])
        whose = "; so it is with the teacher in these groups, and the model has inherited it" if inherited else ""
        return f"{claim.breaks} in {len(broken)} of {groups}: {named}{more}{whose}"
    if open_:
        smallest = min(open_, key=lambda group: group.labels)
        return (
            f"the labels are too few to decide in {len(open_)} of {groups}; the smallest of them, {smallest.name}, has "
            f"{smallest.labels} {'label' if smallest.labels == 1 else 'labels'}"
        )
    return f"{claim.holds} in {'each of ' if count > 1 else ''}{groups}"


def chance(log_evidence: float) -> float:
    """Return the p-value of a test martingale's log."""
    return math.exp(-max(0.0, log_evidence))
