"""An option of a check is judged once, by its signature, whatever names it; the strongest source counts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from torch import nn

import pytest_bnn
from pytest_bnn.audit.plan import Thresholds, merged, plan, shorthands
from pytest_bnn.audit.run import audit_model, planned
from pytest_bnn.checks import choices, registry
from pytest_bnn.checks.changed import changes
from pytest_bnn.checks.check import Check, Finding, check
from pytest_bnn.checks.choices import Choices, choosing, filled, from_names, from_project, from_texts, require_usable
from pytest_bnn.checks.declaration import Declaration
from pytest_bnn.checks.values import Band, Kind, NoKindError, Passes, Share, annotated, kind_of
from pytest_bnn.errors import InputError
from pytest_bnn.options import Level, Settings, Source, using
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.stats.budget import Budget


def declared(id: str) -> Declaration:
    found = registry.declaration(id)
    assert found is not None
    return found


@pytest.fixture
def own() -> Iterator[Check]:
    """A check with an option of every kind."""
    with registry.kept():

        @check("own.kinds", claim="Anything holds.", sampled=True)
        def kinds(
            subject: pytest_bnn.Subject,
            *,
            flag: bool = False,
            many: int = 3,
            much: float | None = None,
            word: str = "a",
            one: Literal["low", "high"] = "low",
            pair: tuple[int, float] = (1, 2.0),
            names: Mapping[str, str] | None = None,
            share: Share = 0.5,
            passes: Passes = 64,
        ) -> Finding:
            """Measure whether anything holds.

            Args:
                subject: The model alone.
                flag: A switch.
            """
            told = {"flag": flag, "many": many, "much": much, "word": word, "one": one, "pair": pair, "names": names}
            return Finding(verdict=Verdict.PASS, headline=repr({**told, "share": share, "passes": passes}))

        yield kinds


READ: dict[str, tuple[object, object]] = {
    "flag": ("yes", True),
    "many": ("7", 7),
    "much": (".25", 0.25),
    "word": ("none of it", "none of it"),
    "one": ("high", "high"),
    "pair": ("3:4", (3, 4.0)),
    "names": ("fc=kept = for speed", {"fc": "kept = for speed"}),
    "share": ("1", 1.0),
    "passes": ("2", 2),
}
REFUSED = {
    "flag": ("maybe", "yes or no"),
    "many": ("1.5", "a whole number"),
    "much": ("nan", "a finite number, or none"),
    "one": ("middle", "low or high"),
    "pair": ("3", "a whole number and a finite number, with a colon between them"),
    "names": ("fc", "NAME=TEXT"),
    "share": ("1.5", "a number above 0, up to 1"),
    "passes": ("1", "a whole number from 2"),
}


@pytest.mark.parametrize("name", READ)
def test_a_text_becomes_the_value_of_its_kind(own: Check, name: str) -> None:
    """From a command line, and the same value from TOML or a marker."""
    text, value = READ[name]
    with choosing(from_texts([f"own.kinds.{name}={text}"], "--set")):
        assert filled(own.declaration, {})[name] == value
        assert repr(value) in own.measure(nn.Linear(2, 2)).headline
    with choosing(from_names({f"own.kinds.{name}": value}, Level.MARKER, "the bnn marker")):
        assert filled(own.declaration, {})[name] == value
    assert filled(own.declaration, {name: value})[name] == value


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_value_names_its_source_and_the_fix(own: Check, name: str) -> None:
    """One sentence, whichever source it came from."""
    text, words = REFUSED[name]
    with pytest.raises(InputError) as caught:
        require_usable(from_texts([f"own.kinds.{name}={text}"], "--set"), finally_=True)
    assert str(caught.value).startswith(f"--set own.kinds.{name} is {text!r}. Give ")
    assert words.lower() in str(caught.value).lower()


@pytest.mark.parametrize(
    ("name", "value"),
    [("flag", 1), ("many", True), ("many", "3"), ("much", "x"), ("one", "middle"), ("pair", (1, 2, 3)), ("share", 0),
     ("names", {"a": 1}), ("passes", 1.0)],
)  # fmt: skip
def test_a_wrong_argument_is_a_value_error(own: Check, name: str, value: object) -> None:
    """In Python nothing is read from text: a text is no number there."""
    with pytest.raises(ValueError, match=f"^{name} is {re.escape(repr(value))}. Give "):
        own.measure(nn.Linear(2, 2), **{name: value})


def test_none_switches_a_choice_off(own: Check) -> None:
    """What a project settled must be possible to take back on a command line."""
    table = Choices({("own.kinds", "much"): (choices.Choice((3.0,), Source(Level.TABLE, "x")),)})
    with choosing(table.and_also(from_texts(["own.kinds.much=none"], "--set"))):
        assert filled(own.declaration, {})["much"] is None


def test_names_add_up_in_one_source(own: Check) -> None:
    """--set twice for two layers allows both."""
    with choosing(
        from_texts(["own.kinds.names=a=1", "own.kinds.names=b=2", "own.kinds.many=1", "own.kinds.many=2"], "")
    ):
        assert filled(own.declaration, {})["names"] == {"a": "1", "b": "2"}
        assert filled(own.declaration, {})["many"] == 2


LEVELS = (Level.INI, Level.TABLE, Level.ENVIRONMENT, Level.COMMAND_LINE, Level.MARKER)


@pytest.mark.parametrize(("weak", "strong"), [(weak, strong) for weak in LEVELS for strong in LEVELS if weak <= strong])
def test_precedence_between_an_option_and_the_setting_it_follows(own: Check, weak: Level, strong: Level) -> None:
    """The stronger source counts; in one source the option itself does. An argument in Python beats all."""
    option = Choices({("own.kinds", "passes"): (choices.Choice((8,), Source(strong, "here")),)})
    with using(Settings(samples=16), {"samples": Source(weak, "there")}), choosing(option):
        assert filled(own.declaration, {})["passes"] == 8
        assert filled(own.declaration, {"passes": 5})["passes"] == 5
    if weak < strong:
        weaker = Choices({("own.kinds", "passes"): (choices.Choice((8,), Source(weak, "here")),)})
        with using(Settings(samples=16), {"samples": Source(strong, "there")}), choosing(weaker):
            assert filled(own.declaration, {})["passes"] == 16
    assert filled(own.declaration, {})["passes"] == 64


def test_a_setting_only_lowers_where_the_check_says_so() -> None:
    """noise.posterior never takes more than its 32 passes because other checks may."""
    for samples, expected in ((256, 32), (8, 8)):
        with using(Settings(samples=samples)):
            assert filled(declared("noise.posterior"), {}) == {"max_passes": expected}
            assert filled(declared("noise.source"), {})["max_passes"] == samples


def test_settings_follow_into_every_check_that_they_belong_to() -> None:
    """Point by point: what --min-agreement, --spread, --population and --samples stand for."""
    settings = Settings(min_agreement=0.5, spread="0.1:0.2", population="yes", samples=4)
    with using(settings):
        assert filled(declared("teacher.agreement"), {}) == {
            "min_agreement": 0.5,
            "max_passes": 4,
            "population": True,
            "tolerance": 0.5,
            "distance": 0.25,
        }
        assert filled(declared("noise.spread"), {}) == {"band": (0.1, 0.2), "max_passes": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kl.los.num_batches=3", "there is no check 'kl.los'. Did you mean kl.loss"),
        ("kl.loss.num_batch=3", "kl.loss has no option 'num_batch'. Did you mean num_batches"),
        ("kl.loss.severity=fatal", "--set kl.loss.severity is 'fatal'. Give error, warn or off"),
        ("num_batches=3", "--set is 'num_batches=3'. Write it like"),
        ("kl.loss", "--set is 'kl.loss'. Write it like"),
        ("kl.loss.num_batches=0", "--set kl.loss.num_batches is '0'. Give a whole number from 1, or none"),
    ],
)
def test_mistakes_are_told_before_anything_runs(text: str, words: str) -> None:
    """A misspelt check must not leave the default in force."""
    with pytest.raises(InputError, match=re.escape(words)):
        require_usable(from_texts([text], "--set"), finally_=False)


def test_a_check_of_somebody_else_may_come_later() -> None:
    """A conftest that declares it may not be imported yet; in the end it must be there."""
    later = from_texts(["mycompany.rule.limit=3"], "--set")
    require_usable(later, finally_=False)
    with pytest.raises(InputError, match=re.escape("there is no check 'mycompany.rule'")):
        require_usable(later, finally_=True)


PROJECT = """
[tool.pytest-bnn]
plugins = ["mycompany.checks"]

