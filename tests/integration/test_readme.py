"""The README is run as it is read: every code block, in order, as a new user would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration import warm

ROOT = Path(__file__).parents[2]
INSTALL = "pip install . && pytest-bnn audit"
TEST = "pip install '.[test]' && pytest"


@dataclass(frozen=True)
class Block:
    language: str
    text: str


def blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [Block(language, body) for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def run(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_", "PYTHONPATH"))}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**variables, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_block_is_of_a_kind_that_is_run_here() -> None:
    """A block in another language would be text that nobody checks."""
    assert {block.language for block in blocks()} == {"bash", "python"}
    commands = [block.text.strip() for block in blocks() if block.language == "bash"]
    assert commands[:2] == [INSTALL, TEST]
    assert len(commands) == 4


def test_ci_runs_the_test_command() -> None:
    """The second command is this test suite: CI runs it in a fresh environment, word for word."""
    printed = run("bash .ci/test-command", ROOT)
    assert printed.stdout.strip() == TEST
    assert 'bash -c "$test_command"' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("", id="as it is", marks=pytest.mark.nightly("a minute and more; .ci/run has this audit, too")),
        pytest.param(
            " --help",
            id="what it can do",
            marks=pytest.mark.nightly(
                "an installation of its own; .ci/run installs in every push, and starts the audit"
            ),
        ),
    ],
)
def test_install_and_audit(options: str, tmp_path: Path) -> None:
    """The first command, in an environment of its own that finds the dependencies of this one."""
    checkout = tmp_path / "checkout"
    listed = run("git ls-files --cached --others --exclude-standard", ROOT).stdout.split("\n")
    for name in filter(None, listed):
        source, target = ROOT / name, checkout / name
        if source.is_file() and not source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = environment / "lib" / version / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = run(INSTALL + options, checkout, PATH=path, PIP_QUIET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    if options:
        assert "Audit a Bayesian neural network" in done.stdout
        assert "layers.replaced" in done.stdout
    else:
        assert "verdict: pass" in done.stdout
        assert (checkout / "audit.html").stat().st_size < 1_000_000
        assert (checkout / "audit.json").is_file()
    installed = run("python -c 'import pytest_bnn; print(pytest_bnn.__file__)'", tmp_path, PATH=path)
    assert installed.stdout.startswith(str(site))


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tour")
    for block in blocks():
        if block.language == "python":
            name = block.text.split("\n", 1)[0].removeprefix("# ")
            assert re.fullmatch(r"\w+\.py", name)
            (folder / name).write_text(block.text, encoding="utf-8")
    return folder


@pytest.mark.nightly(
    "a session of its own; every push has the tour by the command line, and by pytest that of docs/start/tour.md"
)
def test_tour_with_pytest(tour: Path) -> None:
    """The tour's tests pass and leave a report."""
    command = next(b.text.strip() for b in blocks() if b.text.startswith("pytest --bnn-report"))
    done = run(f"{command} -p no:cacheprovider", tour)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert "report: audit.html and audit.json" in done.stdout


def test_tour_with_the_command_line(tour: Path) -> None:
    """The tour's command ends with the exit code and the claims that the README promises."""
    command = next(b.text.strip() for b in blocks() if b.text.startswith("pytest-bnn audit --model"))
    program, *arguments = shlex.split(command)
    assert program == "pytest-bnn"
    start = "import sys; from pytest_bnn.cli import main; sys.exit(main())"
    done = warm.python("-c", start, *arguments, "-o", "shell.html", cwd=tour)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"verdict: (pass|warn)", done.stdout), "a few examples of chance decide nothing of predictions"


def test_every_link_leads_to_a_file() -> None:
    """The page of the package index and of the repository is the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []
