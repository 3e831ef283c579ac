"""What was not judged for want of something, and how it is given: the page, Markdown and the terminal say the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pytest_bnn.report import wording
from pytest_bnn.report.outline import Outline
from pytest_bnn.report.standing import Standing

#: Options of the command line whose name is not that of the argument.
_COMMANDS: Final[Mapping[str, str]] = {"images": "--data", "labels": "--data with labels", "factory": "--model"}


@dataclass(frozen=True, slots=True)
class Option:
    """What someone would give: the option of the command line, and the argument in Python; empty for none."""

    command: str
    argument: str = ""


@dataclass(frozen=True, slots=True)
class Unjudged:
    """Claims that were not judged, with all that it takes to judge them; ``subjects`` is empty where it is all."""

    options: tuple[Option, ...]
    ids: tuple[str, ...]
    subjects: tuple[str, ...]

    @property
    def words(self) -> str:
        """Say it, names in backquotes: --loss (in Python loss=) would judge kl.loss and loss.data."""
        given = wording.listed(f"`{option.command}`" for option in self.options)
        arguments = [f"`{option.argument}`" for option in self.options if option.argument]
        in_python = f" (in Python {wording.listed(arguments)})" if arguments else ""
        of = f" of {wording.listed(self.subjects)}" if self.subjects else ""
        return f"{given}{in_python} would judge {wording.listed(f'`{id}`' for id in self.ids)}{of}"


def unjudged(shape: Outline) -> tuple[Unjudged, ...]:
    """Return the claims that were not judged, those that lack the same thing in the same subjects together."""
    claims: dict[tuple[str, ...], dict[str, list[str]]] = {}
    of_all = {group.anchor for group in shape.groups if group.counts}
    for group in shape.groups:
        for cell in group.cells:
            if cell.card.standing is Standing.NOT_JUDGED:
                by_id = claims.setdefault(cell.card.evidence.missing, {})
                by_id.setdefault(cell.card.evidence.id, []).append(group.anchor)
    names = {group.anchor: group.name or "unnamed" for group in shape.groups}
    found = []
    for missing, by_id in claims.items():
        # Claims that lack the same thing in the same subjects are told together.
        together: dict[tuple[str, ...], list[str]] = {}
        for id, places in by_id.items():
            together.setdefault(tuple(places), []).append(id)
        for anchors, ids in together.items():
            some = () if len(anchors) == len(of_all) else tuple(dict.fromkeys(names[anchor] for anchor in anchors))
            found.append(Unjudged(tuple(map(option, missing)), tuple(ids), some))
    return tuple(found)


def option(name: str) -> Option:
    """Return how something that a claim lacks is given, by the name that the evidence has for it."""
    if not re.fullmatch(r"[a-z][a-z_]*", name):
        return Option(name)
    return Option(_COMMANDS.get(name, f"--{name.replace('_', '-')}"), f"{name}=")
