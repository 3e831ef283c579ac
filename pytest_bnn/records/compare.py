"""Two audits, claim by claim: what is new, worse, known, fixed, and what else differs between them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from pytest_bnn.records.codec import show
from pytest_bnn.records.differences import differences
from pytest_bnn.records.evidence import Evidence, Inconclusive, Stage, Verdict, is_failure
from pytest_bnn.records.matching import SubjectKey, key_of, matched
from pytest_bnn.records.movement import moved
from pytest_bnn.records.run import AuditRun

State: TypeAlias = Literal["new", "worse", "fixed", "better", "known", "added", "gone", "unchanged"]

#: What asks most of a reader first.
STATES: Final[tuple[State, ...]] = ("new", "worse", "fixed", "better", "known", "added", "gone", "unchanged")

_RANK: Final = {
    Verdict.NOT_APPLICABLE: 0,
    Verdict.PASS: 0,
    Verdict.WARN: 1,
    Verdict.INCONCLUSIVE: 2,
    Verdict.FAIL: 3,
    Verdict.ERROR: 4,
}
_JUDGED: Final = (Verdict.PASS, Verdict.WARN, Verdict.INCONCLUSIVE, Verdict.FAIL)


#: What is said of one row and of several, by its label; what is lost, and what is new as an error, apart.
_SAID: Final = {
    "new": ("fails now and did not before", "fail now and did not before"),
    "error": ("could not be judged for an error", "could not be judged for errors"),
    "lost": ("is not judged any more", "are not judged any more"),
    "worse": ("fails by more than before", "fail by more than before"),
    "new warning": ("has a new warning", "have a new warning"),
    "newly undecided": ("is undecided now", "are undecided now"),
    "fixed": ("failed before and holds now", "failed before and hold now"),
    "better": ("is better than before", "are better than before"),
    "known": ("fails as before", "fail as before"),
    "added": ("is in the later audit alone", "are in the later audit alone"),
    "gone": ("is in the earlier audit alone", "are in the earlier audit alone"),
    "unchanged": ("is as before", "are as before"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One claim about one subject, before and now; None on the side that has no evidence for it.

    ``fails`` says whether it fails a run that is held to the earlier one: always ``new`` or ``worse``.
    """

    id: str
    claim: str
    subject: str
    stage: Stage
    state: State
    fails: bool
    before: Evidence | None = None
    now: Evidence | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its state in words: of what is new, whether it is a warning, or undecided where that fails nothing."""
        if self.state != "new" or self.fails or self.now is None:
            return self.state
        return "newly undecided" if self.now.verdict is Verdict.INCONCLUSIVE else "new warning"

    @property
    def lost(self) -> bool:
        """Whether it was judged before, and is not any more."""
        return self.fails and (self.now is None or self.now.verdict is Verdict.NOT_APPLICABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two audits side by side; ``rows`` in the order of `STATES`.

    ``warnings`` are sentences about what else differs, such as settings, data and versions: a change may come from it.
    """

    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()

    @property
    def failing(self) -> tuple[Row, ...]:
        """The rows that fail a run that is held to the earlier one."""
        return tuple(row for row in self.rows if row.fails)

    @property
    def fixed(self) -> int:
        """How many claims failed before and hold now."""
        return sum(row.state == "fixed" for row in self.rows)

    @property
    def headline(self) -> str:
        """All rows in words: "2 claims fail now and did not before; 3 fail as before, 20 are as before"."""
        rest = [row for row in self.rows if not row.fails]
        said = in_words(self.failing) or "nothing is new or worse"
        return f"{said}; {in_words(rest, noun=not self.failing)}" if rest else said


def in_words(rows: Iterable[Row], *, noun: bool = True) -> str:
    """Count rows in words: "1 claim has a new warning, 20 are as before"; empty where there are none.

    Args:
        rows: What is counted, in the order in which it is told.
        noun: Whether the first count says what is counted.
    """
    parts: list[str] = []
    for key, count in Counter(map(_said_of, rows)).items():
        claims = "" if parts or not noun else " claim" if count == 1 else " claims"
        parts.append(f"{count:,}{claims} {_SAID[key][count != 1]}")
    return ", ".join(parts)


def _said_of(row: Row) -> str:
    if row.lost:
        return "lost"
    return "error" if row.label == "new" and row.now and row.now.verdict is Verdict.ERROR else row.label


def compare(before: AuditRun, now: AuditRun, *, inconclusive: Inconclusive = "fail") -> Comparison:
    """Compare two audits, claim by claim.

    Args:
        before: The earlier audit, or a baseline.
        now: The later one.
        inconclusive: Whether an undecided claim is a failure.
    """
    pairs, said = matched(before, now)
    cut, ran = _cut_on_purpose(before, now), _ran(now)
    rows = []
    for (key, id), (old, new) in _by_claim(before.checks, now.checks, pairs).items():
        for index in range(max(len(old), len(new))):
            sides = old[index] if index < len(old) else None, new[index] if index < len(new) else None
            left_out = cut and not (sides[0] is not None and sides[0].test in ran)
            rows.append(_row(id, key, *sides, inconclusive, left_out))
    rows.sort(key=lambda row: (not row.fails, STATES.index(row.state)))
    return Comparison(rows=tuple(rows), warnings=(*differences(before, now, pairs), *said))


