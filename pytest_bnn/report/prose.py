"""Sentences of a run as they read on a page: a capital letter, a full stop, and names in code type."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from pytest_bnn.records.run import AuditRun
from pytest_bnn.report.wording import capital

_TICKED: Final = r"(?<![\w`])`([^`\n]+)`(?![\w`])"
_QUOTED: Final = r"(?<!\w)'([^'\n]+)'(?!\w)"
_OPTION: Final = r"(?<![\w-])(--[a-z][a-z-]*[a-z])(?![\w-])"
_DOTTED: Final = r"(?<![\w.`'\"/-])([A-Za-z_]\w*(?:\.\w+)+)(?![\w`'\"/-]|\.\w)"
#: A name that no word of English is: with a digit or an underscore, such as ``conv1`` or ``to_logits``.
_ODD: Final = r"(?<![\w.`'\"/-])([A-Za-z]\w*[\d_]\w*)(?![\w`'\"/-]|\.\w)"
_ANY: Final = re.compile("|".join((_TICKED, _QUOTED, _OPTION, _DOTTED, _ODD)))


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a sentence, in code type or not."""

    text: str
    code: bool = False


def names_of(run: AuditRun) -> frozenset[str]:
    """Return the names that a run knows: the paths of its modules and the ids of its claims."""
    layers = {layer.path for record in run.subjects for layer in record.layers}
    found = {layer.path for check in run.checks for layer in check.layers}
    accepted = {part.path for check in run.checks for part in check.accepted}
    ids = {check.id for check in run.checks} | {check.explained_by for check in run.checks}
    paths = layers | found | accepted
    above = {path.rsplit(".", depth)[0] for path in paths for depth in range(1, path.count(".") + 1)}
    return frozenset(paths | above | ids) - {""}


def pieces(text: str, known: Collection[str], *, stop: bool = True) -> list[Piece]:
    """Part a text into sentence and code.

    What stands in backquotes, options such as ``--samples`` and names that are known are code: known names in quotes,
    and those with a dot, a digit or an underscore.

    Args:
        text: The text, of which the first letter becomes a capital where it begins with a word.
        known: Names of modules and of claims.
        stop: Whether a full stop ends it where nothing does.
    """
    text = capital(text.strip())
    if stop and text and (text[-1].isalnum() or text[-1] in ")]%'\"`"):
        text += "."
    return [piece for piece in _parted(text, known) if piece.text]


def _parted(text: str, known: Collection[str]) -> Iterator[Piece]:
    end = 0
    for match in _ANY.finditer(text):
        ticked, option, *others = match[1], match[3], match[2], match[4], match[5]
        name = ticked or option or next((other for other in others if other in known), None)
        if name is None:
            continue
        yield Piece(text[end : match.start()])
        yield Piece(name, code=True)
        end = match.end()
    yield Piece(text[end:])
