"""Networks that are only named: one item a check, selected, rerun and reported as tests are."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from pytest_bnn import cli
from pytest_bnn.audit import subjects
from pytest_bnn.checks import registry
from pytest_bnn.checks.choices import require_usable
from pytest_bnn.commands import command as exits
from pytest_bnn.errors import InputError
from pytest_bnn.gathering.gathered import each_once
from pytest_bnn.items import wording
from pytest_bnn.records.charts import PredictionSummary
from pytest_bnn.records.recorder import Recorder, recording
from pytest_bnn.records.run import SubjectRecord, json_schema
from tests.integration import sessions, warm
from tests.integration.sessions import Session

SMALL = """
import pathlib

import torch
from torch import nn

import pytest_bnn

CALLS = pathlib.Path(__file__).with_name("calls.txt")


def teacher():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def bayesian():
    with CALLS.open("a") as file:
        file.write("made\\n")
    return pytest_bnn.convert(teacher(), moped_delta=0.1)


def half():
    network = bayesian()
    network[2] = teacher()[2]
    return network


def frozen():
    network = teacher()
    with torch.no_grad():
        network[0].weight[0, 0] = 0
    return pytest_bnn.convert(network)


def broken():
    return {}["weights"]


def inputs():
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def loss(model, batch):
    return model(batch[0]).square().mean()
"""

TABLES = """
[tool.pytest-bnn.checks."layers.replaced"]
severity = "warn"

[tool.pytest-bnn.subjects.small]
model = "small:bayesian"
teacher = "small:teacher"
data = "small:inputs"

[tool.pytest-bnn.subjects.half]
model = "small:half"
teacher = "small:teacher"
checks."layers.replaced".severity = "error"
"""

FAST = "layers or tensors or start or present"


def session(folder: Path, *arguments: str, files: Mapping[str, str] | None = None) -> Session:
    """Run pytest on a small network, warnings being errors."""
    options = ("-W", "error::pytest.PytestWarning", "--strict-markers", *arguments)
    return sessions.run(folder, {"small.py": SMALL, **(files or {})}, *options, report="audit.json", command=True)


def test_a_network_that_is_only_named(tmp_path: Path) -> None:
    """One item a check, each with the outcome of its verdict; the network is made once; the report has it once."""
    found = session(
        tmp_path, "--bnn-audit", "small:half", "--bnn-teacher=small:teacher", "--bnn-data=small:inputs", "-v", "-rs",
        "--bnn-report=audit.html", "-k", f"{FAST} or varies or kl.loss",
    )  # fmt: skip
    assert found.code == pytest.ExitCode.TESTS_FAILED, found.text
    outcomes = found.items("small:half")
    assert outcomes == {
        "layers.replaced": "FAILED", "teacher.tensors": "PASSED", "posterior.start": "PASSED",
        "kl.present": "PASSED", "noise.varies": "PASSED", "kl.loss": "SKIPPED",
    }  # fmt: skip
    assert "_ small:half: layers.replaced _" in found.text
    assert "is still nn.Linear" in found.text
    assert "with a reason: --bnn-allow '" in found.text
    assert "Traceback" not in found.text
    assert "items/nodes.py" not in found.text
    assert re.search(r"SKIPPED \[1\] small\.py:\d+: No training loss was given: --bnn-loss MODULE:FUNCTION\.$",
                     found.text, re.M)  # fmt: skip
    assert found.made == 1
    jsonschema.Draft202012Validator(json_schema()).validate(found.audit)
    (subject,) = found.audit["subjects"]
    assert (subject["name"], subject["key"]) == ("small:half", "small:half")
    assert {(check["subject"], check["key"]) for check in found.audit["checks"]} == {("small:half", "small:half")}
    by_id = {check["id"]: check for check in found.audit["checks"]}
    assert by_id["layers.replaced"]["test"] == "small:half::layers.replaced"
    assert by_id.keys() == outcomes.keys()


def test_the_error_rates_are_those_of_the_whole_audit(tmp_path: Path) -> None:
    """Whoever selects one check must not get a laxer one: its share is that of `pytest-bnn audit`."""
    found = session(tmp_path, "small:bayesian::noise.varies", "--bnn-data=small:inputs", "--bnn-report=audit.html",
                    "--bnn-alpha=0.01")  # fmt: skip
    (check,) = found.audit["checks"]
    ours = [registry.declaration(id) for id in registry.built_in()]
    sharing = [one for one in ours if one and one.sampled and not {"teacher", "loss", "slices"} & set(one.needs)]
    assert len(sharing) > 2
    assert check["certainty"]["alpha"] == pytest.approx(0.01 / len(sharing), rel=0.02)


def test_an_option_adds_and_an_argument_selects(tmp_path: Path) -> None:
    """No test of the user's may be left out because of an option; a name in the place of a path selects as a path."""
    files = {"test_own.py": "def test_it():\n    pass\n", "pyproject.toml": TABLES}
    added = session(tmp_path, "--bnn-audit=small:bayesian", "--co", "-q", files=files)
    assert "test_own.py::test_it" in added.text
    assert "small:bayesian::kl.present" in added.text
    assert added.made == 0
    alone = session(tmp_path, "small:bayesian", "--co", "-q")
    assert "test_own.py" not in alone.text
    assert alone.text.count("small:bayesian::") == len(registry.built_in())
    both = session(tmp_path, "small:bayesian::kl.present", "pyproject.toml::half::kl.loss", "test_own.py", "--co", "-q")
    assert both.text.split("\n\n")[0].splitlines() == [
        "test_own.py::test_it", "small:bayesian::kl.present", "pyproject.toml::half::kl.loss"
    ]  # fmt: skip


