"""What checks have drawn and computed that a report shows beside their evidence, so that it crosses processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_bnn.checks._predictions import Predicted
from pytest_bnn.checks._remembered import drawn_by_key
from pytest_bnn.checks.noise.spread import CONTRIBUTIONS
from pytest_bnn.subject import Subject

#: Where examples are: those of the subject itself, or such as were given beside them.
Place = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a subject: passes drawn on its own images, and predictions and shares by place and name."""

    drawn: int = 0
    found: dict[Place, dict[str, object]] = field(default_factory=dict)


def known_of(subject: Subject, told: set[tuple[Place, str]]) -> Known:
    """Return what checks have found out about a subject that a report shows.

    Args:
        subject: What was judged.
        told: What was returned before, which is left out; what is returned now is added.
    """
    found = {}
    for place, one in subject.example_sets.items():
        shown = {
            name: value
            for name, value in one.evaluations.items()
            if (isinstance(value, Predicted) or name == CONTRIBUTIONS) and (place, name) not in told
        }
        behind = map(drawn_by_key, [*shown])
        shown |= {name: one.evaluations[name] for name in behind if name in one.evaluations}
        if shown:
            found[place] = shown
            told.update((place, name) for name in shown)
    return Known(subject.drawn, found)


def learn(subject: Subject, known: Known) -> None:
    """Take what another process has found out about a subject."""
    if known.drawn:
        subject.bank.count_drawn(known.drawn)
    for place, found in known.found.items():
        one = _at(subject, place)
        for name, value in found.items():
            one.evaluations.setdefault(name, value)


def _at(subject: Subject, place: Place) -> Subject:
    """Return the subject on its own examples or on others, which are taken where nobody has asked for them yet."""
    if place not in subject.example_sets:
        match place[0]:
            case "ood":
                subject.outside  # noqa: B018  asking makes them
            case "shift":
                subject.shifted  # noqa: B018
            case _:
                subject.evaluated  # noqa: B018
    return subject.example_sets[place]
