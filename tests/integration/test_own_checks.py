"""Checks of users, of installed packages and new ones of ours: declared in one place, present everywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_bnn import cli
from pytest_bnn.checks import registry
from pytest_bnn.commands import command as exits
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.recorder import Recorder, recording
from tests.integration import warm

ROOT = Path(__file__).parents[2]

RULE = '''
import pytest_bnn
from pytest_bnn import Finding, Verdict


@pytest_bnn.check("{id}", claim="No posterior of ours is wider than its limit.")
def rule(subject, *, limit: float = 0.5):
    """Measure whether no posterior is wider than a limit."""
    return Finding(verdict=Verdict.FAIL if limit < 0.1 else Verdict.PASS, headline=f"the limit is {{limit}}")
'''

TESTS = """
import net
import pytest
import pytest_bnn
from conftest import rule

IMAGES = net.held_out()[0]
TEACHER = net.teacher()


def test_audit(bnn_audit):
    run = bnn_audit(net.bayesian(), checks=["mycompany.rule", "kl.present"])
    assert run["mycompany.rule"].headline == "the limit is 0.25"  # pyproject.toml


@pytest.mark.bnn(set={"mycompany.rule.limit": 0.01, "kl.loss": {"num_batches": 45}}, samples=4, seed=9)
def test_marker(bnn_audit):
    run = bnn_audit(net.bayesian(), checks=["mycompany.rule", "kl.loss"], data=net.held_out(), loss=net.loss)
    assert run["mycompany.rule"].verdict == "warn"  # its severity in pyproject.toml
    assert run["kl.loss"]["expected weight"] == pytest.approx(1 / 45)
    plain = pytest_bnn.measure_noise_varies(net.bayesian(), images=IMAGES)
    assert (plain.samples, plain.seed) == (4, 9)
    assert pytest_bnn.measure_noise_varies(net.bayesian(), images=IMAGES, max_passes=2, seed=1).seed == 1
    assert rule.measure(net.bayesian()).headline == "the limit is 0.01"
    assert rule.measure(net.bayesian(), limit=0.75).headline == "the limit is 0.75"


def test_command_line():
    found = pytest_bnn.measure_teacher_agreement(net.bayesian(), teacher=TEACHER, images=IMAGES)
    assert found.threshold.allowed == 0.5  # --bnn-min-agreement
    spread = pytest_bnn.measure_noise_spread(net.bayesian(), images=IMAGES)
    assert spread.threshold.allowed in (1e-6, 0.9)  # --bnn-set goes before --bnn-spread


@pytest.fixture(scope="module")
def shared():
    return pytest_bnn.measure_noise_varies(net.bayesian(), images=IMAGES, name="shared")


@pytest.mark.bnn(seed=4)
def test_shared_fixtures_keep_the_session_s_settings(shared):
    assert shared.seed == 0
"""

PYPROJECT = """
[tool.pytest-bnn.checks."mycompany.rule"]
limit = 0.25
severity = "warn"
"""


@pytest.fixture
def folder(tmp_path: Path, net_py: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "net.py").write_text(net_py, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def audit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return the exit code and what was said."""
    try:
        with recording(Recorder(subject="model")):
            code: object = cli.main(["audit", *arguments])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    assert isinstance(code, int)
    return code, captured.out + captured.err


OWN = ("--model", "net:bayesian", "--checks", "mycompany.rule")


def test_conftest_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What tests check, an audit checks: --help lists it unimported, JSON and report have it, and it is forgotten."""
    (folder / "conftest.py").write_text(RULE.format(id="mycompany.rule") + "\nprint('IMPORTED')\n", encoding="utf-8")
    code, said = audit(capsys, "--help")
    assert code == 0
    assert "IMPORTED" not in said
    assert re.search(
        r"mycompany\.rule\n +No posterior of ours is wider than its limit\.\n +options: limit \(0\.5\)", said
    )
    code, said = audit(capsys, *OWN, "--set", "mycompany.rule.limit=0.3")
    assert code == exits.PASSED, said
    (check,) = json.loads(Path("audit.json").read_text(encoding="utf-8"))["checks"]
    assert (check["id"], check["headline"]) == ("mycompany.rule", "the limit is 0.3")
    assert "mycompany.rule" in Path("audit.html").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    code, said = audit(capsys, *OWN)
    assert (code, "the limit is 0.25" in said) == (exits.PASSED, True), said
    provenance = json.loads(Path("audit.json").read_text(encoding="utf-8"))["provenance"]
    assert provenance["set mycompany.rule.limit"] == "0.25 (mycompany.rule.limit in pyproject.toml)"
    assert "mycompany.rule" not in registry.ids()


def test_a_conftest_without_checks_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is pytest's; an audit does not run it by surprise."""
    (folder / "conftest.py").write_text("raise RuntimeError('for pytest only')\n", encoding="utf-8")
    code, said = audit(capsys, "--model", "net:bayesian", "--checks", "kl.present")
    assert code == exits.PASSED, said