def test_when_tables_are_audited(tmp_path: Path) -> None:
    """A bare pytest audits none and says so; the option adds, the ini option does where the root is collected."""
    files = {"tests/test_own.py": "def test_it():\n    pass\n", "pyproject.toml": TABLES}
    bare = session(tmp_path, "--co", files=files)
    assert "kl.present" not in bare.text
    assert "bnn: 2 subjects of pyproject.toml not audited here" in bare.text
    some = session(tmp_path, "--co", "--bnn-subjects=half", "tests")
    assert "1 subject of pyproject.toml not audited here" in some.text
    assert "<SubjectNode half>" in some.text
    assert "<SubjectNode small>" not in some.text
    ini = {"pytest.ini": "[pytest]\nbnn_subjects = all\n"}
    for arguments, audited in (((), 2), (("tests",), 0)):
        found = session(tmp_path, "--co", *arguments, files=ini)
        assert found.text.count("<SubjectNode ") == audited, arguments


@pytest.mark.nightly("two more sessions; every push has the others")
@pytest.mark.parametrize(("argument", "audited"), [(".", 2), ("--bnn-subjects=none", 0)])
def test_the_root_is_collected_by_name_and_an_option_goes_before(argument: str, audited: int, tmp_path: Path) -> None:
    files = {
        "tests/test_own.py": "def test_it():\n    pass\n",
        "pyproject.toml": TABLES,
        "pytest.ini": "[pytest]\nbnn_subjects = all\n",
    }
    assert session(tmp_path, "--co", argument, files=files).text.count("<SubjectNode ") == audited


def test_what_a_subject_s_table_loosens_is_on_record(tmp_path: Path) -> None:
    """A severity that lets a failure through must be seen beside the verdict."""
    project = '[tool.pytest-bnn.checks."layers.replaced"]\nseverity = "warn"\n'
    table = TABLES.replace(project, "").replace('severity = "error"', 'severity = "warn"') + "num-batches = 3\n"
    found = session(tmp_path, "pyproject.toml", "-k", "layers or kl.loss", "--bnn-report=audit.html",
                    files={"pyproject.toml": table})  # fmt: skip
    assert found.code == 0, found.text
    changed = {one["name"]: (one["value"], one["source"], one["tests"]) for one in found.audit["changed"]}
    assert changed == {
        "layers.replaced.severity": ("warn", "layers.replaced.severity of the subject 'half' in pyproject.toml",
                                     ["pyproject.toml::half::layers.replaced"]),
        "kl.loss.num_batches": ("3", "num-batches of the subject 'half' in pyproject.toml",
                                ["pyproject.toml::half::kl.loss"]),
    }  # fmt: skip


