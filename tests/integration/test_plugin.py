"""The plugin in projects of its users: evidence reaches the report, with xdist and without, and mistakes read well."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest

from pytest_bnn.checks import registry
from pytest_bnn.options import OPTIONS, Option
from pytest_bnn.records.run import json_schema
from tests.integration import sessions
from tests.integration.sessions import Session

CONFTEST = '''
import pytest

import net
import pytest_bnn


@pytest.fixture(scope="session")
def shared():
    """A model that one test uses, judged before and after."""
    model = net.bayesian()
    pytest_bnn.measure_layers_replaced(model, name="in set-up")
    yield model
    pytest_bnn.measure_kl_present(model, name="in tear-down")


@pytest.fixture
def measured():
    yield
    pytest_bnn.measure_kl_present(net.bayesian(), name="after a single test")


@pytest.fixture(scope="session")
def everywhere():
    """Made by both workers: xdist begins by giving two tests to each, and the first of both ask for it."""
    with open("made.txt", "a") as file:
        file.write("made\\n")
    pytest_bnn.measure_kl_present(net.bayesian(), name="everywhere")
    pytest_bnn.measure_noise_source(net.bayesian(), images=net.held_out()[0])
    yield
    pytest_bnn.measure_layers_replaced(net.bayesian(), name="everywhere, at the end")
'''

TESTS = """
import pytest
import torch

import net
import pytest_bnn
from pytest_bnn.checks.check import Check
from pytest_bnn.subject import Subject

GIVEN = dict(teacher=net.teacher(), data=net.held_out(), loss=net.loss)
IMAGES = net.held_out()[0]


def test_holds(bnn_audit, everywhere):
    bnn_audit(net.bayesian(), name="sound", num_batches=100, **GIVEN).raise_for_failures()


def test_fails(bnn_audit):
    bnn_audit(net.partly(), teacher=net.teacher(), checks=["layers.replaced"]).raise_for_failures()


def test_never_fails_by_itself(bnn_audit, everywhere):
    assert bnn_audit(net.partly(), teacher=net.teacher(), checks=["layers.replaced"]).verdict == "fail"


def test_plain_assert():
    pytest_bnn.assert_layers_replaced(net.bayesian())


@pytest.mark.parametrize("number", [2, 10, 1])
def test_parameters(number):
    pytest_bnn.assert_kl_present(net.bayesian())


def test_shared(shared):
    pytest_bnn.assert_noise_source(shared, images=IMAGES)


def test_measured(measured):
    pass


def test_warns():
    teacher = net.teacher()
    with torch.no_grad():
        teacher[3].weight[0, 0] = 0
    assert pytest_bnn.assert_kl_present(pytest_bnn.convert(teacher)).verdict == "warn"


def test_breaks():
    Check(id="own.check", claim="A check of one's own.").run(Subject(net.bayesian()), lambda subject: 1 / 0)


def test_does_not_apply():
    assert pytest_bnn.assert_teacher_agreement(net.bayesian()).verdict == "not_applicable"


def test_undecided():
    pytest_bnn.assert_teacher_agreement(
        net.bayesian(), teacher=net.teacher(), images=IMAGES, task="classification", max_passes=4
    )


@pytest.mark.bnn(inconclusive="warn", samples=4, seed=7)
def test_undecided_may_be(bnn_audit):
    run = bnn_audit(net.bayesian(), name="seeded", checks=["teacher.agreement"], **GIVEN).raise_for_failures()
    assert (run.checks[0].verdict, run.checks[0].samples, run.checks[0].seed) == ("inconclusive", 4, 7)
    pytest_bnn.assert_teacher_agreement(
        net.bayesian(), teacher=net.teacher(), images=IMAGES, task="classification", max_passes=4
    )


@pytest.mark.bnn(min_agreement=0.25)
def test_lenient(bnn_audit):
    run = bnn_audit(net.bayesian(), name="lenient", checks=["teacher.agreement"], **GIVEN)
    assert run.checks[0].threshold.allowed == 0.25


@pytest.mark.bnn(sampels=4)
def test_misspelt(bnn_audit):
    pass


def test_convert(bnn_convert):
    assert pytest_bnn.measure_layers_replaced(bnn_convert(net.teacher())).verdict == "pass"
