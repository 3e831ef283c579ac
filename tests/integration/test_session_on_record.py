"""A session on record: what its report says is what pytest did, alone and with workers."""

from __future__ import annotations

import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_bnn.checks import registry
from tests.integration import sessions, warm
from tests.integration.sessions import Session

#: A check as the plugin sees it, without a network.
CLAIMS = """
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.recorder import default_subject_key, default_subject_name, record, running_test
from pytest_bnn.records.run import AuditRun


def claim(name="", verdict="fail", id="own.check"):
    check = Evidence(
        id=id, subject=name or default_subject_name(), stage="unknown", verdict=Verdict(verdict),
        claim="A claim.", headline="it does not hold, by 3 %", remedy="mend it", test=running_test(),
        key="" if name else default_subject_key(),
    )
    record(check)
    return check
"""

EXPECTED = """
import unittest

import pytest

from claims import AuditRun, claim


@pytest.fixture(scope="module")
def broken():
    return AuditRun(checks=(claim("in a fixture"),))


def test_raises():
    with pytest.raises(AssertionError, match="own.check fail"):
        claim("raises").raise_if_failed()


def test_run_raises():
    with pytest.raises(AssertionError):
        AuditRun(checks=(claim("run"), claim("run, broken", "error"))).raise_for_failures()


def test_function_raises():
    pytest.raises(AssertionError, claim("function").raise_if_failed)


def test_caught():
    try:
        claim("caught").raise_if_failed()
    except AssertionError:
        pass


def test_fixture(broken):
    with pytest.raises(AssertionError):
        broken.raise_for_failures()


@pytest.mark.xfail(strict=True, reason="known")
def test_xfail():
    claim("xfail").raise_if_failed()


@pytest.mark.xfail(strict=False)
def test_xfail_by_an_assertion():
    assert claim("xfail, measured").verdict == "pass"


@pytest.mark.xfail(raises=ValueError)
def test_xfail_otherwise():
    claim("COUNTS: of another error").raise_if_failed()


def test_measured():
    claim("COUNTS: measured")
    assert claim("COUNTS: measured, looked at").verdict == "fail"


def test_audited():
    assert AuditRun(checks=(claim("COUNTS: audited"),)).verdict == "fail"


def test_fails():
    with pytest.raises(AssertionError):
        claim("raises before a failure").raise_if_failed()
    claim("COUNTS: fails").raise_if_failed()


def test_retried_in_vain():
    for _ in range(2):
        try:
            claim("COUNTS: retried").raise_if_failed()
        except AssertionError:
            continue
    pytest.fail("never held")


def test_subtests(subtests):
    with subtests.test("first"):
        claim("COUNTS: subtest").raise_if_failed()
    with subtests.test("second"), pytest.raises(AssertionError):
        claim("subtest raises").raise_if_failed()


class TestCase(unittest.TestCase):
    def test_raises(self):
        with self.assertRaises(AssertionError):
            claim("TestCase").raise_if_failed()
        self.assertRaises(AssertionError, claim("TestCase's function").raise_if_failed)
        claim("COUNTS: TestCase").raise_if_failed()
"""

OUTCOMES = """
import pytest

from claims import claim


@pytest.fixture
def breaks():
    raise RuntimeError("no disk")


@pytest.fixture
def breaks_later():
    yield
    raise RuntimeError("not closed")


def test_dies():
    raise ValueError("no data\\nnowhere")


def test_holds():
    claim("holds", "pass")


def test_of_nothing():
    pass


def test_skips():
    pytest.skip("no network")


@pytest.mark.xfail(reason="ticket 7", strict=False)
def test_xfails():
    assert False


@pytest.mark.xfail(reason="ticket 8", strict=False)
def test_xpasses():
    pass


@pytest.mark.xfail(strict=True, reason="ticket 9")
def test_xpasses_strictly():
    pass


def test_set_up(breaks):
    pass


def test_tear_down(breaks_later):
    pass


def test_left_out():
    pass


def test_left_out_too():
    pass
"""

