"""Files that are replaced as a whole: whatever goes wrong, the old one is still there, and nothing else is left."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pytest_bnn.errors import WriteError

#: The names of files that are being written; one is left where the process was killed.
UNFINISHED = ".pytest-bnn-*.tmp"


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, all of them or none, and make their folders.

    An old file keeps its owner and permissions; a link stays one, and what it leads to is replaced. In the last step
    the new files take the places of the old ones, one after the other.

    Raises:
        WriteError: The system would not; the files that were there are unchanged. Its cause is the system's error.
    """
    made: list[Path] = []
    steps: list[tuple[Path, Callable[[], object]]] = []
    with contextlib.ExitStack() as leftovers:
        leftovers.callback(_remove_empty, made)
        path = Path()
        try:
            for path, content in contents.items():
                place = place_of(path)
                _make_folder(place.parent, made)
                step = _prepared(place, content, leftovers)
                steps.insert(len(steps) if place.is_file() or not place.exists() else 0, (path, step))
            for path, step in steps:  # noqa: B007  the handler below reads the path
                step()
        except OSError as error:
            raise WriteError(
                f"{str(path)!r} could not be written ({reason_of(error)}); what was there is unchanged",
                fix="make room, or choose another path",
            ) from error


def place_of(path: Path) -> Path:
    """Return the file that a path leads to, through any links.

    Raises:
        OSError: The links go round in circles.
    """
    place = Path(os.path.realpath(path))
    place.stat() if place.is_symlink() else None
    return place


def try_folder(folder: Path) -> None:
    """Make a file in a folder, or in the nearest one above it that there is, and remove it again.

    Raises:
        OSError: No file can be made there.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with _beside(folder / "any"):
        pass


def reason_of(error: BaseException | None) -> object:
    """Return what the system says of an error of its own, without numbers and names; of others what they say."""
    return getattr(error, "strerror", None) or error


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
    new = place.parent / UNFINISHED.replace("*", secrets.token_hex(6))
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
