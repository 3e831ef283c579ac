"""The shape of a report: which claims, which subjects, which card stands where. HTML and Markdown share it."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pytest_bnn.records.evidence import SEVERITY, Evidence, Verdict
from pytest_bnn.records.run import AuditRun, ClassShare, Prediction, SubjectRecord

_DATA_URI: Final = re.compile(r"data:image/png;base64,([A-Za-z0-9+/]+={0,2})")
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_RANK: Final[Mapping[Verdict, int]] = {verdict: rank for rank, verdict in enumerate(SEVERITY)}
#: Verdicts that ask nothing of the reader.
QUIET: Final = frozenset({Verdict.PASS, Verdict.NOT_APPLICABLE})

#: Name, stage, and what tells subjects of one name apart.
_SubjectKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Card:
    """One piece of evidence, with the anchor that links lead to."""

    anchor: str
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Cell:
    """A claim about a subject: the worst of the evidence for it, and how many pieces there are."""

    card: Card
    runs: int


@dataclass(frozen=True, slots=True)
class Row:
    """A claim, with a cell for each subject; None where it was not checked."""

    id: str
    claim: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A subject: its cards, those that need attention first, and its distinct descriptions."""

    anchor: str
    name: str
    stage: str
    cards: tuple[Card, ...]
    records: tuple[SubjectRecord, ...]
    counts: Mapping[Verdict, int]

    @property
    def has_predictions(self) -> bool:
        """Whether there is anything to show of its predictions."""
        described = any(record.prediction_summary is not None for record in self.records)
        return described or any(card.evidence.charts for card in self.cards)


@dataclass(frozen=True, slots=True)
class Outline:
    """A whole run, ordered for reading. ``counts`` counts claims about subjects, not repeated evidence."""

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    counts: Mapping[Verdict, int]

    @property
    def loud(self) -> tuple[Card, ...]:
        """The cards that ask something of the reader: the worst of each claim and subject, the worst of all first."""
        cards = [cell.card for row in self.rows for cell in row.cells if cell is not None]
        return tuple(sorted((card for card in cards if card.evidence.verdict not in QUIET), key=severity))


def severity(card: Card) -> int:
    """Rank a card: 0 is the worst verdict there is."""
    return _RANK[card.evidence.verdict]


def outline(run: AuditRun) -> Outline:
    """Order a run for reading."""
    cards = tuple(Card(f"c{index}", evidence) for index, evidence in enumerate(run.checks, start=1))
    keys: dict[_SubjectKey, list[SubjectRecord]] = {}
    for record in run.subjects:
        records = keys.setdefault((record.name, record.stage, record.key), [])
        # repr, because a NaN makes equal records unequal.
        if repr(record) not in map(repr, records):
            records.append(record)
    found: dict[tuple[str, _SubjectKey], list[Card]] = {}
    claims: dict[str, str] = {}
    for card in cards:
        key = _key(card.evidence)
        keys.setdefault(key, [])
        claims.setdefault(card.evidence.id, card.evidence.claim)
        found.setdefault((card.evidence.id, key), []).append(card)
    cells = {pair: Cell(min(several, key=severity), len(several)) for pair, several in found.items()}
    rows = tuple(Row(id, claim, tuple(cells.get((id, key)) for key in keys)) for id, claim in claims.items())
    names = Counter(key[:2] for key in keys)
    groups = tuple(
        Group(
            anchor=f"s{index}",
            name=key[2] if names[key[:2]] > 1 and key[2] else key[0],
            stage=key[1],
            cards=tuple(sorted((card for card in cards if _key(card.evidence) == key), key=severity)),
            records=tuple(records),
            counts=Counter(cell.card.evidence.verdict for (_, of), cell in cells.items() if of == key),
        )
        for index, (key, records) in enumerate(keys.items(), start=1)
    )
    return Outline(groups, rows, Counter(cell.card.evidence.verdict for cell in cells.values()))


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
