"""How much of a run its page shows: all of a small one; of a large one what decides, and where the rest is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_bnn.records.run import AuditRun, SubjectRecord
from pytest_bnn.report.outline import Card, Outline, severity
from pytest_bnn.report.standing import LOUD

#: From more pieces of evidence, or more subjects, on a page is short.
_EVIDENCES, _SUBJECTS = 200, 12

#: Cards that a short page shows in full.
_FULL = 20

#: Lines of maps, predictions and wrong predictions that any page shows, those of all subjects together.
_LAYERS, _PREDICTIONS, _MISTAKES = 900, 32, 40

#: The most bytes of the pictures of either, on any page and on a short one.
_PICTURES, _FEW_PICTURES = 4_000_000, 250_000


@dataclass(frozen=True, slots=True)
class Extent:
    """What a page shows.

    Attributes:
        short: Whether evidence is a line each, but for what is most severe, and subjects are folded.
        full: The anchors of the cards that a short page shows in full.
        layers: How many lines a map of layers may have, before it shows only the parts of the model.
        pictured: How many predictions and wrong predictions each record of a subject shows, by its `id`.
        evidences: How many pieces of evidence there are.
    """

    short: bool
    full: frozenset[str]
    layers: int
    pictured: Mapping[int, tuple[int, int]]
    evidences: int

    def predictions(self, record: SubjectRecord) -> int:
        """How many predictions of a subject are shown."""
        return self.pictured[id(record)][0]

    def mistakes(self, record: SubjectRecord) -> int:
        """How many wrong predictions of a subject are shown."""
        return self.pictured[id(record)][1]

    def whole(self, card: Card) -> bool:
        """Whether a card is shown with all that it says."""
        return not self.short or card.anchor in self.full


def extent(run: AuditRun, shape: Outline) -> Extent:
    """Decide how much of a run its page shows."""
    records = [record for group in shape.groups for record in group.records]
    short = len(run.checks) > _EVIDENCES or len(records) > _SUBJECTS
    loud = [card for group in shape.groups for card in group.cards if card.standing in LOUD]
    pictures = _FEW_PICTURES if short else _PICTURES
    predictions = _shared([_sizes_of_predictions(record) for record in records], _PREDICTIONS, pictures)
    mistakes = _shared([_sizes_of_mistakes(record) for record in records], _MISTAKES, pictures)
    return Extent(
        short=short,
        full=frozenset(card.anchor for card in sorted(loud, key=severity)[:_FULL]) if short else frozenset(),
        layers=_LAYERS // max(1, len(records)),
        pictured={id(one): (its, wrong) for one, its, wrong in zip(records, predictions, mistakes, strict=True)},
        evidences=len(run.checks),
    )


def _sizes_of_predictions(record: SubjectRecord) -> list[int]:
    return [len(prediction.image) for prediction in record.predictions]


def _sizes_of_mistakes(record: SubjectRecord) -> list[int]:
    found = record.prediction_summary
    return [] if found is None else [len(mistake.image) for mistake in found.mistakes]


def _shared(sizes: Sequence[Sequence[int]], most: int, bytes_left: int) -> list[int]:
    """Return how many of each record's are shown: as many for each, the first of all before the second of any."""
    found, taken = [0] * len(sizes), 0
    for place in range(max(map(len, sizes), default=0)):
        for index, images in enumerate(sizes):
            if place < len(images) and found[index] == place and taken < most and images[place] <= bytes_left:
                found[index], taken, bytes_left = place + 1, taken + 1, bytes_left - images[place]
    return found