def test_all_of_none_is_a_mistake(tmp_path: Path) -> None:
    """Green would be mistaken for audited."""
    found = session(tmp_path, "--bnn-subjects=all", files={"test_own.py": "def test_it():\n    pass\n"})
    assert found.code == pytest.ExitCode.USAGE_ERROR
    assert "--bnn-subjects: pyproject.toml has no subjects. Write [tool.pytest-bnn.subjects.my_net]" in found.text


def test_tables_have_options_of_their_own(tmp_path: Path) -> None:
    """A subject's table goes before the project's, and the command line before both; a warning is a passed item."""
    found = session(tmp_path, "pyproject.toml", "-k", "layers", "-v", files={"pyproject.toml": TABLES})
    assert found.items("pyproject.toml::half") == {"layers.replaced": "FAILED"}, found.text
    assert found.items("pyproject.toml::small") == {"layers.replaced": "PASSED"}
    assert '= "REASON" } in its table.\n' in found.text
    lenient = session(tmp_path, "pyproject.toml::half", "-k", "layers", "--bnn-set=layers.replaced.severity=warn")
    assert lenient.code == 0, lenient.text
    assert "pyproject.toml:10: ClaimWarning: layers.replaced warn for 'half'" in lenient.text
    strict = session(tmp_path, "pyproject.toml::half", "-k", "layers", "--bnn-set=layers.replaced.severity=warn",
                     "-W", "error::pytest_bnn.errors.ClaimWarning")  # fmt: skip
    assert strict.code == pytest.ExitCode.TESTS_FAILED


@pytest.mark.nightly("two sessions; pytest's own cache knows items as tests")
def test_a_failed_check_is_run_again_by_last_failed(tmp_path: Path) -> None:
    """And -x stops at it, with the subject described all the same."""
    first = session(tmp_path, "small:half", "--bnn-teacher=small:teacher", "-x", "--bnn-report=audit.html", "-k", FAST)
    assert "stopping after 1 failures" in first.text
    assert [check["id"] for check in first.audit["checks"]] == ["layers.replaced"]
    assert [subject["name"] for subject in first.audit["subjects"]] == ["small:half"]
    again = session(tmp_path, "small:half", "--bnn-teacher=small:teacher", "--lf", "-v", "-m", "bnn")
    assert again.items("small:half") == {"layers.replaced": "FAILED"}


def test_a_preset_leaves_out_items(tmp_path: Path) -> None:
    """What `smoke` leaves out is no item, unless an id or a table asks for it; the session says so."""
    table = TABLES + 'checks."predictions.rows".severity = "warn"\n'
    found = session(tmp_path, "pyproject.toml", "pyproject.toml::small::noise.fresh", "--bnn-preset=smoke", "-v", "-k",
                    f"{FAST} or rows or fresh", "--bnn-report=audit.html",
                    files={"pyproject.toml": table})  # fmt: skip
    assert "predictions.rows" in found.items("pyproject.toml::half"), found.text
    assert {"noise.fresh", "predictions.rows"}.isdisjoint(found.items("pyproject.toml::small"))
    assert "not the whole audit: the preset smoke judges" in found.text
    (words,) = (cut for cut in found.audit["cut"] if cut.startswith("the preset smoke judges"))
    assert words.endswith("(pyproject.toml::small, pyproject.toml::half)")
    alone = session(tmp_path, "pyproject.toml::small::noise.fresh", "--bnn-preset=smoke", "-v")
    assert alone.items("pyproject.toml::small") == {"noise.fresh": "PASSED"}, alone.text
    assert "not the whole audit" not in alone.text


