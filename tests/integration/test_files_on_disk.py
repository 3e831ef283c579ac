"""Where the command line leaves its files: in the folder of the start, over nothing that others made, whole or not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_bnn import cli
from pytest_bnn.commands import command as exits
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import files, render_html

NET = """
import os
import torch
from torch import nn
import pytest_bnn


def bayesian():
    torch.manual_seed(0)
    return pytest_bnn.convert(nn.Sequential(nn.Linear(3, 2)))


def elsewhere():
    os.makedirs("data", exist_ok=True)
    os.chdir("data")
    return bayesian()
"""

AUDIT = ("audit", "--checks", "kl.present,layers.replaced", "--model")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with a network; the process forgets both afterwards."""
    (tmp_path / "disk_net.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("disk_net", None)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")


def test_a_relative_path_means_the_folder_of_the_start(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a factory does to the current folder, the report is where the user looks for it."""
    assert cli.main([*AUDIT, "disk_net:elsewhere", "-o", "out/audit.html"]) == exits.PASSED
    assert "report: out/audit.html  data: out/audit.json\n" in capsys.readouterr().out
    assert names(folder / "out") == ["audit.html", "audit.json"]
    assert names(folder / "data") == []


def test_package_json_is_not_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before anything is loaded or judged: no verdict is printed, and nothing is left."""
    (folder / "package.json").write_text('{"name": "app"}', encoding="utf-8")
    before = names(folder)
    assert cli.main([*AUDIT, "disk_net:elsewhere", "-o", "package.html"]) == exits.USAGE
    said = capsys.readouterr()
    assert said.err == (
        "pytest-bnn: 'package.json' is there already and is no audit of pytest-bnn, so it is not overwritten. "
        "Choose another path, or move that file away.\n"
    )
    assert said.out == ""
    assert "disk_net" not in sys.modules
    assert names(folder) == before
    assert (folder / "package.json").read_text(encoding="utf-8") == '{"name": "app"}'


@pytest.mark.parametrize("trouble", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "^C"])
def test_verdicts_are_told_without_a_report(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    """An audit may have taken an hour: what it found is on the terminal, and the old report is whole."""
    files.write_report(AuditRun(), folder / "audit.html")

    def refused(_: int) -> None:
        raise trouble

    monkeypatch.setattr(os, "fsync", refused)
    code = cli.main([*AUDIT, "disk_net:bayesian"])
    said = capsys.readouterr()
    assert "verdict: pass" in said.out
    if isinstance(trouble, OSError):
        assert code == exits.BROKEN
        assert "audit.json' could not be written (No space left on device); what was there is unchanged" in said.err
        assert "report:" not in said.out
    else:
        assert (code, said.err) == (exits.INTERRUPTED, "pytest-bnn: interrupted\n")
    assert (folder / "audit.html").read_text(encoding="utf-8") == render_html(AuditRun())
    assert [name for name in names(folder) if "net" not in name] == ["audit.html", "audit.json"]


@pytest.mark.parametrize("name", ["notes.html", "README.md"])
def test_render_spares_what_others_made(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """The same rule for both commands."""
    files.write_report(AuditRun(), folder / "audit.html")
    (folder / name).write_text("# mine", encoding="utf-8")
    assert cli.main(["render", "audit.json", "-o", name]) == exits.USAGE
    assert f"'{name}' is there already and is no report of pytest-bnn" in capsys.readouterr().err
    assert (folder / name).read_text(encoding="utf-8") == "# mine"


def test_render_leaves_its_source_alone_behind_a_link(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page that is a link to the JSON would be rendered into its own source."""
    files.write_report(AuditRun(), folder / "audit.html")
    (folder / "page.html").symlink_to("audit.json")
    assert cli.main(["render", "audit.json", "-o", "page.html"]) == exits.USAGE
    assert "would be overwritten by its own report" in capsys.readouterr().err
    AuditRun.from_json((folder / "audit.json").read_text(encoding="utf-8"))
