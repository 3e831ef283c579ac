"""What was chosen for the options of checks, and where: ``--set``, the marker, pyproject.toml, the settings.

Of the sources that name an option the first one counts: an argument in Python, the ``bnn`` marker, the command line,
the environment, ``[tool.pytest-bnn.checks]`` in pyproject.toml, pytest's ini file, the preset, the default in the
check's signature. In one source, the option itself goes before a setting that it follows. Only values that count are
validated.
"""

from __future__ import annotations

import difflib
import fnmatch
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from pytest_bnn.checks import registry
from pytest_bnn.checks.declaration import CheckOption, Declaration
from pytest_bnn.errors import InputError, OptionError
from pytest_bnn.options import Level, Source, in_force, preset_in_force, sources_in_force
from pytest_bnn.presets import PRESETS

Severity: TypeAlias = Literal["error", "warn", "off"]

#: What every check has beside the options of its signature.
SEVERITY = "severity"

_TABLE = "[tool.pytest-bnn] in pyproject.toml"


@dataclass(frozen=True, slots=True)
class Choice:
    """The values that one source gives for one option, not yet parsed: two where it gives the option twice.

    ``place`` tells tables of one level apart: that of a subject goes before the project's.
    """

    given: tuple[object, ...]
    source: Source
    place: int = 0


@dataclass(frozen=True, slots=True)
class Choices:
    """What the sources say, by check and option, from the weakest source to the strongest."""

    by_name: Mapping[tuple[str, str], tuple[Choice, ...]] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    preset: str = ""

    def strongest(self, id: str, option: str) -> Choice | None:
        """Return the choice of the strongest source, of equals the last; None where no source names the option.

        In one source, a check's own id goes before a pattern such as ``uncertainty.*``.
        """
        own = self.by_name.get((id, option), ())
        found: tuple[Choice, ...] = ()
        if option == SEVERITY:
            patterns = [name for name in self.by_name if _is_pattern(name[0]) and name[1] == option]
            matching = [name for name in patterns if name[0] != id and fnmatch.fnmatchcase(id, name[0])]
            found = tuple(choice for name in matching for choice in self.by_name[name])
        # Of equals, `max` returns the first.
        return max(reversed((*found, *own)), key=lambda choice: (choice.source.level, choice.place), default=None)

    def and_also(self, other: Choices) -> Choices:
        """Merge these choices with others, which go before those of the same level."""
        names = {*self.by_name, *other.by_name}
        first = 1 + max((choice.place for found in self.by_name.values() for choice in found), default=-1)
        later = {
            name: tuple(replace(choice, place=first + choice.place) for choice in found)
            for name, found in other.by_name.items()
        }
        both = {name: (*self.by_name.get(name, ()), *later.get(name, ())) for name in names}
        plugins = (*self.plugins, *(p for p in other.plugins if p not in self.plugins))
        return Choices(both, plugins, other.preset or self.preset)


_NONE = Choices()
_choices: ContextVar[Choices] = ContextVar("pytest_bnn_choices", default=_NONE)


@contextmanager
def choosing(choices: Choices) -> Iterator[None]:
    """Let choices be in force inside."""
    token = _choices.set(choices)
    try:
        yield
    finally:
        _choices.reset(token)


def chosen() -> Choices:
    """Return the choices in force."""
    return _choices.get()


def from_texts(texts: Iterable[str], option: str) -> Choices:
    """Take ``kl.prior.sigma=.5`` from a command line, where ``option`` is ``--set`` or ``--bnn-set``.

    Raises:
        InputError: A text has another form.
    """
    found: dict[tuple[str, str], Choice] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        id, dot, key = name.strip().rpartition(".")
        if not (sign and dot and id and key):
            raise InputError(f"{option} is {text!r}", fix=f"write it like {option} kl.loss.num_batches=45")
        source = Source(Level.COMMAND_LINE, f"{option} {id}.{key}")
        before = found[id, key].given if (id, key) in found else ()
        found[id, key] = Choice((*before, value), source)
    return Choices({name: (choice,) for name, choice in found.items()})


def from_names(names: object, level: Level, where: str) -> Choices:
    """Take ``{"kl.loss.num_batches": 45}``, or ``{"kl.loss": {"num_batches": 45}}``, as a marker has it.

    Raises:
        InputError: It is no mapping of this form.
    """
    fix = 'write it like {"kl.loss.num_batches": 45}'
    if not isinstance(names, Mapping):
        raise InputError(f"set in {where} is {names!r}", fix=fix)
    found = {}
    for name, value in names.items():
        known = isinstance(name, str) and isinstance(value, Mapping) and name in registry.ids()
        inner = {f"{name}.{key}": one for key, one in value.items()} if known else {name: value}
        for path, one in inner.items():
            id, dot, key = str(path).rpartition(".")
            if not (dot and id and key):
                raise InputError(f"set in {where} names {path!r}", fix=fix)
            found[id, key] = (Choice((one,), Source(level, f"{id}.{key} in {where}")),)
    return Choices(found)