def test_a_defect_of_a_check_is_a_short_traceback(tmp_path: Path) -> None:
    """It begins where the check is run, not with pytest's own frames."""
    conftest = (
        "import pytest_bnn.audit.run as run\ndef broken(*_): raise RuntimeError('a defect')\nrun.run_steps = broken\n"
    )
    found = session(tmp_path, "small:bayesian::kl.present", files={"conftest.py": conftest})
    assert "RuntimeError: a defect" in found.text
    assert "items/nodes.py" in found.text
    assert "pluggy" not in found.text.split("FAILURES")[1]


def test_a_factory_that_fails_is_one_error(tmp_path: Path) -> None:
    """Not one for each check: the others are skipped, and a rerun tries again."""
    found = session(tmp_path, "--bnn-audit=small:broken", "-rs", "-k", FAST)
    assert "1 error" in found.text, found.text
    assert "3 skipped" in found.text
    assert "small:broken cannot be audited: --bnn-audit: small:broken() raised KeyError: 'weights'." in found.text
    assert re.search(
        r"It was raised in broken, line \d+ of small\.py\. Make it work in Python first\.$", found.text, re.M
    )
    assert "small:broken cannot be audited, as layers.replaced says" in found.text
    assert "Traceback" not in found.text


@pytest.mark.nightly("workers import torch anew; every push has those of test_plugin.py")
@pytest.mark.parametrize("dist", ["loadgroup", "load"])
def test_workers_give_the_same_report(tmp_path: Path, dist: str) -> None:
    """With loadgroup a subject stays on one worker and is made once; without, the verdicts are the same."""
    arguments = ("pyproject.toml", "-k", f"{FAST} or source or mean", "--bnn-report=audit.html", "-v")
    alone = session(tmp_path / "alone", *arguments, files={"pyproject.toml": TABLES}) if dist == "load" else None
    found = session(tmp_path / "many", *arguments, "-n2", f"--dist={dist}", files={"pyproject.toml": TABLES})
    assert [subject["name"] for subject in found.audit["subjects"]] == ["small", "half"]
    known = {check["test"] for check in found.audit["checks"]}
    assert {test["test"] for test in found.audit["session"]["tests"]} == known  # without the worker's group
    if alone is None:
        assert found.made == 2, found.text
        return
    expected, got = (
        [{**check, "seconds": 0, "sampler": ""} for check in one.audit["checks"]] for one in (alone, found)
    )
    assert expected == got


@pytest.mark.nightly("a session that makes three networks; every push reads the tables")
def test_checkpoints_are_subjects_of_their_own(tmp_path: Path) -> None:
    """Each file's state is loaded whole; one that does not fit is that subject's error."""
    save = """
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))


def pytest_configure():
    import small
    import torch

    state = small.bayesian().state_dict()
    torch.save(state, "a.pt")
    state["0.mu_weight"][:] = 5.0
    torch.save(state, "b.pt")
    del state["0.rho_weight"]
    torch.save(state, "c.pt")
"""
    table = """
[tool.pytest-bnn.subjects.net]
model = "small:bayesian"
teacher = "small:teacher"
data = "small:inputs"
stage = "converted"
checkpoints = ["?.pt"]
"""
    files = {"pyproject.toml": table, "a.pt": "", "b.pt": "", "c.pt": "", "conftest.py": save}
    found = session(tmp_path, "pyproject.toml::net", "-k", "mean", "-v", "--bnn-report=audit.html", files=files)
    for name, outcome in (("a", "PASSED"), ("b", "FAILED"), ("c", "ERROR")):
        assert found.items(f"pyproject.toml::net@{name}.pt") == {"mean.equals_teacher": outcome}, found.text
    assert "it lacks 0.rho_weight" in found.text
    assert [subject["name"] for subject in found.audit["subjects"]] == ["net@a.pt", "net@b.pt"]