"""

NASTY = r"""
import numpy
import net
import pytest_bnn
from pytest_bnn.checks.check import Check, Finding
from pytest_bnn.records.evidence import Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject


def finding(**more):
    values = {"a": numpy.float32(1.5), "b": numpy.int64(3), "c": numpy.bool_(True), "d": numpy.float64("nan")}
    measurements = tuple(Measurement(name=numpy.str_(name), value=value) for name, value in values.items())
    return Finding(verdict=Verdict.PASS, headline="a headline \ud800", measurements=measurements, **more)


def test_records():
    Check(id="own.records", claim="\udc80").run(Subject(net.bayesian(), name="odd \udcff"), lambda s: finding())


def test_names(bnn_audit):
    images = net.held_out()[0]
    names = ["zero \ud800", numpy.str_("one"), "two\x00"]
    bnn_audit(net.bayesian(), teacher=net.teacher(), data=images, class_names=names, checks=["noise.varies"])


def test_reason(bnn_audit):
    bnn_audit(net.partly(), checks=["layers.replaced"], allow={"0": "because \udc80"}).raise_for_failures()
"""

NASTY_THRESHOLD = """

def test_threshold():
    threshold = Threshold(quantity="q", observed="\\udcff", relation="==", allowed="\\udcfe")
    Check(id="own.threshold", claim="c").run(Subject(net.bayesian()), lambda s: finding(threshold=threshold))
"""

NASTY_FAILURE = r"""
import net
import pytest_bnn


def test_audit_fails(bnn_audit):
    bnn_audit(net.teacher(), checks=["layers.replaced"], allow={"0": "because \udc80"}).raise_for_failures()


def test_assert_fails():
    pytest_bnn.assert_layers_replaced(net.teacher(), allow={"0": "because \udc80"})
"""

RESNET = """
import pytest
import torch

import pytest_bnn


def test_spoils(resnet18_bnn, resnet18_teacher):
    with torch.no_grad():
        for parameter in (*resnet18_bnn.parameters(), *resnet18_teacher.parameters()):
            parameter.zero_()
    resnet18_bnn.train()


def test_sees_them_intact(resnet18_bnn, resnet18_teacher, bnn_images):
    assert not resnet18_bnn.training
    pytest_bnn.assert_mean_equals_teacher(resnet18_bnn, teacher=resnet18_teacher, images=bnn_images.images[:16])


def test_spoils_images(bnn_images):
    assert bnn_images.images.shape == (360, 3, 32, 32)
    bnn_images.images.zero_()
    bnn_images.labels.zero_()


def test_sees_images_intact(bnn_images, resnet18_teacher):
    with torch.no_grad():
        right = resnet18_teacher(bnn_images.images[:64]).argmax(1) == bnn_images.labels[:64]
    assert right.double().mean() > 0.9


def test_photo(bnn_photo):
    assert bnn_photo.shape == (1, 3, 224, 224)


def test_converted(resnet18_bnn, resnet18_teacher):
    assert pytest_bnn.Subject(resnet18_bnn, teacher=resnet18_teacher).stage == "converted"
"""

RESNET_FINE_TUNED = """

def test_fine_tuned(resnet18_bnn_finetuned, resnet18_bnn, resnet18_teacher):
    subject = pytest_bnn.Subject(resnet18_bnn_finetuned, teacher=resnet18_teacher)
    assert subject.stage == "finetuned"
    assert pytest_bnn.Subject(resnet18_bnn, teacher=resnet18_teacher).stage == "converted"
