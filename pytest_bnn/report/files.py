"""The files of an audit: the HTML page and, beside it, the JSON that it is a function of.

Files are replaced as a whole, and only where they are empty or were made here: whatever goes wrong on the way, what was
there before is still there, and nothing else is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_bnn.errors import InputError, WriteError

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
        raise InputError(f"{str(path)!r} cannot be written ({_reason(error)})", fix="choose another path") from error
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
    """Write files as UTF-8, all of them or none, and make their folders.

    An old file keeps its permissions. In the last step the new files take the places of the old ones, one after the
    other.

    Raises:
        WriteError: The system would not; the files that were there are unchanged.
    """
    made: list[Path] = []
    steps: list[tuple[Path, Callable[[], object]]] = []
    with contextlib.ExitStack() as leftovers:
        leftovers.callback(_remove_empty, made)
        path = Path()
        try:
            for path, text in texts.items():
                place = _place(path)
                _make_folder(place.parent, made)
                step = _prepared(place, text.encode(), leftovers)
                steps.insert(len(steps) if place.is_file() or not place.exists() else 0, (path, step))
            for path, step in steps:  # noqa: B007  the handler below reads the path
                step()
        except OSError as error:
            raise WriteError(
                f"{str(path)!r} could not be written ({_reason(error)}); what was there is unchanged",
                fix="make room, or choose another path",
            ) from error


def _prepared(place: Path, content: bytes, leftovers: contextlib.ExitStack) -> Callable[[], object]:
    """Return the step that puts a content in its place, with all done before that can fail."""
    before = place.stat() if place.exists() else None
    if before is not None and not stat.S_ISREG(before.st_mode):  # a device is written to, not replaced
        return lambda: place.write_bytes(content)
    new = leftovers.enter_context(_beside(place))
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if before is not None:
        _keep_owner_and_permissions(new, before)
    return lambda: new.replace(place)


@contextlib.contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """Make an empty file in the same folder, with the permissions of any new file; remove it if it is still there."""
    new = place.parent / f".pytest-bnn-{secrets.token_hex(6)}.tmp"
    try:
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield new
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def _keep_owner_and_permissions(new: Path, before: os.stat_result) -> None:
    now = new.stat()
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        with contextlib.suppress(OSError):
            os.chown(new, before.st_uid, before.st_gid)
    new.chmod(stat.S_IMODE(before.st_mode))


def _place(path: Path) -> Path:
    """Return the file that a path leads to, through any links.

    Raises:
        OSError: The links go round in circles.
    """
    place = Path(os.path.realpath(path))
    place.stat() if place.is_symlink() else None
    return place


def _is_ours(path: Path) -> bool:
    """Return whether a file is new, empty or made by pytest-bnn; it can be written.

    Raises:
        OSError: It cannot.
    """
    place = _place(path)
    try:
        found = place.stat()
    except FileNotFoundError:
        _try_folder(place.parent)
        return True
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError("it is a folder")
    if not os.access(place, os.W_OK):
        raise PermissionError("it is read-only")
    if not stat.S_ISREG(found.st_mode):
        return True
    _try_folder(place.parent)
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


def _try_folder(folder: Path) -> None:
    """Make a file in a folder, or in the nearest one above it that there is, and remove it again."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with _beside(folder / "any"):
        pass


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it that are missing, and note them."""
    wanted = folder
    while not folder.exists() and folder != folder.parent:
        made.append(folder)
        folder = folder.parent
    wanted.mkdir(parents=True, exist_ok=True)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in sorted(folders, key=lambda one: -len(one.parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _reason(error: Exception) -> object:
    return getattr(error, "strerror", None) or error