WHERE = """
import os


def pytest_runtest_logreport(report):
    if report.when == "call" and "PYTEST_XDIST_WORKER" not in os.environ:
        with open("where.txt", "a") as file:
            file.write(f"{report.node.gateway.id} {report.nodeid}\\n")
"""


@pytest.mark.nightly("workers import torch anew, 20 s; every push looks at the groups of the items")
def test_a_checkpoint_stays_on_one_worker(tmp_path: Path) -> None:
    """With loadgroup each has one item a check, all of them on one worker, which makes its network once."""
    table = '[tool.pytest-bnn.subjects.a]\nmodel = "small:bayesian"\ndata = "small:inputs"\ncheckpoints = "?.pt"\n'
    saved(tmp_path, "abcd")
    files = {"pyproject.toml": table, "conftest.py": WHERE}
    found = session(tmp_path, "pyproject.toml", "-k", f"{FAST} or varies", "-n2", "--dist=loadgroup", files=files)
    lines = [line.split(" ", 1) for line in (tmp_path / "where.txt").read_text(encoding="utf-8").splitlines()]
    workers: dict[str, set[str]] = {}
    for worker, item in lines:
        workers.setdefault(item.split("::")[1], set()).add(worker)
    assert workers.keys() == {f"a@{name}.pt" for name in "abcd"}, found.text
    assert all(len(those) == 1 for those in workers.values()), workers
    assert {worker for those in workers.values() for worker in those} == {"gw0", "gw1"}
    checks = {item.split("::")[2].partition("@")[0] for _, item in lines}
    assert len(checks) >= 4
    assert len(lines) == 4 * len(checks)  # one item a check and checkpoint
    assert found.made == 4, found.text


def saved(folder: Path, names: str) -> None:
    """Write the state of the network under some names."""
    (folder / "small.py").write_text(SMALL, encoding="utf-8")
    code = f"import small, torch\nfor name in {names!r}: torch.save(small.bayesian().state_dict(), f'{{name}}.pt')"
    done = warm.python("-c", code, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stderr
    (folder / "calls.txt").unlink()


def test_each_checkpoint_is_a_group_of_its_own(pytester: pytest.Pytester) -> None:
    """By which ``--dist loadgroup`` keeps it on one worker; nothing is imported for it."""
    pytester.makepyprojecttoml('[tool.pytest-bnn.subjects.a]\nmodel = "m:f"\ncheckpoints = "?.pt"\n')
    for name in "ab":
        (pytester.path / f"{name}.pt").touch()
    items, _ = pytester.inline_genitems("pyproject.toml")
    groups: dict[str, list[str]] = {}
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        assert mark is not None
        groups.setdefault(mark.args[0], []).append(item.name)
    assert len(groups) == 2
    first, second = groups.values()
    assert first == second == list(registry.built_in())


TABLE = '[tool.pytest-bnn.subjects.a]\nmodel = "m:f"\n'
OF_TABLE = "[tool.pytest-bnn.subjects.a] in pyproject.toml"


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ("[tool.pytest-bnn.subjects.a]\n", f"{OF_TABLE} has no model. Add model ="),
        ("[tool.pytest-bnn]\nsubjects = 3\n", "is no table of tables. Write [tool.pytest-bnn.subjects.my_net]"),
        ('[tool.pytest-bnn.subjects."a b"]\n', "'a b' is no name."),
        (TABLE + 'teachr = "m:g"', f"{OF_TABLE} has 'teachr'. Did you mean teacher."),
        (TABLE + 'images = "9"', f"images in {OF_TABLE} is '9'. Give a whole number from 1."),
        (TABLE + "task = 'clasification'", f"task in {OF_TABLE} is 'clasification'. Give one of auto, classification"),
        (TABLE + "teacher = 3", f"teacher in {OF_TABLE} is 3. Give MODULE:FACTORY."),
        (TABLE.replace("m:f", "my_net"), f"model in {OF_TABLE} is 'my_net'. Give MODULE:FACTORY."),
        (TABLE + 'loss = ":loss"', f"loss in {OF_TABLE} is ':loss'. Give MODULE:FUNCTION."),
        (TABLE + 'teacher = "my_net:"', f"teacher in {OF_TABLE} is 'my_net:'. Give MODULE:FACTORY."),
        (TABLE + 'allow = { fc = "" }', f"allow in {OF_TABLE} is {{'fc': ''}}. Give reasons"),
        (TABLE + 'checkpoints = "x/*.pt"', "no file is called 'x/*.pt'"),
        (TABLE + "checks.kl.loss.num_batches = 3", '[tool.pytest-bnn.subjects.a.checks."kl.loss"]'),
        (
            TABLE + 'checks."kl.loss".num_batches = 0',
            "num_batches of the subject 'a' in pyproject.toml is 0. Give a whole",
        ),
        (TABLE + "num_batches = 0", f"num-batches in {OF_TABLE} is 0. Give a whole number from 1."),
    ],
)
def test_mistakes_in_tables(tmp_path: Path, tables: str, said: str) -> None:
    """Nothing is imported for it, and the nearest name that there is is told."""
    (tmp_path / "pyproject.toml").write_text(tables, encoding="utf-8")

    def read() -> None:
        for one in subjects.from_project(tmp_path):
            require_usable(one.choices, finally_=False)

    with pytest.raises(InputError, match=re.escape(said)):
        read()