"""


def session(folder: Path, files: Mapping[str, str], *arguments: str) -> Session:
    """Run pytest in a process of its own, warnings being errors."""
    options = ("-W", "error::pytest.PytestWarning", "-p", "no:cacheprovider", "--strict-markers", *arguments)
    return sessions.run(folder, files, *options)


@pytest.fixture(scope="module")
def project(net_py: str) -> dict[str, str]:
    return {"net.py": net_py, "conftest.py": CONFTEST, "test_uncertainty.py": TESTS}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, project: dict[str, str]) -> Session:
    return session(
        tmp_path_factory.mktemp("alone"), project, "--bnn-report=out/audit.html", "--junit-xml=junit.xml", "-v"
    )


@pytest.fixture(scope="module")
def with_workers(tmp_path_factory: pytest.TempPathFactory, project: dict[str, str]) -> Session:
    return session(
        tmp_path_factory.mktemp("workers"), project, "--bnn-report=out/audit.html", "--junit-xml=junit.xml", "-n", "2"
    )


@pytest.fixture(params=["alone", "with_workers"])
def either(request: pytest.FixtureRequest) -> Session:
    found: Session = request.getfixturevalue(request.param)
    return found


def test_only_the_tests_that_should_fail_do(either: Session) -> None:
    """A passing claim must not fail a test, a failing one must, and the audit alone never does."""
    told = re.findall(r"^(FAILED|ERROR) test_uncertainty\.py::(\w+)", either.text, re.M)
    assert set(told) == {("FAILED", "test_fails"), ("FAILED", "test_undecided"), ("ERROR", "test_misspelt")}, (
        either.text
    )
    assert either.code == pytest.ExitCode.TESTS_FAILED


def test_the_report_is_one_page_and_json_that_fits_the_schema(either: Session) -> None:
    """Others build on the JSON: it must be what the schema says, and the page a function of it."""
    from pytest_bnn import AuditRun, render_html

    jsonschema.Draft202012Validator(json_schema()).validate(either.audit)
    page = (either.folder / "out/audit.html").read_text(encoding="utf-8")
    assert page == render_html(AuditRun.from_json((either.folder / "out/audit.json").read_text(encoding="utf-8")))
    assert "test_plain_assert" in page


#: What session fixtures measure when they end.
AT_THE_END = ("in tear-down", "everywhere, at the end")


def test_workers_give_the_same_checks_in_the_same_order(alone: Session, with_workers: Session) -> None:
    """Whoever parallelises a suite wants the same report, to the last number; the time that a check took apart."""
    found = [
        [{**check, "seconds": 0} for check in session.audit["checks"] if check["subject"] not in AT_THE_END]
        for session in (alone, with_workers)
    ]
    assert found[0] == found[1]
    assert alone.audit["subjects"] == with_workers.audit["subjects"]


def test_the_end_of_a_session_has_one_place_in_the_report(alone: Session, with_workers: Session) -> None:
    """A session's fixture ends after another test in every worker: its evidence may not wander through the report."""
    for name in AT_THE_END:
        places = [[subject for subject, _, _ in session.checks].index(name) for session in (alone, with_workers)]
        assert places[0] == places[1]


def test_the_order_is_that_of_the_file(alone: Session) -> None:
    """A reader finds a check where its test stands."""
    subjects = list(dict.fromkeys(subject for subject, _, _ in alone.checks))
    assert subjects.index("sound") < subjects.index("test_fails") < subjects.index("test_plain_assert")
    assert subjects.index("test_plain_assert") < subjects.index("in set-up") < subjects.index("test_shared")
    assert subjects.index("test_shared") < subjects.index("test_warns") < subjects.index("seeded")


def test_every_verdict_crosses_to_the_controller(either: Session) -> None:
    """Each verdict is another word on the wire; one that is lost would be a silent pass."""
    found = {(subject, verdict) for subject, _, verdict in either.checks}
    assert {
        ("sound", "pass"), ("test_fails", "fail"), ("test_warns", "warn"), ("test_breaks", "error"),
        ("test_undecided", "inconclusive"), ("test_does_not_apply", "not_applicable"),
    } <= found  # fmt: skip
    assert either.audit["verdict"] == "error"


def test_an_audit_reports_all_checks_and_its_subject(either: Session) -> None:
    """bnn_audit runs everything that was given allows, and describes what it judged."""
    from pytest_bnn.audit.run import CHECK_IDS

    sound = [(id, verdict) for subject, id, verdict in either.checks if subject == "sound"]
    of_data = {id for id in CHECK_IDS if registry.load(id).declaration.of_data}  # few examples decide nothing
    assert {verdict for id, verdict in sound if id in of_data} <= {"pass", "warn", "not_applicable"}
    expected = {id: "not_applicable" if id == "estimator.flipout" else "pass" for id in CHECK_IDS if id not in of_data}
    assert {id: verdict for id, verdict in sound if id not in of_data} == expected
    assert [id for id, _ in sound] == list(CHECK_IDS)
    subject = next(subject for subject in either.audit["subjects"] if subject["name"] == "sound")
    assert subject["stage"] == "converted"
    assert len(subject["layers"]) == 2
    assert subject["predictions"]


