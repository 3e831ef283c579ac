"""Checks of a project's own: found in its conftest.py files, without importing one that declares none."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pytest_bnn.checks import registry
from pytest_bnn.checks.declaration import Declaration, declared_in, source_of
from pytest_bnn.errors import InputError

#: What says that a folder is the root of a project.
_ROOTS = ("pyproject.toml", "pytest.ini", ".pytest.ini", "pytest.toml", "tox.ini", "setup.cfg", ".git")

#: Folders above the current one in which a project's root is looked for.
_HIGHEST = 8


def conftests(folder: Path) -> tuple[Path, ...]:
    """Return the conftest.py files that belong to a folder: its own, those above it up to the root of the project, and
    those of the folders there whose names begin with ``test``; the outermost first.
    """
    above = [folder, *folder.parents][:_HIGHEST]
    root = next((place for place, one in enumerate(above) if any((one / name).exists() for name in _ROOTS)), 0)
    found = []
    for one in reversed(above[: root + 1]):
        places = [one, *sorted(inner for inner in one.glob("test*") if inner.is_dir())]
        found += [place / "conftest.py" for place in places]
    return tuple(dict.fromkeys(path for path in found if path.is_file()))


def read(folder: Path) -> None:
    """Take the checks of a folder's conftest.py files into the list, without importing anything."""
    for path in conftests(folder):
        registry.read(declared_in(path, where=path.name))
        for _, found in _imported(path):
            registry.read(found)


def load(folder: Path) -> None:
    """Import what a folder's conftest.py files declare: such a file, or a module of checks that it imports.

    Raises:
        InputError: Importing it raises.
    """
    for path in conftests(folder):
        for module, _ in _imported(path):
            _make_importable(_base(path))
            registry.import_module(module, f"imported by {path.name}")
        if declared_in(path):
            _import(path)


def sources(folder: Path) -> tuple[Path, ...]:
    """Return the files that `load` imports for a folder: conftest.py files and modules that declare checks."""
    found: list[Path] = []
    for path in conftests(folder):
        found += [source for module, _ in _imported(path) if (source := source_of(module, (_base(path),)))]
        found += [path] if declared_in(path) else []
    return tuple(found)


def _imported(path: Path) -> Iterator[tuple[str, tuple[Declaration, ...]]]:
    """Yield the modules that a conftest.py imports, or names in ``pytest_plugins``, and that declare checks."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, SyntaxError, ValueError):
        return
    for module in dict.fromkeys(name for statement in tree.body for name in modules_of(statement, path)):
        source = None if module.partition(".")[0] in _NOT_LOOKED_AT else source_of(module, (_base(path),))
        found = declared_in(source, where=module) if source is not None and _may_declare(source) else ()
        if found:
            yield module, found


#: Python's own modules, and packages that take long to read.
_NOT_LOOKED_AT = frozenset({*sys.stdlib_module_names, "pytest_bnn", "pytest", "torch", "torchvision", "numpy", "scipy"})


def modules_of(statement: ast.stmt, path: Path) -> Iterator[str]:
    """Yield the modules that a statement of a file imports, or names as pytest's plugins."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        package = _package(path.parent) if statement.level else []
        package = package[: len(package) + 1 - statement.level]
        base = ".".join([*package, *filter(None, [statement.module])])
        if base and (package or not statement.level):
            yield base
            yield from (f"{base}.{alias.name}" for alias in statement.names)
    elif isinstance(statement, ast.Assign) and any(
        getattr(one, "id", "") == "pytest_plugins" for one in statement.targets
    ):
        yield from (
            node.value
            for node in ast.walk(statement.value)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )


def _may_declare(source: Path) -> bool:
    text = source.read_text(encoding="utf-8", errors="replace")
    return "pytest_bnn" in text and "check(" in text


def _package(folder: Path) -> list[str]:
    """Return the names of the packages that a folder is, the outermost first; none where it is no package."""
    names = []
    while (folder / "__init__.py").is_file():
        names.append(folder.name)
        folder = folder.parent
    return names[::-1]


def _base(path: Path) -> Path:
    """Return the folder from which a conftest.py is imported, as pytest does."""
    return path.parents[len(_package(path.parent))]


def _make_importable(folder: Path) -> None:
    for one in (os.getcwd(), str(folder)):  # noqa: PTH109  sys.path holds texts
        if one not in sys.path:
            sys.path.insert(0, one)


def _import(path: Path) -> None:
    loaded = sys.modules.get("conftest")
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() == path.resolve():
        return
    before = sys.modules.pop("conftest", None)
    _make_importable(_base(path))
    package = _package(path.parent)
    try:
        if package:
            importlib.import_module(".".join([*package, "conftest"]))
        else:
            _execute(path)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"importing {_shown(path)}, which declares checks, raised {type(error).__name__}: {error}",
            fix="mend it, or move the checks into a module and name that with --plugin MODULE",
        ) from error
    finally:
        sys.modules.pop("conftest", None)
        if before is not None:
            sys.modules["conftest"] = before


def _execute(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["conftest"] = module
    spec.loader.exec_module(module)


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
