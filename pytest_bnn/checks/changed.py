"""Which settings and options of checks are not at their defaults, as the report shows them, and as texts to repeat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytest_bnn.checks import registry
from pytest_bnn.checks.choices import SEVERITY, Choice, chosen
from pytest_bnn.checks.declaration import CheckOption, Declaration
from pytest_bnn.options import OPTIONS, Level, in_force, sources_in_force
from pytest_bnn.reading import DrawnSeed
from pytest_bnn.records.run import Change

#: Where an option was given that is an argument of a call.
IN_PYTHON = "an argument in Python"

#: The severity of a check that nobody set.
_ERROR = "error"


def changes() -> tuple[Change, ...]:
    """Return the settings and options of checks in force that are not at their defaults."""
    settings, found = in_force(), []
    for option in OPTIONS:
        source = sources_in_force().get(option.key)
        value = getattr(settings, option.key)
        if source is None or source.level is Level.DEFAULT or not _differs(option.key, value, option.default):
            continue
        default = str(option.default)
        if option.key == "inconclusive":
            default = "fail, and warn where examples are too few"
        drawn = "random, as " if isinstance(value, DrawnSeed) else ""
        found.append(Change(name=option.key, value=str(value), default=default, source=f"{drawn}{source.name}"))
    for id, key, choice in choices_that_count():
        default = _default(id, key)
        value = "; ".join(text for given in choice.given for text in texts(given)) or "none"
        if _shown(id, key, choice, value) != default:
            found.append(Change(name=f"{id}.{key}", value=value, default=default, source=choice.source.name))
    return tuple(found)


def changes_by(id: str, options: Mapping[str, object], source: str) -> tuple[Change, ...]:
    """Return the options of a check that a call gives and that are not at their defaults.

    Args:
        id: The check's id.
        options: The values, by the options' names.
        source: Where they are given.
    """
    said = {name: "; ".join(texts(value)) or "none" for name, value in options.items()}
    return tuple(
        Change(name=f"{id}.{name}", value=value, default=_default(id, name), source=source)
        for name, value in said.items()
        if value != _default(id, name)
    )


def choices_that_count() -> Iterator[tuple[str, str, Choice]]:
    """Yield the choices in force, each with its check and option, that no stronger source makes void."""
    choices = chosen()
    for id, key in choices.by_name:
        choice = choices.strongest(id, key)
        assert choice is not None
        declaration, option = _declared(id, key)
        rivals = []
        if option is not None and option.kind.follows is not None:
            rivals.append(sources_in_force().get(option.kind.follows.setting))
        if declaration is not None and key in declaration.either:
            others = (choices.strongest(id, other) for other in declaration.either if other != key)
            rivals += [other.source for other in others if other is not None]
        if all(rival is None or rival.level <= choice.source.level for rival in rivals):
            yield id, key, choice


def texts(value: Any) -> list[str]:
    """Return a value of an option as a command line gives it: one text, or one for each name of a mapping."""
    if isinstance(value, Mapping):
        return [f"{name}={text}" for name, text in value.items()]
    if isinstance(value, list | tuple):
        return [":".join(text for one in value for text in texts(one))]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return ["none" if value is None else str(value)]


def _declared(id: str, key: str) -> tuple[Declaration | None, CheckOption | None]:
    """Return what is known of a check and of its option; a conftest of a worker may know more."""
    declaration = registry.declaration(id) if id in registry.ids() else None
    return declaration, None if declaration is None else declaration.option(key)


def _differs(key: str, value: object, default: object) -> bool:
    """Say whether a setting that was given changes anything; to insist on failures changes what few examples mean."""
    return value != default or key == "inconclusive"


def _default(id: str, key: str) -> str:
    if key == SEVERITY:
        return _ERROR
    _, option = _declared(id, key)
    return "" if option is None else "; ".join(texts(option.default)) or "none"


def _shown(id: str, key: str, choice: Choice, value: str) -> str:
    """Return a choice as the default is written, so that 0.5 and ".5" are the same."""
    _, option = _declared(id, key)
    if option is None:
        return value
    try:
        read = option.kind.read(choice.given[-1])
    except (ValueError, OverflowError):
        return value
    return value if isinstance(read, Mapping) else "; ".join(texts(read)) or "none"
