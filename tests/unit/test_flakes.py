"""The benchmark that looks for flaky tests, on a suite that has some."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.flakes import main

pytest.importorskip("random_order", reason="runs where the test extra is installed")

PROFILES = """
from hypothesis import settings

settings.register_profile("random", database=None, derandomize=False)
"""

#: The second test needs the first before it; the others write down what they draw, the last is derandomized.
TESTS = """
from pathlib import Path

from hypothesis import given, settings, strategies as st

done = []


def test_first():
    done.append("first")


def test_second():
    assert done


def write(coins):
    with (Path(__file__).parent / "drawn.txt").open("a") as file:
        file.write("".join("01"[coin] for coin in coins) + "\\n")


@given(st.tuples(*[st.booleans()] * 60))
def test_drawn(coins):
    write(coins)


@settings(max_examples=20, derandomize=True)
@given(st.tuples(*[st.booleans()] * 60))
def test_same(coins):
    write(coins)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(PROFILES, encoding="utf-8")
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    return tmp_path / "test_some.py"


def scripted(*seeds: int) -> Callable[[int], int]:
    """Draw the seeds of these runs: order, examples, order, examples."""
    left = list(seeds)
    return lambda _: left.pop(0)


def drawn(suite: Path) -> str:
    """What the test drew since the last look."""
    file = suite.parent / "drawn.txt"
    text = file.read_text(encoding="utf-8")
    file.unlink()
    return text


@pytest.mark.nightly("several sessions; every push has those of the seeds")
def test_what_depends_on_the_order_is_found_and_can_be_repeated(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of six orders some have the first test first and some have not; one that failed fails again."""
    orders = [seed for order in range(6) for seed in (order, 1)]
    assert main(["--runs", "6", str(suite)], scripted(*orders)) == 1
    lines = capsys.readouterr().out.splitlines()
    ends = [line.split(": ")[1].split(" in ")[0] for line in lines if line.startswith("run ")]
    assert set(ends) == {"4 passed", "3 passed, 1 failed"}
    bad = ends.count("3 passed, 1 failed")
    assert lines[-2] == f"6 runs, {bad} with failures"
    assert lines[-1].startswith(f"  {bad} of 6: ")
    assert lines[-1].endswith("test_some.py::test_second")
    commands = [line.removeprefix("  again: python ") for line in lines if line.startswith("  again: ")]
    assert len(commands) == bad
    again = subprocess.run([sys.executable, *shlex.split(commands[0])], capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stdout
    assert "test_second" in again.stdout


@pytest.mark.parametrize(
    "variable",
    [
        pytest.param("CI", marks=pytest.mark.nightly("three runs of a suite of its own")),
        pytest.param("ANYTHING", marks=pytest.mark.nightly("three runs; every push has them where they are hardest")),
    ],
)
def test_examples_are_others_for_another_seed_and_the_same_for_the_same(
    suite: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where ``CI`` is set, which makes Hypothesis draw the same examples unless a profile says otherwise."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv(variable, "true")
    found = []
    for examples in (1, 2, 1):
        assert main(["--runs", "1", str(suite), "-k", "drawn"], scripted(3, examples)) == 0
        found.append(drawn(suite))
    assert found[0] == found[2] != found[1]


@pytest.mark.nightly("several sessions; every push has those of the seeds")
def test_more_examples_are_drawn_in_derandomized_tests_too(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for options, examples in (([], 1), ([], 2), (["--times", "5"], 1), (["--times", "5"], 1), (["--times", "5"], 2)):
        assert main(["--runs", "1", *options, str(suite), "-k", "same"], scripted(3, examples)) == 0
        found.append(drawn(suite).splitlines())
    assert [len(lines) for lines in found] == [20, 20, 100, 100, 100]
    assert found[0] == found[1]
    assert found[2] == found[3] != found[4]


@pytest.mark.nightly("several sessions; every push has those of the seeds")
def test_a_failure_among_more_examples_can_be_repeated(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite.write_text(suite.read_text(encoding="utf-8").replace("write(coins)\n", "assert sum(coins) < 36\n"))
    assert main(["--runs", "1", "--times", "10", str(suite), "-k", "same"], scripted(3, 1)) == 1
    (again,) = (
        line.removeprefix("  again: python ")
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("  again: ")
    )
    assert "--flakes-times=10" in again
    done = subprocess.run([sys.executable, *shlex.split(again)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "assert sum(coins) < 36" in done.stdout


def test_a_run_that_does_not_start_is_a_failure_that_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runs", "1", str(tmp_path / "missing.py")], scripted(1, 1)) == 1
    said = capsys.readouterr().out
    assert "no test ran (exit code 4)" in said
    assert "missing.py" in said


@pytest.mark.parametrize("option", ["--runs", "--times"])
def test_no_runs_and_no_examples_are_no_answer(option: str) -> None:
    with pytest.raises(SystemExit):
        main([option, "0"])