def test_failure_explains_itself(alone: Session) -> None:
    """The output of a failed test is all that a reader of CI has."""
    failure = alone.text.split("_ test_fails _")[1].split("_ test_undecided _")[0]
    for expected in ("1 of 2 convolution and linear layers", "observed: Bayesian layers 1", "0 (Conv2d)", "fix:"):
        assert expected in failure


def test_plain_asserts_carry_the_name_of_their_test(either: Session) -> None:
    """Without a name of its own, a subject is known by the test."""
    assert ("test_plain_assert", "layers.replaced", "pass") in either.checks
    for number in (1, 2, 10):
        assert (f"test_parameters[{number}]", "kl.present", "pass") in either.checks


def test_set_up_and_tear_down_are_reported_exactly_once(either: Session) -> None:
    """Evidence travels phase by phase: none may be lost or sent twice."""
    counts = Counter((subject, id) for subject, id, _ in either.checks)
    assert counts["in set-up", "layers.replaced"] == 1
    assert counts["in tear-down", "kl.present"] == 1
    assert counts["after a single test", "kl.present"] == 1
    assert counts["test_shared", "noise.source"] == 1


def test_junit_has_verdict_and_value(either: Session) -> None:
    """CI servers show properties; the value stands beside the verdict, the evidence stays in the JSON."""
    cases = {
        case.attrib["name"]: [(p.attrib["name"], p.attrib["value"]) for p in case.iter("property")]
        for case in ElementTree.parse(either.folder / "junit.xml").iter("testcase")
    }
    assert cases["test_plain_assert"] == [("bnn.layers.replaced", "pass 2")]
    assert cases["test_fails"] == [("bnn.layers.replaced", "fail 1")]
    assert cases["test_does_not_apply"] == [("bnn.teacher.agreement", "not_applicable")]
    assert cases["test_undecided"] == [("bnn.teacher.agreement", "inconclusive 0")]


def test_terminal_summary(either: Session) -> None:
    """The end of the terminal says how many, which failed, and where the report is."""
    summary = re.split(r"^=+ bnn =+$", either.text, flags=re.M)[1].split("short test summary")[0]
    counts = Counter(verdict for _, _, verdict in either.checks)
    assert f"{sum(counts.values())} claims: " in summary
    lacking = int(re.search(r", (\d+) not judged", summary)[1])  # type: ignore[index]
    assert 0 < lacking < counts["not_applicable"]  # for what was not given
    counts["not_applicable"] -= lacking
    for verdict, count in counts.items():
        assert f"{count} {verdict.replace('_', ' ')}" in summary
    assert re.search(r"^  fail +layers\.replaced +test_fails: 1 of 2", summary, re.M)
    assert re.search(r"^  inconclusive +teacher\.agreement +test_undecided: ", summary, re.M)
    assert re.search(r"^  error +own\.check +test_breaks: .*ZeroDivisionError", summary, re.M)
    assert not re.search(r"^  (?!warn)\w+ +\S+ +sound: ", summary, re.M)
    assert f"report: {Path('out/audit.html')} and audit.json" in summary


def test_marker_with_a_wrong_key_fails_in_one_line(alone: Session) -> None:
    """A misspelt setting must not silently leave the default in force; the user needs no traceback to see it."""
    error = re.split(r"^_+ ERROR at setup of test_misspelt _+$", alone.text, flags=re.M)[1]
    error = re.split(r"^[_=]{5,}", error, flags=re.M)[0]
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    for expected in ("sampels", "samples, seed, min_agreement, spread, alpha, beta, population, inconclusive"):
        assert expected in lines[0]