SAME = """
import pytest

from claims import claim


def test_it():
    claim(verdict="pass")
    claim("by name", "pass")


@pytest.mark.parametrize("number", [1, 2])
def test_parameters(number):
    claim(verdict="pass")


class TestOne:
    def test_it(self):
        claim(verdict="pass")


class TestOther:
    def test_it(self):
        claim(verdict="pass")


@pytest.fixture(scope="module")
def shared():
    claim(verdict="pass")


def test_shared(shared):
    pass
"""

FAILED = [
    "test_xfail_otherwise", "test_fails", "test_retried_in_vain", "test_subtests", "TestCase::test_raises",
]  # fmt: skip


def session(
    folder: Path, files: Mapping[str, str], *arguments: str, environment: Mapping[str, str] | None = None
) -> Session:
    options = ("-p", "no:cacheprovider", "--bnn-report=out/audit.html", *arguments)
    return sessions.run(folder, {"claims.py": CLAIMS, **files}, *options, environment=environment)


def here(pytester: pytest.Pytester, files: Mapping[str, str], *arguments: str) -> Session:
    """Run a session in this process, which has imported what takes its time."""
    sessions.write(pytester.path, {"claims.py": CLAIMS, **files})
    with registry.kept():
        found = pytester.runpytest_inprocess(
            "-p", "no:cacheprovider", "--bnn-report=out/audit.html", *arguments, no_reraise_ctrlc=True
        )
    return Session(int(found.ret), found.stdout.str() + found.stderr.str(), pytester.path)


