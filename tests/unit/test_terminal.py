"""What the command line prints after an audit, line by line."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from pytest_bnn.commands import terminal
from pytest_bnn.records.evidence import Acceptance, Evidence, Threshold, Verdict
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report.outline import outline
from pytest_bnn.report.standing import word
from pytest_bnn.report.unjudged import unjudged


def evidence(id: str, verdict: Verdict = Verdict.PASS, subject: str = "net", **more: Any) -> Evidence:
    return Evidence(
        id=id, subject=subject, stage="unknown", verdict=verdict, claim="It holds.",
        **{"headline": f"what {id} found", **more},
    )  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(
    monkeypatch: pytest.MonkeyPatch, *checks: Evidence, out: io.StringIO | None = None, **more: bool
) -> list[str]:
    stream = out or io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.show(AuditRun(checks=checks), **more)
    return stream.getvalue().splitlines()


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


ACCEPTED = (Acceptance(path="classifier.3", reason="latency budget", weights=10),)
MISSING = Verdict.NOT_APPLICABLE
FAILED = evidence(
    "noise.spread",
    Verdict.FAIL,
    threshold=Threshold(quantity="spread", observed=20.0, relation="<=", allowed=1.0),
    remedy="start narrower",
)


def test_three_lines_when_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the seed and the report's path, which the command adds, five."""
    assert shown(
        monkeypatch,
        evidence("layers.replaced", accepted=ACCEPTED),
        evidence("kl.present"),
        evidence("kl.loss", MISSING, missing=("loss", "images")),
        evidence("loss.data", MISSING, missing=("loss", "images")),
        evidence("mean.equals_teacher", MISSING, missing=("teacher",)),
        evidence("uncertainty.errors", MISSING, missing=("labels",)),
        evidence("noise.fresh", MISSING, missing=("factory",), headline="no factory was given (--model)"),
        evidence("teacher.tensors", MISSING, headline="it was trained; --stage converted judges it all the same"),
        evidence("estimator.flipout", MISSING),
    ) == [
        "verdict: pass. All 2 claims about net that were judged hold.",
        "not judged: kl.loss, loss.data (give --loss and --data); mean.equals_teacher (give --teacher); "
        "uncertainty.errors (give --data with labels); noise.fresh (give --model); not applicable: "
        "teacher.tensors (see --stage), and estimator.flipout; -v says why",
        "accepted: classifier.3 ('latency budget')",
    ]


def test_what_fails_stands_first_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors before failures before what is open; a warning is a line with its remedy; what holds is counted."""
    lines = shown(
        monkeypatch,
        evidence("kl.present"),
        evidence("data.sane", Verdict.WARN, remedy="look at them"),
        evidence("teacher.agreement", Verdict.INCONCLUSIVE),
        FAILED,
        evidence("kl.loss", Verdict.ERROR),
    )
    assert lines == [
        "kl.loss error for 'net': what kl.loss found",
        "  claim:    It holds.",
        "",
        "noise.spread fail for 'net': what noise.spread found",
        "  claim:    It holds.",
        "  observed: spread 20, allowed <= 1",
        "  fix:      start narrower",
        "",
        "teacher.agreement inconclusive for 'net': what teacher.agreement found",
        "  claim:    It holds.",
        "",
        "warn data.sane: what data.sane found",
        "  fix:      look at them",
        "",
        "verdict: error. 2 of 5 claims about net that were judged hold; 1 has a warning; 1 fails; 1 is not decided; "
        "1 could not be judged for an error.",
        "not judged: nothing",
        "accepted: nothing",
    ]


def test_quiet_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """For scripts, which have the exit code."""
    assert shown(monkeypatch, FAILED, quiet=True) == [
        "verdict: fail. The one claim about net that was judged does not hold."
    ]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict.PASS, "that was judged holds."),
        (Verdict.WARN, "that was judged holds; it has a warning."),
        (Verdict.INCONCLUSIVE, "that was judged is not decided."),
        (Verdict.ERROR, "could not be judged for an error."),
    ],
)
def test_one_claim_alone(monkeypatch: pytest.MonkeyPatch, verdict: Verdict, said: str) -> None:
    """What is not decided was not shown to be wrong."""
    (line,) = shown(monkeypatch, evidence("kl.present", verdict), quiet=True)
    assert line == f"verdict: {verdict}. The one claim about net {said}"


def test_verbose_tells_every_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds with its evidence, and why the others were not judged."""
    lines = shown(monkeypatch, evidence("kl.present"), evidence("kl.loss", MISSING, headline="no loss"), verbose=True)
    assert lines[0] == "kl.present pass for 'net': what kl.present found"
    assert "not applicable kl.loss: no loss" in lines


