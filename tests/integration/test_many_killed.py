"""A series that is killed, interrupted or out of room in the middle: nothing lost, nothing done twice, nobody left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pytest_bnn.commands import command as exits
from tests.integration import series

COUNT = 10
PROC = pytest.mark.skipif(not Path("/proc").is_dir(), reason="it looks at processes in /proc")
ENGINES = {"processes": ("--jobs=2",), "ray": ("--engine=ray", "--jobs=2"), "alone": ()}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def require_engine(engine: str) -> None:
    if engine == "ray":
        pytest.importorskip("ray", reason="runs where the extra pytest-bnn[ray] is installed")


@PROC
@pytest.mark.nightly("processes are started, killed and started again: half a minute each")
@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -signal.SIGKILL), ("SIGINT", exits.INTERRUPTED)])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_series_that_is_ended_goes_on_where_it_was(engine: str, name: str, code: int) -> None:
    """No process stays; the next start judges what is missing, once, and leaves what is there as it is."""
    require_engine(engine)
    series.make(COUNT)
    process = series.started(series.command(*ENGINES[engine]), SLOWLY="0.5")
    series.wait_until(lambda: len(list(Path("out").glob("runs-*.json"))) >= 3)
    if name == "SIGINT":  # the terminal sends it to all of its group
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    # Two agents of Ray's look for their cluster for up to a minute before they end.
    series.wait_until(lambda: series.living() == [], seconds=150 if engine == "ray" else 30)
    if name == "SIGINT":
        assert said.splitlines()[-1] == "pytest-bnn: interrupted"
    assert "Traceback" not in said
    require_the_rest_is_done(ENGINES[engine], at_least=3)


def require_the_rest_is_done(more: tuple[str, ...], *, at_least: int) -> None:
    before = {number: path.stat().st_mtime_ns for number, path in series.whole().items()}
    assert at_least <= len(before) < COUNT
    series.judged()
    code, said = series.done(series.command(*more))
    assert code == exits.PASSED, said
    assert f"{len(before)} of {COUNT} were done before" in said
    assert sorted(series.judged()) == sorted(set(range(COUNT)) - set(before))
    after = {number: path.stat().st_mtime_ns for number, path in series.whole().items()}
    assert {number: after[number] for number in before} == before
    assert sorted(after) == list(range(COUNT))
    series.wait_until(lambda: series.living() == [], seconds=30)
    code, said = series.done(series.command(folder="fresh"))
    assert code == exits.PASSED, said
    for name in ("index.json", "index.html"):
        assert Path("out", name).read_bytes() == Path("fresh", name).read_bytes(), name
    assert series.documents("out") == series.documents("fresh")


@PROC
@pytest.mark.nightly("processes are started and killed: half a minute each")
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_a_worker_that_is_killed_loses_nothing(engine: str, tmp_path: Path) -> None:
    """What it was at is done again in the same run, by us or by Ray; nothing is judged that was done."""
    require_engine(engine)
    series.make(COUNT)
    code, said = series.done(series.command(*ENGINES[engine]), DEADLY=str(tmp_path / "5"))
    assert code == exits.PASSED, said
    assert (tmp_path / "5").exists()
    numbers = series.judged()
    assert numbers.count(5) == 2
    assert set(numbers) == set(range(COUNT))
    assert len(numbers) <= COUNT + 2  # its neighbour was at work, or done and not yet told
    assert sorted(series.whole()) == list(range(COUNT))
    series.wait_until(lambda: series.living() == [], seconds=30)


#: Replaces what opens files: the ``n``-th audit that is written fails.
FAILING = """
import errno, os
real, left = os.open, {after}
def opened(path, flags, *more, **named):
    global left
    if str(path).endswith(".tmp") and "/out/" in str(path) and flags & os.O_CREAT:
        left -= 1
        if left < 0:
            raise OSError(errno.{name}, os.strerror(errno.{name}))
    return real(path, flags, *more, **named)
os.open = opened
"""


@pytest.mark.nightly("three commands each; every push has one in this process")
@pytest.mark.parametrize(
    ("name", "words", "engine"),
    [
        ("ENOSPC", "could not be written (No space left on device)", "alone"),
        ("EROFS", "could not be written (Read-only file system)", "alone"),
        ("EIO", "could not be written (Input/output error)", "processes"),
    ],
)
def test_a_disk_that_fails_in_the_middle(name: str, words: str, engine: str) -> None:
    """One error that says how many are done and how to go on; what was written is whole, and the rest comes later."""
    series.make(COUNT)
    code, said = series.done(series.command(*ENGINES[engine]), FAILING.format(after=2 * 3 + 1, name=name))
    assert code == exits.BROKEN, said
    (error,) = [line for line in said.splitlines() if line.startswith("pytest-bnn: ")]
    assert words in error
    assert f"Of {COUNT} checkpoints 3 are audited. Mend that and start the same again: an audit that lies" in error
    assert len(series.whole()) == 3
    assert not list(Path("out").glob(".*"))
    assert not Path("out/index.html").exists()
    require_the_rest_is_done(ENGINES[engine], at_least=3)


VANISHING = """
import shutil
from pytest_bnn.many import series
write, left = series.write_texts, 4
def written(texts):
    global left
    left -= 1
    write(texts)
    if not left:
        shutil.move("out", "elsewhere")
series.write_texts = written
"""


@pytest.mark.nightly("as a disk that fails")
def test_a_folder_that_is_taken_away_in_the_middle() -> None:
    """It is not made anew, as if nothing had been in it; put back, the rest is done."""
    series.make(COUNT)
    code, said = series.done(series.command(), VANISHING)
    assert code == exits.BROKEN, said
    assert "out' is no longer there. Of 10 checkpoints 4 are audited. Mend that and start" in said
    assert not Path("out").exists()
    Path("elsewhere").rename("out")
    require_the_rest_is_done((), at_least=4)
