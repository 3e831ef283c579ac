"""What an audit says, in the words of pytest's command line and of pyproject.toml."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from pytest_bnn.audit.fields import ALLOW, KL_LOSS, PARTS, STAGES, TASKS
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.options import OPTIONS

_KEYS = {*(one.name for one in (*PARTS, *KL_LOSS)), ALLOW}
_NAMES = "|".join(sorted({*_KEYS, "set", *(one.name for one in OPTIONS)}, key=len, reverse=True))
_VALUES = "|".join(["MODULE:[A-Z]+", "NAME", *STAGES, *TASKS])
_OPTION = re.compile(rf"(?<![\w-])--({_NAMES})(?![\w-])(?: ({_VALUES})\b| '([^'=]+)=([^']+)')?")
_IN_PYTHON = re.compile(r",? or \w+= in Python| \(\w+= in Python\)|,? or allow={[^}]*}|, in Python allow={[^}]*}")

#: Parts of the paths of code that is not the user's.
_INSTALLED = {"site-packages", "dist-packages", "pytest_bnn", "importlib"}


def in_pytest(text: str, *, listed: bool) -> str:
    """Name options as they are called here: as keys of the subject's table, or with ``--bnn-``."""

    def called(match: re.Match[str]) -> str:
        name, value, pattern, reason = match.groups()
        if not listed or name not in _KEYS:
            return f"--bnn-{match[0].removeprefix('--')}"
        if pattern:
            return f'{name} = {{ "{pattern}" = "{reason}" }} in its table'
        return f'{name} = "{value}" in its table' if value else name

    return _OPTION.sub(called, _IN_PYTHON.sub("", text))


def of_error(error: PytestBnnError, name: str) -> str:
    """Say why a subject cannot be audited, with the place in the user's code that raised it."""
    fix = error.fix.replace("; -v shows the traceback", "")
    place = _place(error.__cause__) if error.__cause__ is not None else ""
    problem = error.problem.replace("--bnn-model", "--bnn-audit")
    return f"{name} cannot be audited: {problem}.{place} {fix[:1].upper()}{fix[1:]}."


def _place(error: BaseException) -> str:
    """Name the innermost line that belongs to no installed package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.suffix == ".py" and not _INSTALLED & {*path.parts}:
            return f" It was raised in {frame.name}, line {frame.lineno} of {path.name}."
    return ""
