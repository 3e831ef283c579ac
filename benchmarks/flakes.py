"""The test suite again and again, in random order and with random examples: does a test fail now and then?

``python -m benchmarks.flakes --runs 20 [pytest arguments]`` starts pytest so many times. Each run shuffles the files
and the tests of each file (pytest-random-order), and gives Hypothesis a seed; tests that are not derandomized draw
other examples each time. It says what failed and how to repeat it, and ends with exit code 1 if anything did.

``--times 20`` looks further where examples are drawn: each test of Hypothesis' gets so many times as many, the
derandomized ones too. A fault that one example in ten thousand shows comes to light in minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings

_REPORT, _TIMES = "--flakes-report", "--flakes-times"
_SETTINGS = "_hypothesis_internal_use_settings"
#: What a run counts, in this order.
_OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run, which loads this file as a plugin, say what came of each test, and draw more examples."""
    parser.addoption(_REPORT, type=Path, help="write the ids of tests by outcome into this file, as JSON")
    parser.addoption(_TIMES, type=int, help="draw so many times as many examples, in derandomized tests too")


def pytest_collection_modifyitems(items: Sequence[pytest.Item], config: pytest.Config) -> None:
    times = config.getoption(_TIMES)
    for item in items if times else ():
        test = getattr(item, "obj", None)
        test = getattr(test, "__func__", test)
        if is_hypothesis_test(test):
            # A test is decorated with settings once; where they are kept has no public name.
            own: settings = getattr(test, _SETTINGS, None) or settings()
            setattr(test, _SETTINGS, settings(own, max_examples=times * own.max_examples, derandomize=False))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption(_REPORT) is None:
        return
    found = {outcome: [report.nodeid for report in terminalreporter.stats.get(outcome, ())] for outcome in _OUTCOMES}
    config.getoption(_REPORT).write_text(json.dumps(found), encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """Of one run: of the order, and of Hypothesis; and how many times as many examples it draws."""

    order: int
    examples: int
    times: int | None = None

    @property
    def arguments(self) -> list[str]:
        more = [] if self.times is None else ["-p", "benchmarks.flakes", f"{_TIMES}={self.times}"]
        return [
            "--random-order-bucket=module", f"--random-order-seed={self.order}",
            "--hypothesis-profile=random", f"--hypothesis-seed={self.examples}", *more,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of a run: ids of tests by outcome, none where pytest did not get so far, and what it printed."""

    code: int
    seconds: float
    found: dict[str, list[str]]
    output: str

    @property
    def failing(self) -> list[str]:
        return list(dict.fromkeys(self.found.get("failed", []) + self.found.get("error", [])))

    @property
    def counts(self) -> str:
        told = [f"{len(tests)} {outcome}" for outcome, tests in self.found.items() if tests]
        return ", ".join(told) or f"no test ran (exit code {self.code})"


def run(seeds: Seeds, arguments: Sequence[str]) -> Run:
    """Run the tests once, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.flakes"]
        start = time.perf_counter()
        done = subprocess.run(  # noqa: S603  pytest, with the arguments of whoever asks for it
            [*command, f"{_REPORT}={report}", *seeds.arguments, *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    return Run(code=done.returncode, seconds=seconds, found=found, output=done.stdout + done.stderr)


def main(arguments: Sequence[str] | None = None, draw: Callable[[int], int] = secrets.randbelow) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flakes",
        description=(__doc__ or "").splitlines()[0],
        epilog="All other arguments are pytest's.",
    )
    parser.add_argument("--runs", type=int, default=20, help="how often (default: 20)")
    parser.add_argument("--times", type=int, help="draw so many times as many examples, in derandomized tests too")
    given, others = parser.parse_known_args(arguments)
    if given.runs < 1 or (given.times is not None and given.times < 1):
        parser.error("--runs and --times must be at least 1")
    if importlib.util.find_spec("random_order") is None:
        parser.error("pytest-random-order shuffles the tests: pip install pytest-random-order")
    failures: Counter[str] = Counter()
    bad = 0
    for number in range(1, given.runs + 1):
        seeds = Seeds(order=draw(10**6), examples=draw(2**32), times=given.times)
        one = run(seeds, others)
        print(
            f"run {number} of {given.runs}, order {seeds.order}, examples {seeds.examples}: "
            f"{one.counts} in {one.seconds:.0f} s",
            flush=True,
        )
        if one.code == 0:
            continue
        bad += 1
        failures.update(one.failing)
        for test in one.failing:
            print(f"  {test}")
        if not one.failing:
            print("  " + "\n  ".join(one.output.splitlines()[-20:]))
        print(f"  again: {shlex.join(['python', '-m', 'pytest', *seeds.arguments, *others])}", flush=True)
    print(f"{given.runs} runs, {bad} with failures")
    for test, count in failures.most_common():
        print(f"  {count} of {given.runs}: {test}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