def project_table(folder: Path) -> Mapping[str, Any]:
    """Return ``[tool.pytest-bnn]`` of the pyproject.toml of a folder; empty where there is none.

    Raises:
        InputError: The file is not TOML, or the table has other names.
    """
    path = folder / "pyproject.toml"
    if not path.is_file():
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("pytest-bnn", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error})", fix="mend it, or move it away") from error
    if not isinstance(table, dict):
        raise InputError(f"{_TABLE} is {table!r}", fix="make it a table")
    for name in table:
        if name not in ("plugins", "checks", "preset", "subjects"):
            raise InputError(
                f"{_TABLE} has no {name!r}",
                fix='use plugins = ["MODULE"], [tool.pytest-bnn.checks."kl.loss"] and [tool.pytest-bnn.subjects.NAME]; '
                "other settings are bnn_* in [tool.pytest.ini_options]",
            )
    return table


def from_project(folder: Path) -> Choices:
    """Take ``[tool.pytest-bnn]`` from the pyproject.toml of a folder: plugins, a preset, checks with a table each.

    Raises:
        InputError: As in `project_table`, or other values are in it.
    """
    table = project_table(folder)
    plugins, preset = table.get("plugins", []), table.get("preset", "")
    if not isinstance(preset, str):
        raise InputError(f"preset in {_TABLE} is {preset!r}", fix=f"give {' or '.join(PRESETS)}")
    if not isinstance(plugins, list) or not all(isinstance(one, str) and one for one in plugins):
        raise InputError(f"plugins in {_TABLE} is {plugins!r}", fix='give names of modules: ["mycompany.checks"]')
    found = from_tables(table.get("checks", {}), _TABLE, "tool.pytest-bnn", "in pyproject.toml")
    return Choices(found.by_name, tuple(plugins), preset)


def from_tables(checks: object, where: str, path: str, source: str) -> Choices:
    """Take a table of checks, each of them a table of options.

    Args:
        checks: What TOML made of it.
        where: What it is in, for messages.
        path: The name of the table around it.
        source: How the source of one option is called, behind the option's name.

    Raises:
        InputError: It has another form.
    """
    found = {}
    for id, options in checks.items() if isinstance(checks, dict) else [("", checks)]:
        if not isinstance(options, dict):
            raise InputError(f"checks in {where} has {id!r} = {options!r}", fix=f'write [{path}.checks."ID"]')
        if any(isinstance(value, dict) for value in options.values()) and id not in registry.ids() and "." not in id:
            raise InputError(
                f"checks in {where} has the table {id!r}, which is no check",
                fix=f'put the id in quotes: [{path}.checks."{id}.{next(iter(options))}"]',
            )
        for key, value in options.items():
            found[id, key] = (Choice((value,), Source(Level.TABLE, f"{id}.{key} {source}")),)
    return Choices(found)


def from_preset(name: str) -> Choices:
    """Take the options of checks that a preset, given by its name, changes."""
    source = Source(Level.PRESET, f"preset {name}")
    options = PRESETS[name].options.items()
    return Choices({(id, key): (Choice((value,), source),) for id, named in options for key, value in named.items()})


def left_out_by_preset(id: str) -> bool:
    """Return whether the preset in force leaves out a check that nobody asks for by an option or a severity."""
    left_out = any(fnmatch.fnmatchcase(id, pattern) for pattern in preset_in_force().leaves_out)
    return left_out and not any(fnmatch.fnmatchcase(id, name) for name, _ in chosen().by_name)


def require_usable(choices: Choices, *, finally_: bool) -> None:
    """Validate the values that count.

    Args:
        choices: What was chosen.
        finally_: Whether every check is known by now; before that, an id that is not known may still be declared.

    Raises:
        InputError: There is no such check or option, or the value cannot be used; with the source it came from.
    """
    known = registry.ids()
    for id, key in choices.by_name:
        choice = choices.strongest(id, key)
        assert choice is not None
        if _is_pattern(id):
            _require_pattern(id, key, choice, known if finally_ else ())
            continue
        if id in known:
            declaration = registry.declaration(id)
            if declaration is not None:
                _read(_option(declaration, key, choice.source.name), choice)
            continue
        near = difflib.get_close_matches(id, known, n=1, cutoff=0.8)
        ours = id.partition(".")[0] in {one.partition(".")[0] for one in registry.built_in()}
        if finally_ or near or ours:
            registry.refuse(id, choice.source.name)


