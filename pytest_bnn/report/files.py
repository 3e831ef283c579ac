"""The files of an audit: the HTML page and, beside it, the JSON that it is a function of.

Files are replaced as a whole, and only where they are empty or were made here.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_bnn.errors import InputError
from pytest_bnn.replacing import place_of, reason_of, replace_files, try_folder

if TYPE_CHECKING:
    from pytest_bnn.records.run import AuditRun

#: How much of a file is read to see who made it: the styles of a page stand before its body.
_HEAD: Final = 1 << 20
_PAGES: Final = (b'<meta name="generator" content="pytest-bnn', b'<p class="eyebrow">pytest-bnn</p>')
_SUMMARY: Final = re.compile(rb"<!-- pytest-bnn -->|\A## [^\n]*\n\n\*\*[^\n]*\*\* \xc2\xb7 [\d,]+ checks?, ")
#: The first lines of an audit, or of an index of audits, which are those of one that was cut off too.
_AUDIT: Final = re.compile(rb'\A\s*\{\s*"(?:schema|collection)_version":\s*"[\d.]+",\s*"verdict":\s*"')

#: The first lines of a file in the Common Test Report Format.
_CTRF: Final = re.compile(rb'\A\s*\{\s*"reportFormat":\s*"CTRF"')


def require_writable(path: str | Path, option: str = "the report's path") -> None:
    """Make sure, before an audit takes its time, that its report can be written; nothing is made or changed.

    Args:
        path: Where the HTML will be; the JSON beside it.
        option: How messages call the path.

    Raises:
        InputError: The name does not end in .html or is a folder's, its folder cannot be written to, or one of the two
            files is there already and is neither empty nor made by pytest-bnn.
    """
    said, path = str(path), Path(path)
    if path.suffix != ".html" or os.path.isdir(path):  # noqa: PTH112  a name too long raises there
        raise InputError(f"{option} is {said!r}", fix="give the path of a file that ends in .html")
    page, data = path, path.with_suffix(".json")
    require_ours(page)
    require_ours(data)
    if os.path.realpath(page) == os.path.realpath(data):
        raise InputError(f"{str(page)!r} and {str(data)!r} are one file", fix="choose another path")


def require_ours(path: str | Path) -> None:
    """Make sure that a file can be written, and that nothing of others would be lost: it is made by us, empty or new.

    Raises:
        InputError: It cannot be written, or is something else; the message says which.
    """
    path = Path(path)
    try:
        ours = _is_ours(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be written ({reason_of(error)})", fix="choose another path") from error
    if not ours:
        kind = "audit" if path.suffix == ".json" else "report"
        raise InputError(
            f"{str(path)!r} is there already and is no {kind} of pytest-bnn, so it is not overwritten",
            fix="choose another path, or move that file away",
        )


def write_report(run: AuditRun, path: str | Path) -> tuple[Path, Path]:
    """Write a run as ``path`` (HTML) and as JSON beside it; return both paths.

    Both are complete before the first of them takes its place. A link stays one, and what it leads to is replaced.

    Raises:
        InputError: As in `require_writable`.
        WriteError: The system would not write them, for want of space for example; what was there is unchanged.
    """
    from pytest_bnn.report import render_html

    page = Path(path)
    require_writable(page)
    data = page.with_suffix(".json")
    text = run.to_json()
    write_texts({data: text, page: render_html(run, text)})
    return page, data


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write files as UTF-8, all of them or none; see `pytest_bnn.replacing.replace_files`.

    Raises:
        WriteError: The system would not; the files that were there are unchanged.
    """
    replace_files({path: text.encode() for path, text in texts.items()})


def _is_ours(path: Path) -> bool:
    """Return whether a file is new, empty or made by pytest-bnn; it can be written.

    Raises:
        OSError: It cannot.
    """
    place = place_of(path)
    try:
        found = place.stat()
    except FileNotFoundError:
        try_folder(place.parent)
        return True
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError("it is a folder")
    if not os.access(place, os.W_OK):
        raise PermissionError("it is read-only")
    if not stat.S_ISREG(found.st_mode):
        return True
    try_folder(place.parent)
    with place.open("rb") as file:
        head = file.read(_HEAD)
    if not head.strip():
        return True
    if path.suffix == ".json":
        return bool(_AUDIT.match(head) or _CTRF.match(head)) or _is_audit(place)
    return bool(_SUMMARY.search(head)) if path.suffix == ".md" else any(mark in head for mark in _PAGES)


def _is_audit(place: Path) -> bool:
    """Return whether a file is the JSON of an audit, however it is laid out."""
    try:
        document = json.loads(place.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and {"schema_version", "verdict", "checks", "subjects"} <= document.keys()
