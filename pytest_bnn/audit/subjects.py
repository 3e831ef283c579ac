"""What is audited, as options or ``[tool.pytest-bnn.subjects.NAME]`` say it; nothing that they name is imported."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_bnn.audit.fields import ALLOW, KL_LOSS, PARTS, Field
from pytest_bnn.audit.plan import shorthands
from pytest_bnn.checks.choices import Choice, Choices, from_tables, project_table
from pytest_bnn.checks.declaration import source_of
from pytest_bnn.errors import InputError
from pytest_bnn.options import Level, Source

#: Between a subject's name and that of a checkpoint.
AT = "@"

_MODEL = "model"
_KNOWN = (_MODEL, *(one.name for one in PARTS), "checkpoints", *(one.name for one in KL_LOSS), ALLOW, "checks")
#: What can only be the name of something in a module.
_FUNCTIONS = (_MODEL, "teacher", "loss", "slices")
_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One network to audit.

    Attributes:
        name: Its name in the report.
        parts: The arguments of `pytest_bnn.audit.named.Named`.
        checkpoint: The file whose state its network gets; empty for what the factory gives.
        choices: Options of checks for it alone.
        called: How messages call a part: ``"--{}"``, with the part's name in place of the braces.
        path: The file to look into where a claim about it fails.
        line: The line there, from 1.
    """

    name: str
    parts: Mapping[str, Any]
    checkpoint: str = ""
    choices: Choices = field(default_factory=Choices)
    called: str = "--{}"
    path: Path = Path("pyproject.toml")
    line: int = 1


def is_named(text: str) -> bool:
    """Return whether a text is ``MODULE:FACTORY``, with names that Python can have."""
    return _NAME.fullmatch(text) is not None


def from_options(model: str, given: Mapping[str, Any], prefix: str) -> Described:
    """Describe the network of a command line.

    Args:
        model: ``MODULE:FACTORY``.
        given: The values of the options beside it, by their names in Python; None for what was not given.
        prefix: How options begin there: ``--`` or ``--bnn-``.

    Raises:
        InputError: A reason for ``allow`` is missing.
    """
    parts = {one.key: value for one in PARTS if (value := given.get(one.key)) is not None}
    short = {one.key: value for one in KL_LOSS if (value := given.get(one.key)) is not None}
    allow = allowed(given.get(ALLOW) or [], f"{prefix}{ALLOW}")
    path, line = _place_of(model)
    return Described(
        name=model,
        parts={_MODEL: model, **parts},
        choices=_short(short, allow, Level.COMMAND_LINE, f"{prefix}{{}}"),
        called=f"{prefix}{{}}",
        path=path,
        line=line,
    )


def allowed(texts: Iterable[str], option: str) -> dict[str, str]:
    """Read ``PATTERN=REASON``.

    Raises:
        InputError: There is no reason.
    """
    found = {}
    for text in texts:
        pattern, sign, reason = text.partition("=")
        if not (pattern.strip() and sign and reason.strip()):
            raise InputError(f"{option} is {text!r}", fix=f"give a reason too: {option} 'fc=kept for speed'")
        found[pattern.strip()] = reason.strip()
    return found