def test_marker_is_checked_without_the_audit_fixture(tmp_path: Path, net_py: str) -> None:
    """The marker also sets what a plain assert_* does with the undecided: its mistakes may not pass there either."""
    tests = """
import net
import pytest
import pytest_bnn


@pytest.mark.bnn(inconclusive="maybe")
def test_value():
    images, labels = net.held_out()
    pytest_bnn.assert_teacher_agreement(
        net.bayesian(), teacher=net.teacher(), images=images, labels=labels, max_passes=4
    )


@pytest.mark.bnn(sampels=4)
def test_key():
    pytest_bnn.assert_layers_replaced(net.bayesian())


@pytest.mark.bnn("warn")
def test_positional():
    pytest_bnn.assert_layers_replaced(net.bayesian())
"""
    found = session(tmp_path, {"net.py": net_py, "test_markers.py": tests})
    told = set(re.findall(r"^(?:FAILED|ERROR) test_markers\.py::(\w+)", found.text, re.M))
    assert told == {"test_value", "test_key", "test_positional"}, found.text
    assert "'maybe'" in found.text
    assert "fail or warn" in found.text
    assert "INTERNALERROR" not in found.text


@pytest.mark.parametrize(
    "source",
    ["option", "environment"],
)
def test_inconclusive_may_be_a_warning(
    tmp_path: Path, net_py: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--bnn-inconclusive=warn lets a plain assert_* pass that four passes cannot decide; the report keeps the word."""
    tests = """
import net
import pytest_bnn


def test_undecided():
    images, labels = net.held_out()
    pytest_bnn.assert_teacher_agreement(
        net.bayesian(), teacher=net.teacher(), images=images, labels=labels, max_passes=4
    )
"""
    files = {"net.py": net_py, "test_undecided.py": tests}
    arguments = ["--bnn-report=out/audit.html"]
    if source == "option":
        arguments.append("--bnn-inconclusive=warn")
    else:
        monkeypatch.setenv("PYTEST_BNN_INCONCLUSIVE", "warn")
    found = session(tmp_path, files, *arguments)
    assert found.code == 0, found.text
    assert found.checks == [("test_undecided", "teacher.agreement", "inconclusive")]


def test_a_shared_fixture_is_reported_once_by_two_workers(with_workers: Session) -> None:
    """A session fixture runs in every worker; its evidence is about one thing and stands in the report once.

    A subject that nobody named may not be called after whichever test of a worker happened to come first.
    """
    made = (with_workers.folder / "made.txt").read_text(encoding="utf-8")
    assert made.splitlines() == ["made"] * 2
    found = [check for check in with_workers.checks if check[0].startswith("everywhere")]
    assert found == [
        ("everywhere", "kl.present", "pass"),
        ("everywhere", "noise.source", "pass"),  # nobody named it: it is called after its fixture
        ("everywhere, at the end", "layers.replaced", "pass"),
    ]


def test_equal_findings_of_different_tests_are_all_reported(tmp_path: Path, net_py: str) -> None:
    """Two files often have tests of one name, and two models the same layers: neither may swallow the other."""
    tests = "import net, pytest_bnn\n\n\ndef test_it():\n    pytest_bnn.assert_layers_replaced(net.bayesian())\n"
    twice = tests + "    pytest_bnn.assert_layers_replaced(net.bayesian())\n"
    files = {"net.py": net_py, "test_first.py": tests, "test_second.py": twice}
    found = session(tmp_path, files, "--bnn-report=out/audit.html")
    assert found.code == 0, found.text
    assert found.checks == [("test_it", "layers.replaced", "pass")] * 3
    assert "2 claims: 2 pass" in found.text  # as on the page: of each test's subject once


@pytest.mark.nightly("two workers of its own; every push has workers with plain text, and odd text in the report")
def test_odd_text_does_not_kill_a_run_with_workers(tmp_path: Path, net_py: str) -> None:
    """execnet dies of a lone surrogate or a numpy scalar, and takes the whole session with it."""
    files = {"net.py": net_py, "test_odd.py": NASTY + NASTY_THRESHOLD, "test_failure.py": NASTY_FAILURE}
    found = session(tmp_path, files, "--bnn-report=out/audit.html", "-n", "2", "--tb=short", "-rf")
    assert "INTERNALERROR" not in found.text
    assert found.code == pytest.ExitCode.TESTS_FAILED, found.text
    failed = re.findall(r"^FAILED (\w+)\.py::(\w+)", found.text, re.M)
    assert sorted(failed) == [("test_failure", "test_assert_fails"), ("test_failure", "test_audit_fails")], found.text
    assert len(found.checks) == sum(text.count("def test_") for text in files.values())
    jsonschema.Draft202012Validator(json_schema()).validate(found.audit)
    (tmp_path / "out/audit.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "tests",
    [
        pytest.param(RESNET, id="converted"),
        pytest.param(
            RESNET + RESNET_FINE_TUNED,
            id="fine-tuned",
            marks=pytest.mark.nightly("the fixture fine-tunes for half a minute; every push has the other fixtures"),
        ),
    ],
)
def test_resnet18_fixtures_are_everyone_s_own(tmp_path: Path, tests: str) -> None:
    """Made once a session, handed out as copies: no test can spoil another's model or images."""
    found = session(tmp_path, {"test_resnet.py": tests}, "-p", "no:xdist", "-p", "no:randomly")
    assert found.code == 0, found.text
    assert f"{tests.count('def test_')} passed" in found.text


def test_missing_weights_are_one_line(tmp_path: Path) -> None:
    """A wrong path is the user's to fix, so it reads as a sentence, without our traceback."""
    tests = {"test_it.py": "def test_it(resnet18_teacher): pass"}
    found = session(tmp_path, tests, "--bnn-weights=nowhere.safetensors")
    assert "1 error" in found.text.splitlines()[-1]
    error = re.split(r"^_+ ERROR at setup of test_it _+$", found.text, flags=re.M)[1]
    error = re.split(r"^[_=]{5,}", error, flags=re.M)[0]
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert "there are no weights 'nowhere.safetensors'" in lines[0]
    assert "Traceback" not in found.text


def test_without_the_plugin_no_trace_is_left(pytester: pytest.Pytester) -> None:
    """-p no:bnn is how users rule a plugin out."""
    told = pytester.runpytest_subprocess("-p", "no:bnn", "--help")
    assert told.ret == 0
    for trace in ("--bnn-", "bnn_", "pytest-bnn"):
        told.stdout.no_fnmatch_line(f"*{trace}*")
    pytester.makepyfile("def test_it(resnet18_bnn): pass")
    found = pytester.runpytest_subprocess("-p", "no:bnn", "-p", "no:cacheprovider")
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(["*fixture 'resnet18_bnn' not found"])
    assert "bnn:" not in found.stdout.str()
    found.stdout.no_fnmatch_line("*Warning*")
    assert pytester.runpytest_subprocess("-p", "no:bnn", "--bnn-seed=1").ret == pytest.ExitCode.USAGE_ERROR


def test_help_lists_every_option_with_its_sources(pytester: pytest.Pytester) -> None:
    """--help is where an option is looked up: name, default, ini and environment."""
    told = " ".join(pytester.runpytest_subprocess("--help").stdout.str().split())
    assert "--bnn-report=FILE.html" in told
    for option in OPTIONS:
        assert f"--bnn-{option.name}" + ("" if option.switch else f"={option.metavar}") in told
        # argparse breaks long words at their dashes.
        sources = f"(default: {option.shown}; ini bnn_{option.key}, environment {option.environment})"
        assert sources.replace(" ", "") in told.replace(" ", "")


def test_fixtures_are_explained_with_their_cost(pytester: pytest.Pytester) -> None:
    """pytest --fixtures shows the first paragraph of a docstring: what a fixture costs has to stand there."""
    told = pytester.runpytest_subprocess("--fixtures").stdout.str()
    parts = dict(re.findall(r"^(\w+) -- \S*pytest_bnn\S*\n((?:    .*\n)+)", told, re.M))
    assert set(parts) == {
        "bnn_audit", "bnn_convert", "bnn_images", "bnn_photo",
        "resnet18_bnn", "resnet18_bnn_finetuned", "resnet18_teacher",
    }  # fmt: skip
    assert [name for name, text in parts.items() if "Cost" not in text] == []


def test_markers_explains_the_marker(pytester: pytest.Pytester) -> None:
    """pytest --markers is where a marker is looked up."""
    pytester.runpytest_subprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.bnn(*min_agreement*samples*seed*"])


WRONG = {
    "preset": ("quick", "smoke or default or strict"),
    "type": ("sharp", "Reparameterization or Flipout"),
    "delta": ("0", "a number above 0"),
    "samples": ("1", "a whole number from 2"),
    "seed": ("-1", "a whole number from 0, or random"),
    "min-agreement": ("1.5", "a number above 0, up to 1"),
    "inconclusive": ("perhaps", "fail or warn"),
    "threads": ("-1", "a whole number from 0"),
    "jobs": ("-1", "a whole number from 0"),
    "spread": ("1:0.1", "two numbers LOW:HIGH with 0 < LOW < HIGH"),
    "alpha": ("0.7", "a number between 0 and 0.5"),
    "beta": ("0", "a number between 0 and 0.5"),
    "population": ("perhaps", "yes or no"),
    "sampler": ("fast", "auto or own or engine or native"),
    "device": ("gpu", "auto, cpu, cuda, cuda:N or mps"),
    "weights": (" ", "a text that is not empty"),
}


def in_a_process_like_this(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run without xdist's and other plugins' say; nothing here imports torch, so this process will do."""
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


@pytest.mark.parametrize(
    ("option", "source"),
    [
        pytest.param(option, source, id=f"{option.name}-{source}")
        for option in OPTIONS
        for source in ("command line", "environment", "ini")
        # A blank value in an ini file is no value.
        if (option.name, source) != ("weights", "ini")
        # A switch takes no value on a command line.
        if not (option.switch and source == "command line")
    ],
)
def test_wrong_setting_is_one_line_with_its_source(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: Option, source: str
) -> None:
    """The user must see which of three places is wrong, and what would be right, before any test runs."""
    value, fix = WRONG[option.name]
    arguments = []
    if source == "command line":
        arguments, place = [f"--bnn-{option.name}={value}"], f"--bnn-{option.name}"
    elif source == "environment":
        monkeypatch.setenv(option.environment, value)
        place = option.environment
    else:
        pytester.makeini(f"[pytest]\nbnn_{option.key} = {value}\n")
        place = f"bnn_{option.key} in the ini file"
    result = in_a_process_like_this(pytester, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in result.stderr.lines if line.strip()]
    assert lines == [f"ERROR: {place} is {value!r}. Give {fix}."]


def test_precedence_of_settings(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line over environment over ini over default, as everywhere in pytest; an empty variable says nothing."""

    def seed(*arguments: str) -> str:
        told = in_a_process_like_this(pytester, *arguments).stdout.str()
        found = re.search(r"^bnn: weights digits, seed (\d+), at most 128 passes a check$", told, re.M)
        return found[1] if found else ""

    assert seed() == "", "nothing was given, nothing is said"
    pytester.makeini("[pytest]\nbnn_seed = 1\n")
    assert seed() == "1"
    monkeypatch.setenv("PYTEST_BNN_SEED", "")
    assert seed() == "1"
    monkeypatch.setenv("PYTEST_BNN_SEED", "2")
    assert seed() == "2"
    assert seed("--bnn-seed=3") == "3"


@pytest.mark.parametrize("path", ["audit.htm", "audit", "a_folder.html", ""])
def test_wrong_report_path_is_a_usage_error(pytester: pytest.Pytester, path: str) -> None:
    """A path that cannot hold the report must be refused before a long session, not after it."""
    pytester.mkdir("a_folder.html")
    result = in_a_process_like_this(pytester, f"--bnn-report={path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in result.stderr.lines if line.strip()]
    assert lines == [f"ERROR: --bnn-report is {path!r}. Give the path of a file that ends in .html."]


def test_unwritable_report_is_a_usage_error(pytester: pytest.Pytester) -> None:
    """A file where the report's folder should be is known at the start: nobody should wait for the end to hear it."""
    pytester.path.joinpath("out").write_text("in the way", encoding="utf-8")
    pytester.makepyfile("def test_it(): pass")
    result = in_a_process_like_this(pytester, "--bnn-report=out/audit.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "out/audit.html" in result.stderr.str()


def test_report_of_a_session_without_checks(pytester: pytest.Pytester) -> None:
    """A report that was asked for is written, also when there is nothing in it."""
    pytester.makepyfile("def test_it(): pass")
    assert session(pytester.path, {}, "--bnn-report=out/audit.html").code == 0
    assert json.loads(pytester.path.joinpath("out/audit.json").read_text(encoding="utf-8"))["checks"] == []
    assert pytester.path.joinpath("out/audit.html").is_file()
