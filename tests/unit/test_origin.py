"""Where an audit ran is what git and the system say, and nothing where they say nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_bnn.audit.origin import commit, machine

GIT = shutil.which("git")


def git(folder: Path, *arguments: str) -> str:
    command = [GIT or "git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(GIT is None, reason="asks git")
def test_the_commit_is_gits_and_changes_are_said(tmp_path: Path) -> None:
    """Folders are asked once: those of a process that has loaded its modules."""
    for name in ("clean", "changed", "untracked"):
        folder = tmp_path / name
        folder.mkdir()
        git(folder, "init", "-q")
        (folder / "net.py").write_text("1", encoding="utf-8")
        git(folder, "add", "net.py")
        git(folder, "commit", "-q", "-m", "one")
    (tmp_path / "changed" / "net.py").write_text("2", encoding="utf-8")
    (tmp_path / "untracked" / "audit.html").write_text("", encoding="utf-8")
    heads = {name: git(tmp_path / name, "rev-parse", "HEAD")[:12] for name in ("clean", "changed", "untracked")}
    assert commit(tmp_path / "clean") == heads["clean"]
    assert commit(tmp_path / "changed") == f"{heads['changed']} + changes"
    assert commit(tmp_path / "untracked") == heads["untracked"], "a report beside the code is no change of it"


@pytest.mark.skipif(GIT is None, reason="asks git")
def test_no_repository_and_no_commit_have_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    assert commit(tmp_path / "plain") == commit(tmp_path / "empty") == ""


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path / "nowhere") == ""


def test_the_machine_has_processor_cores_and_system() -> None:
    said = machine()
    assert said.endswith(f"{platform.system()} {platform.release()} {platform.machine()}")
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
        assert f"{cores} core{'s' * (cores > 1)}," in said
    assert platform.node() not in said or not platform.node(), "the name of the machine is nobody's business"
