"""What is not at its default, and the command that repeats an audit with all of it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pytest_bnn.audit.plan import left_out
from pytest_bnn.audit.repeating import repeating
from pytest_bnn.audit.subjects import Described, chosen, own_choices
from pytest_bnn.audit.subjects import from_project as from_subjects
from pytest_bnn.checks import registry
from pytest_bnn.checks.changed import IN_PYTHON, changes, changes_by
from pytest_bnn.checks.choices import Choices, choosing, filled, from_project, from_texts, severity_of
from pytest_bnn.cli import parser
from pytest_bnn.options import OPTIONS, Level, Settings, Source, resolve_with_sources, using
from pytest_bnn.reading import DrawnSeed

INI, ENVIRONMENT, TYPED = (Source(level, "there") for level in (Level.INI, Level.ENVIRONMENT, Level.COMMAND_LINE))


def said(text: str) -> dict[str, tuple[str, str]]:
    with choosing(from_texts(text.split(), "--set")):
        return {change.name: (change.value, change.default) for change in changes()}


def test_what_is_given_at_its_default_is_no_change() -> None:
    """But to insist that few examples decide is one: without it they count as a warning."""
    with using(Settings(), {"samples": TYPED, "alpha": TYPED}):
        assert changes() == ()
    with using(Settings(), {"inconclusive": TYPED}):
        (change,) = changes()
    assert (change.value, change.default) == ("fail", "fail, and warn where examples are too few")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kl.loss.num_batches=45", {"kl.loss.num_batches": ("45", "none")}),
        ("kl.loss.num_batches=none", {}),
        ("noise.spread.band=1e-3:1", {}),
        ("noise.spread.band=.01:2", {"noise.spread.band": (".01:2", "0.001:1.0")}),
        ("kl.loss.severity=warn", {"kl.loss.severity": ("warn", "error")}),
        ("kl.loss.severity=error", {}),
        ("teacher.agreement.population=yes", {"teacher.agreement.population": ("yes", "no")}),
        (
            "layers.replaced.allow=fc=kept layers.replaced.allow=stem=fast",
            {"layers.replaced.allow": ("fc=kept; stem=fast", "none")},
        ),
    ],
)
def test_options_of_checks(text: str, expected: dict[str, tuple[str, str]]) -> None:
    """Values are compared as they are read, and shown as they were written."""
    assert said(text) == expected


def test_what_a_stronger_source_makes_void_is_no_change(tmp_path: Path) -> None:
    """The table of a project loses to the environment, and one of two options that exclude each other to the other."""
    (tmp_path / "pyproject.toml").write_text(
        "[tool.pytest-bnn.checks]\n'teacher.agreement' = { min_agreement = 0.5 }\n'kl.loss' = { kl_weight = 2 }\n",
        encoding="utf-8",
    )
    chosen = from_project(tmp_path).and_also(from_texts(["kl.loss.num_batches=3"], "--set"))
    with using(Settings(min_agreement=0.9), {"min_agreement": ENVIRONMENT}), choosing(chosen):
        assert {change.name for change in changes()} == {"min_agreement", "kl.loss.num_batches"}
        assert repeating(["pytest"], [], prefix="--bnn-") == "pytest --bnn-min-agreement=0.9"


def test_arguments_in_python() -> None:
    """What a call gives at the default changes nothing."""
    given = {"min_agreement": 0.5, "population": False, "max_passes": 128}
    (change,) = changes_by("teacher.agreement", given, IN_PYTHON)
    assert (change.name, change.value, change.default) == ("teacher.agreement.min_agreement", "0.5", "0.95")
    assert change.source == IN_PYTHON


@pytest.mark.parametrize("prefix", ["--", "--bnn-"])
def test_the_command_spells_every_setting(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again, it gives the same settings without the environment and the files."""
    values = {
        "weights": "a b.pt", "type": "Flipout", "delta": "0.3", "samples": "64", "seed": "random",
        "min_agreement": "0.7", "spread": "", "alpha": "1e-5", "beta": "0.01", "population": "yes",
        "inconclusive": "warn", "threads": "2", "jobs": "3", "sampler": "own", "device": "cpu",
        "preset": "smoke",
    }  # fmt: skip
    assert set(values) == {option.key for option in OPTIONS}
    for option in OPTIONS:
        monkeypatch.setenv(option.environment, values[option.key])
    settings, sources = resolve_with_sources({}, prefix=prefix)
    assert isinstance(settings.seed, DrawnSeed)
    (tmp_path / "pyproject.toml").write_text(
        "[tool.pytest-bnn.checks.'noise.spread']\nband = [0.01, 0.5]\nseverity = 'warn'\n"
        "[tool.pytest-bnn.checks.'layers.replaced']\nallow = { fc = \"it's kept\", stem = 'fast' }\n",
        encoding="utf-8",
    )
    with using(settings, sources), choosing(from_project(tmp_path)):
        line = repeating(["program", "audit"], ["-o", "it's.html", f"{prefix}seed", "random"], prefix=prefix)
    words = shlex.split(line)
    assert words[:4] == ["program", "audit", "-o", "it's.html"]
    assert "random" not in words
    sets = [word.removeprefix(f"{prefix}set=") for word in words if word.startswith(f"{prefix}set=")]
    assert sets == [
        "noise.spread.band=0.01:0.5", "noise.spread.severity=warn", "layers.replaced.allow=fc=it's kept",
        "layers.replaced.allow=stem=fast",
    ]  # fmt: skip
    for option in OPTIONS:
        monkeypatch.delenv(option.environment)
    if prefix == "--":
        again = parser().parse_args(["audit", *words[2:]])
        found, _ = resolve_with_sources({option.key: getattr(again, option.key) for option in OPTIONS}, prefix="--")
        assert found == settings
        assert again.set == sets


