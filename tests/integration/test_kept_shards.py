"""Large data: an audit that was ended goes on behind the shards that it had judged, and nothing counts twice."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy
import pytest

from pytest_bnn import cli, replacing
from pytest_bnn.checks import _kept, _shards
from pytest_bnn.records.run import AuditRun
from tests.integration.test_large_data import NET, inside

OPTIONS = (
    "audit", "--checks", "scores.against_teacher", "--model=big_net:bayesian",
    "--teacher=big_net:teacher", "--data=big_net:data", "--evaluation=big_net:held_out", "--evaluation-images", "2000",
    "--shard-size", "250", "--unreadable", "0.01", "--samples", "8", "--set", "scores.against_teacher.margin=1e-9",
    "--jobs", "1",
)  # fmt: skip

Ended = Callable[[int], list[int]]


def numbers(folder: Path) -> list[Any]:
    run = AuditRun.from_json((folder / "audit.json").read_text(encoding="utf-8"))
    return [(one.id, one.verdict, one.headline, one.measurements, one.notes) for one in run.checks]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Ended:
    """End the audit behind so many shards that are judged anew; the list grows with each."""
    judge = _shards._found

    def after(count: int) -> list[int]:
        done: list[int] = []

        def found(*given: Any) -> _kept.Found:
            if len(done) == count:
                raise KeyboardInterrupt
            done.append(given[2].part.number)
            return judge(*given)

        monkeypatch.setattr(_shards, "_found", found)
        return done

    return after


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path, NET)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def write(folder: Path, text: str) -> None:
    """Write the module that the command line imports, which this process may have imported from elsewhere."""
    (folder / "big_net.py").write_text(text)
    sys.modules.pop("big_net", None)


def test_an_interrupted_audit_goes_on_behind_its_shards(
    folder: Path, ended: Ended, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said at the end is what an audit says that nobody interrupted."""
    with inside(folder):
        whole = ended(100)
        cli.main([*OPTIONS])
        expected = numbers(folder)
        assert len(whole) == 8
        assert not (folder / "audit.shards").exists(), "what is done needs nothing more"
        ended(3)
        cli.main([*OPTIONS])
        assert "3 shards that were judged are kept in" in capsys.readouterr().err
        assert len([*(folder / "audit.shards").iterdir()]) == 3
        rest = ended(100)
        cli.main([*OPTIONS])
        assert rest == [3, 4, 5, 6, 7]
        assert numbers(folder) == expected
        assert not (folder / "audit.shards").exists()


def test_other_examples_another_model_or_a_broken_file_are_judged_anew(folder: Path, ended: Ended) -> None:
    """A shard is found again by all that it depends on, and by nothing else."""
    with inside(folder):
        ended(3)
        cli.main([*OPTIONS])
        first, second, _ = sorted((folder / "audit.shards").iterdir())
        first.write_bytes(b"PK half a file")
        second.write_bytes(b"")
        again = ended(1)
        cli.main([*OPTIONS])
        assert len(again) == 1, "of three, two are broken"
        write(folder, NET.replace("moped_delta=0.1", "moped_delta=0.2"))
        other = ended(1)
        cli.main([*OPTIONS])
        assert other == [0]


def test_what_is_not_ours_stays(folder: Path, ended: Ended) -> None:
    """The folder beside the report may be somebody's."""
    (folder / "audit.shards").mkdir()
    (folder / "audit.shards" / "mine.txt").write_text("mine")
    with inside(folder):
        ended(100)
        cli.main([*OPTIONS])
    assert [path.name for path in (folder / "audit.shards").iterdir()] == ["mine.txt"]


def test_a_full_disk_ends_nothing(folder: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that cannot be kept are judged again another time."""

    def full(place: Path, *more: Any) -> Any:
        if place.suffix == _kept.SUFFIX:
            refused.append(place)
            raise OSError(28, "No space left on device")
        return prepared(place, *more)

    prepared, refused = replacing._prepared, list[Path]()
    monkeypatch.setattr(replacing, "_prepared", full)
    with inside(folder):
        ended(100)
        assert cli.main([*OPTIONS]) in (0, 1)
    assert refused
    assert not (folder / "audit.shards").exists()


def test_what_a_killed_process_was_writing_goes_too(folder: Path, ended: Ended) -> None:
    """A kill leaves a half-written file, which is nobody else's."""
    with inside(folder):
        Path("audit.shards").mkdir()
        Path("audit.shards", ".pytest-bnn-0123456789ab.tmp").write_bytes(b"PK")
        ended(100)
        assert cli.main([*OPTIONS]) in (0, 1)
    assert not (folder / "audit.shards").exists()


def test_a_tally_comes_back_as_it_was(folder: Path, ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number, with its type; groups by name; nothing in a file is executed."""
    kept: list[tuple[Path, _kept.Found]] = []
    save = _kept.save

    def spy(path: Path, found: _kept.Found) -> None:
        save(path, found)
        kept.append((path, found))

    monkeypatch.setattr(_kept, "save", spy)
    with inside(folder):
        ended(1)
        slices = "\ndef slices(number):\n    return 'even' if number % 2 == 0 else 'a b/c'\n"
        write(folder, NET + slices)
        cli.main([*OPTIONS, "--slices=big_net:slices"])
        ((path, found),) = kept
        back = _kept.load(path)
    assert back is not None
    same(back, found)
    assert set(back.tally.groups) == {"even", "a b/c"}
    assert _kept.load(Path("nowhere")) is None


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    for field in fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, numpy.ndarray):
            assert mine.dtype == its.dtype
            assert numpy.array_equal(mine, its)
        elif isinstance(mine, dict):
            assert list(mine) == list(its)
            for name in mine:
                same(mine[name], its[name])
        elif hasattr(mine, "__dataclass_fields__"):
            same(mine, its)
        else:
            assert type(mine) is type(its)
            assert mine == its


@pytest.mark.nightly("two workers are started; every push has one process")
def test_workers_keep_theirs_too(folder: Path, ended: Ended) -> None:
    """Another number of processes finds the same shards."""
    with inside(folder):
        ended(3)
        cli.main([*OPTIONS])
        before = {path.name for path in (folder / "audit.shards").iterdir()}
        environment = os.environ.copy()
        try:
            os.environ["PYTHONPATH"] = str(folder) + os.pathsep + environment.get("PYTHONPATH", "")
            ended(100)
            assert cli.main([*OPTIONS[:-1], "2"]) in (0, 1)
        finally:
            os.environ.clear()
            os.environ.update(environment)
    assert len(before) == 3
    assert not (folder / "audit.shards").exists()
