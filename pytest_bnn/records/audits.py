"""An audit from the file that holds its JSON: one reader and one wording, whoever asks for it."""

from __future__ import annotations

from pathlib import Path

from pytest_bnn.errors import InputError
from pytest_bnn.records.run import AuditRun


def read(path: str | Path, *, shown: str = "", option: str = "") -> AuditRun:
    """Return the audit that a file holds.

    Args:
        path: The file.
        shown: How messages call it; its path when empty.
        option: The option that names it, where there is one.

    Raises:
        InputError: It cannot be read, which its cause says, or holds no audit.
    """
    return parsed(text_of(path, shown=shown, option=option), path, shown=shown, option=option)


def text_of(path: str | Path, *, shown: str = "", option: str = "") -> str:
    """Return the text of a file; the arguments and the error are those of `read`."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{_called(path, shown, option)} cannot be read ({reason})", fix="give the JSON of an audit"
        ) from error


def parsed(text: str, path: str | Path, *, shown: str = "", option: str = "") -> AuditRun:
    """Return the audit in a text; the other arguments and the error are those of `read`."""
    try:
        return AuditRun.from_json(text)
    except InputError as error:
        raise InputError(f"{_called(path, shown, option)}: {error.problem}", fix=error.fix) from error


def _called(path: str | Path, shown: str, option: str) -> str:
    return f"{option} {shown or str(path)!r}" if option else repr(shown or str(path))
