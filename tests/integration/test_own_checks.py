"""Checks of users, of installed packages and new ones of ours: declared in one place, present everywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tomllib
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
    code, said = audit(capsys, *OWN, "-v")
    assert (code, "the limit is 0.25" in said) == (exits.PASSED, True), said
    changed = {one["name"]: one for one in json.loads(Path("audit.json").read_text(encoding="utf-8"))["changed"]}
    limit = changed["mycompany.rule.limit"]
    assert (limit["value"], limit["default"]) == ("0.25", "0.5")
    assert limit["source"] == "mycompany.rule.limit in pyproject.toml"
    assert "mycompany.rule" not in registry.ids()


def test_a_conftest_without_checks_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is pytest's; an audit does not run it by surprise."""
    (folder / "conftest.py").write_text("raise RuntimeError('for pytest only')\n", encoding="utf-8")
    code, said = audit(capsys, "--model", "net:bayesian", "--checks", "kl.present")
    assert code == exits.PASSED, said


OWN_MODULE = RULE.format(id="mycompany.rule")
TRAP = "\nraise RuntimeError('for pytest only')\n"

#: Roads by which pytest comes to know a check: the files, and the folder in which the command is typed.
ROADS: dict[str, tuple[dict[str, str], str]] = {
    "in tests": ({"tests/conftest.py": OWN_MODULE, "conftest.py": TRAP}, "."),
    "in the root, from below": ({"conftest.py": OWN_MODULE, "pytest.ini": "", "sub/x.txt": ""}, "sub"),
    "in tests, from beside": ({"tests/conftest.py": OWN_MODULE, "pytest.ini": "", "sub/x.txt": ""}, "sub"),
    "imported by a conftest": ({"conftest.py": "from own_rules import rule" + TRAP, "own_rules.py": OWN_MODULE}, "."),
    "a submodule imported": (
        {"conftest.py": "from own import rules" + TRAP, "own/__init__.py": "", "own/rules.py": OWN_MODULE}, ".",
    ),
    "beside a conftest in tests": (
        {"tests/conftest.py": "import own_rules" + TRAP, "tests/own_rules.py": OWN_MODULE}, ".",
    ),
    "relative in a package": (
        {"tests_of_mine/__init__.py": "", "tests_of_mine/conftest.py": "from .own_rules import rule" + TRAP,
         "tests_of_mine/own_rules.py": OWN_MODULE}, ".",
    ),
    "a conftest of a package": (
        {"tests_of_mine/__init__.py": "", "tests_of_mine/conftest.py": "from .more import LIMIT\n" + OWN_MODULE,
         "tests_of_mine/more.py": "LIMIT = 3"}, ".",
    ),
    "pytest_plugins": ({"conftest.py": "pytest_plugins = ['own_rules']" + TRAP, "own_rules.py": OWN_MODULE}, "."),
    "beside the model": ({"mine.py": "from net import *\n" + OWN_MODULE}, "."),
}  # fmt: skip


