"""The settings, in one table: marker > command line > environment > ini file > preset > default.

pytest knows an option as ``--bnn-seed``, ini files as ``bnn_seed``, the environment as ``PYTEST_BNN_SEED``; the
command line ``pytest-bnn audit`` as ``--seed``.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, cast

from pytest_bnn.errors import InputError
from pytest_bnn.presets import DEFAULT, PRESETS, Preset
from pytest_bnn.reading import band, choice, device, error_rate, positive, seed, share, some_text, whole
from pytest_bnn.records.evidence import Inconclusive
from pytest_bnn.stats.budget import Budget


class Level(enum.IntEnum):
    """The kinds of sources that a value can come from, from the weakest to the strongest."""

    DEFAULT = 0
    PRESET = 1
    INI = 2
    TABLE = 3
    ENVIRONMENT = 4
    COMMAND_LINE = 5
    MARKER = 6
    EXPLICIT = 7


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a value, with its name for messages."""

    level: Level
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting: how it is read, and how ``--help`` explains it."""

    name: str
    default: str | int | float
    read: Callable[[str], str | int | float]
    metavar: str
    help: str
    switch: bool = False

    @property
    def argument(self) -> dict[str, Any]:
        """The arguments of argparse beside the name; a switch takes no value on a command line."""
        if self.switch:
            return {"action": "store_const", "const": "yes", "default": None}
        return {"metavar": self.metavar, "default": None}

    @property
    def shown(self) -> str:
        """The default, as ``--help`` shows it."""
        return str(self.default) if self.default != "" else "none"

    @property
    def key(self) -> str:
        """The name in Python and ini files: ``min_agreement``."""
        return self.name.replace("-", "_")

    @property
    def environment(self) -> str:
        """The environment variable: ``PYTEST_BNN_MIN_AGREEMENT``."""
        return f"PYTEST_BNN_{self.key.upper()}"


OPTIONS = (
    Option(
        name="preset",
        default=DEFAULT,
        read=choice(*PRESETS),
        metavar="|".join(PRESETS),
        help="set of settings below all others: smoke for a first look in seconds, strict for a release",
    ),
    Option(
        name="weights",
        default="digits",
        read=some_text,
        metavar="digits|imagenet|PATH",
        help="weights of the deterministic ResNet18: the embedded digits teacher, torchvision's ImageNet weights "
        "through its cache, or a .safetensors, .pt or .pth file",
    ),
    Option(
        name="type",
        default="Reparameterization",
        read=choice("Reparameterization", "Flipout"),
        metavar="Reparameterization|Flipout",
        help="estimator of the Bayesian layers in the ResNet18 that is converted here",
    ),
    Option(
        name="delta",
        default=0.1,
        read=positive,
        metavar="DELTA",
        help="MOPED delta of the ResNet18 that is converted here: sigma starts at DELTA * abs(weight)",
    ),
    Option(
        name="samples",
        default=128,
        read=whole(2),
        metavar="N",
        help="the most Monte-Carlo passes that a check may draw",
    ),
    Option(
        name="seed",
        default=0,
        read=seed,
        metavar="N|random",
        help="seed of all randomness in an audit; random draws a seed and says how to repeat the run",
    ),
    Option(
        name="min-agreement",
        default=0.95,
        read=share,
        metavar="P",
        help="share of the images on which the mean prediction must agree with the teacher",
    ),
    Option(
        name="spread",
        default="0.001:1",
        read=band,
        metavar="LOW:HIGH",
        help="allowed band of the predictive spread, relative to the outputs' spread over the images without noise",
    ),
    Option(
        name="alpha",
        default=1e-6,
        read=error_rate,
        metavar="P",
        help="probability that an audit fails a sound model; the checks that sample share it",
    ),
    Option(
        name="beta",
        default=1e-3,
        read=error_rate,
        metavar="P",
        help="probability that an audit passes a model that is beyond a threshold; the checks that sample share it",
    ),
    Option(
        name="population",
        default="no",
        read=choice("yes", "no"),
        metavar="yes|no",
        switch=True,
        help="require the agreement with the teacher of the whole population, of which the images are a random "
        "sample, not of these images alone",
    ),
    Option(
        name="inconclusive",
        default="fail",
        read=choice("fail", "warn"),
        metavar="fail|warn",
        help="how a claim counts that the passes could not decide: as a failure or as a warning",
    ),
    Option(
        name="threads",
        default=0,
        read=whole(0),
        metavar="N",
        help="number of threads an audit uses; 0 takes this process's share of the cores, which pytest-xdist's "
        "workers divide among themselves",
    ),
    Option(
        name="jobs",
        default=0,
        read=whole(0),
        metavar="N",
        help="number of processes that share the checks of an audit, each with one thread; 0 takes as many as there "
        "are free cores. With --checkpoints: number of processes that audit checkpoints",
    ),
    Option(
        name="sampler",
        default="auto",
        read=choice("auto", "own", "engine", "native"),
        metavar="auto|own|engine|native",
        help="sampler of the Monte-Carlo passes: own runs the model's own forward; engine is the sampling engine of "
        "the CPU, native the one that runs on any device, and either is an error where it cannot be used; auto is "
        "engine on the CPU and native elsewhere, where it was seen to reproduce the model's own passes, and own if not",
    ),
    Option(
        name="device",
        default="",
        read=device,
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="device that models are judged on, auto for an accelerator that is there; without one a model is judged "
        "where it is",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings in force, one field for each `Option`."""

    preset: str = DEFAULT
    weights: str = "digits"
    type: str = "Reparameterization"
    delta: float = 0.1
    samples: int = 128
    seed: int = 0
    min_agreement: float = 0.95
    spread: str = "0.001:1"
    alpha: float = 1e-6
    beta: float = 1e-3
    population: str = "no"
    inconclusive: Inconclusive = "fail"
    threads: int = 0
    jobs: int = 0
    sampler: str = "auto"
    device: str = ""


