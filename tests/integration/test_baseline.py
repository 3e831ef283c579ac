"""Sessions and comparisons that are held to an earlier audit: only what is new, worse or lost fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_bnn import cli
from pytest_bnn.commands import command as exits
from pytest_bnn.records import baseline
from pytest_bnn.records.evidence import Certainty, Evidence, Threshold, Verdict
from pytest_bnn.records.run import AuditRun, SubjectRecord

#: What becomes of the claims of `folder`.
SAID = "1 claim fails now and did not before; 1 failed before and holds now, 1 fails as before, 1 is as before"

# Claims as a test would make them, without a network to judge.
CLAIMS = """
from pytest_bnn.records.evidence import Evidence, Threshold, Verdict
from pytest_bnn.records.recorder import record, running_test



def claim(verdict, id="kl.loss", subject="net", observed=None, asked=True):
    threshold = None
    if observed is not None:
        threshold = Threshold(quantity="layers", observed=observed, relation="<=", allowed=0)
    found = Evidence(id=id, subject=subject, stage="converted", verdict=Verdict(verdict), claim="It holds.",
                     headline=f"it is {verdict}", threshold=threshold, test=running_test())
    record(found)
    if asked:
        found.raise_if_failed()
"""

TESTS = """
import pytest
from claims import claim


def test_sound():
    claim("pass", id="kl.present")


def test_known():
    claim("fail", observed=2)
    claim("pass", id="noise.varies")  # a known failure ends no test


def test_wanted():
    with pytest.raises(AssertionError):
        claim("fail", id="mean.equals_teacher", subject="broken")


@pytest.mark.xfail(strict=True)
def test_marked():
    claim("fail", id="mean.equals_teacher", subject="odd")
"""

HELD = ("-p", "no:cacheprovider", "--bnn-baseline=b.json")
UPDATE = (*HELD, "--bnn-update-baseline")

Session = Callable[..., pytest.RunResult]


@pytest.fixture
def session(pytester: pytest.Pytester) -> Session:
    """A user's session: options, and what the test file says instead."""
    pytester.makepyfile(claims=CLAIMS)
    pytester.syspathinsert()

    def session(*options: str, **replaced: Any) -> pytest.RunResult:
        text = TESTS
        for old, new in replaced.pop("instead", {}).items():
            assert old in text
            text = text.replace(old, new)
        pytester.makepyfile(test_it=text)
        return pytester.runpytest(*options)

    return session


@pytest.fixture
def recorded(session: Session) -> Session:
    """A session whose baseline is there."""
    assert session(*UPDATE).ret == 0
    return session