def filled(check: Declaration, explicit: Mapping[str, object]) -> dict[str, Any]:
    """Return every option of a check, those in ``explicit`` as they are and the others from what is in force.

    Raises:
        TypeError: An explicit name is no option.
        OptionError: An explicit value cannot be used.
        InputError: Another source's value cannot be used.
    """
    values: dict[str, Any] = {}
    levels: dict[str, Level] = {}
    for name in explicit:
        if check.option(name) is None:
            has = ", ".join(option.name for option in check.options)
            raise TypeError(f"{check.id} has no option {name!r}; it has {has or 'none'}")
    for option in check.options:
        if option.name in explicit:
            values[option.name], levels[option.name] = _judged(option, explicit[option.name]), Level.EXPLICIT
        else:
            values[option.name], source = _found(check, option)
            levels[option.name] = source.level
    _settle_either(check, values, levels)
    return values


def severity_of(id: str) -> Severity:
    """Return the severity of a check: whether a failure is an error or a warning, or the claim is not judged.

    Raises:
        InputError: The severity is none of these.
    """
    choice = chosen().strongest(id, SEVERITY)
    if choice is None:
        return "error"
    word = choice.given[-1]
    if word not in get_args(Severity):
        raise InputError(f"{choice.source.name} is {word!r}", fix="give error, warn or off")
    return word  # type: ignore[return-value]


def _is_pattern(id: str) -> bool:
    return "*" in id


def _require_pattern(pattern: str, key: str, choice: Choice, known: Iterable[str]) -> None:
    """Refuse a pattern for another option than the severity, and one that no known check matches, if any is known."""
    if key != SEVERITY:
        raise InputError(f"{choice.source.name}: {pattern!r} is a pattern", fix=f"patterns take {SEVERITY} alone")
    _read(None, choice)
    ids = tuple(known)
    if ids and not fnmatch.filter(ids, pattern):
        raise InputError(
            f"{choice.source.name}: no check is called like {pattern!r}", fix=f"there are {', '.join(ids)}"
        )


def _option(check: Declaration, key: str, where: str) -> CheckOption | None:
    option = check.option(key)
    if option is None and key != SEVERITY:
        names = [*(one.name for one in check.options), SEVERITY]
        near = difflib.get_close_matches(key, names, n=1)
        fix = f"did you mean {near[0]}" if near else f"it has {', '.join(names)}"
        raise InputError(f"{where}: {check.id} has no option {key!r}", fix=fix)
    return option


def _read(option: CheckOption | None, choice: Choice) -> Any:
    """Read a choice; the option None is the severity."""
    if option is None:
        if choice.given[-1] not in get_args(Severity):
            raise InputError(f"{choice.source.name} is {choice.given[-1]!r}", fix="give error, warn or off")
        return choice.given[-1]
    try:
        values = [option.kind.read(one) for one in choice.given]
    except (ValueError, OverflowError):
        raise InputError(f"{choice.source.name} is {choice.given[-1]!r}", fix=f"give {option.kind.words}") from None
    if isinstance(values[-1], dict):
        return {name: text for value in values for name, text in (value or {}).items()}
    return values[-1]


def _judged(option: CheckOption, value: object) -> Any:
    try:
        return option.kind.judged(value)
    except (ValueError, OverflowError):
        problem = f"{option.name} is {value!r}"
        raise OptionError(problem, fix=f"give {option.kind.words}") from None


def _found(check: Declaration, option: CheckOption) -> tuple[Any, Source]:
    choice = chosen().strongest(check.id, option.name)
    follows = option.kind.follows
    setting = sources_in_force().get(follows.setting) if follows is not None else None
    if choice is not None and (setting is None or choice.source.level >= setting.level):
        return _read(option, choice), choice.source
    if follows is not None and setting is not None:
        value = option.kind.read(getattr(in_force(), follows.setting))
        return min(option.default, value) if follows.lowers else value, setting
    return option.default, Source(Level.DEFAULT, "default")


def _settle_either(check: Declaration, values: dict[str, Any], levels: dict[str, Level]) -> None:
    """Of options that exclude each other, keep the one from the strongest source."""
    given = {name: levels[name] for name in check.either if values[name] is not None}
    if len(given) < 2:
        return
    strongest = [name for name in given if given[name] == max(given.values())]
    if len(strongest) > 1:
        raise OptionError(
            f"{check.id} has both {' and '.join(strongest)}", fix=f"give {' or '.join(strongest)}, not both"
        )
    for name in given:
        if name not in strongest:
            values[name] = None
