"""What stands at the top of a report: the verdict in a sentence and a tone, and what a reader must know beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pytest_bnn.records.run import AuditRun, Change, TestOutcome
from pytest_bnn.report import wording
from pytest_bnn.report.outline import Group, Outline
from pytest_bnn.report.standing import JUDGED, LOUD, RANK, Standing, fell, fell_outside, standing
from pytest_bnn.report.unjudged import Unjudged, unjudged

_STATUSES: Final[Mapping[int, str]] = {
    2: "was interrupted",
    3: "broke internally",
    4: "was called wrongly",
    5: "ran no test",
}


@dataclass(frozen=True, slots=True)
class Session:
    """How the pytest session around an audit went, in a sentence.

    ``but`` continues the verdict's sentence where all claims hold and the session did not go well; empty elsewhere.
    """

    sentence: str
    but: str
    troubled: bool
    failed: bool
    tests: tuple[TestOutcome, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """A part of a subject that claims leave out on purpose; ``share`` is that of the weights, where it is known."""

    group: Group
    path: str
    reason: str
    weights: int
    share: float | None
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Top:
    """All of it. ``sentence`` is the verdict, ``tone`` what it is coloured as: a pass is green, a warning amber.

    ``whole`` says that every claim there is was taken up: no option left some out, and it was no session of tests.
    """

    sentence: str
    tone: Standing
    session: Session | None
    unjudged: tuple[Unjudged, ...]
    accepted: tuple[Accepted, ...]
    changed: tuple[Change, ...]
    whole: bool


def top(run: AuditRun, shape: Outline) -> Top:
    """Say what stands at the top of a run's report."""
    session = _session(run)
    sentence = wording.sentence(shape.counts, shape.follow, len(shape.expected))
    loud = min(shape.counts, key=RANK.__getitem__, default=Standing.NOT_APPLICABLE)
    but = session.but if session and session.but else "the audit was cut" if run.cut else ""
    if but and loud not in (Standing.ERROR, Standing.FAIL):
        sentence = f"{sentence}, {'but' if loud in JUDGED else 'and'} {but}"
    return Top(
        sentence=sentence,
        tone=_tone(run, loud, session),
        session=session,
        unjudged=unjudged(shape),
        accepted=_accepted(shape),
        changed=tuple(dict.fromkeys(run.changed)) or _changed_before(run.provenance),
        whole=not run.cut and run.session is None,
    )


def _tone(run: AuditRun, worst: Standing, session: Session | None) -> Standing:
    """Return what the verdict is coloured as: a pass only where all that could be judged was, and holds."""
    if session and session.failed and worst not in (Standing.ERROR, Standing.FAIL):
        return Standing.FAIL
    amber = worst is Standing.NOT_JUDGED or bool(run.cut) or (session is not None and session.troubled)
    return Standing.WARN if amber and worst not in LOUD else worst


def _session(run: AuditRun) -> Session | None:
    found = run.session
    if found is None:
        return None
    fallen, outside = len(fell(run)), len(fell_outside(run))
    unknown = any(not check.test and standing(check) in LOUD - {Standing.WARN} for check in run.checks)
    never = sum(test.outcome == "never run" for test in found.tests)
    total, parts = wording.plural(found.total, "test"), []
    if inside := fallen - outside:
        parts.append(f"{inside:,} of {total} failed" + ("" if unknown else " on a claim"))
    if outside:
        parts.append(f"{outside:,} of {total} failed before or outside a claim")
    if never:
        parts.append(f"{wording.plural(never, 'test')} {'was' if never == 1 else 'were'} never run")
    if found.exit_status in _STATUSES:
        parts.append(f"pytest {_STATUSES[found.exit_status]}")
    troubled = bool(parts) or found.exit_status != 0
    ended, said = f"pytest ended with exit status {found.exit_status}", list(parts)
    for outcome in ("xfailed", "xpassed", "skipped"):
        count = sum(test.outcome == outcome for test in found.tests)
        said += [f"{count:,} {outcome}"] * bool(count)
    if found.deselected:
        said.append(f"{wording.plural(found.deselected, 'test')} deselected")
    if not said and not troubled:
        said.append(f"{total} passed")
    return Session(
        sentence=f"{ended}: {'; '.join(said)}" if said else ended,
        but=wording.listed(parts) if parts else ended if troubled else "",
        troubled=troubled,
        failed=bool(fallen) or found.exit_status in (1, 2, 3, 4),
        tests=found.tests,
    )


def _accepted(shape: Outline) -> tuple[Accepted, ...]:
    found = []
    for group in shape.groups:
        parts: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {}
        for card in group.cards:
            for part in card.evidence.accepted:
                weights, before = parts.get((part.path, part.reason), (0, ()))
                named = tuple(dict.fromkeys((*before, card.evidence.id)))
                parts[part.path, part.reason] = max(weights, part.weights), named
        for record in group.records:
            for layer in record.layers:
                if layer.accepted and (layer.path, layer.accepted) not in parts:
                    parts[layer.path, layer.accepted] = layer.weights, ()
        whole = max((sum(layer.weights for layer in record.layers) for record in group.records), default=0)
        for (path, reason), (weights, ids) in parts.items():
            share = weights / whole if weights and whole >= weights else None
            found.append(Accepted(group, path, reason, weights, share, ids))
    return tuple(found)


def _changed_before(provenance: Mapping[str, str]) -> tuple[Change, ...]:
    """Return the settings that audits before schema version 1.4 name in their provenance."""
    found = []
    for name, words in provenance.items():
        if name.startswith("set "):
            value, _, source = words.rpartition(" (") if words.endswith(")") else (words, "", "")
            found.append(Change(name=name[4:], value=value, default="", source=source.removesuffix(")")))
    return tuple(found)
