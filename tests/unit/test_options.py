"""One table of settings: its rows, the record that holds them and the checks' own defaults must not drift apart."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pytest

from pytest_bnn.audit.run import Thresholds
from pytest_bnn.checks.teacher._findings import MAX_PASSES
from pytest_bnn.checks.teacher.agreement import MIN_AGREEMENT
from pytest_bnn.conversion import Conversion
from pytest_bnn.errors import InputError
from pytest_bnn.options import OF_A_TEST, OPTIONS, Settings, overridden, resolve

TABLE = {option.key: option for option in OPTIONS}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in OPTIONS:
        monkeypatch.delenv(option.environment, raising=False)


def test_table_and_record_have_the_same_fields_and_defaults() -> None:
    """The defaults are written twice, for --help and for typing."""
    assert [option.key for option in OPTIONS] == [field.name for field in fields(Settings)]
    assert {option.key: option.default for option in OPTIONS} == asdict(Settings())
    assert all(type(option.default) is type(getattr(Settings(), option.key)) for option in OPTIONS)


def test_defaults_are_those_of_the_checks_and_of_the_conversion() -> None:
    """A plain assert_*, bnn_audit and the command line must ask for the same."""
    settings = Settings()
    assert settings.min_agreement == MIN_AGREEMENT == Thresholds().min_agreement
    assert settings.samples == MAX_PASSES == Thresholds().max_passes
    assert (settings.type, settings.delta) == (Conversion().type, Conversion().moped_delta)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_default_is_a_value_that_the_option_reads(option: Any) -> None:
    """Somebody who writes the default down must not be told that it is wrong."""
    assert option.read(str(option.default)) == option.default
    assert option.help
    assert option.metavar
    assert option.read.__doc__


def test_nothing_given_gives_the_defaults() -> None:
    """None on the command line and an empty ini value are silence."""
    silent: dict[str, str | None] = dict.fromkeys(TABLE)
    assert resolve(silent, dict.fromkeys(TABLE, ""), prefix="--") == Settings()
    assert resolve({}, prefix="--") == Settings()


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line over environment over ini file over default, each option by itself."""
    ini = {"seed": "1", "samples": "10", "delta": "0.3"}
    monkeypatch.setenv("PYTEST_BNN_SEED", "2")
    monkeypatch.setenv("PYTEST_BNN_SAMPLES", "20")
    monkeypatch.setenv("PYTEST_BNN_WEIGHTS", "")
    assert resolve({"seed": "3"}, ini, prefix="--") == Settings(seed=3, samples=20, delta=0.3)


def test_a_wrong_value_that_is_overruled_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in force is not judged."""
    monkeypatch.setenv("PYTEST_BNN_SEED", "x")
    assert resolve({"seed": "3"}, {"seed": "y"}, prefix="--").seed == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "-1"), ("seed", "1.5"), ("seed", "one"), ("seed", ""),
        ("samples", "1"), ("samples", "1e3"), ("samples", "inf"),
        ("min_agreement", "0"), ("min_agreement", "1.0001"), ("min_agreement", "nan"), ("min_agreement", "95%"),
        ("delta", "0"), ("delta", "-0.1"), ("delta", "inf"), ("delta", "nan"),
        ("type", "reparameterization"), ("type", ""),
        ("inconclusive", "pass"), ("inconclusive", "error"),
        ("weights", " "), ("weights", ""),
    ],
)  # fmt: skip
def test_wrong_values_name_their_source_and_what_would_be_right(key: str, value: str) -> None:
    """One line with the place, the value and the fix."""
    with pytest.raises(InputError) as caught:
        resolve({key: value}, prefix="--bnn-")
    assert str(caught.value) == f"--bnn-{key.replace('_', '-')} is {value!r}. Give {TABLE[key].read.__doc__}."


@pytest.mark.parametrize(("key", "value", "read"), [
    ("samples", "2", 2), ("seed", "0", 0), ("min_agreement", "1", 1.0), ("min_agreement", "1e-9", 1e-9),
    ("delta", "1e-3", 0.001), ("type", "Flipout", "Flipout"), ("weights", "a b.pt", "a b.pt"),
])  # fmt: skip
def test_values_at_the_edge_are_read(key: str, value: str, read: object) -> None:
    """A bound belongs to the range that the message names."""
    assert getattr(resolve({key: value}, prefix="--"), key) == read


def test_marker_changes_what_belongs_to_a_test() -> None:
    """The marker's values are numbers and texts of Python, not of a command line."""
    changed = overridden(
        Settings(weights="imagenet"), {"samples": 64, "min_agreement": 0.9, "seed": 5}, "the bnn marker"
    )
    assert changed == Settings(weights="imagenet", samples=64, min_agreement=0.9, seed=5)
    assert set(OF_A_TEST) <= set(TABLE)


@pytest.mark.parametrize("key", ["weights", "type", "delta", "sampels"])
def test_marker_refuses_other_keys(key: str) -> None:
    """Session settings in a marker would be ignored silently, as would a typing error."""
    with pytest.raises(InputError, match=f"the bnn marker has no option '{key}'. Use one of samples, seed"):
        overridden(Settings(), {key: "x"}, "the bnn marker")


@pytest.mark.parametrize(("key", "value"), [("samples", 1), ("seed", True), ("min_agreement", 2), ("seed", 1.5)])
def test_marker_refuses_wrong_values(key: str, value: object) -> None:
    """They are validated like those of a command line; True is no number."""
    with pytest.raises(InputError, match=f"{key} in the bnn marker is '{value}'. Give "):
        overridden(Settings(), {key: value}, "the bnn marker")