SESSIONS = pytest.mark.nightly("a session each; every push has one of each kind")


@pytest.mark.parametrize(
    ("arguments", "tables", "said"),
    [
        ("pyproject.toml::smal", TABLES, "[tool.pytest-bnn.subjects.smal] in pyproject.toml. Did you mean small."),
        ("pyproject.toml::half::kl.los", TABLES, "half: there is no check 'kl.los'. Did you mean kl.loss."),
        pytest.param("--bnn-subjects=hlf", TABLES, "--bnn-subjects: there is no [tool.pytest-bnn.s", marks=SESSIONS),
        pytest.param("pyproject.toml::half::kl::loss", TABLES, "has 2 names behind its network.", marks=SESSIONS),
        pytest.param("pyproject.toml", TABLE + "images = 0", f"images in {OF_TABLE} is 0. Give", marks=SESSIONS),
        pytest.param("pyproject.toml", TABLE.replace("m:f", "m"), f"model in {OF_TABLE} is 'm'. Give", marks=SESSIONS),
        pytest.param("pyproject.toml", "", "pyproject.toml has no subjects.", marks=SESSIONS),
        pytest.param("--bnn-teacher=small:teacher", "", "--bnn-teacher without --bnn-audit.", marks=SESSIONS),
        pytest.param("--bnn-audit=small:half --bnn-allow=fc", "", "--bnn-allow is 'fc'. Give a reason", marks=SESSIONS),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: str, tables: str, said: str) -> None:
    """Before anything runs, with the nearest name that there is."""
    found = session(tmp_path, *arguments.split(), files={"pyproject.toml": tables})
    assert found.code == pytest.ExitCode.USAGE_ERROR, found.text
    (line,) = [line for line in found.text.splitlines() if line.startswith("ERROR: ")]
    assert said in line
    assert not found.made


def test_options_are_named_as_they_are_here() -> None:
    """A remedy that names another command's option could not be followed."""
    text = "give --loss MODULE:FUNCTION, or loss= in Python; --allow 'fc=why' or allow={p: why}; say --task binary"
    assert wording.in_pytest(text, listed=False) == (
        "give --bnn-loss MODULE:FUNCTION; --bnn-allow 'fc=why'; say --bnn-task binary"
    )
    assert wording.in_pytest(f"{text}; --samples 9, --bnn-seed", listed=True) == (
        'give loss = "MODULE:FUNCTION" in its table; allow = { "fc" = "why" } in its table; say task = "binary" in its '
        "table; --bnn-samples 9, --bnn-seed"
    )


def test_tables_say_what_options_say(tmp_path: Path) -> None:
    """Values that mean the same give the same; the place is that of the table and of the factory."""
    table = """
[tool.pytest-bnn.subjects.a]
model = "small:half"
data = "small:inputs"
batch_dim = 1
num-batches = 45
allow = { fc = "kept" }
"""
    (tmp_path / "pyproject.toml").write_text(table, encoding="utf-8")
    (listed,) = subjects.from_project(tmp_path)
    given = {"data": "small:inputs", "batch_dim": 1, "num_batches": 45, "allow": ["fc=kept"]}
    named = subjects.from_options("small:half", given, "--")
    assert listed.parts == named.parts == {"model": "small:half", "data": "small:inputs", "batch_dim": 1}
    values = [{name: choice.given for name, (choice,) in one.choices.by_name.items()} for one in (listed, named)]
    assert values[0] == values[1]
    assert values[0][("kl.loss", "num_batches")] == (45,)
    assert values[0].keys() == {
        ("kl.loss", "num_batches"), ("layers.replaced", "allow"), ("predictions.rows", "allow")
    }  # fmt: skip
    assert (listed.path, listed.line) == (tmp_path / "pyproject.toml", 2)
    with pytest.raises(InputError, match="Listed are a"):
        subjects.chosen([listed], ["b"], "--subject")


@pytest.mark.skipif(
    importlib.util.find_spec("pytest_rerunfailures") is None,
    reason="runs where pytest-rerunfailures is installed, as nox -s nightly does",
)
def test_reruns(tmp_path: Path) -> None:
    """What fails is tried again, a factory too, and counts once in the report."""
    found = session(tmp_path, "small:half", "--bnn-teacher=small:teacher", "-k", FAST, "--reruns=1",
                    "--bnn-report=audit.html")  # fmt: skip
    assert "1 failed, 3 passed" in found.text
    assert "1 rerun" in found.text
    assert len(found.audit["checks"]) == 4
    broken = session(tmp_path, "small:broken", "-k", FAST, "--reruns=1")
    assert "1 error" in broken.text
    assert broken.code == pytest.ExitCode.TESTS_FAILED


def test_a_subject_of_several_workers_is_described_once() -> None:
    """By the worker that knows most of it; subjects without a key are left as they are."""
    plain = SubjectRecord(name="a", stage="unknown", model="Net", teacher=None, images=0)
    first, fuller = replace(plain, key="k"), replace(plain, key="k", prediction_summary=PredictionSummary(passes=2))
    assert each_once((plain, first, fuller, plain)) == (plain, fuller, plain)
    assert each_once((fuller, first)) == (fuller,)


SUBTESTS = """
import small


def test_it(bnn_audit, subtests):
    checks = ["layers.replaced", "kl.present", "kl.loss"]
    run = bnn_audit(small.half(), teacher=small.teacher(), checks=checks, subtests=subtests)
    assert run.provenance["device"] == "cpu"
    assert [check.verdict for check in run.checks] == ["fail", "pass", "not_applicable"]


def test_other(bnn_audit):
    bnn_audit(small.half(), subtests="subtests")


def test_old(bnn_audit, subtests, monkeypatch):
    monkeypatch.delattr("pytest.Subtests")
    bnn_audit(small.half(), subtests=subtests)
"""


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="pytest has no subtests of its own")
def test_checks_as_subtests(tmp_path: Path) -> None:
    """Each with its own outcome and explanation; evidence reaches the report once; a pytest without them says so."""
    files = {"test_sub.py": SUBTESTS, "conftest.py": ""}
    found = session(tmp_path, "--bnn-report=audit.html", "-v", "--import-mode=prepend", files=files)
    assert "SUBFAILED[layers.replaced] test_sub.py::test_it - " in found.text, found.text
    assert "test_it SUBSKIPPED[kl.loss]" in found.text
    assert "test_it SUBPASSED[kl.present]" in found.text
    assert "subtests must be pytest's fixture subtests, not str" in found.text
    assert "subtests= takes pytest's own subtests, which it has from 9 on" in found.text
    assert [check["id"] for check in found.audit["checks"]] == ["layers.replaced", "kl.present", "kl.loss"]
    assert [subject["name"] for subject in found.audit["subjects"]] == ["test_it"]