@pytest.fixture(scope="module", params=["alone", "with workers"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    workers = ["-n", "2"] if request.param == "with workers" else []
    files = {"test_expected.py": EXPECTED, "test_outcomes.py": OUTCOMES, "test_same.py": SAME,
             "inner/test_same.py": SAME}  # fmt: skip
    return session(
        tmp_path_factory.mktemp("whole"), files, "-k", "not left_out", "--import-mode=importlib", "-o",
        "pythonpath=.", "--junit-xml=junit.xml", "--bnn-ctrf=out/ctrf.json", *workers,
    )  # fmt: skip


def test_the_session_is_on_record(whole: Session) -> None:
    """A test that dies beside one that passes: the page must not say that all is well."""
    found = whole.audit["session"]
    assert found["exit_status"] == whole.code == pytest.ExitCode.TESTS_FAILED
    assert found["deselected"] == 2
    assert found["total"] == 14 + 9 + 2 * 6  # test_expected, test_outcomes, and test_same twice
    outcomes = {
        test.removeprefix("test_outcomes.py::"): told
        for test, told in whole.outcomes.items()
        if test.startswith("test_outcomes.py")
    }
    assert outcomes == {
        "test_dies": ("failed", "ValueError: no data"),
        "test_holds": ("passed", ""),
        "test_skips": ("skipped", "no network"),
        "test_xfails": ("xfailed", "ticket 7"),
        "test_xpasses": ("xpassed", "ticket 8"),
        "test_xpasses_strictly": ("failed", "[XPASS(strict)] ticket 9"),
        "test_set_up": ("error", "RuntimeError: no disk"),
        "test_tear_down": ("error", "RuntimeError: not closed"),
    }
    assert [test for test, told in whole.outcomes.items() if told[0] == "failed" and "expected" in test] == [
        f"test_expected.py::{name}" for name in FAILED
    ]


def test_what_was_deselected_is_told(whole: Session) -> None:
    """A report of a part looks like the report of the whole."""
    assert whole.audit["cut"] == ["2 of 37 tests were deselected by -k 'not left_out'"]


def test_expected_failures_stand_apart(whole: Session) -> None:
    """Who claims that a fault is found writes pytest.raises: no failure; a measurement that nobody raises is one."""
    checks = [check for check in whole.audit["checks"] if check["verdict"] in ("fail", "error")]
    told = {check["subject"]: check["expected"] for check in checks}
    assert {name for name, expected in told.items() if not expected} == {n for n in told if n.startswith("COUNTS")}
    assert len([name for name in told if name.startswith("COUNTS")]) == 8
    assert whole.audit["verdict"] == "fail"  # the only error was expected
    summary = re.split(r"^=+ bnn =+$", whole.text, flags=re.M)[1]
    expected = sum(check["expected"] for check in checks)
    assert f"{expected} failures were expected" in summary
    page = (whole.folder / "out/audit.html").read_text(encoding="utf-8")
    (failed, judged) = re.search(r"(\d+) of (\d+) claims failed", page).groups()  # type: ignore[union-attr]
    assert f"\n{judged} claims: " in summary
    assert f", {failed} fail\n" in summary
    assert "raises before" not in summary


def test_evidence_names_its_test_and_subjects_are_told_apart(whole: Session) -> None:
    """Two files often have tests of one name; a subject that the user named is one, wherever it was judged."""
    checks = [check for check in whole.audit["checks"] if "test_same" in check["test"] or check["subject"] == "shared"]
    keys = {check["key"] for check in checks}
    assert keys == {""} | {
        f"{folder}test_same.py::{name}"
        for folder in ("", "inner/")
        for name in ("test_it", "test_parameters[1]", "test_parameters[2]", "TestOne::test_it", "TestOther::test_it",
                     "shared")
    }  # fmt: skip
    assert {check["subject"] for check in checks if not check["key"]} == {"by name"}
    assert all(check["key"] in ("", check["test"]) for check in checks if check["subject"] != "shared")
    from pytest_bnn.records.run import AuditRun
    from pytest_bnn.report.outline import outline

    groups = outline(AuditRun.from_json((whole.folder / "out/audit.json").read_text(encoding="utf-8"))).groups
    ours = [group for group in groups if any(card.evidence in _evidence(checks) for card in group.cards)]
    assert len(ours) == len(keys)


def _evidence(plain: list[Any]) -> list[Any]:
    from pytest_bnn.records.codec import from_plain
    from pytest_bnn.records.evidence import Evidence

    return [from_plain(one, Evidence) for one in plain]


def test_junit_tells_subjects_apart(whole: Session) -> None:
    """One test may judge several models by one check."""
    cases = {
        case.attrib["classname"].rpartition(".")[2] + "::" + case.attrib["name"]: [
            (p.attrib["name"], p.attrib["value"]) for p in case.iter("property")
        ]
        for case in ElementTree.parse(whole.folder / "junit.xml").iter("testcase")
    }
    assert cases["test_same::test_it"] == [("bnn.own.check[test_it]", "pass"), ("bnn.own.check[by name]", "pass")]
    assert cases["TestOne::test_it"] == [("bnn.own.check", "pass")]


def test_ctrf(whole: Session) -> None:
    """A test for each claim, in the order of the report, and behind them what else made tests fail."""
    found = json.loads((whole.folder / "out/ctrf.json").read_text(encoding="utf-8"))
    tests = found["results"]["tests"]
    others = [test for test in tests if "claim" not in test["extra"]]
    assert tests[-len(others) :] == others
    assert len(tests) == found["results"]["summary"]["tests"] == len(whole.audit["checks"]) + len(others)
    assert found["results"]["summary"]["failed"] == 9 + len(others)  # one was tried twice
    outcomes = {test["test"]: test["outcome"] for test in whole.audit["session"]["tests"]}
    assert {outcomes[test["extra"]["test"]] for test in others} <= {"failed", "error"}
    assert found["results"]["summary"]["other"] == sum(check["expected"] for check in whole.audit["checks"])


NAMED_ALIKE = """
import pytest

from claims import claim
from pytest_bnn.records.recorder import record
from pytest_bnn.records.run import SubjectRecord


@pytest.mark.parametrize("sha256", ["1", "2", "3"])
@pytest.mark.parametrize("name", ["apart", "one"])
def test_it(name, sha256):
    claim(name, "fail" if sha256 == "2" else "pass")
    record(SubjectRecord(name=name, stage="unknown", model="Net", teacher=None, images=0,
                         sha256=sha256 if name == "apart" else ""))
"""


def test_models_of_one_name_are_told_apart_by_their_weights(pytester: pytest.Pytester) -> None:
    """Where tests give one name to several models, a failure of the one is none of the others."""
    found = here(pytester, {"test_it.py": NAMED_ALIKE})
    keys = [check["key"] for check in found.audit["checks"] if check["subject"] == "apart"]
    assert keys == [f"test_it.py::test_it[apart-{sha256}]" for sha256 in "123"]
    assert {check["key"] for check in found.audit["checks"] if check["subject"] == "one"} == {""}
    described = [subject["key"] for subject in found.audit["subjects"] if subject["name"] == "apart"]
    assert described == keys
    assert "4 claims: 2 pass, 2 fail" in found.text
    assert "2 of 4 claims failed" in (found.folder / "out/audit.html").read_text(encoding="utf-8")


STOPPING = """
from claims import claim


def test_first():
    claim("first", "pass")


def test_second():
    {second}


def test_third():
    pass


def test_fourth():
    pass
"""


@pytest.mark.parametrize(
    ("second", "arguments", "outcome", "reason", "code"),
    [
        pytest.param("assert False", ("-x",), "failed", "stopping after 1 failures (-x)", 1, id="-x"),
        pytest.param("raise KeyboardInterrupt", (), "error", "the session was interrupted", 2, id="interrupt"),
        pytest.param("import pytest; pytest.exit('enough', 9)", (), "error", "enough", 9, id="exit"),
        pytest.param(
            "assert False", ("-n", "1", "-x"), "failed", "stopping after 1 failures (-x)", 2, id="-x in a worker",
            marks=pytest.mark.nightly("a worker of its own; every push stops without one"),
        ),
        pytest.param(
            "import os; os._exit(3)", ("-n", "1", "--max-worker-restart=0"), "failed", "crashed", 1, id="crash",
            marks=pytest.mark.nightly("a worker of its own; every push stops without one"),
        ),
    ],
)  # fmt: skip
def test_what_never_ran_is_on_record(
    pytester: pytest.Pytester, second: str, arguments: tuple[str, ...], outcome: str, reason: str, code: int
) -> None:
    """Half of a session looks like a whole one that is half as long."""
    files = {"test_it.py": STOPPING.format(second=second)}
    found = session(pytester.path, files, *arguments) if "-n" in arguments else here(pytester, files, *arguments)
    assert found.code == found.audit["session"]["exit_status"]
    assert (found.code == code) or "-n" in arguments, found.text
    assert found.audit["session"]["total"] == 4
    told = {test.partition("::")[2]: told for test, told in found.outcomes.items()}
    assert told["test_first"] == ("passed", "")
    assert told["test_second"][0] == outcome
    assert {told[name][0] for name in ("test_third", "test_fourth")} == {"never run"}
    assert reason in told["test_third"][1] + told["test_second"][1]
    (cut,) = found.audit["cut"]
    assert cut.startswith("2 of 4 tests never ran: ")


def test_exit_status_is_the_one_pytest_ends_with(pytester: pytest.Pytester) -> None:
    """Another plugin may have the last word."""
    conftest = """
import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    pytest.exit("coverage is too low", 5)


def pytest_unconfigure(config):
    pass
"""
    found = here(pytester, {"conftest.py": conftest, "test_it.py": "def test_it(): pass"})
    assert found.code == found.audit["session"]["exit_status"] == 5, found.text


def test_what_cannot_be_collected_is_on_record(pytester: pytest.Pytester) -> None:
    """A module that cannot be imported has no tests that could fail."""
    files = {"test_broken.py": "import nowhere_at_all", "test_it.py": "def test_it(): pass"}
    found = here(pytester, files)
    assert found.code == found.audit["session"]["exit_status"] == pytest.ExitCode.INTERRUPTED
    assert found.outcomes == {
        "test_broken.py": ("error", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        "test_it.py::test_it": ("never run", "1 error during collection"),
    }


def test_last_failed_is_a_cut(pytester: pytest.Pytester) -> None:
    """``--lf`` leaves out tests and whole files."""
    files = {"test_a.py": STOPPING.format(second="assert False"), "test_b.py": "def test_it(): pass"}
    arguments = ["-p", "cacheprovider"]
    assert here(pytester, files, *arguments).audit["cut"] == []
    cut = here(pytester, files, *arguments, "--lf").audit["cut"]
    assert cut == ["only tests that failed the last time were run, by --lf"]


@pytest.mark.parametrize(
    "arguments",
    [("--co", "-q"), ("--setup-plan",), ("nowhere.py",), ("--bnn-alpha=2",), ("-k", "no_such_test")],
    ids=["--co", "--setup-plan", "wrong path", "wrong setting", "nothing selected"],
)
def test_a_report_is_not_overwritten_where_no_test_runs(pytester: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    """To list the tests is no session."""
    (pytester.path / "out").mkdir()
    old = [pytester.path / "out/audit.html", pytester.path / "out/audit.json", pytester.path / "out/ctrf.json"]
    for path in old:
        path.write_text("old", encoding="utf-8")
    here(pytester, {"test_it.py": "def test_it(): pass"}, "--bnn-ctrf=out/ctrf.json", *arguments)
    assert [path.read_text(encoding="utf-8") for path in old] == ["old"] * 3


def test_a_relative_report_is_of_the_folder_of_the_start(pytester: pytest.Pytester) -> None:
    """A conftest and a test that go elsewhere do not take the report with them."""
    conftest = "import os, pathlib\nos.chdir(pathlib.Path(__file__).parent / 'elsewhere')\n"
    tests = "import os\n\n\ndef test_it():\n    os.chdir('/')\n"
    (pytester.path / "elsewhere").mkdir()
    found = here(pytester, {"conftest.py": conftest, "test_it.py": tests})
    assert found.code == 0, found.text
    assert (pytester.path / "out/audit.html").is_file()
    assert list((pytester.path / "elsewhere").iterdir()) == []
    assert f"report: {Path('out/audit.html')} and audit.json" in found.text


CHANGED = """
import pytest

import net
import pytest_bnn


@pytest.mark.bnn(min_agreement=0.5, set={"noise.spread.band": "1e-6:0.9"})
@pytest.mark.parametrize("number", [1, 2])
def test_marked(number):
    pytest_bnn.measure_layers_replaced(net.bayesian())


@pytest.mark.bnn(samples=8)
def test_without_a_check():
    pass


def test_argument(bnn_audit):
    run = bnn_audit(net.partly(), name="partly", checks=["layers.replaced"], allow={"0": "latency"})
    assert run.cut


def test_plain():
    pytest_bnn.measure_kl_present(net.bayesian())
"""


def test_changed_settings_and_the_command_that_repeats_them(tmp_path: Path, net_py: str) -> None:
    """Loosened in the environment, an ini file, a table, a marker or an argument: a reader sees it, and repeats it."""
    pyproject = (
        "[tool.pytest.ini_options]\nbnn_beta = '0.01'\nbnn_samples = '128'\n"
        "[tool.pytest-bnn.checks.'kl.loss']\nseverity = 'warn'\n"
        "[tool.pytest-bnn.checks.'teacher.agreement']\nmin_agreement = 0.9\n"
    )
    files = {"net.py": net_py, "test_it.py": CHANGED, "pyproject.toml": pyproject}
    environment = {"PYTEST_BNN_MIN_AGREEMENT": "0.8", "PYTEST_BNN_SEED": "random", "PYTEST_ADDOPTS": "-p no:doctest"}
    found = session(
        tmp_path, files, "--bnn-spread=0.001:2", "-k", "marked or argument or check", environment=environment
    )
    assert found.code == 0, found.text
    seed = found.audit["provenance"]["seed"]
    changed = {(c["name"], c["value"], c["default"], c["source"]): c["tests"] for c in found.audit["changed"]}
    assert changed == {
        ("beta", "0.01", "0.001", "bnn_beta in the ini file"): [],
        ("spread", "0.001:2", "0.001:1", "--bnn-spread"): [],
        ("min_agreement", "0.8", "0.95", "PYTEST_BNN_MIN_AGREEMENT"): [],
        ("seed", seed, "0", "random, as PYTEST_BNN_SEED"): [],
        ("kl.loss.severity", "warn", "error", "kl.loss.severity in pyproject.toml"): [],
        ("min_agreement", "0.5", "0.95", "min_agreement in the bnn marker"): [
            "test_it.py::test_marked[1]", "test_it.py::test_marked[2]"
        ],
        ("noise.spread.band", "1e-6:0.9", "0.001:1.0", "noise.spread.band in the bnn marker"): [
            "test_it.py::test_marked[1]", "test_it.py::test_marked[2]"
        ],
        ("layers.replaced.allow", "0=latency", "none", "an argument in Python"): ["test_it.py::test_argument"],
        ("predictions.rows.allow", "0=latency", "none", "an argument in Python"): ["test_it.py::test_argument"],
    }  # fmt: skip
    others = len(registry.ids()) - 1
    assert found.audit["cut"][1:] == [
        f"only layers.replaced was asked for, {others} other checks were not run (test_it.py::test_argument)"
    ]
    told = [(check["subject"], check["key"], check["test"]) for check in found.audit["checks"]]
    marked = [f"test_it.py::test_marked[{number}]" for number in (1, 2)]
    assert told == [
        *((test.partition("::")[2], test, test) for test in marked),
        ("partly", "", "test_it.py::test_argument"),
    ]
    assert [(subject["name"], subject["key"]) for subject in found.audit["subjects"]] == [("partly", "")]
    repeat = shlex.split(found.audit["provenance"]["repeat"])
    assert "-p" in repeat
    assert f"--bnn-seed={seed}" in repeat
    (tmp_path / "pyproject.toml").unlink()
    assert repeat[:3] == ["python", "-m", "pytest"]
    again = warm.python(*repeat[1:], cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {(c["name"], c["value"]) for c in found.audit["changed"]} == {one[:2] for one in changed}
    assert {c["source"] for c in found.audit["changed"] if not c["tests"]} == {
        "--bnn-beta", "--bnn-spread", "--bnn-min-agreement", "--bnn-seed", "--bnn-set kl.loss.severity"
    }  # fmt: skip


def test_github(tmp_path: Path, net_py: str) -> None:
    """Annotations stand at the test, by the path in the repository; the summary of the step is appended to."""
    tests = (
        "import pytest, net, pytest_bnn\n\n\ndef test_fails():\n    pytest_bnn.assert_layers_replaced(net.partly())\n"
    )
    tests += "\n\ndef test_expected():\n    with pytest.raises(AssertionError):\n        test_fails()\n"
    summary = tmp_path / "summary.md"
    summary.write_text("# before\n", encoding="utf-8")
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_WORKSPACE": str(tmp_path)}
    folder = tmp_path / "package"
    found = session(
        folder, {"net.py": net_py, "tests/test_it.py": tests}, "-o", "pythonpath=.", environment=environment
    )
    lines = [line for line in found.text.splitlines() if line.startswith("::")]
    assert len(lines) == 1, found.text
    assert lines[0].startswith(
        "::error file=package/tests/test_it.py,line=4,title=layers.replaced%2C test_fails::1 of 2 convolution and"
    )
    assert summary.read_text(encoding="utf-8").startswith("# before\n## ")