def from_project(folder: Path) -> tuple[Described, ...]:
    """Describe the networks of ``[tool.pytest-bnn.subjects]`` in the pyproject.toml of a folder, in their order.

    Raises:
        InputError: A table has other names or other values, or a pattern of checkpoints names no file.
    """
    tables = project_table(folder).get("subjects", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise InputError(
            "subjects in [tool.pytest-bnn] in pyproject.toml is no table of tables",
            fix='write [tool.pytest-bnn.subjects.my_net] with model = "MODULE:FACTORY"',
        )
    return tuple(one for name, table in tables.items() for one in _described(name, table, folder))


def own_choices(folder: Path, names: Collection[str]) -> frozenset[tuple[str, str]]:
    """Return what the tables of some subjects choose for themselves: ids of checks, or patterns, and options.

    Args:
        folder: Where pyproject.toml is.
        names: The names of the subjects in a report; those of others are left out.
    """
    known = {name.partition(AT)[0] for name in names}
    return frozenset(
        key for one in from_project(folder) if one.name.partition(AT)[0] in known for key in one.choices.by_name
    )


def chosen(subjects: Iterable[Described], names: Iterable[str], option: str) -> tuple[Described, ...]:
    """Return the subjects of some names, in the order of the names, each once; a name stands for its checkpoints too.

    Raises:
        InputError: There is no subject of a name; with the nearest one.
    """
    known = tuple(subjects)
    found: dict[str, Described] = {}
    for name in names:
        these = [one for one in known if one.name == name or one.name.startswith(f"{name}{AT}")]
        if not these:
            near = difflib.get_close_matches(name, [one.name for one in known], n=1)
            there = ", ".join(one.name for one in known)
            fix = f"did you mean {near[0]}" if near else f"listed are {there}" if known else "list it there first"
            raise InputError(f"{option}: there is no [tool.pytest-bnn.subjects.{name}] in pyproject.toml", fix=fix)
        found.update({one.name: one for one in these})
    return tuple(found.values())


def _described(name: str, table: Mapping[str, Any], folder: Path) -> list[Described]:
    where = f"[tool.pytest-bnn.subjects.{name}] in pyproject.toml"
    if not re.fullmatch(r"[\w.+-]+", name):
        raise InputError(f"{where}: {name!r} is no name", fix="use letters, digits, '_', '.', '+' and '-'")
    given = {key if key == "checks" else key.replace("_", "-"): value for key, value in table.items()}
    for key in given:
        if key not in _KNOWN:
            near = difflib.get_close_matches(key, _KNOWN, n=1)
            fix = f"did you mean {near[0]}" if near else f"it may have {', '.join(_KNOWN)}"
            raise InputError(f"{where} has {key!r}", fix=fix)
    if _MODEL not in given:
        raise InputError(f"{where} has no model", fix='add model = "MODULE:FACTORY"')
    texts = {one.name: one for one in (Field(name=_MODEL, metavar="MODULE:FACTORY", help=""), *PARTS, *KL_LOSS)}
    values = {texts[key].key: _value(texts[key], value, where) for key, value in given.items() if key in texts}
    for key in _FUNCTIONS:
        module, _, function = values.get(key, "MODULE:FACTORY").partition(":")
        if not (module and function):
            raise InputError(f"{key} in {where} is {values[key]!r}", fix=f"give {texts[key].metavar}")
    allow = given.get(ALLOW, {})
    if not isinstance(allow, dict) or not all(isinstance(why, str) and why.strip() for why in allow.values()):
        raise InputError(f"{ALLOW} in {where} is {allow!r}", fix='give reasons: allow = { fc = "kept for speed" }')
    of_kl = {one.key: values.pop(one.key) for one in KL_LOSS if one.key in values}
    said = f"of the subject {name!r} in pyproject.toml"
    own = from_tables(given.get("checks", {}), where, f"tool.pytest-bnn.subjects.{name}", said)
    described = Described(
        name=name,
        parts=values,
        choices=_short(of_kl, allow, Level.TABLE, f"{{}} {said}").and_also(own),
        called=f"{{}} {said}",
        path=folder / "pyproject.toml",
        line=_line_of(name, folder / "pyproject.toml"),
    )
    files = _files(given.get("checkpoints", []), folder, where)
    return _of_checkpoints(described, files, folder) if "checkpoints" in given else [described]


def _value(one: Field, value: object, where: str) -> Any:
    try:
        return one.of_toml(value)
    except (ValueError, OverflowError):
        raise InputError(f"{one.name} in {where} is {value!r}", fix=f"give {one.words}") from None


def _short(of_kl: Mapping[str, Any], allow: Mapping[str, str], level: Level, called: str) -> Choices:
    """Make choices of what is short for options of checks."""
    found = {}
    for id, options in shorthands(**of_kl, allow=allow).items():
        for key, value in options.items():
            found[id, key] = (Choice((value,), Source(level, called.format(key.replace("_", "-")))),)
    return Choices(found)


def _files(given: object, folder: Path, where: str) -> list[Path]:
    patterns = [given] if isinstance(given, str) else given
    fix = 'give a file, a pattern such as "runs/*/last.safetensors", or a list of these'
    if not isinstance(patterns, list) or not all(isinstance(one, str) and one for one in patterns):
        raise InputError(f"checkpoints in {where} is {given!r}", fix=fix)
    found: list[Path] = []
    for pattern in patterns:
        names = sorted(glob.glob(pattern, root_dir=folder, recursive=True))  # noqa: PTH207  seen from the folder
        files = [path for name in names if (path := folder / name).is_file()]
        if not files:
            raise InputError(f"checkpoints in {where}: no file is called {pattern!r}", fix=fix)
        found += files
    return list(dict.fromkeys(found))


def _of_checkpoints(described: Described, files: list[Path], folder: Path) -> list[Described]:
    short = [file.name for file in files]
    alone = len(set(short)) == len(short)
    return [
        replace(
            described,
            name=f"{described.name}{AT}{file.name if alone else _relative(file, folder)}",
            checkpoint=str(file),
        )
        for file in files
    ]


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.as_posix()


def _line_of(name: str, path: Path) -> int:
    """Return the line of a subject's table; that of the first line where it is written in another way."""
    header = re.compile(
        rf"\s*\[\s*tool\s*\.\s*[\"']?pytest-bnn[\"']?\s*\.\s*subjects\s*\.\s*[\"']?{re.escape(name)}[\"'\s.\]]"
    )
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(lines, 1) if header.match(line)), 1)


def _place_of(model: str) -> tuple[Path, int]:
    """Return the file and the line of a factory, without importing it; the current folder where that is not known."""
    module, _, name = model.partition(":")
    path = source_of(module) if is_named(model) else None
    if path is None:
        return Path.cwd(), 1
    made = re.compile(rf"\s*(async\s+)?(def|class)\s+{re.escape(name)}\b|{re.escape(name)}\s*(:[^=]*)?=")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return path, 1
    return path, next((number for number, line in enumerate(lines, 1) if made.match(line)), 1)
