"""The source files that an audit depends on: the modules that are named, and what they import of the same project."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pytest_bnn.checks import own
from pytest_bnn.checks.declaration import source_of
from pytest_bnn.data.checkpoints import sha256
from pytest_bnn.errors import InputError

#: Folders of what is installed: packages have a version.
_INSTALLED = ("site-packages", "dist-packages")

#: Of each module that was looked at, what says that it was imported once, and its file's digest then.
_seen: dict[str, tuple[object, str]] = {}


def digests(modules: Iterable[str], folder: Path) -> list[tuple[str, str]]:
    """Return name and digest of each source file: of modules, of checks of the folder, and of what these import.

    What is installed is left out, and so is Python itself.

    Args:
        modules: Their names.
        folder: Where modules are that are not installed; its conftest.py files may declare checks.

    Raises:
        InputError: A file changed since it was imported here.
    """
    todo: list[tuple[str, Path]] = [(name, path) for name in modules if (path := _of_project(name, folder))]
    todo += [(path.name, path) for path in own.sources(folder)]
    found: dict[Path, str] = {}
    while todo:
        name, path = todo.pop()
        path = path.resolve()
        if path not in found:
            found[path] = _digest(name, path)
            todo += [(inner, file) for inner in _imported(path) if (file := _of_project(inner, folder, path.parent))]
    return sorted((_shown(path, folder), digest) for path, digest in found.items())


def _of_project(name: str, *folders: Path) -> Path | None:
    if name.partition(".")[0] in sys.stdlib_module_names:
        return None
    path = source_of(name, folders)
    return None if path is None or any(part in _INSTALLED for part in path.parts) or _is_ours(path) else path


def _is_ours(path: Path) -> bool:
    return Path(__file__).resolve().parents[1] in path.resolve().parents


def _imported(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from own.modules_of(node, path)


def _digest(name: str, path: Path) -> str:
    """Return a file's digest; refuse one that is no longer what was imported."""
    digest, module = sha256(path), sys.modules.get(name)
    if module is None or Path(getattr(module, "__file__", None) or "").resolve() != path:
        return digest
    loaded = getattr(module, "__spec__", None)
    before = _seen.setdefault(name, (loaded, digest))
    if before[0] is not loaded:  # imported anew
        _seen[name] = (loaded, digest)
    elif before[1] != digest:
        raise InputError(
            f"{path.name} changed since this process imported it",
            fix="start again in a fresh process: a new interpreter, or the cluster's workers anew",
        )
    return digest


def _shown(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
