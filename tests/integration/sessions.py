"""Sessions of pytest in a user's folder, each in a process of its own, and what they said and left."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration import warm

#: As the command ``pytest`` is, and ``python -m pytest`` is not: the folder is no place to import from.
_COMMAND = ("-c", "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main())")


@dataclass(frozen=True)
class Session:
    """What a session of pytest in a user's folder said and left there; ``report`` is its JSON, from that folder."""

    code: int
    text: str
    folder: Path
    report: str = "out/audit.json"

    @property
    def audit(self) -> Any:
        """The JSON of its report."""
        return json.loads((self.folder / self.report).read_text(encoding="utf-8"))

    @property
    def checks(self) -> list[tuple[str, str, str]]:
        """Subject, id and verdict of each claim."""
        return [(check["subject"], check["id"], check["verdict"]) for check in self.audit["checks"]]

    @property
    def outcomes(self) -> dict[str, tuple[str, str]]:
        """Outcome and reason of each test that the report has on record."""
        return {one["test"]: (one["outcome"], one["reason"]) for one in self.audit["session"]["tests"]}

    @property
    def made(self) -> int:
        """How many lines a factory has written into calls.txt, one a call."""
        calls = self.folder / "calls.txt"
        return len(calls.read_text(encoding="utf-8").splitlines()) if calls.exists() else 0

    def items(self, subject: str) -> dict[str, str]:
        """Return the outcome of each item of a subject, as a verbose session prints it."""
        lines = rf"^(?:\[gw\d\].*?(?=PASSED|FAILED|SKIPPED|ERROR))?{re.escape(subject)}::(\S+) ([A-Z]+)"
        return dict(re.findall(lines, self.text, re.M))


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files of a user, by their paths from his folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def run(
    folder: Path,
    files: Mapping[str, str],
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    report: str = "out/audit.json",
    command: bool = False,
) -> Session:
    """Run pytest on some files in a process of its own.

    Args:
        folder: Where the files are written and pytest starts.
        files: Their texts, by their paths from the folder.
        arguments: What pytest is given.
        environment: What is set beside the environment of these tests.
        report: Where the JSON of its report is found, from the folder.
        command: Whether it is started as ``pytest``, in place of ``python -m pytest``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, files)
    start = _COMMAND if command else ("-m", "pytest")
    done = warm.python(*start, *arguments, cwd=folder, env={**os.environ, "COLUMNS": "200", **(environment or {})})
    return Session(done.returncode, done.stdout + done.stderr, folder, report)
