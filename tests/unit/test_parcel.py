"""What goes to workers once: they can read it, also those that are started later, and nothing of it stays behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from pytest_bnn.checks import _parcel
from pytest_bnn.checks._parcel import Parcel, unpacked
from pytest_bnn.many.engines import processes


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, on a system that lets others open files without a name, or does not."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not request.param:
        monkeypatch.setattr(_parcel, "_nameless", lambda packed: None)
    elif not Path("/proc/self/fd").exists():
        pytest.skip("runs where a system has /proc")
    return tmp_path


def handles() -> int:
    """How many files are open, where a system tells."""
    own = Path("/proc/self/fd")
    return len([*own.iterdir()]) if own.exists() else 0


@pytest.mark.parametrize("content", [{"weights": [1.0, 2.0]}, "x" * 3_000_000, b"", None, list(range(100))])
def test_it_comes_out_as_it_went_in_and_leaves_nothing(content: Any, folder: Path) -> None:
    before = handles()
    with ThreadPoolExecutor(1) as pool:
        parcel = Parcel(content, pool)
        digest, where = parcel.shared
        assert isinstance(where, str)
        assert unpacked(digest, where) == content
        assert unpacked(digest, where) == content, "each worker reads it"
        del parcel
        gc.collect()
    assert not [*folder.iterdir()]
    assert handles() == before


def test_one_that_is_closed_is_told_and_not_opened(tmp_path: Path) -> None:
    """Another file may have its place."""
    other = tmp_path / "other"
    other.write_bytes(b"cos\nsystem\n(S'touch run'\ntR.")
    with pytest.raises(ValueError, match="is closed, and another file has its place"):
        unpacked("00", str(other))


@pytest.mark.parametrize("old", [True, False])
def test_a_file_of_a_process_that_is_gone_goes_when_it_is_old(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = {
        "of a process that is gone": tmp_path / f"{_parcel._prefix()}{int(gone.stdout)}-a1.parcel",
        "of one that runs": tmp_path / f"{_parcel._prefix()}{os.getpid()}-b2.parcel",
        "of another machine": tmp_path / f"pytest-bnn-00000000-{int(gone.stdout)}-c3.parcel",
        "somebody's": tmp_path / "pytest-bnn-notes.parcel",
    }
    for path in left.values():
        path.touch()
        os.utime(path, (1, 1) if old else None)
    _, remove = _parcel._named(b"some")
    remove()
    assert {what for what, path in left.items() if not path.exists()} == (
        {"of a process that is gone"} if old else set()
    )


@pytest.mark.nightly("worker processes import torch")
def test_processes_that_start_later_read_it_too(folder: Path) -> None:
    pool = processes(1)
    try:
        parcel = Parcel([1, 2, 3], pool)
        assert pool.submit(unpacked, *parcel.shared).result(120) == [1, 2, 3]
    finally:
        pool.shutdown(cancel_futures=True)
    again = processes(1)
    try:
        assert again.submit(unpacked, *parcel.shared).result(120) == [1, 2, 3]
    finally:
        again.shutdown(cancel_futures=True)


@pytest.mark.nightly("a process imports torch")
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="runs where a system has /proc")
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_leaves_nothing(by: signal.Signals, tmp_path: Path) -> None:
    script = """
        import time
        from concurrent.futures import ThreadPoolExecutor
        from pytest_bnn.checks._parcel import Parcel
        parcel = Parcel("x" * 1000, ThreadPoolExecutor(1))
        print(parcel.content, flush=True)
        time.sleep(600)
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", dedent(script)], stdout=subprocess.PIPE, env=environment) as one:
        assert one.stdout is not None
        path = Path(one.stdout.readline().decode().strip())
        assert path.exists()
        one.send_signal(by)
        one.wait(60)
    assert not [*tmp_path.iterdir()]