COUNTED = """

def counted():
    with CALLS.open("a") as file:
        file.write("teacher\\n")
    return teacher()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder to stand in; its modules are forgotten afterwards."""
    (tmp_path / "small.py").write_text(SMALL + COUNTED, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(TABLES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with recording(Recorder()):
        yield tmp_path
    sys.modules.pop("small", None)


def audited(folder: Path) -> list[tuple[str, str, str]]:
    run = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    return [(check["subject"], check["id"], check["verdict"]) for check in run["checks"]]


def test_several_models_share_the_rest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is judged by itself, with the teacher made once; one that cannot be made is told and left out."""
    arguments = [
        "--teacher=small:counted",
        "--checks=layers.replaced,kl.present",
        "--set=layers.replaced.severity=error",
    ]
    assert cli.main(["audit", "--model=small:bayesian", "--model=small:half", *arguments]) == exits.FAILED
    assert audited(folder) == [
        ("small:bayesian", "layers.replaced", "pass"), ("small:bayesian", "kl.present", "pass"),
        ("small:half", "layers.replaced", "fail"), ("small:half", "kl.present", "pass"),
    ]  # fmt: skip
    assert (folder / "calls.txt").read_text(encoding="utf-8").count("teacher") == 1
    assert cli.main(["audit", "--model=small:broken", "--model=small:bayesian", *arguments]) == exits.USAGE
    assert {subject for subject, _, _ in audited(folder)} == {"small:bayesian"}
    assert "small:broken was not audited: --model: small:broken() raised KeyError: 'weights'" in capsys.readouterr().err
    assert cli.main(["audit", "--model=small:broken", "--model=small:broken2", *arguments]) == exits.USAGE


def test_subjects_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables that pytest audits, with their own severities; what a table says is not said twice."""
    arguments = ["audit", "--subject=small", "--subject=half", "--checks=layers.replaced,mean.equals_teacher"]
    assert cli.main(arguments) == exits.FAILED
    assert audited(folder) == [
        ("small", "layers.replaced", "pass"), ("small", "mean.equals_teacher", "pass"),
        ("half", "layers.replaced", "fail"), ("half", "mean.equals_teacher", "not_applicable"),
    ]  # fmt: skip
    changed = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["changed"]
    assert [(one["name"], one["value"]) for one in changed] == [("layers.replaced.severity", "warn")]
    assert cli.main([*arguments, "--set=layers.replaced.severity=warn"]) == exits.PASSED
    assert cli.main(["audit", "--subject=small", "--teacher=small:teacher"]) == exits.USAGE
    assert (
        "--teacher without --model. Name your own network with --model MODULE:FACTORY; one of pyproject.toml has it"
        in (capsys.readouterr().err)
    )
    assert cli.main(["audit", "--subject=smal"]) == exits.USAGE
    assert "--subject: there is no [tool.pytest-bnn.subjects.smal] in pyproject.toml. Did you mean small." in (
        capsys.readouterr().err
    )


@pytest.mark.nightly("sessions of their own; every push finds modules from the folder itself")
def test_modules_are_found_from_the_root_folder(tmp_path: Path) -> None:
    """Also where pytest is started below it, whose node ids then begin with ../"""
    session(tmp_path, "--version", files={"pyproject.toml": TABLES + "\n[tool.pytest.ini_options]\n", "deep/x.txt": ""})
    command = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main())"
    for arguments in (("../pyproject.toml::small::kl.present",), ("../small:bayesian::kl.present",)):
        done = warm.python("-c", command, *arguments, "-v", cwd=tmp_path / "deep")
        assert f"{arguments[0]} PASSED" in done.stdout, done.stdout
