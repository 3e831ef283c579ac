"""Which checks there are: ours by their files, others' by the entry points ``pytest_bnn.checks`` or by ``@check``.

Command line, plugin, ``--help``, audit, report and documentation read this one list. Nothing heavy is loaded before a
check is asked for by `load`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pytest_bnn.checks.declaration import Declaration, Registered, declared_in, source_of
from pytest_bnn.errors import BrokenEnvironmentError, InputError

T = TypeVar("T")

#: The group of entry points: the name is the id, the object is what ``@check`` made.
GROUP = "pytest_bnn.checks"

_FOLDER = Path(__file__).resolve().parent
_PACKAGE = __name__.rpartition(".")[0]

_registered: dict[str, Registered] = {}
_files: dict[str, Path] = {}
#: Of a file that is read and not imported: ``--help`` shows its checks.
_read: dict[str, Declaration] = {}


@functools.cache
def files() -> dict[str, Path]:
    """Return the file of every built-in check by its id, which is its place; helpers begin with an underscore."""
    found = {}
    for path in sorted(_FOLDER.glob("*/*.py")):
        if not (path.name.startswith("_") or path.parent.name.startswith("_")):
            found[f"{path.parent.name}.{path.stem}"] = path
    return found


@functools.cache
def built_in() -> tuple[str, ...]:
    """Return the ids of our checks, in the order of a report."""
    return tuple(_in_order(_ours(id) for id in files()))


def ids() -> tuple[str, ...]:
    """Return the ids of all checks, in the order of a report."""
    others = [id for id in (*_installed(), *_read, *_registered) if id not in files()]
    return tuple(_in_order([*(_ours(id) for id in built_in()), *(_known(id) for id in dict.fromkeys(others))]))


def declaration(id: str) -> Declaration | None:
    """Return a check's declaration; None for an installed package's that cannot be read without importing it.

    Raises:
        InputError: There is no such check.
    """
    if id not in ids():
        refuse(id)
    found = _ours(id) if id in files() else _known(id)
    return found if found.claim else None


def load(id: str) -> Registered:
    """Import a check.

    Raises:
        InputError: There is no such check.
        BrokenEnvironmentError: The package that provides it cannot be imported, or provides something else.
    """
    if id in _registered:
        return _registered[id]
    if id in files():
        importlib.import_module(f"{_PACKAGE}.{id}")
        return _registered[id]
    point = _installed().get(id)
    if point is None:
        refuse(id)
    _load_installed(id, point)
    return _registered[id]


#: Where checks of others come from.
_WHERE = (
    "checks of your own are looked for in the conftest.py of this folder, of the folders above it up to the project's "
    "root and of test folders there (under pytest, of those that it reads), in modules named with --plugin MODULE or "
    f"by plugins in [tool.pytest-bnn] of pyproject.toml, and in installed packages with an entry point {GROUP}; a "
    "check in a test module is known to that module's session alone"
)


def refuse(id: str, where: str = "") -> NoReturn:
    """Say that there is no such check, and which one may be meant, or how one's own would be known."""
    known = ids()
    near = difflib.get_close_matches(id, known, n=1)
    ours = id.partition(".")[0] in {one.partition(".")[0] for one in built_in()}
    if near:
        fix = f"did you mean {near[0]}"
    elif ours or "." not in id:
        fix = f"the checks are {', '.join(known)}"
    else:
        others = [one for one in known if one not in files()]
        fix = f"{_WHERE}. Known beside those of pytest-bnn: {', '.join(others) or 'none'}"
    raise InputError(f"{where}: there is no check {id!r}" if where else f"there is no check {id!r}", fix=fix)


def chosen(checks: Iterable[str] | str | None) -> tuple[str, ...]:
    """Return the ids that were chosen, in the order of a report; all when None.

    Raises:
        InputError: There is no such check.
    """
    if checks is None:
        return ids()
    wanted = {checks} if isinstance(checks, str) else set(checks)
    for unknown in sorted(wanted - {*ids()}):
        refuse(unknown)
    return tuple(id for id in ids() if id in wanted)


def id_of_place(function: Callable[..., Any]) -> str:
    """Return the id of a check of ours, that of its file.

    Raises:
        InputError: The function is in no file of ours, so that its check needs an id.
    """
    path = Path(function.__code__.co_filename).resolve()
    for id, place in files().items():
        if place == path:
            return id
    raise InputError(
        f"the check {function.__name__} in {path.name} has no id",
        fix='name it: @pytest_bnn.check("mycompany.rule", ...)',
    )


def register(check: Registered, path: Path) -> None:
    """Take a check into the list.

    Args:
        check: What ``@check`` made.
        path: The file that declares it.

    Raises:
        InputError: There is another check of this id, or the file was imported under a second name.
    """
    __tracebackhide__ = True
    id, path = check.id, path.resolve()
    if id in files() or _FOLDER in path.parents:
        _require_our_module(id, path, check.declaration.where)
    known = _registered.get(id)
    if known is not None and (known.declaration.where, _files[id]) != (check.declaration.where, path):
        raise InputError(
            f"there are two checks {id!r}: one in {known.declaration.where} ({_files[id]}), one in "
            f"{check.declaration.where} ({path})",
            fix="give one of them another id; where it is one file, import it under one name only",
        )
    if "." not in id:
        raise InputError(f"the check {id!r} has no topic", fix=f'call it "mycompany.{id}"')
    _registered[id], _files[id] = check, path