[tool.pytest-bnn.checks."kl.loss"]
num_batches = 45
severity = "warn"

[tool.pytest-bnn.checks."noise.spread"]
band = [0.01, 0.5]

[tool.pytest-bnn.checks."layers.replaced"]
allow = { fc = "kept for speed" }
"""


def test_pyproject(tmp_path: Path) -> None:
    """The table of a project, in TOML's own types."""
    (tmp_path / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    found = from_project(tmp_path)
    require_usable(found, finally_=True)
    assert found.plugins == ("mycompany.checks",)
    with choosing(found):
        assert filled(declared("kl.loss"), {})["num_batches"] == 45
        assert filled(declared("noise.spread"), {})["band"] == (0.01, 0.5)
        assert filled(declared("layers.replaced"), {})["allow"] == {"fc": "kept for speed"}
        assert choices.severity_of("kl.loss") == "warn"
        assert choices.severity_of("kl.present") == "error"
        said = {change.name: (change.value, change.default, change.source) for change in changes()}
    assert said["kl.loss.num_batches"] == ("45", "none", "kl.loss.num_batches in pyproject.toml")
    assert from_project(tmp_path / "elsewhere") == Choices()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.pytest-bnn]\nseed = 3", "has no 'seed'. Use plugins"),
        (
            "[tool.pytest-bnn.checks.kl.loss]\nnum_batches = 45",
            'put the id in quotes: [tool.pytest-bnn.checks."kl.loss"]',
        ),
        ('[tool.pytest-bnn]\nplugins = "mine"', "plugins in [tool.pytest-bnn] in pyproject.toml is 'mine'"),
        (
            '[tool.pytest-bnn.checks]\n"kl.loss" = 45',
            "checks in [tool.pytest-bnn] in pyproject.toml has 'kl.loss' = 45",
        ),
        ("[tool.pytest-bnn", "cannot be read"),
        ('[tool.pytest-bnn.checks."kl.loss"]\nnum_batches = 1.5', "num_batches in pyproject.toml is 1.5. Give a whole"),
        ('[tool.pytest-bnn.checks."kl.loss"]\nweight = 1', "kl.loss has no option 'weight'"),
    ],
)
def test_mistakes_in_pyproject(tmp_path: Path, text: str, words: str) -> None:
    """They name the table, and what would be right."""
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        require_usable(from_project(tmp_path), finally_=True)
    assert words.lower() in str(caught.value).lower()


