"""Forty checkpoints: one after the other, by processes, on Ray and Dask, in parts; the same files whoever did it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_bnn import audit_many, cli
from pytest_bnn.commands import command as exits
from pytest_bnn.many.work import forget
from tests.integration import series
from tests.integration.test_many_checkpoints import differences, environment

FORTY, EIGHT = 40, 8


@pytest.mark.nightly("forty checkpoints, four times: two minutes")
def test_forty_checkpoints_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serial, by two processes, on Ray, and merged from four parts."""
    monkeypatch.chdir(tmp_path)
    series.make(FORTY)
    for folder, more in (("serial", ()), ("processes", ("--jobs=2",)), ("ray", ("--engine=ray", "--jobs=2"))):
        if folder == "ray" and not _has("ray"):
            continue
        code, said = series.done(series.command(*more, folder=folder))
        assert code == exits.PASSED, said
        assert sorted(series.judged()) == list(range(FORTY))
        require_same("serial", folder, FORTY)
    for part in range(4):
        mine = f"runs/{part}?/last.pt"
        assert series.done(series.command(checkpoints=mine, folder=f"parts/{part}"))[0] == exits.PASSED
    code, said = series.done(
        ["merge", *map(str, sorted(Path("parts").glob("*/index.json"))), "-o", "merged/index.html"]
    )
    assert (code, said.splitlines()[0]) == (exits.PASSED, f"All {FORTY} models pass")
    assert "not all were made with the same" not in said
    assert series.rows("merged") == series.rows("serial")
    # As a pipeline gathers what its jobs wrote: all files in one folder, where the links are the same, too.
    for file in Path("parts").glob("*/runs-*"):
        Path("gathered").mkdir(exist_ok=True)
        shutil.copy(file, "gathered")
    audits = sorted(map(str, Path("gathered").glob("*.json")))
    assert series.done(["merge", *audits, "-o", "gathered/index.html"])[0] == exits.PASSED
    require_same("serial", "gathered", FORTY)


def require_same(one: str, other: str, count: int) -> None:
    assert differences(series.documents(one), series.documents(other)) == []
    assert len(series.documents(other)) == count
    for name in ("index.json", "index.html"):
        assert Path(one, name).read_bytes() == Path(other, name).read_bytes(), name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process, and those that it starts, find the network's module in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    forget()
    yield
    forget()
    sys.modules.pop("series_net", None)


@pytest.mark.nightly("audits run in processes of four kinds: half a minute each")
@pytest.mark.parametrize("kind", ["dask", "loky", "threads", "spawned"])
def test_any_executor_does_them(here: None, kind: str) -> None:
    """Dask's, loky's, threads of this process and Python's own processes: tasks and results are plain values."""
    series.make(EIGHT)
    audit("serial", None)
    with executor(kind) as pool:
        audit("out", pool)
    require_same("serial", "out", EIGHT)


def test_python_and_the_command_line_make_the_same(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done by one of them is not done again by the other, and merged parts of both have one set of digests."""
    series.make(2)
    audit("out", None)
    assert cli.main(series.command()) == exits.PASSED
    assert "all 2 were done before" in capsys.readouterr().err


def audit(folder: str, pool: Executor | None) -> None:
    parts: dict[str, Any] = {part: f"series_net:{part}" for part in ("teacher", "loss")}
    index = audit_many("series_net:bayesian", "runs/*/last.pt", folder=folder, executor=pool, num_batches=45,
                       data="series_net:held_out", checks=series.CHECKS.split(","), **parts)  # fmt: skip
    assert {row.verdict for row in index.rows} == {"pass"}


@contextmanager
def executor(kind: str) -> Iterator[Executor]:
    if kind == "dask":
        reason = "runs where Dask's distributed is installed"
        distributed = pytest.importorskip("distributed", reason=reason)
        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client.get_executor()
    elif kind == "loky":
        loky = pytest.importorskip("loky", reason="runs where loky is installed")
        pool = loky.ProcessPoolExecutor(2)
        try:
            yield pool
        finally:
            pool.shutdown(kill_workers=True)
    elif kind == "threads":
        with ThreadPoolExecutor(2) as pool:
            yield pool
    else:
        from pytest_bnn.many.engines import processes

        with processes(2) as pool:
            yield pool


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None
