"""What a check says of itself, read from its source: nothing is imported, so that ``--help`` answers at once."""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from pytest_bnn.checks.values import Kind, NoKindError, annotated, kind_of

Need: TypeAlias = Literal["teacher", "images", "loss", "slices"]

#: An argument of a check that no option fills: the share of the run's error rates, for checks that sample.
BUDGET = "budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOption:
    """One keyword argument of a check."""

    name: str
    kind: Kind
    default: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """A check without its code: its id, its claim, and what it asks for.

    Args:
        id: How reports and options know it: ``topic.name``.
        claim: What is true of a sound model.
        needs: What must be given beside the model.
        can: What the library's adapter must be able to do with the model.
        sampled: Whether sampling decides it: such checks share the run's error rates, the others are exact.
        after: The check that it follows in a report.
        of_data: Whether the claim is about data of which there may be too few: undecided it counts as a warning, unless
            ``--inconclusive fail`` was asked for.
        options: Its keyword arguments.
        either: Options of which one at most is given.
        where: The module or file that declares it.
    """

    id: str
    claim: str
    needs: tuple[Need, ...] = ()
    can: tuple[str, ...] = ()
    sampled: bool = False
    after: str = ""
    of_data: bool = False
    options: tuple[CheckOption, ...] = ()
    either: tuple[str, ...] = ()
    where: str = ""

    def option(self, name: str) -> CheckOption | None:
        """Return the option of a name; None where there is none."""
        return next((option for option in self.options if option.name == name), None)


class _UnknownError(Exception):
    """An expression whose value cannot be told without running the module."""


def declared_in(path: Path, id: str = "", where: str = "") -> tuple[Declaration, ...]:
    """Return the checks that a file declares with ``@check`` or ``@pytest_bnn.check``.

    Args:
        path: The file.
        id: The id of the check that names none: ours have that of their place.
        where: How errors call the file; its path by default.
    """
    try:
        tree = _tree(path)
    except (OSError, SyntaxError, ValueError):
        return ()
    found = []
    for node in tree.body:
        for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(call, ast.Call) and _last_name(call.func) == "check":
                assert isinstance(node, ast.FunctionDef)
                try:
                    found.append(_declaration(node, call, path, id, where or str(path)))
                except _UnknownError:
                    continue
    return tuple(found)


def source_of(module: str, folders: Sequence[Path] = ()) -> Path | None:
    """Find the file of a module without importing it, or a package that it lies in; None where there is none.

    Args:
        module: Its name.
        folders: Where it is looked for before the Python path, and after the current folder.
    """
    name, *inner = module.split(".")
    try:
        places = [str(Path.cwd()), *map(str, folders)]
        spec = importlib.machinery.PathFinder.find_spec(name, places)  # as an audit finds it
        spec = spec or importlib.util.find_spec(name)  # imports nothing, for a name without a dot
        for part in inner:
            if spec is None:
                break
            name = f"{name}.{part}"
            spec = importlib.machinery.PathFinder.find_spec(name, list(spec.submodule_search_locations or ()))
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


@functools.lru_cache(maxsize=64)
def _parsed(path: Path, changed: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _tree(path: Path) -> ast.Module:
    return _parsed(path, path.stat().st_mtime_ns)


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _declaration(function: ast.FunctionDef, call: ast.Call, path: Path, id: str, where: str) -> Declaration:
    said = {word.arg: _value(word.value, path) for word in call.keywords if word.arg}
    name = _value(call.args[0], path) if call.args else said.pop("id", id)
    if not isinstance(name, str) or not name or not isinstance(said.get("claim"), str):
        raise _UnknownError
    known = {
        key: said[key] for key in ("claim", "needs", "can", "sampled", "after", "of_data", "either") if key in said
    }
    return Declaration(id=name, options=tuple(_options(function, path)), where=where, **known)


def _options(function: ast.FunctionDef, path: Path) -> Iterator[CheckOption]:
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if argument.arg == BUDGET or argument.annotation is None:
            continue
        try:
            kind = kind_of(annotated(ast.unparse(argument.annotation), _aliases(path)))
        except NoKindError:
            continue
        try:
            value = None if default is None else _value(default, path)
        except _UnknownError:
            value = None
        yield CheckOption(name=argument.arg, kind=kind, default=value)


def _aliases(path: Path) -> Mapping[str, Any]:
    """Return the module's own names of kinds: ``Width = float`` can be read, ``Annotated[float, ...]`` not."""
    found = {}
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = annotated(ast.unparse(node.value))
            except NoKindError:
                continue
    return found


def _value(node: ast.expr, path: Path, depth: int = 0) -> Any:
    """Return the value of a constant expression: literals, and names that a module assigns or imports from another."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    if isinstance(node, ast.Tuple):
        return tuple(_value(one, path, depth) for one in node.elts)
    if not isinstance(node, ast.Name) or depth > 4:
        raise _UnknownError
    for statement in _tree(path).body:
        if isinstance(statement, ast.Assign) and (value := _assigned(statement, node.id)) is not None:
            return _value(value, path, depth + 1)
        if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            for alias in statement.names:
                source = source_of(statement.module) if (alias.asname or alias.name) == node.id else None
                if source is not None:
                    return _value(ast.Name(alias.name), source, depth + 1)
    raise _UnknownError


def _assigned(statement: ast.Assign, name: str) -> ast.expr | None:
    """Return what is assigned to a name, alone or as one of several; None for nothing."""
    for target in statement.targets:
        if isinstance(target, ast.Name) and target.id == name:
            return statement.value
        if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
            for one, value in zip(target.elts, statement.value.elts, strict=False):
                if isinstance(one, ast.Name) and one.id == name:
                    return value
    return None


class Registered(Protocol):
    """What the registry keeps of a check: what ``@check`` made, as `pytest_bnn.checks.check.Check`."""

    #: ``measure(model_or_subject, **options, **given)`` -> Evidence.
    measure: Callable[..., Any]
    #: The same; raises AssertionError when the claim fails.
    assert_: Callable[..., Any]

    @property
    def id(self) -> str:
        """How reports and options know it."""

    @property
    def declaration(self) -> Declaration:
        """What the check says of itself."""

    def judge(self, subject: Any, options: Mapping[str, object], budget: Any, *, severity: Any) -> Any:
        """Judge a subject as a part of an audit."""
