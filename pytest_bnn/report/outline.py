"""The shape of a report: which claims, which subjects, which card stands where. HTML and Markdown share it."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pytest_bnn.records.evidence import Evidence
from pytest_bnn.records.run import AuditRun, ClassShare, Prediction, SubjectRecord
from pytest_bnn.report.standing import LOUD, RANK, Standing, standing

_DATA_URI: Final = re.compile(r"data:image/png;base64,([A-Za-z0-9+/]+={0,2})")
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
#: From so many subjects on each has one line.
_MANY: Final = 3
_FAILED: Final = frozenset({Standing.FAIL, Standing.ERROR})

#: Name, stage, and what tells subjects of one name apart.
_SubjectKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Card:
    """One piece of evidence, with the anchor that links lead to, and the card of the failure that explains it."""

    anchor: str
    evidence: Evidence
    cause: Card | None = None

    @property
    def standing(self) -> Standing:
        """What it counts as."""
        return standing(self.evidence)


@dataclass(frozen=True, slots=True)
class Cell:
    """A claim about a subject: the worst of the evidence for it, and how many pieces there are."""

    card: Card
    runs: int

    @property
    def extra(self) -> str:
        """What a badge says beside the verdict: how much was accepted, of how many it is the worst, its cause."""
        evidence = self.card.evidence
        said = [f"{len(evidence.accepted):,} accepted"] if evidence.accepted else []
        said += [f"worst of {self.runs:,}"] if self.runs > 1 else []
        said += [f"follows from {self.card.cause.evidence.id}"] if self.card.cause else []
        return ", ".join(said)


@dataclass(frozen=True, slots=True)
class Row:
    """A claim, with a cell for each subject; None where it was not checked."""

    id: str
    claim: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A subject: its cards, those that need attention first, and its distinct descriptions.

    ``key`` is shown where another subject has the same name and stage. ``cells`` are those of its claims.
    """

    anchor: str
    name: str
    stage: str
    key: str
    cards: tuple[Card, ...]
    records: tuple[SubjectRecord, ...]
    cells: tuple[Cell, ...]
    counts: Mapping[Standing, int]

    @property
    def worst(self) -> Standing:
        """The worst of its claims."""
        return min(self.counts, key=RANK.__getitem__, default=Standing.NOT_APPLICABLE)

    @property
    def has_predictions(self) -> bool:
        """Whether there is anything to show of its predictions."""
        described = any(record.prediction_summary is not None for record in self.records)
        return described or any(card.evidence.charts for card in self.cards)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A card that asks something of the reader, the subject that it is about, and the failures that follow from it."""

    card: Card
    group: Group
    effects: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """A whole run, ordered for reading. ``counts`` counts claims about subjects, not repeated evidence.

    Expected failures are outside of ``counts``; they are in ``expected``.
    """

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    counts: Mapping[Standing, int]
    expected: tuple[Card, ...]

    @property
    def by_subject(self) -> bool:
        """Whether a table of claims and subjects has a line for each subject: columns are for one or two of them."""
        return len(self.groups) >= _MANY

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What asks something of the reader: the worst of each claim and subject, the worst of all first."""
        found = []
        for group in self.groups:
            loud = [cell.card for cell in group.cells if cell.card.standing in LOUD]
            effects: dict[str, list[Card]] = {}
            for card in loud:
                if card.cause:
                    effects.setdefault(card.cause.anchor, []).append(card)
            found += [Trouble(card, group, tuple(effects.get(card.anchor, ()))) for card in loud if not card.cause]
        return tuple(sorted(found, key=lambda trouble: severity(trouble.card)))

    @property
    def follow(self) -> int:
        """How many claims failed because another one did."""
        cards = [cell.card for group in self.groups for cell in group.cells if cell.card.cause]
        return sum(card.standing is Standing.FAIL for card in cards)


def severity(card: Card) -> int:
    """Rank a card: 0 is the worst there is."""
    return RANK[card.standing]