@pytest.mark.parametrize(
    ("more", "page", "line"),
    [
        ({"missing": ("loss",)}, "not judged", "not judged: kl.loss (give --loss); -v says why"),
        ({"missing": ("labels", "loss")}, "not judged", "not judged: kl.loss (give --data with labels and --loss); "),
        ({"missing": ("loss",), "headline": "see --stage"}, "not judged", "not judged: kl.loss (give --loss); "),
        ({"headline": "see --stage"}, "not applicable", "not judged: nothing; not applicable: kl.loss (see --stage); "),
        ({}, "not applicable", "not judged: nothing; not applicable: kl.loss; -v says why"),
    ],
)
def test_the_terminal_and_the_page_call_a_claim_alike(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], page: str, line: str
) -> None:
    """Whether a claim was not judged or does not apply is decided once; an option in a headline decides nothing."""
    checks = (evidence("kl.present"), evidence("kl.loss", MISSING, **more))
    told = [said for said in shown(monkeypatch, *checks) if said.startswith("not judged: ")]
    assert told[0].startswith(line)
    assert any(said.startswith(f"{page} kl.loss") for said in shown(monkeypatch, *checks, verbose=True))
    shape = outline(AuditRun(checks=checks))
    assert [word(cell.card.standing) for group in shape.groups for cell in group.cells] == ["pass", page]
    named = [option.command for one in unjudged(shape) for option in one.options]
    assert all(name in told[0].partition("; not applicable")[0] for name in named)
    assert bool(named) == (page == "not judged")


def test_two_models_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning says of which."""
    lines = shown(monkeypatch, evidence("data.sane", Verdict.WARN), evidence("data.sane", subject="other"))
    assert lines[0] == "warn data.sane on net: what data.sane found"
    assert "about 2 models" in lines[2]


def test_nothing_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass that is none."""
    lines = shown(monkeypatch, evidence("kl.loss", MISSING, missing=("loss",)))
    assert lines[0] == "verdict: not applicable. The one claim about net could not be judged."


def test_a_pipe_is_never_wrapped_and_a_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """grep wants whole lines; a reader wants whole words, and what follows indented."""
    long = evidence("kl.present", Verdict.FAIL, headline="word " * 60, remedy="do " * 60)
    assert max(map(len, shown(monkeypatch, long))) > 300
    for columns in (20, 40, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = shown(monkeypatch, long, out=Terminal())
        plain = [line for line in lines if "\x1b" not in line]
        assert max(map(len, plain)) <= columns
        assert any(line.startswith("    ") for line in plain)


COLOURED = [
    ({}, True, True),
    ({}, False, False),
    ({"NO_COLOR": "1"}, True, False),
    ({"FORCE_COLOR": "1"}, False, True),
    ({"TERM": "dumb"}, True, False),
]


@pytest.mark.parametrize(("environment", "terminal_there", "coloured"), COLOURED)
def test_colours(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], terminal_there: bool, coloured: bool
) -> None:
    """As no-color.org and force-color.org have it."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lines = shown(monkeypatch, FAILED, out=Terminal() if terminal_there else None)
    # NO_COLOR forbids colours; bold is none.
    assert any("\x1b[31m" in line or "\x1b[1;31m" in line for line in lines) == coloured


def test_control_characters_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may not paint the terminal."""
    lines = shown(monkeypatch, evidence("kl.present", Verdict.FAIL, subject="\x1b[32mpass\x1b[0m\nverdict: pass"))
    assert not any("\x1b" in line for line in lines)
    assert [line for line in lines if line.startswith("verdict: ")][-1].startswith("verdict: fail")