@pytest.mark.parametrize("source", ["option", "pyproject"])
def test_plugins(folder: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    """A module of checks, named on the command line or for the project."""
    (folder / "own_rules.py").write_text(RULE.format(id="mycompany.rule"), encoding="utf-8")
    arguments = ["--plugin", "own_rules"] if source == "option" else []
    if source == "pyproject":
        (folder / "pyproject.toml").write_text('[tool.pytest-bnn]\nplugins = ["own_rules"]\n', encoding="utf-8")
    assert "mycompany.rule" in audit(capsys, *arguments, "--help")[1]
    assert "own_rules" not in sys.modules
    code, said = audit(capsys, *arguments, *OWN)
    assert (code, "the limit is 0.5" in said) == (exits.PASSED, True), said


MISTAKES = {
    "no such plugin": (("--plugin", "no_such_rules"), "--plugin: importing 'no_such_rules' raised ModuleNotFoundError"),
    "plugin raises": (("--plugin", "raising_rules"), "raised ZeroDivisionError"),
    "plugin exits": (("--plugin", "exiting_rules"), "raised SystemExit"),
    "plugin takes an id of ours": (("--plugin", "thieving_rules"), "'kl.loss' is a check of pytest-bnn"),
    "no such check": (("--set", "mycompany.rule.limit=1"), "there is no check 'mycompany.rule'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str], mistake: str) -> None:
    """One sentence and exit code 4, an exit inside a module too."""
    (folder / "raising_rules.py").write_text("1 / 0\n", encoding="utf-8")
    (folder / "exiting_rules.py").write_text("import sys\n\nsys.exit(0)\n", encoding="utf-8")
    (folder / "thieving_rules.py").write_text(RULE.format(id="kl.loss"), encoding="utf-8")
    arguments, words = MISTAKES[mistake]
    code, said = audit(capsys, "--model", "net:bayesian", *arguments)
    assert code == exits.USAGE
    assert words in said
    assert len(said.strip().splitlines()) == 1


EXITS = """
import sys

import torch
from net import bayesian, held_out, loss, teacher
from torch import nn


class InTraining(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.net, self.end = bayesian(), end

    def forward(self, x):
        if torch.is_grad_enabled():
            self.end()
        return self.net(x)


def ends():
    return InTraining(lambda: sys.exit(0)).eval()


def ends_as_a_generator():
    def end():
        raise GeneratorExit

    return InTraining(end).eval()


def always_ends():
    network = bayesian()
    network[0].register_forward_pre_hook(lambda *_: sys.exit(0))
    return network


def ending_loss(model, batch):
    sys.exit()


class Ending(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        sys.exit(0)


class EndingLoader(Ending):
    def __getitem__(self, index):
        raise GeneratorExit


def loader():
    return torch.utils.data.DataLoader(EndingLoader())


def factory():
    sys.exit(0)
"""

GIVEN = ("--data", "ends:held_out", "--checks", "kl.loss,kl.present")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--model", "ends:ends", "--loss", "ends:loss", *GIVEN), exits.BROKEN, "SystemExit(0), in "),
        (("--model", "ends:ends_as_a_generator", "--loss", "ends:loss", *GIVEN), exits.BROKEN, "GeneratorExit()"),
        (("--model", "ends:bayesian", "--loss", "ends:ending_loss", *GIVEN), exits.BROKEN, "in ending_loss, line"),
        (("--model", "ends:always_ends", "--data", "ends:held_out"), exits.USAGE, "SystemExit: 0"),
        (("--model", "ends:factory"), exits.USAGE, "raised SystemExit"),
        (("--model", "ends:bayesian", "--data", "ends:Ending"), exits.USAGE, "raised SystemExit"),
        (("--model", "ends:bayesian", "--data", "ends:loader"), exits.USAGE, "raised GeneratorExit"),
        (("--model", "ends:bayesian", "--teacher", "ends:always_ends", "--data", "ends:held_out"), 4, "teacher"),
    ],
)  # fmt: skip
def test_an_exit_in_what_was_given_is_never_a_success(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    """Exit code 0 means that every claim holds; where a check ran into it there is a report with the others."""
    (folder / "ends.py").write_text(EXITS, encoding="utf-8")
    found, said = audit(capsys, *arguments)
    assert found == code, said
    assert words in said
    if code == exits.BROKEN:
        verdicts = {c["id"]: c["verdict"] for c in json.loads(Path("audit.json").read_text(encoding="utf-8"))["checks"]}
        assert verdicts["kl.loss"] == Verdict.ERROR
        assert verdicts["kl.present"] != Verdict.ERROR


def test_pytest(folder: Path) -> None:
    """Conftest, marker, command line and pyproject.toml reach audits and plain asserts alike; the report has it all."""
    (folder / "conftest.py").write_text(RULE.format(id="mycompany.rule"), encoding="utf-8")
    (folder / "test_own.py").write_text(TESTS, encoding="utf-8")
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    command = ["-m", "pytest", "-p", "no:cacheprovider", "-q", "--bnn-report=a.html", "--bnn-min-agreement=0.5",
               "--bnn-spread=0.5:2", "--bnn-set", "noise.spread.band=1e-6:0.9"]  # fmt: skip
    done = warm.python(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert "mycompany.rule" in {check["id"] for check in document["checks"]}
    assert document["provenance"]["set min_agreement"] == "0.5 (--bnn-min-agreement)"
    wrong = warm.python(*command, "--bnn-set", "mycompany.role.limit=1")
    assert wrong.returncode == pytest.ExitCode.USAGE_ERROR, wrong.stdout + wrong.stderr
    assert "there is no check 'mycompany.role'. Did you mean mycompany.rule" in wrong.stdout + wrong.stderr


MODULE = '''"""``kl.finite``: is every mu finite?"""

from __future__ import annotations

import torch

from pytest_bnn.checks.check import Finding, check
from pytest_bnn.checks.values import Share
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.subject import Subject


@check(claim="Every mu is finite.", after="kl.loss")
def finite(subject: Subject, *, share: Share = 1.0) -> Finding:
    """Measure whether every mu is finite.

    Args:
        subject: The model alone; see `Subject`.
        share: The required share of the tensors.
    """
    tensors = [tensor for layer in bayesian_layers(subject.model) for tensor in layer.tensors]
    good = sum(bool(torch.isfinite(tensor.mu).all()) for tensor in tensors)
    holds = good >= share * len(tensors)
    return Finding(verdict=Verdict.PASS if holds else Verdict.FAIL, headline=f"{good} of {len(tensors)} are finite")


measure_kl_finite, assert_kl_finite = finite.measure, finite.assert_
'''

TEST = """
import torch
from torch import nn

import pytest_bnn


def test_finite(bnn_audit):
    model = pytest_bnn.convert(nn.Sequential(nn.Linear(2, 2)))
    assert bnn_audit(model, checks=["kl.finite"])["kl.finite"].headline == "2 of 2 are finite."
    with torch.no_grad():
        model[0].mu_weight.fill_(torch.inf)
    assert pytest_bnn.measure_kl_finite(model).verdict == "fail"
    assert pytest_bnn.assert_kl_finite(model, share=0.5).headline == "1 of 2 are finite."
"""


def test_a_new_check_is_a_module_a_page_and_a_test(tmp_path: Path) -> None:
    """In a copy of the tree: three files by hand, one command for what follows from them, and it is everywhere."""
    for name in ("pytest_bnn", "docs", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    page = tmp_path / "docs" / "checks" / "kl.finite.md"
    page.parent.mkdir(exist_ok=True)
    by_hand = {
        tmp_path / "pytest_bnn" / "checks" / "kl" / "finite.py": MODULE,
        page: "# kl.finite\n\nClaim\n: Every mu is finite.\n",
        tmp_path / "tests" / "checks" / "kl" / "test_finite.py": TEST,
    }
    for path, text in by_hand.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}

    def run(*arguments: str) -> str:
        done = warm.python(*arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "pytest_bnn.checks.stubs")
    run("-m", "pytest_bnn.checks.stubs", "--check")
    changed = {path for path in before if path.read_bytes() != before[path]}
    generated = {
        "pytest_bnn/__init__.pyi",
        "pytest_bnn/checks/__init__.pyi",
        "README.md",
        "docs/api.md",
        "docs/checks.md",
    }
    assert {path.relative_to(tmp_path).as_posix() for path in changed} == generated
    helped = run("-c", "from pytest_bnn.cli import main; main(['audit', '--help'])")
    order = re.findall(r"^  (\w+\.\w+)$", helped, re.M)
    assert order[order.index("kl.loss") + 1] == "kl.finite"
    assert "options: share (1.0)" in helped
    assert "| `kl.finite` | Every mu is finite. | exact |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "checks/kl.finite.md" in (tmp_path / "docs" / "checks.md").read_text(encoding="utf-8")
    assert "1 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