def outline(run: AuditRun) -> Outline:
    """Order a run for reading."""
    records: dict[_SubjectKey, list[SubjectRecord]] = {}
    for record in run.subjects:
        same = records.setdefault((record.name, record.stage, record.key), [])
        # repr, because a NaN makes equal records unequal.
        if repr(record) not in map(repr, same):
            same.append(record)
    cards: dict[_SubjectKey, list[Card]] = {key: [] for key in records}
    claims: dict[str, str] = {}
    for index, evidence in enumerate(run.checks, start=1):
        cards.setdefault((evidence.subject, evidence.stage, evidence.key), []).append(Card(f"c{index}", evidence))
        claims.setdefault(evidence.id, evidence.claim)
    shared = Counter((name, stage) for name, stage, _ in cards)
    groups = []
    for index, (key, own) in enumerate(cards.items(), start=1):
        name, stage, apart = key
        known = _with_causes(own)
        cells = _cells(known)
        groups.append(
            Group(
                anchor=f"s{index}",
                name=name,
                stage=stage,
                key=apart if shared[name, stage] > 1 else "",
                cards=_in_reading_order(known),
                records=tuple(records.get(key, ())),
                cells=tuple(cells.values()),
                counts=Counter(
                    cell.card.standing for cell in cells.values() if cell.card.standing is not Standing.EXPECTED
                ),
            )
        )
    by_claim = [{cell.card.evidence.id: cell for cell in group.cells} for group in groups]
    rows = tuple(Row(id, claim, tuple(cells.get(id) for cells in by_claim)) for id, claim in claims.items())
    counts: Counter[Standing] = Counter()
    for group in groups:
        counts.update(group.counts)
    expected = tuple(card for group in groups for card in group.cards if card.standing is Standing.EXPECTED)
    return Outline(tuple(groups), rows, counts, expected)


def _cells(cards: Iterable[Card]) -> dict[str, Cell]:
    """Return the worst of a subject's evidence by claim; what was expected counts where there is nothing else."""
    by_claim: dict[str, list[Card]] = {}
    for card in cards:
        by_claim.setdefault(card.evidence.id, []).append(card)
    cells = {}
    for id, several in by_claim.items():
        counted = [card for card in several if card.standing is not Standing.EXPECTED] or several
        cells[id] = Cell(min(counted, key=severity), len(counted))
    return cells


def _with_causes(cards: Sequence[Card]) -> list[Card]:
    """Link failures of a subject to the failure that explains them, the first of a chain."""
    worst = {id: cell.card for id, cell in _cells(cards).items()}

    def root(card: Card) -> Card | None:
        seen, at = {card.evidence.id}, card
        while at.evidence.explained_by and at.evidence.explained_by not in seen:
            cause = worst.get(at.evidence.explained_by)
            if cause is None or cause.standing not in _FAILED:
                break
            seen.add(cause.evidence.id)
            at = cause
        return None if at is card or at.evidence.explained_by in seen else at

    return [Card(card.anchor, card.evidence, root(card) if card.standing in _FAILED else None) for card in cards]


def _in_reading_order(cards: Sequence[Card]) -> tuple[Card, ...]:
    """Put the worst first, and what follows from a failure right after it."""
    effects: dict[str, list[Card]] = {}
    for card in cards:
        if card.cause:
            effects.setdefault(card.cause.anchor, []).append(card)
    roots = sorted((card for card in cards if not card.cause), key=severity)
    return tuple(each for card in roots for each in (card, *effects.get(card.anchor, ())))


def _key(evidence: Evidence) -> _SubjectKey:
    return (evidence.subject, evidence.stage, evidence.key)


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG that may be embedded. ``small`` pictures are enlarged without smoothing."""

    uri: str
    small: bool


def picture(uri: str) -> Picture | None:
    """Return the picture of a data URI, None unless it is a PNG written in base64 and nothing else."""
    match = _DATA_URI.fullmatch(uri)
    if match is None:
        return None
    try:
        head = base64.b64decode(match[1][:44] if len(match[1]) > 44 else match[1], validate=True)
    except binascii.Error:
        return None
    if not head.startswith(_SIGNATURE):
        return None
    width, height = struct.unpack(">II", head[16:24]) if len(head) >= 24 else (0, 0)
    return Picture(uri, small=max(width, height) <= 112)


@dataclass(frozen=True, slots=True)
class Leaders:
    """The class that the BNN and its teacher each put first; None where there is no finite probability."""

    bnn: str | None
    teacher: str | None

    @property
    def agree(self) -> bool:
        """Whether both put the same class first."""
        return self.bnn is not None and self.bnn == self.teacher


def leaders(prediction: Prediction) -> Leaders:
    """Find who leads a prediction."""
    bnn, teacher = by_mean(prediction), by_teacher(prediction)
    return Leaders(bnn[0].name if bnn else None, teacher[0].name if teacher else None)


def by_mean(prediction: Prediction) -> list[ClassShare]:
    """Return the classes by the BNN's mean, highest first; those that are NaN are left out."""
    return sorted((share for share in prediction.classes if share.mean == share.mean), key=lambda share: -share.mean)


def by_teacher(prediction: Prediction) -> list[ClassShare]:
    """Return the classes by the teacher's probability, highest first; those without one are left out."""
    known = [(share.teacher, share) for share in prediction.classes if share.teacher is not None]
    ranked = sorted((pair for pair in known if pair[0] == pair[0]), key=lambda pair: -pair[0])
    return [share for _, share in ranked]