def test_a_session_that_records_lets_every_test_go_on(session: Session, pytester: pytest.Pytester) -> None:
    """What stands behind a failure is recorded too; failures that tests want are theirs."""
    result = session(*UPDATE)
    result.assert_outcomes(passed=3, xfailed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*wrote b.json: 5 claims; 1 failure is known from now on"])
    checks = baseline.read(pytester.path / "b.json", "", "").checks
    assert [(check.subject, check.expected) for check in checks if check.verdict is Verdict.FAIL] == [
        ("net", False),
        ("broken", True),
        ("odd", True),
    ]


def test_a_known_failure_fails_nothing_and_is_said(recorded: Session) -> None:
    result = recorded(*HELD)
    result.assert_outcomes(passed=3, xfailed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["state*before*now", "known*kl.loss*net*fail 2*fail 2", "b.json: nothing is new or worse; *"]
    )


def test_a_known_failure_is_the_same_story_everywhere(
    recorded: Session, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the session passes, nothing that a CI service reads says that it failed."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "step.md"))
    found = recorded(*HELD, "--bnn-report=a.html", "--bnn-ctrf=c.json")
    assert found.ret == pytest.ExitCode.OK
    said = found.stdout.str()
    assert "::error" not in said
    assert "::warning file=" in said
    results = json.loads((pytester.path / "c.json").read_text(encoding="utf-8"))["results"]
    assert results["summary"]["failed"] == 0
    assert "fail (known)" in {test["rawStatus"] for test in results["tests"]}
    audit = json.loads((pytester.path / "a.json").read_text(encoding="utf-8"))
    assert audit["verdict"] == "fail"
    (note,) = (note for check in audit["checks"] for note in check["notes"])
    assert note == "It is known from the baseline b.json, so that it fails nothing here."
    for page in ("a.html", "step.md"):
        assert "b.json: 1 failure is known" in (pytester.path / page).read_text(encoding="utf-8")
    worse = recorded(*HELD, "--bnn-ctrf=c.json", instead={"observed=2": "observed=3"})
    assert "::error file=" in worse.stdout.str()
    assert json.loads((pytester.path / "c.json").read_text(encoding="utf-8"))["results"]["summary"]["failed"] == 1


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('claim("fail", observed=2)', 'claim("fail", observed=3)', "worse*kl.loss*net*fail 2*fail 3"),
        ('claim("pass", id="kl.present")', 'claim("fail", id="kl.present")', "new*kl.present*net*pass*fail"),
        ('claim("pass", id="kl.present")', 'claim("error", id="kl.present")', "new*kl.present*net*pass*error"),
        ('claim("pass", id="kl.present")', 'claim("fail", id="kl.other")', "new*kl.other*net*not judged*fail"),
        ('claim("pass", id="kl.present")', "pass", "new*kl.present*net*pass*not judged"),
        ('claim("pass", id="kl.present")', "pytest.skip('later')", "new*kl.present*net*pass*not judged"),
        ('claim("pass", id="kl.present")', 'claim("not_applicable", id="kl.present")', "new*kl.present*not applicable"),
        ("def test_sound", "def no_test", "new*kl.present*net*pass*not judged"),
        ('claim("fail", id="mean.equals_teacher", subject="broken")', "raise AssertionError", "state*"),
    ],
)
def test_what_is_new_worse_or_lost_fails(recorded: Session, old: str, new: str, line: str) -> None:
    """The last row: a test that wanted to see a failure, and does not judge any more, lost nothing."""
    result = recorded(*HELD, instead={old: new})
    assert result.ret == (0 if line == "state*" else 1)
    result.stdout.fnmatch_lines([line])


def test_what_a_test_caught_before_fails_where_it_is_not_caught_any_more(recorded: Session) -> None:
    result = recorded(*HELD, instead={"with pytest.raises(AssertionError):": "if True:"})
    result.assert_outcomes(failed=1, passed=2, xfailed=1)


def test_something_new_fails_the_session_where_no_test_does(recorded: Session) -> None:
    """An audit whose verdict no test asks for."""
    sound = 'claim("pass", id="kl.present")'
    result = recorded(*HELD, instead={sound: f'{sound}; claim("fail", id="kl.new", asked=False)'})
    result.assert_outcomes(passed=3, xfailed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["new*kl.new*net*not judged*fail"])


def test_a_known_failure_that_a_test_comes_to_want_is_raised(recorded: Session) -> None:
    """Else the test would fail because nothing was raised, and no update could help."""
    known = 'claim("fail", observed=2)'
    wanted = f"with pytest.raises(AssertionError):\n        {known}\n"
    wanted += "    pytest.raises(AssertionError, claim, 'fail', observed=2)"
    result = recorded(*HELD, instead={known: wanted})
    result.assert_outcomes(passed=3, xfailed=1)
    assert result.ret == 0


def test_what_is_fixed_is_said_with_what_to_do(recorded: Session) -> None:
    result = recorded(*HELD, instead={'claim("fail", observed=2)': 'claim("pass", observed=0)'})
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "fixed*kl.loss*fail 2*pass 0",
            "1 claim failed before and holds now: run with --bnn-update-baseline to record it",
        ]
    )


def test_a_session_that_was_cut_misses_nothing_and_forgets_nothing(
    recorded: Session, pytester: pytest.Pytester
) -> None:
    for options in (("-k", "known"), ("test_it.py::test_known",), ("-m", "nothing or not nothing", "-k", "known")):
        result = recorded(*HELD, *options)
        assert result.ret == 0, options
    before = {check.id for check in baseline.read(pytester.path / "b.json", "", "").checks}
    recorded(*UPDATE, "-k", "sound")
    assert {check.id for check in baseline.read(pytester.path / "b.json", "", "").checks} == before
    assert recorded(*HELD).ret == 0


