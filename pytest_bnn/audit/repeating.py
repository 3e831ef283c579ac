"""The command that repeats an audit, whatever the environment and the files of settings say then."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Collection, Sequence

from pytest_bnn.checks import registry
from pytest_bnn.checks.changed import choices_that_count, texts
from pytest_bnn.options import OPTIONS, Level, in_force, sources_in_force
from pytest_bnn.reading import DrawnSeed

#: Sources that a command line does not show.
_HIDDEN = (Level.INI, Level.TABLE, Level.ENVIRONMENT)


def repeating(
    program: Sequence[str], arguments: Sequence[str], *, prefix: str, own: Collection[tuple[str, str]] = ()
) -> str:
    """Return the command for a shell that repeats what is in force, with everything spelled out.

    Settings from the environment and from files become options, and a seed that was drawn becomes its number. A check
    of which the own table of an audited subject says something is left to that file, from which the subject comes, too:
    as options of the command line, the project's values would go before those of the subject.

    Args:
        program: The program, with its command where it has some.
        arguments: What it was given beside these.
        prefix: How options begin on its command line: ``--`` or ``--bnn-``.
        own: What the tables of the audited subjects choose for themselves: ids of checks, or patterns, and options.
    """
    spelled = []
    beside = _settings_beside(own)
    for option in OPTIONS:
        source, value = sources_in_force().get(option.key), getattr(in_force(), option.key)
        if source is None or (source.level not in _HIDDEN and not isinstance(value, DrawnSeed)):
            continue
        if option.key in beside and source.level < Level.TABLE:
            continue
        if not option.switch:
            spelled.append(f"{prefix}{option.name}={value}")
        elif value == "yes":
            spelled.append(f"{prefix}{option.name}")
    for id, key, choice in choices_that_count():
        if choice.source.level is Level.TABLE and not any(_meet(id, other) for other, _ in own):
            spelled += [f"{prefix}set={id}.{key}={text}" for given in choice.given for text in texts(given)]
    kept = _without_drawn_seed(arguments, f"{prefix}seed")
    # Of two equal options the last one counts; behind "--" there are none.
    words = [*spelled, *kept] if "--" in kept else [*kept, *spelled]
    return shlex.join([*program, *words])


def _meet(one: str, other: str) -> bool:
    """Say whether two ids of checks, of which either may be a pattern, can name the same check."""
    return fnmatch.fnmatchcase(one, other) or fnmatch.fnmatchcase(other, one)


def _settings_beside(own: Collection[tuple[str, str]]) -> set[str]:
    """Return the settings that options follow which a subject chooses for itself: it goes before those of a file."""
    known, found = registry.ids(), set()
    for id, key in own:
        declared = registry.declaration(id) if id in known else None
        option = None if declared is None else declared.option(key)
        if option is not None and option.kind.follows is not None:
            found.add(option.kind.follows.setting)
    return found


def _without_drawn_seed(arguments: Sequence[str], option: str) -> list[str]:
    """Leave out the option that draws a seed."""
    kept: list[str] = []
    for argument in arguments:
        if argument == "random" and kept and kept[-1] == option:
            kept.pop()
        elif argument != f"{option}=random":
            kept.append(argument)
    return kept