def state_of(
    before: Evidence | None, now: Evidence | None, *, inconclusive: Inconclusive = "fail", left_out: bool = False
) -> tuple[State, bool, tuple[str, ...]]:
    """Say what became of a claim: its state, whether that fails, and notes on it.

    Args:
        before: What was found before.
        now: What is found now; one of the two is given.
        inconclusive: Whether an undecided claim is a failure.
        left_out: Whether claims were left out of this run on purpose.
    """
    if before is not None and before.expected:  # its test was there to see it fail
        before, was_expected = None, True
    else:
        was_expected = False
    if now is None:
        if before is None or before.verdict not in _JUDGED:
            return "gone", False, ()
        if left_out:
            return "gone", False, ("It was left out of this run on purpose.",)
        return "new", True, ("It is not judged any more: nothing in this run judges it.",)
    if now.expected:
        return ("unchanged" if was_expected or before else "added"), False, ("Its test expects it to fail.",)
    if now.verdict is Verdict.NOT_APPLICABLE:
        if before is None or before.verdict not in _JUDGED:
            return ("unchanged" if before and before.verdict is now.verdict else "added"), False, ()
        return "new", True, (f"It is not judged any more: {now.headline}",)
    fails = is_failure(now.verdict, inconclusive=inconclusive)
    if before is None or before.verdict is Verdict.NOT_APPLICABLE:
        return ("new", fails, ()) if _RANK[now.verdict] else ("added", False, ())
    notes = _notes(before, now)
    old, new = _RANK[before.verdict], _RANK[now.verdict]
    if new > old:
        return "new", fails, notes
    if new < old:
        return ("better" if new >= _RANK[Verdict.INCONCLUSIVE] or old == _RANK[Verdict.WARN] else "fixed"), False, notes
    if new < _RANK[Verdict.INCONCLUSIVE]:
        return "unchanged", False, notes
    direction, why = moved(before, now)
    notes = (*why, *notes)
    return {"worse": ("worse", fails, notes), "better": ("better", False, notes)}.get(  # type: ignore[return-value]
        direction, ("known", False, notes)
    )


def _cut_on_purpose(before: AuditRun, now: AuditRun) -> bool:
    """Return whether claims were left out by an option; what a test leaves out by itself has its name behind it."""
    tests = _ran(now)
    new = set(now.cut) - set(before.cut)
    return any(not any(f"({test}" in words for test in tests) for words in new)


def _ran(run: AuditRun) -> set[str]:
    """Return the tests that ran; a claim that one of them judged before is not left out by an option."""
    tests = () if run.session is None else run.session.tests
    return {test.test for test in tests if test.outcome != "never run"}


def _row(
    id: str,
    key: SubjectKey,
    before: Evidence | None,
    now: Evidence | None,
    inconclusive: Inconclusive,
    left_out: bool,
) -> Row:
    state, fails, notes = state_of(before, now, inconclusive=inconclusive, left_out=left_out)
    latest = now or before
    assert latest is not None
    return Row(
        id=id,
        claim=latest.claim,
        subject=key[1],
        stage=key[2],
        state=state,
        fails=fails,
        before=before,
        now=now,
        notes=notes,
    )


def _by_claim(
    before: Iterable[Evidence], now: Iterable[Evidence], pairs: dict[SubjectKey, SubjectKey]
) -> dict[tuple[SubjectKey, str], tuple[list[Evidence], list[Evidence]]]:
    """Gather the evidence of both sides by the subject's key of now and the claim, in the order of now."""
    found: dict[tuple[SubjectKey, str], tuple[list[Evidence], list[Evidence]]] = defaultdict(lambda: ([], []))
    for check in now:
        found[key_of(check), check.id][1].append(check)
    for check in before:
        key = key_of(check)
        found[pairs.get(key, key), check.id][0].append(check)
    return found


def _notes(before: Evidence, now: Evidence) -> tuple[str, ...]:
    """Say what a reader would not see in the two verdicts: another threshold, parts that were accepted."""
    notes = []
    old, new = before.threshold, now.threshold
    alike = old and new and old.quantity == new.quantity and old.relation == new.relation
    if old and new and alike and old.relation != "==" and old.allowed != new.allowed:
        notes.append(f"Allowed is {new.relation} {show(new.allowed)} now, and was {old.relation} {show(old.allowed)}.")
    known = {one.path for one in before.accepted}
    accepted = [f"{one.path} ({one.reason})" for one in now.accepted if one.path not in known]
    if accepted:
        notes.append(f"Accepted since then: {', '.join(accepted)}.")
    return tuple(notes)
