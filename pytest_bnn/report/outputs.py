"""What a run is written to beside its report: files in other formats, and what a CI service reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.errors import InputError
from pytest_bnn.report.files import require_ours, write_texts

if TYPE_CHECKING:
    from pytest_bnn.records.evidence import Inconclusive
    from pytest_bnn.records.run import AuditRun
    from pytest_bnn.report.standing import Known


def require_writable_json(path: str | Path, option: str, others: Mapping[str, Path] | None = None) -> None:
    """Make sure, before an audit takes its time, that a JSON file can be written.

    Args:
        path: Where it will be.
        option: How messages call the path.
        others: What else is written or read, by what messages call it.

    Raises:
        InputError: The name does not end in .json, is a folder's, it cannot be written, or it holds something else.
    """
    said, path = str(path), Path(path)
    for name, other in (others or {}).items():
        if other.resolve() == path.resolve():
            raise InputError(f"{option} is {said!r}, which is {name}", fix="give it another name")
    if path.suffix != ".json" or path.is_dir():
        raise InputError(f"{option} is {said!r}", fix="give the path of a file that ends in .json")
    require_ours(path)


def write_ctrf(run: AuditRun, path: str | Path, *, inconclusive: Inconclusive, known: Known) -> None:
    """Write a run in the Common Test Report Format."""
    from pytest_bnn.report.ctrf import render_ctrf

    write_texts({Path(path): render_ctrf(run, inconclusive=inconclusive, known=known)})


def annotations_wanted(environment: Mapping[str, str]) -> bool:
    """Say whether GitHub reads what is printed."""
    return environment.get("GITHUB_ACTIONS") == "true"


def append_step_summary(run: AuditRun, environment: Mapping[str, str]) -> str:
    """Append a run to the summary of GitHub's step, where there is one; return why it could not, else nothing."""
    path = environment.get("GITHUB_STEP_SUMMARY", "")
    if not path:
        return ""
    from pytest_bnn.report.github import summary

    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(summary(run) + "\n")
    except OSError as error:
        return f"the summary of the step could not be written: {error}"
    return ""


def in_repository(path: str | Path, environment: Mapping[str, str]) -> str:
    """Return a path as GitHub names it: from the root of the repository, where it lies inside."""
    whole = Path(path).resolve()
    root = Path(environment.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(path)
