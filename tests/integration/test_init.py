"""pytest-bnn init: what it writes runs, is clean, never overwrites, and is asked for in plain words."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_bnn import cli
from pytest_bnn.commands import command as exits
from pytest_bnn.commands.starter import Starter
from tests.integration import warm
from tests.integration.test_zero_code import SMALL

WHOLE = ("--model=nets.small:bayesian", "--teacher=nets.small:teacher", "--data=nets.small:inputs",
         "--loss=nets.small:loss", "--batches=45")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "nets/small.py").write_text(SMALL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("nets", "nets.small"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def run(*arguments: str) -> int:
    """Call the command as if it were typed; argparse's way out is an exit code like the others."""
    try:
        return cli.main(["init", *arguments])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else exits.BROKEN


def pytested(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, cwd=folder)


@pytest.mark.nightly("trains a network and audits it; what is written is read below in every push")
def test_the_example_is_green_at_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A newcomer sees an audit before he edits anything, and then what to edit."""
    assert run() == exits.PASSED
    said = capfd.readouterr().out
    assert said.index("wrote my_net.py and test_my_net.py") < said.index("1 passed") < said.index("What to edit")
    assert (folder / "audit.html").is_file()


@pytest.mark.nightly("audits of their own; what is written is read below in every push")
@pytest.mark.parametrize("pyproject", [False, True])
def test_one_s_own_functions(folder: Path, capsys: pytest.CaptureFixture[str], pyproject: bool) -> None:
    """Every part is named where it is used, and what was written audits it."""
    extra = ("--pyproject",) if pyproject else ()
    assert run(*WHOLE, "--no-run", *extra) == exits.PASSED
    said = capsys.readouterr().out
    what = "pyproject.toml::my_net" if pyproject else "test_my_net.py"
    assert f"Then: pytest {what} --bnn-report=audit.html" in said
    assert "What to" not in said  # all was named
    done = pytested(
        folder,
        what,
        "--bnn-set=kl.loss.severity=warn",
        "--bnn-samples=8",
        "--bnn-inconclusive=warn",
        "--bnn-report=a.html",
    )
    assert done.returncode == 0, done.stdout
    assert "the KL term is missing from the loss" in done.stdout
    assert "teacher was given" not in (folder / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["state.pt", "state.safetensors"])
def test_a_checkpoint_is_loaded(folder: Path, name: str) -> None:
    """A state that does not fit is an error, not a network at its random start."""
    (folder / name).write_bytes(b"")
    assert run("--model=nets.small:bayesian", f"--checkpoint={name}", "--no-run") == exits.PASSED
    save = (
        "import torch, sys; from safetensors.torch import save_file; from nets.small import bayesian\n"
        "net = bayesian(); net[0].mu_weight.data.fill_(0.25)\n"
        "save_file(net.state_dict(), 'state.safetensors'); torch.save(net.state_dict(), 'state.pt')\n"
        "import my_net; print(float(my_net.bayesian()[0].mu_weight.min()), my_net.bayesian().training)\n"
    )
    done = warm.python("-c", save, cwd=folder)
    assert done.stdout.split() == ["0.25", "False"], done.stderr
    (folder / name).unlink()
    assert run("--model=nets.small:bayesian", f"--checkpoint={name}", "--no-run", "--force") == exits.USAGE


STARTERS = [
    Starter(name="my_net", parts={}),
    Starter(name="my_net", parts={}, batches=7),
    Starter(name="my_net", parts={"model": "nets.small:bayesian"}),
    Starter(name="my_net", parts={"model": "nets.small:bayesian", "loss": "torch.nn:mse_loss"}, checkpoint="s.pt"),
    Starter(
        name="my_net",
        parts={"model": "nets.small:bayesian", "teacher": "nets.small:teacher", "data": "nets.small:inputs"},
        checkpoint="odd 'na\"me.safetensors",
        batches=3,
    ),
]


@pytest.mark.parametrize("starter", STARTERS, ids=range(len(STARTERS)))
def test_what_it_writes_is_clean(folder: Path, starter: Starter) -> None:
    """By ruff with rules of order and annotation, as a project has them; formatted as ruff formats."""
    pytest.importorskip("ruff", reason="runs where the lint extra is installed, as in .ci/run")
    for table in (False, True):
        (folder / "my_net.py").write_text(starter.module(folder, table=table), encoding="utf-8")
        (folder / "test_my_net.py").write_text(starter.test(), encoding="utf-8")
        files = ["my_net.py", "test_my_net.py"]
        for command in (["check", "--select=E,F,W,I,UP,B,ANN2,D1,PT,RUF", "--ignore=ANN401"], ["format", "--diff"]):
            done = subprocess.run([sys.executable, "-m", "ruff", *command, "--isolated", *files],
                                  capture_output=True, text=True, check=False)  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
    assert list(tomllib.loads(starter.table())["tool"]["pytest-bnn"]["subjects"]) == ["my_net"]


@pytest.mark.nightly("mypy reads torch; what is written differs in imports and comments alone")
@pytest.mark.parametrize("starter", STARTERS, ids=range(len(STARTERS)))
def test_what_it_writes_has_types(folder: Path, starter: Starter) -> None:
    """Strictly: a user's project may be strict, though his own modules have no types here."""
    pytest.importorskip("mypy", reason="runs where the lint extra is installed, as in .ci/run")
    (folder / "nets/small.pyi").write_text("from typing import Any\nbayesian: Any\nteacher: Any\ninputs: Any\n")
    (folder / "my_net.py").write_text(starter.module(folder, table=False), encoding="utf-8")
    (folder / "test_my_net.py").write_text(starter.test(), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--untyped-calls-exclude=torch", "my_net.py", "test_my_net.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "MYPYPATH": ""})
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a file nor a table, and a second file that exists keeps the first from being written."""
    (folder / "test_mine.py").write_text("mine", encoding="utf-8")
    assert run("--name=mine", "--no-run") == exits.USAGE
    assert "'test_mine.py' exists. Choose another --name, or overwrite it with --force." in capsys.readouterr().err
    assert not (folder / "mine.py").exists()
    assert run("--name=mine", "--no-run", "--force") == exits.PASSED
    assert "bnn_audit" in (folder / "test_mine.py").read_text(encoding="utf-8")
    before = (
        '[project]\nname = "x"\n\n[tool.pytest-bnn.subjects.mine]\nmodel = "a:b"\n\n[tool.ruff]\nindent-width = 3\n'
    )
    (folder / "pyproject.toml").write_text(before, encoding="utf-8")
    (folder / "mine.py").unlink()
    assert run("--name=mine", "--no-run", "--pyproject") == exits.USAGE
    assert (folder / "pyproject.toml").read_text(encoding="utf-8") == before
    assert run("--name=mine", "--no-run", "--pyproject", "--force") == exits.PASSED
    after = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    assert (after["project"]["name"], after["tool"]["ruff"]["indent-width"]) == ("x", 3)
    assert after["tool"]["pytest-bnn"]["subjects"]["mine"]["model"] == "mine:bayesian"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--name=my-net", "--name is 'my-net'. Give a name that a Python module can have"),
        ("--name=torch", "--name is 'torch', and a module of that name is installed. Choose another name."),
        ("--teacher=a:b", "--teacher without --model. Name your Bayesian network too"),
        ("--checkpoint=a.pt", "--checkpoint without --model."),
        ("--model=nets/small.py", "--model is 'nets/small.py'. Write it like package.module:function."),
        ("--model=my_net:f", "Choose another --name."),
        ("--model=a:b --checkpoint=no.pt", "there is no file 'no.pt'. Give the path of a checkpoint."),
        ("--batches=0", "'0' is not a whole number from 1"),
    ],
)
def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, said: str) -> None:
    """Before anything is written."""
    assert run("--no-run", *arguments.split()) == exits.USAGE
    assert said in capsys.readouterr().err
    assert not (folder / "my_net.py").exists()


@pytest.mark.parametrize("extra", [(), ("--pyproject",)], ids=["test", "table"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--model=nets.small:bayesain", "--model: the module 'nets.small' has no 'bayesain'. It has bayesian"),
        ("--model=nets.smal:bayesian", "--model: there is no module 'nets.smal' in this folder"),
        ("--model=nets.small:bayesian --teacher=nets.small:nope", "--teacher: the module 'nets.small' has no 'nope'."),
        ("--model=nets.small:bayesian --data=nets.broken:data", "--data: importing 'nets.broken' raised"),
        ("--model=nets.small:bayesian --loss=nets.numbers:loss", "--loss: nets.numbers:loss cannot be called."),
    ],
)
def test_a_function_that_is_not_there_leaves_nothing_behind(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, said: str, extra: tuple[str, ...]
) -> None:
    """So that the same command, with the name mended, needs no --force."""
    (folder / "nets/broken.py").write_text("1 / 0\n", encoding="utf-8")
    (folder / "nets/numbers.py").write_text("loss = 1.0\n", encoding="utf-8")
    assert run("--no-run", *arguments.split(), *extra) == exits.USAGE
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["nets"]
    assert run("--no-run", "--model=nets.small:bayesian", *extra) == exits.PASSED


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    def typed(*lines: str) -> Terminal:
        out = Terminal()
        monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(sys, "stdout", out)
        return out

    return typed


def test_questions(folder: Path, typed: Callable[..., Terminal]) -> None:
    """On a terminal it asks, and again where an answer cannot be used; an empty answer is "I have none"."""
    out = typed("nets/small.py", "nets.small:bayesian", "", "nets.small:inputs", "", "", "many", "45")
    assert run("--no-run") == exits.PASSED
    text = (folder / "my_net.py").read_text(encoding="utf-8")
    assert "from nets.small import bayesian as make_bayesian\nfrom nets.small import inputs as make_data" in text
    assert "BATCHES = 45" in text
    assert "make_teacher" not in text
    assert "write it like package.module:function" in out.getvalue()
    assert "give a whole number from 1" in out.getvalue()
    assert "What to write in my_net.py:\n  teacher()   the deterministic network" in out.getvalue()
    assert "bayesian()" not in out.getvalue()


@pytest.mark.parametrize("lines", [("",), ()], ids=["empty answer", "end of input"])
def test_no_answer_is_the_example(folder: Path, typed: Callable[..., Terminal], lines: tuple[str, ...]) -> None:
    """Whoever only wants to look presses Enter once."""
    typed(*lines)
    assert run("--no-run") == exits.PASSED
    assert 'digits("held_out")' in (folder / "my_net.py").read_text(encoding="utf-8")


def test_the_outcome_of_the_run_is_the_exit_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed claim is 1, as in an audit; what pytest could not run is 2."""
    for code, expected in ((0, exits.PASSED), (1, exits.FAILED), (4, exits.BROKEN), (5, exits.BROKEN)):
        done: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], code)
        monkeypatch.setattr(subprocess, "run", functools.partial(lambda done, *_, **__: done, done))
        assert run("--force") == expected
