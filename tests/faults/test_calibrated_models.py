"""Simulated models whose labels follow them: claims about predictions accuse none, and err no more often than said."""

from __future__ import annotations

import pytest
from scipy import stats

from benchmarks import predictions
from benchmarks.predictions import RATES, SOUND, WRONG, false_alarms
from pytest_bnn.records.evidence import Verdict


@pytest.mark.parametrize("name", SOUND)
def test_some_sound_models_are_accused_no_more_often_than_said(name: str) -> None:
    """A part of the long run below: none at one in a million."""
    loose, strict = false_alarms(name, 100)
    assert strict == 0
    assert stats.binom.sf(loose - 1, 100, RATES[0]) > 1e-4


@pytest.mark.nightly("minutes; every push has a hundred of them")
@pytest.mark.parametrize("name", SOUND)
def test_ten_thousand_sound_models(name: str) -> None:
    loose, strict = false_alarms(name, 10_000, seed=1)
    assert strict == 0
    assert loose <= RATES[0] * 10_000


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.check)
def test_the_largest_effect_is_found_and_none_is_not(wrong: predictions.Wrong) -> None:
    """By a thousand labels; the first effect is none, and passes."""
    largest = max(wrong.effects, key=lambda effect: abs(effect - wrong.effects[0]))
    for seed in range(2):
        assert wrong.break_by(wrong.effects[0], 1000, seed).verdict is Verdict.PASS
        assert wrong.break_by(largest, 1000, seed).verdict is Verdict.FAIL


def test_the_command_counts_and_says_by_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "COUNTS", (1000,))
    monkeypatch.setattr(predictions, "WRONG", WRONG[-1:])
    assert predictions.main(["--models", "3"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in SOUND if name not in printed] == []
    assert predictions.main(["--power", "--trials", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == "| `uncertainty.ood` | true AUROC 0.95 | 0 %, 100 % |"
    assert rows[-1] == "| `uncertainty.ood` | true AUROC 0.5 | 100 %, 0 % |"
    monkeypatch.setattr(predictions, "SOUND", {"wrong": lambda generator: (True, True)})
    assert predictions.main(["--models", "3"]) == 1