@pytest.mark.parametrize("road", ROADS)
def test_every_road_to_a_check(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                               road: str) -> None:  # fmt: skip
    """What pytest finds, the command line finds: for --checks, --set and --help; other conftests are left alone."""
    files, start = ROADS[road]
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder / start)
    monkeypatch.syspath_prepend(str(folder))
    model = ("--model", "mine:bayesian" if "mine.py" in files else "net:bayesian")
    code, said = audit(capsys, *model, "--help")
    assert re.search(r"^  mycompany\.rule$", said, re.M)
    assert "options: limit (0.5)" in said
    code, said = audit(capsys, *model, "--checks", "mycompany.rule", "--set", "mycompany.rule.limit=0.01", "-v")
    assert (code, "the limit is 0.01" in said) == (exits.FAILED, True), said
    assert "mycompany.rule" not in registry.ids()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--checks", "mycompany.rule"), ("conftest.py", "--plugin MODULE", "entry point pytest_bnn.checks")),
        (("--set", "mycompany.rule.limit=1"), ("--set mycompany.rule.limit: there is no check", "test folders")),
        (("--checks", "mycompany.role"), ("Did you mean mycompany.rule",)),
    ],
)
def test_an_unknown_check_says_how_it_would_be_known(
    folder: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """The author of a check must not end at "there is no check"."""
    if "mycompany.role" in given:
        (folder / "conftest.py").write_text(OWN_MODULE, encoding="utf-8")
    else:
        (folder / "test_own.py").write_text(OWN_MODULE, encoding="utf-8")
        assert "a check in a test module is known to that module's session alone" in audit(capsys, *OWN[:2], *given)[1]
    code, said = audit(capsys, *OWN[:2], *given)
    assert code == exits.USAGE
    for word in words:
        assert word in said


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the example plugin as pip leaves it: the package, and its entry points."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "plugin" / "pytest_mycompany", site / "pytest_mycompany")
    project = tomllib.loads((ROOT / "examples" / "plugin" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    return site


def test_a_package_with_a_check_and_a_plugin(folder: Path, installed: Path) -> None:
    """Installed, its check is everywhere, and its hooks hear of all evidence."""
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "BUILD_NUMBER": "7", "COLUMNS": "200"}

    def command(*arguments: str) -> tuple[int, str]:
        code = f"import sys; from pytest_bnn.cli import main; sys.exit(main({list(arguments)!r}))"
        done = warm.python("-c", code, env=environment)
        return done.returncode, done.stdout + done.stderr

    _, said = command("audit", "--help")
    assert re.search(r"mycompany\.width\n.*\n +options: allowed \(0\.5\)", said), said
    given = ("audit", "--model", "net:bayesian", "--checks", "mycompany.width")
    code, said = command(*given, "--set", "mycompany.width.allowed=0.001")
    assert (code, "4 of 4 tensors are too wide" in said) == (exits.FAILED, True), said
    (folder / "test_own.py").write_text(
        "import net\nimport pytest\n\n\n@pytest.mark.bnn(set={'mycompany.width.allowed': 0.02})\n"
        "def test_width(bnn_audit):\n"
        "    bnn_audit(net.bayesian(), name='mine', checks=['mycompany.width', 'kl.present']).raise_for_failures()\n",
        encoding="utf-8",
    )
    arguments = ("-q", "-p", "no:cacheprovider", "--bnn-report=a.html", "--evidence-log=log.txt")
    done = warm.python("-m", "pytest", *arguments, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "log.txt").read_text(encoding="utf-8").splitlines() == [
        "test_own.py::test_width\tmine\tkl.present\tpass",
        "test_own.py::test_width\tmine\tmycompany.width\tpass",
    ]
    assert json.loads(Path("a.json").read_text(encoding="utf-8"))["provenance"]["build"] == "7"


@pytest.mark.parametrize("source", ["option", "pyproject"])
def test_plugins(folder: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    """A module of checks, named on the command line or for the project."""
    (folder / "own_rules.py").write_text(RULE.format(id="mycompany.rule"), encoding="utf-8")
    arguments = ["--plugin", "own_rules"] if source == "option" else []
    if source == "pyproject":
        (folder / "pyproject.toml").write_text('[tool.pytest-bnn]\nplugins = ["own_rules"]\n', encoding="utf-8")
    for words in ([*arguments, "--help"], ["--help", *arguments], ["-q", "-h", *arguments, "--nonsense"]):
        code, said = audit(capsys, *words)
        assert (code, "mycompany.rule" in said) == (0, True), words
    assert "own_rules" not in sys.modules
    code, said = audit(capsys, *arguments, *OWN, "-v")
    assert (code, "the limit is 0.5" in said) == (exits.PASSED, True), said


@pytest.mark.parametrize(
    "words",
    [
        ["--help", "--model", "net:bayesian"],
        ["--model=net:bayesian", "--help"],
        ["--help", "--loss=net:loss", "--seed", "no number"],
        ["-h", "--plugin", "own_rules", "--model"],
        ["--help"],
    ],
)
def test_help_reads_what_stands_behind_it(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """Whatever the order; a mistake behind it ends in the help, as before."""
    with (folder / "net.py").open("a", encoding="utf-8") as file:
        file.write("\n" + RULE.format(id="mycompany.rule"))
    code, said = audit(capsys, *words)
    assert (code, "exit codes: 0" in said) == (0, True)
    assert ("mycompany.rule" in said) == any("net:" in word for word in words)


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
    changed = {change["name"]: (change["value"], change["source"]) for change in document["changed"]}
    assert changed["min_agreement"] == ("0.5", "--bnn-min-agreement")
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
        "docs/reference/api.md",
        "docs/reference/checks.md",
    }
    assert {path.relative_to(tmp_path).as_posix() for path in changed} == generated
    helped = run("-c", "from pytest_bnn.cli import main; main(['audit', '--help'])")
    order = re.findall(r"^  (\w+\.\w+)$", helped, re.M)
    assert order[order.index("kl.loss") + 1] == "kl.finite"
    assert "options: share (1.0)" in helped
    assert "| `kl.finite` | Every mu is finite. | exact |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "checks/kl.finite.md" in (tmp_path / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
    assert "1 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