def test_behind_two_dashes_there_are_no_options() -> None:
    """What follows them is a file's name, to pytest."""
    with using(Settings(seed=3), {"seed": INI}):
        assert repeating(["pytest"], ["--", "-odd.py"], prefix="--bnn-") == "pytest --bnn-seed=3 -- -odd.py"


def test_what_was_not_asked_for() -> None:
    """Few are named, many counted."""
    ids = registry.ids()
    others = len(ids) - 2
    assert left_out(ids) == ()
    assert left_out(ids[:2]) == (f"only {ids[0]} and {ids[1]} were asked for, {others} other checks were not run",)
    assert left_out(ids[:-1]) == (f"only {len(ids) - 1} of {len(ids)} checks were asked for",)
    assert left_out([]) == (f"none of {len(ids)} checks was asked for",)


TABLES = """
[tool.pytest-bnn.checks."noise.spread"]
band = [0.01, 0.5]
[tool.pytest-bnn.checks."noise.varies"]
max_passes = 48
[tool.pytest-bnn.checks."uncertainty.*"]
severity = "warn"
[tool.pytest-bnn.subjects.plain]
model = "m:f"
[tool.pytest-bnn.subjects.own]
model = "m:f"
[tool.pytest-bnn.subjects.own.checks."noise.spread"]
band = [0.02, 0.9]
[tool.pytest-bnn.subjects.own.checks."noise.varies"]
max_passes = 96
[tool.pytest-bnn.subjects.own.checks."uncertainty.ood"]
severity = "error"
[tool.pytest-bnn.subjects.severe]
model = "m:f"
num-batches = 7
[tool.pytest-bnn.subjects.severe.checks."uncertainty.*"]
severity = "off"
"""


def in_force_for(
    subject: Described, given: Choices, typed: dict[str, str | None], ini: dict[str, str]
) -> dict[str, object]:
    """Every option of every check, as an audit of one subject has it."""
    settings, sources = resolve_with_sources(typed, ini, prefix="--")
    with using(settings, sources), choosing(given.and_also(subject.choices)):
        found = {id: (filled(registry.declaration(id), {}), severity_of(id)) for id in registry.built_in()}  # type: ignore[arg-type]
    return {"settings": settings, **found}


@pytest.mark.parametrize("names", [("plain",), ("own",), ("severe",), ("plain", "own"), ("own", "severe", "plain")])
@pytest.mark.parametrize(
    ("ini", "environment", "typed"),
    [
        ({}, {}, []),
        ({"samples": "32"}, {}, []),
        ({"samples": "32"}, {"PYTEST_BNN_SAMPLES": "64"}, []),
        ({"min_agreement": "0.7"}, {}, ["--set=noise.spread.band=0.1:1"]),
        ({}, {}, ["--samples=24", "--set=noise.varies.max_passes=40"]),
    ],
)
def test_the_command_repeats_what_is_each_subject_s_own(
    names: tuple[str, ...], ini: dict[str, str], environment: dict[str, str], typed: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What its table says goes before the project's, also when the project's is spelled on the command line."""
    (tmp_path / "pyproject.toml").write_text(TABLES, encoding="utf-8")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    audited = chosen(from_subjects(tmp_path), names, "--subject")

    def parsed(words: list[str]) -> tuple[dict[str, str | None], Choices]:
        given = parser().parse_args(["audit", *words])
        options = {option.key: getattr(given, option.key) for option in OPTIONS}
        return options, from_project(tmp_path).and_also(from_texts(given.set, "--set"))

    words, given = parsed(typed)
    before = {one.name: in_force_for(one, given, words, ini) for one in audited}
    settings, sources = resolve_with_sources(words, ini, prefix="--")
    with using(settings, sources), choosing(given):
        line = repeating(["p"], typed, prefix="--", own=own_choices(tmp_path, names))
    for name in environment:
        monkeypatch.delenv(name)
    again, given = parsed(shlex.split(line)[1:])
    assert {one.name: in_force_for(one, given, again, ini) for one in audited} == before
    if names == ("plain",) and not typed:
        assert "--set=noise.spread.band=0.01:0.5" in shlex.split(line), "spelled where no subject has its own"
