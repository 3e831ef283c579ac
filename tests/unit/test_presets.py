"""Presets are the weakest source above the defaults, and severities reach several checks at once, by every road."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest
import torch
from torch import nn

import pytest_bnn
from pytest_bnn.audit import subjects
from pytest_bnn.audit.plan import plan
from pytest_bnn.audit.run import audit_model, planned
from pytest_bnn.checks import choices, registry
from pytest_bnn.checks.changed import changes
from pytest_bnn.checks.choices import choosing, filled, from_names, from_preset, from_project, from_texts, severity_of
from pytest_bnn.errors import InputError
from pytest_bnn.options import OPTIONS, Level, Settings, resolve_with_sources, using
from pytest_bnn.presets import PRESETS
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.run import AuditRun
from pytest_bnn.stats.budget import Budget


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in OPTIONS:
        monkeypatch.delenv(option.environment, raising=False)


@pytest.mark.parametrize("name", PRESETS)
def test_all_that_a_preset_names_exists_and_can_be_used(name: str) -> None:
    preset = PRESETS[name]
    known = {option.key: option for option in OPTIONS}
    for key, text in preset.settings.items():
        known[key].read(text)
    choices.require_usable(from_preset(name), finally_=True)
    assert all(fnmatch.filter(registry.built_in(), pattern) for pattern in preset.leaves_out)
    assert bool(preset.words) is bool(preset.leaves_out)


def test_the_default_changes_nothing() -> None:
    settings, sources = resolve_with_sources({}, prefix="--")
    assert (settings, sources) == (Settings(), {})
    assert from_preset("default").by_name == {}


def test_strict_is_nowhere_laxer_than_the_default() -> None:
    """More passes, smaller margins and bands, and nothing undecided; by the defaults in the signatures."""
    settings = resolve_with_sources({"preset": "strict"}, prefix="--")[0]
    assert (settings.population, settings.inconclusive) == ("yes", "fail")
    assert settings.samples > Settings().samples
    assert settings.min_agreement >= Settings().min_agreement
    assert settings.beta <= Settings().beta
    (low, high), (default_low, default_high) = (map(float, one.spread.split(":")) for one in (settings, Settings()))
    assert default_low < low < high < default_high
    for id, options in PRESETS["strict"].options.items():
        declared = registry.declaration(id)
        assert declared is not None
        for key, value in options.items():
            option = declared.option(key)
            assert option is not None
            if key == "band":
                assert isinstance(value, tuple)
                assert option.default[0] < value[0] < value[1] < option.default[1]
            elif key == "max_passes":
                assert value > option.default
            else:
                assert value < option.default


@pytest.mark.parametrize(
    ("given", "ini", "environment", "table", "expected", "level"),
    [
        ({}, {"preset": "strict"}, None, "", 512, Level.PRESET),
        ({}, {}, "strict", "", 512, Level.PRESET),
        ({}, {}, None, "strict", 512, Level.PRESET),
        ({"preset": "strict"}, {}, None, "smoke", 512, Level.PRESET),
        ({"preset": "strict", "samples": "64"}, {}, None, "", 64, Level.COMMAND_LINE),
        ({"preset": "strict"}, {"samples": "64"}, None, "", 64, Level.INI),
    ],
)
def test_a_preset_comes_from_everywhere_and_whatever_is_given_wins(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str | None],
    ini: dict[str, str],
    environment: str | None,
    table: str,
    expected: int,
    level: Level,
) -> None:
    if environment is not None:
        monkeypatch.setenv("PYTEST_BNN_PRESET", environment)
    settings, sources = resolve_with_sources(given, ini, prefix="--", preset=table)
    assert (settings.samples, sources["samples"].level) == (expected, level)
    with using(settings, sources):
        said = {change.name: change.source for change in changes()}
    assert ("preset strict" in said.values()) is True
    assert (said["samples"] == "preset strict") is (level is Level.PRESET)


@pytest.mark.parametrize(
    ("table", "said"),
    [("preset = 3", "preset in .* is 3"), ('preset = "quick"', "'quick'. Give smoke or default or strict")],
)
def test_a_preset_that_does_not_exist_is_refused(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.pytest-bnn]\n{table}\n", encoding="utf-8")
    with pytest.raises(InputError, match=said):
        resolve_with_sources({}, prefix="--", preset=from_project(tmp_path).preset)


def test_options_of_checks_come_from_a_preset_unless_they_are_given() -> None:
    declared = registry.declaration("scores.against_teacher")
    assert declared is not None
    strict = from_preset("strict")
    with choosing(strict):
        assert filled(declared, {})["margin"] == 0.01
        assert filled(declared, {"margin": 0.3})["margin"] == 0.3
    with choosing(strict.and_also(from_texts(["scores.against_teacher.margin=0.2"], "--set"))):
        assert filled(declared, {})["margin"] == 0.2
    with choosing(from_texts(["scores.against_teacher.margin=0.2"], "--set").and_also(strict)):
        assert filled(declared, {})["margin"] == 0.2, "the order in which sources are merged does not matter"


def ids_of_smoke() -> list[str]:
    return [step.id for step in planned()]


def test_smoke_leaves_out_what_nobody_asks_for() -> None:
    settings, sources = resolve_with_sources({"preset": "smoke"}, prefix="--")
    with using(settings, sources):
        left = set(registry.built_in()) - set(ids_of_smoke())
        assert {"noise.posterior", "uncertainty.ood", "regression.scores"} <= left
        assert {"layers.replaced", "kl.loss", "mean.equals_teacher", "noise.varies"} & left == set()
        with choosing(from_texts(["uncertainty.ood.min_auroc=0.9", "noise.posterior.severity=warn"], "--set")):
            assert {"uncertainty.ood", "noise.posterior"} <= set(ids_of_smoke())
        assert [step.id for step in planned(["noise.posterior"])] == ["noise.posterior"]


def smoke(**given: object) -> AuditRun:
    network = pytest_bnn.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    data = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    settings, sources = resolve_with_sources({"preset": "smoke"}, prefix="--")
    with using(settings, sources):
        return audit_model(network, data=data, **given)  # type: ignore[arg-type]


def test_a_smoke_audit_says_that_it_is_not_the_whole_one() -> None:
    run = smoke()
    (words,) = run.cut
    assert "the preset smoke" in words
    assert "is not judged" in words
    assert run.subjects[0].images == 32
    assert {change.name for change in run.changed} >= {"preset", "samples"}


def judged_by_smoke(rho: float | None, examples: int) -> AuditRun:
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    model = pytest_bnn.convert(teacher)
    for name, parameter in model.named_parameters():
        if rho is not None and "rho" in name:
            parameter.data.fill_(rho)
    data = torch.randn(examples, 6, generator=torch.Generator().manual_seed(0))
    settings, sources = resolve_with_sources({"preset": "smoke"}, prefix="--")
    with using(settings, sources):
        return pytest_bnn.audit_model(model, teacher=teacher, data=data)


@pytest.mark.parametrize("examples", [1, 8, 32, 200])
@pytest.mark.parametrize("rho", [-60.0, -200.0])
def test_smoke_fails_noise_that_is_dead(rho: float, examples: int) -> None:
    """It is what a first look is for; 32 passes left it undecided."""
    found = {check.id: check for check in judged_by_smoke(rho, examples).checks}
    assert found["noise.source"].verdict is Verdict.FAIL, found["noise.source"].explain()
    assert found["noise.varies"].verdict is Verdict.FAIL, found["noise.varies"].explain()
    assert found["noise.varies"].samples <= 72


def test_smoke_draws_no_more_passes_of_what_is_healthy() -> None:
    """The larger limit costs nothing where the answer is certain before."""
    run = judged_by_smoke(None, 32)
    assert run.verdict is Verdict.PASS
    assert 0 < max(check.samples for check in run.checks) <= 32


def test_a_smoke_audit_of_chosen_checks_is_what_was_asked_for() -> None:
    run = smoke(checks=["noise.fresh"], max_images=40)
    assert [check.id for check in run.checks] == ["noise.fresh"]
    assert run.subjects[0].images == 40
    assert "smoke" not in " ".join(run.cut)


TABLE = '[tool.pytest-bnn.checks."uncertainty.*"]\nseverity = "warn"\n'


def test_a_severity_is_given_to_several_checks_by_every_road(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(TABLE, encoding="utf-8")
    for given in (
        from_project(tmp_path),
        from_texts(["uncertainty.*.severity=warn"], "--bnn-set"),
        from_names({"uncertainty.*.severity": "warn"}, Level.MARKER, "the bnn marker"),
    ):
        choices.require_usable(given, finally_=True)
        with choosing(given):
            assert [severity_of(id) for id in ("uncertainty.ood", "uncertainty.shift", "kl.loss")] == [
                "warn",
                "warn",
                "error",
            ]
            (step,) = plan([registry.load("uncertainty.ood").declaration], {}, Budget())
            assert step.severity == "warn"
            assert [change.name for change in changes()] == ["uncertainty.*.severity"]


def test_an_id_goes_before_a_pattern_and_a_stronger_source_before_both(tmp_path: Path) -> None:
    own = '[tool.pytest-bnn.checks."uncertainty.ood"]\nseverity = "error"\n'
    for text in (TABLE + own, own + TABLE):
        (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
        project = from_project(tmp_path)
        with choosing(project):
            assert (severity_of("uncertainty.ood"), severity_of("uncertainty.shift")) == ("error", "warn")
        with choosing(project.and_also(from_texts(["uncertainty.*.severity=off"], "--set"))):
            assert (severity_of("uncertainty.ood"), severity_of("uncertainty.shift")) == ("off", "off")


def test_a_subject_s_pattern_goes_before_the_project_s_id(tmp_path: Path) -> None:
    """A subject's table is about it alone; in one table the id goes first, in whichever order they stand."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest-bnn.checks."uncertainty.ood"]\nseverity = "error"\n'
        '[tool.pytest-bnn.subjects.net]\nmodel = "net:net"\n'
        'checks."uncertainty.shift".severity = "error"\nchecks."uncertainty.*".severity = "off"\n',
        encoding="utf-8",
    )
    (net,) = subjects.from_project(tmp_path)
    with choosing(from_project(tmp_path).and_also(net.choices)):
        assert [severity_of(f"uncertainty.{name}") for name in ("ood", "shift", "errors")] == ["off", "error", "off"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uncertainty.*.max_passes=3", "patterns take severity alone"),
        ("uncertainty.*.severity=maybe", "give error, warn or off"),
        ("nothing.*.severity=warn", r"no check is called like 'nothing\.\*'"),
    ],
)
def test_a_pattern_that_says_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match="(?i)" + said):
        choices.require_usable(from_texts([text], "--set"), finally_=True)