def test_options_that_exclude_each_other() -> None:
    """The one from the stronger source replaces the other; in one source, both are a mistake."""
    kl_loss = declared("kl.loss")
    with choosing(from_texts(["kl.loss.num_batches=45"], "--set")):
        assert filled(kl_loss, {"kl_weight": 0.5}) == {"kl_weight": 0.5, "num_batches": None, "num_data": None}
    both = from_texts(["kl.loss.num_batches=45", "kl.loss.kl_weight=.1"], "--set")
    with choosing(both), pytest.raises(InputError, match=r"Give kl_weight or num_batches, not both"):
        filled(kl_loss, {})
    with pytest.raises(ValueError, match=r"Give kl_weight or num_batches, not both"):
        filled(kl_loss, {"kl_weight": 0.5, "num_batches": 3})


def test_an_unknown_argument_is_a_type_error(own: Check) -> None:
    """As in any call of a function, with the names that there are."""
    with pytest.raises(TypeError, match=r"own.kinds has no option 'mayn'; it has flag, many, "):
        own.measure(nn.Linear(2, 2), mayn=3)


def test_the_plan_splits_the_error_rates_over_what_samples() -> None:
    """Bonferroni: the shares of those that run add up to the whole, and exact checks take none."""
    checks = [declared(id) for id in ("kl.present", "noise.source", "noise.varies", "teacher.agreement")]
    steps = plan(checks, {}, Budget(alpha=3e-4, beta=3e-2))
    assert [step.id for step in steps] == [check.id for check in checks]
    assert [step.budget for step in steps] == [None, *[Budget(alpha=3e-4, beta=3e-2).split(3)] * 3]
    with choosing(from_texts(["noise.varies.severity=off"], "--set")):
        shares = [step.budget for step in plan(checks, {}, Budget(alpha=3e-4, beta=3e-2)) if step.severity != "off"]
    assert sum(share.alpha for share in shares if share is not None) == pytest.approx(3e-4)
    assert [share is None for share in shares] == [True, False, False]