def _require_our_module(id: str, path: Path, module: str) -> None:
    __tracebackhide__ = True
    if files().get(id) != path:
        raise InputError(f"{id!r} is a check of pytest-bnn", fix='choose a topic of your own: "mycompany.rule"')
    expected = f"{_PACKAGE}.{id}"
    if module != expected:
        raise InputError(
            f"{path.name} was imported as {module}: a second copy of the check {id}",
            fix=f"import it as {expected}, not by the link to its folder",
        )


@contextmanager
def kept() -> Iterator[None]:
    """Forget, at the end, which checks of others were declared inside: those of a session, or of a command."""
    before = dict(_registered), dict(_files), dict(_read)
    try:
        yield
    finally:
        _restore(_registered, before[0])
        _restore(_files, before[1])
        _restore(_read, before[2])


def others() -> tuple[str, ...]:
    """Return the ids of others' checks that were declared here, in the order of their declaration."""
    return tuple(id for id in _registered if id not in files())


@contextmanager
def limited(known: Iterable[str]) -> Iterator[None]:
    """Let others' checks be forgotten inside, but for those that are named; what is declared inside stays."""
    hidden = {id: (_registered[id], _files[id]) for id in others() if id not in {*known}}
    for id in hidden:
        del _registered[id], _files[id]
    try:
        yield
    finally:
        for id, (check, path) in hidden.items():
            _registered[id], _files[id] = check, path


def _restore(now: dict[str, T], before: dict[str, T]) -> None:
    """Put back what was there, and keep checks of ours: their modules stay imported."""
    ours = {id: value for id, value in now.items() if id in files()}
    now.clear()
    now.update({**before, **ours})


def read_module(name: str) -> None:
    """Take the checks that a module declares into the list, without importing it."""
    path = source_of(name)
    if path is not None:
        read(declared_in(path, where=name))


def read(found: Iterable[Declaration]) -> None:
    """Take checks that were read from a source, and not imported, into the list."""
    _read.update({one.id: one for one in found})


def import_module(name: str, source: str) -> None:
    """Import a module that declares checks.

    Args:
        name: The module, in the current folder or on the Python path.
        source: What named it, for messages.

    Raises:
        InputError: There is no such module, or importing it raises.
    """
    folder = os.getcwd()  # noqa: PTH109  sys.path holds texts
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}.")
        fix = "run from the folder that holds it, or install it" if missing else "mend it, or leave it out"
        raise InputError(f"{source}: importing {name!r} raised {type(error).__name__}: {error}", fix=fix) from error


@functools.cache
def _ours(id: str) -> Declaration:
    found = declared_in(files()[id], id, f"{_PACKAGE}.{id}")
    if len(found) != 1:
        raise InputError(
            f"{files()[id]} declares {len(found)} checks", fix="declare one check a file; helpers begin with _"
        )
    return found[0]


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in files()}


@functools.cache
def _of_entry_point(id: str) -> Declaration:
    point = _installed()[id]
    path = source_of(point.module)
    for found in declared_in(path, where=point.module) if path is not None else ():
        if found.id == id:
            return found
    return Declaration(id=id, claim="", where=point.module)


def _known(id: str) -> Declaration:
    if id in _registered:
        return _registered[id].declaration
    return _read[id] if id in _read else _of_entry_point(id)


def _load_installed(id: str, point: EntryPoint) -> None:
    package = point.dist.name if point.dist is not None else point.module
    try:
        point.load()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise BrokenEnvironmentError(
            f"the check {id!r} of the installed package {package} cannot be imported ({type(error).__name__}: {error})",
            fix=f"mend or uninstall {package}, or name the checks to run with --checks",
        ) from error
    if id not in _registered:
        raise BrokenEnvironmentError(
            f"the installed package {package} announces the check {id!r}, and {point.value} declares none of this id",
            fix=f'declare it with @pytest_bnn.check("{id}", ...), or ask the makers of {package}',
        )


def _in_order(declarations: Iterable[Declaration]) -> list[str]:
    """Order checks: each behind the one that it names in ``after``, those of the same topic first."""
    known = {one.id: one for one in declarations}
    followers: dict[str, list[str]] = {}
    for one in known.values():
        followers.setdefault(one.after if one.after in known else "", []).append(one.id)
    order: list[str] = []
    waiting = sorted(followers.get("", []), key=lambda one: (one not in files(), one), reverse=True)
    while waiting:
        id = waiting.pop()
        order.append(id)
        topic = id.partition(".")[0]
        waiting += sorted(followers.get(id, []), key=lambda one: (one.partition(".")[0] != topic, one), reverse=True)
    return order + [id for id in known if id not in order]