def test_a_session_that_did_not_run_writes_nothing(recorded: Session, pytester: pytest.Pytester) -> None:
    before = (pytester.path / "b.json").read_bytes()
    result = recorded(*UPDATE, instead={"import pytest\n": "import no_such_module\n"})
    result.stdout.fnmatch_lines(["b.json stays as it is: the session did not run to its end"])
    recorded(*UPDATE, "--collect-only")
    assert (pytester.path / "b.json").read_bytes() == before


def test_the_ini_file_names_a_baseline(recorded: Session, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nbnn_baseline = b.json")
    assert recorded("-p", "no:cacheprovider").ret == 0
    (pytester.path / "b.json").unlink()
    assert recorded("-p", "no:cacheprovider").ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--bnn-baseline=no.json",),
            "there is no baseline 'no.json'. Make it from what is found now: add --bnn-update",
        ),
        (("--bnn-update-baseline",), "--bnn-update-baseline without --bnn-baseline"),
        (
            ("--bnn-baseline=r.json", "--bnn-update-baseline", "--bnn-report=r.html"),
            "which the report's JSON overwrites",
        ),
    ],
)
def test_wrong_use_is_one_line(session: Session, options: tuple[str, ...], said: str) -> None:
    result = session(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in result.stderr.str()


def test_workers_know_the_same_failures(recorded: Session) -> None:
    result = recorded(*HELD, "-n1")
    result.assert_outcomes(passed=3, xfailed=1)
    assert result.ret == 0


def test_a_shared_fixture_knows_them_too(session: Session, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "import pytest\nfrom claims import claim\n\n\n"
        "@pytest.fixture(scope='session')\ndef shared():\n    claim('fail', id='memory.separate')\n"
    )
    test = {"def test_known():": "def test_known(shared):"}
    assert session(*UPDATE, instead=test).ret == 0
    assert session(*HELD, instead=test).ret == 0
    worse = session(*HELD, instead={**test, 'claim("fail", observed=2)': 'claim("fail", observed=3)'})
    worse.assert_outcomes(failed=1, passed=2, xfailed=1)


def evidence(verdict: str, id: str = "kl.loss", **more: Any) -> Evidence:
    return Evidence(
        id=id,
        subject="net|<b>",
        stage="converted",
        verdict=Verdict(verdict),
        claim="It <holds>.",
        headline=f"is {verdict}",
        **more,
    )


def known(value: float) -> Evidence:
    bounds = Certainty(alpha=1e-7, beta=1e-4, statistic="s", low=value - 0.5, high=value + 0.5)
    threshold = Threshold(quantity="q", observed=value, relation="<=", allowed=1.0)
    return evidence("fail", id="a.known", threshold=threshold, certainty=bounds)


def net(data: str) -> SubjectRecord:
    return SubjectRecord(name="net|<b>", stage="converted", model="Net", teacher=None, images=8, data_sha256=data)


BEFORE = AuditRun(
    checks=(evidence("pass"), known(2.0), evidence("fail", id="a.fixed"), evidence("pass", id="a.same")),
    subjects=(net("1"),),
    provenance={"seed": "0", "torch": "2.6.0"},
)
NOW = AuditRun(
    checks=(evidence("fail"), known(2.4), evidence("pass", id="a.fixed"), evidence("pass", id="a.same")),
    subjects=(net("2"),),
    provenance={"seed": "1", "torch": "2.6.0"},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("old.json").write_text(BEFORE.to_json(), encoding="utf-8")
    Path("new.json").write_text(NOW.to_json(), encoding="utf-8")
    return tmp_path


def test_compare_prints_before_and_now(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "old.json", "new.json"]) == exits.FAILED
    said = capsys.readouterr().out
    assert "The seed was 0, and is 1 now." in said
    assert "The data of 'net|<b>' are others than before." in said
    rows = [line.split() for line in said.splitlines()]
    assert ["new", "kl.loss", "net|<b>", "pass", "fail"] in rows
    assert ["known", "a.known", "net|<b>", "fail", "2", "fail", "2.4"] in rows
    assert ["fixed", "a.fixed", "net|<b>", "fail", "pass"] in rows
    assert "a.same" not in said
    assert said.rstrip().endswith(SAID)
    assert cli.main(["compare", "new.json", "new.json"]) == exits.PASSED
    assert cli.main(["compare", "-v", "old.json", "new.json"]) == exits.FAILED
    assert "a.same" in capsys.readouterr().out


def test_compare_writes_a_comment_for_a_pull_request(folder: Path) -> None:
    """What is new stands open, what did not change is folded away, and names mean themselves."""
    assert cli.main(["compare", "old.json", "new.json", "-o", "out/c.md"]) == exits.FAILED
    text = Path("out/c.md").read_text(encoding="utf-8")
    head, _, folded = text.partition("<details>")
    assert text.startswith(f"## ✕ {SAID}\n")
    assert "| new | <code>kl.loss</code><br>net\\|&lt;b&gt; | ✓ pass | ✕ fail<br>is fail |" in head
    assert "a.fixed" in head
    assert "a.known" in folded
    assert "1 claim is as before: <code>a.same</code>" in folded
    assert "a.same" not in head


def test_a_comment_stays_within_what_github_takes(folder: Path) -> None:
    many = AuditRun(checks=tuple(evidence("fail", id=f"a.{number}") for number in range(3000)))
    Path("many.json").write_text(many.to_json(), encoding="utf-8")
    cli.main(["compare", "old.json", "many.json", "-o", "c.md"])
    text = Path("c.md").read_text(encoding="utf-8")
    assert len(text) < 65_536
    assert "more" in text


def test_compare_writes_a_page(folder: Path) -> None:
    """Every text is escaped, and nothing is loaded from elsewhere."""
    assert cli.main(["compare", "old.json", "new.json", "-o", "c.html"]) == exits.FAILED
    page = Path("c.html").read_text(encoding="utf-8")
    assert f"<title>{SAID}" in page
    assert "It &lt;holds&gt;." in page
    assert "net|&lt;b&gt;" in page
    assert "net|<b>" not in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.index("kl.loss") < page.index("a.known") < page.index("a.same")
    again = Path("d.html")
    cli.main(["compare", "old.json", "new.json", "-o", "d.html"])
    assert again.read_bytes() == Path("c.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["old.json", "no.json"], "'no.json' cannot be read"),
        (["old.json", "bad.json"], "'bad.json': the audit is not JSON"),
        (["old.json", "new.json", "-o", "c.txt"], "give a path that ends in .html or .md"),
        (["old.json", "new.json", "-o", "old.json/c.md"], "cannot be written"),
    ],
)
def test_compare_words_mistakes(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    Path("bad.json").write_text("{", encoding="utf-8")
    assert cli.main(["compare", *arguments]) == exits.USAGE
    assert said.lower() in capsys.readouterr().err.lower()


NET = """
import torch
from torch import nn

import pytest_bnn


def bayesian():
    return nn.Sequential(pytest_bnn.convert(nn.Linear(6, 3)), nn.Linear(3, 3))


def whole():
    return pytest_bnn.convert(nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3)))
"""


def audit(*arguments: str) -> int:
    return cli.main(["audit", "--model", "small_net:bayesian", "--checks", "layers.replaced,kl.present", *arguments])


def test_an_audit_is_held_to_its_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("small_net.py").write_text(NET, encoding="utf-8")
    held = ["--baseline", "b.json"]
    assert audit(*held) == exits.USAGE
    assert "add --update-baseline" in capsys.readouterr().err
    assert audit("--update-baseline") == exits.USAGE
    assert audit("--baseline", "audit.json", "--update-baseline") == exits.USAGE
    assert "which this audit's report overwrites" in capsys.readouterr().err
    assert audit() == exits.FAILED
    assert audit(*held, "--update-baseline") == exits.PASSED
    assert "wrote b.json: 2 claims; 1 failure is known from now on" in capsys.readouterr().out
    assert audit(*held) == exits.PASSED
    assert "b.json: nothing is new or worse; 1 claim fails as before, 1 is as before" in capsys.readouterr().out
    # Without the Bayesian layer the KL is not judged any more.
    assert audit(*held, "--set", "kl.present.severity=off") == exits.FAILED
    said = capsys.readouterr().out
    assert "not judged any more: Switched off" in said
    assert "The setting kl.present.severity was the default, and is off now." in said
    assert audit(*held, "--allow", "1=kept for speed") == exits.PASSED
    said = capsys.readouterr().out
    assert "1 claim failed before and holds now: run with --update-baseline to record it" in said
    assert json.loads(Path("b.json").read_text(encoding="utf-8"))["verdict"] == "fail"