def test_the_plan_takes_explicit_options_before_others() -> None:
    """Thresholds in Python, then options of one check; what neither names comes from what is in force."""
    with using(Settings(samples=16)), choosing(from_texts(["noise.spread.band=.1:.2"], "--set")):
        steps = {step.id: step.options for step in planned(None, None, shorthands(num_batches=9))}
        assert steps["noise.spread"] == {"band": (0.1, 0.2), "max_passes": 16}
        assert steps["kl.loss"]["num_batches"] == 9
        given = Thresholds(max_passes=8, kl_weight=0.1)
        steps = {step.id: step.options for step in planned(None, given, {"noise.source": {"max_passes": 4}})}
        assert steps["noise.spread"] == {"band": (0.001, 1.0), "max_passes": 8}
        assert steps["noise.source"]["max_passes"] == 4
        assert steps["kl.loss"]["kl_weight"] == 0.1
    assert merged({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}) == {"a": {"x": 1, "y": 3}}
    with pytest.raises(InputError, match=r"options: there is no check 'kl.los'"):
        planned(None, None, {"kl.los": {}})


def test_thresholds_default_to_the_signatures() -> None:
    """They are written in both places, for typing."""
    for id in registry.built_in():
        settled = Thresholds().options_of(declared(id))
        assert settled == {name: filled(declared(id), {})[name] for name in settled}


@pytest.mark.parametrize("severity", ["error", "warn", "off"])
def test_severity(severity: str) -> None:
    """A failure counts as it was told to; what is switched off says so, and takes no time."""
    network = nn.Sequential(nn.Linear(3, 2))
    with choosing(from_texts([f"layers.replaced.severity={severity}"], "--set")):
        found = audit_model(network, checks="layers.replaced")["layers.replaced"]
        plain = pytest_bnn.measure_layers_replaced(network)
        expected = {"error": Verdict.FAIL, "warn": Verdict.WARN, "off": Verdict.NOT_APPLICABLE}[severity]
        assert found.verdict is plain.verdict is expected
        if severity == "error":
            with pytest.raises(AssertionError):
                pytest_bnn.assert_layers_replaced(network)
        else:
            pytest_bnn.assert_layers_replaced(network)
            assert f"severity of layers.replaced is {severity}" in found.explain()


def test_the_settings_reach_a_plain_assert() -> None:
    """Not only an audit: seed, passes and error rates of a session are those of a single call; arguments win."""
    model = pytest_bnn.convert(nn.Sequential(nn.Linear(3, 2)), moped_delta=0.2)
    images = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    with using(Settings(seed=7, samples=2, alpha=1e-3)):
        found = pytest_bnn.measure_noise_varies(model, images=images)
        assert (found.seed, found.samples, found.verdict) == (7, 2, "inconclusive")
        assert found.certainty is not None
        assert found.certainty.alpha == pytest.approx(1e-3)
        more = pytest_bnn.measure_noise_varies(model, images=images, max_passes=128, seed=5)
        assert (more.seed, more.verdict) == (5, "pass")


def test_documentation_and_signature_are_made_from_the_function(own: Check) -> None:
    """help() shows how to call it."""
    import inspect

    assert own.measure.__name__ == "measure_own_kinds"
    assert own.assert_.__name__ == "assert_own_kinds"
    names = [*inspect.signature(own.measure).parameters]
    assert names[:2] == ["model", "flag"]
    assert names[-1] == "given"
    text = inspect.getdoc(own.measure)
    assert text is not None
    assert "Args:\n    model: The Bayesian network, or a `Subject`.\n    flag: A switch." in text
    assert "**given: The model alone." in text
    assert (inspect.getdoc(own.assert_) or "").startswith("Assert that anything holds.")
    for id in registry.built_in():
        documented = inspect.getdoc(registry.load(id).measure) or ""
        for name in inspect.signature(registry.load(id).measure).parameters:
            assert re.search(rf"^    (\*\*)?{name}: ", documented, re.M), (id, name)


@pytest.mark.parametrize("annotation", [list, bytes, "tuple[int, ...]", "int | str", Annotated[list[int], 1]])
def test_what_no_text_can_give_is_no_option(annotation: Any) -> None:
    """It is told where the check is declared."""
    with pytest.raises(NoKindError):
        kind_of(annotated(annotation) if isinstance(annotation, str) else annotation)


@pytest.mark.parametrize("text", ["__import__('os')", "print(1)", "[x for x in y]", "lambda: 1", "unknown"])
def test_reading_an_annotation_runs_nothing(text: str) -> None:
    """--help reads files of others."""
    with pytest.raises(NoKindError):
        annotated(text)


@pytest.mark.parametrize(
    "kind", [kind_of(Band), kind_of(Share | None), kind_of(Literal["a", "b"])], ids=["pair", "share", "words"]
)
def test_a_kind_writes_itself_as_python_does(kind: Kind) -> None:
    """The stubs for type checkers are made of it."""
    again = kind_of(annotated(kind.annotation))
    assert again == replace(kind, rules=(), follows=None)