_settings: ContextVar[tuple[Settings, Mapping[str, Source]] | None] = ContextVar("pytest_bnn_settings", default=None)


@contextmanager
def using(settings: Settings, sources: Mapping[str, Source] | None = None) -> Iterator[None]:
    """Let settings be in force inside.

    Args:
        settings: All of them.
        sources: The source of each setting that was given, by key; None means that every setting away from its default
            was given.
    """
    if sources is None:
        changed = [f.name for f in fields(Settings) if getattr(settings, f.name) != getattr(Settings(), f.name)]
        sources = dict.fromkeys(changed, Source(Level.COMMAND_LINE, "the settings in force"))
    token = _settings.set((settings, sources))
    try:
        yield
    finally:
        _settings.reset(token)


def in_force() -> Settings:
    """Return the settings in force, the defaults where there are none."""
    return (_settings.get() or (Settings(), {}))[0]


def sources_in_force() -> Mapping[str, Source]:
    """Return the source of each setting in force, by key; settings at their defaults are left out."""
    return (_settings.get() or (Settings(), {}))[1]


def preset_in_force() -> Preset:
    """Return what the preset in force changes."""
    return PRESETS[in_force().preset]


def budget_in_force() -> Budget:
    """Return the budget of the settings in force: ``--bnn-alpha`` and ``--bnn-beta``."""
    settings = in_force()
    return Budget(alpha=settings.alpha, beta=settings.beta)


def resolve(command_line: Mapping[str, str | None], ini: Mapping[str, str] | None = None, *, prefix: str) -> Settings:
    """Settle every option from its sources.

    Args:
        command_line: What was given there, by key; None where nothing was.
        ini: What an ini file says, by key; empty texts say nothing.
        prefix: How options begin on that command line, for messages: ``--`` or ``--bnn-``.

    Raises:
        InputError: A value cannot be used; the message has the source it came from.
    """
    return resolve_with_sources(command_line, ini, prefix=prefix)[0]


def resolve_with_sources(
    command_line: Mapping[str, str | None],
    ini: Mapping[str, str] | None = None,
    *,
    prefix: str,
    preset: str = "",
) -> tuple[Settings, dict[str, Source]]:
    """Settle every option as `resolve` does, and return the source of each option that was given.

    Args:
        command_line: As in `resolve`.
        ini: As in `resolve`.
        prefix: As in `resolve`.
        preset: The preset that ``[tool.pytest-bnn]`` in pyproject.toml names, empty for none.
    """
    values: dict[str, Any] = {}
    given: dict[str, Source] = {}
    for option in OPTIONS:  # the preset is the first of them
        name = values.get("preset", DEFAULT)
        table = preset if option.key == "preset" else ""
        sources = (
            (Source(Level.COMMAND_LINE, prefix + option.name), command_line.get(option.key)),
            (Source(Level.ENVIRONMENT, option.environment), os.environ.get(option.environment) or None),
            (Source(Level.TABLE, "preset in pyproject.toml"), table or None),
            (Source(Level.INI, f"bnn_{option.key} in the ini file"), (ini or {}).get(option.key) or None),
            (Source(Level.PRESET, f"preset {name}"), PRESETS[name].settings.get(option.key)),
        )
        values[option.key] = option.default
        for source, text in sources:
            if text is not None:
                values[option.key], given[option.key] = _read(option, source.name, text), source
                break
    return Settings(**values), given


#: What the ``bnn`` marker may change for one test; the other settings belong to the session's fixtures.
OF_A_TEST = ("samples", "seed", "min_agreement", "spread", "alpha", "beta", "population", "inconclusive")


def overridden(settings: Settings, values: Mapping[str, object], source: str) -> Settings:
    """Return settings with some values of a single test replaced, validated as if from a command line.

    Raises:
        InputError: A key is not among `OF_A_TEST`, or its value cannot be used.
    """
    known = {option.key: option for option in OPTIONS if option.key in OF_A_TEST}
    replaced: dict[str, Any] = {field.name: getattr(settings, field.name) for field in fields(Settings)}
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{source} has no option {key!r}", fix=f"use one of {', '.join(known)}")
        replaced[key] = _read(known[key], f"{key} in {source}", str(value))
    return Settings(**replaced)


def _read(option: Option, source: str, text: str) -> str | int | float:
    try:
        return option.read(text)
    except (ValueError, OverflowError):
        raise InputError(f"{source} is {text!r}", fix=f"give {cast(str, option.read.__doc__)}") from None
