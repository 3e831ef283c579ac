"""Large data on one model: the same sums whoever judges the shards, and whoever dies."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pytest_bnn import audit_model, cli, convert
from pytest_bnn.audit import beside
from pytest_bnn.checks import _parcel, measure_calibration_temperature
from pytest_bnn.checks._looks import Shards, dismiss, shards_of
from pytest_bnn.checks._parcel import Parcel
from pytest_bnn.commands import workers
from pytest_bnn.data.large import LargeData
from pytest_bnn.errors import InputError
from pytest_bnn.many.engines import processes
from pytest_bnn.options import Settings, using
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.run import AuditRun
from pytest_bnn.sampling.shards import Crew, InOrder
from pytest_bnn.subject import Subject

NIGHTLY = "a process imports torch; every push has an executor that passes everything through pickle"

#: Undecided, so that all examples are looked at.
NARROW = (0.995, 1.005)


def teacher() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 4, 3)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 4)).eval()


class Pictures(Dataset[tuple[Tensor, int]]):
    """Random images whose labels follow the teacher; ``bad`` cannot be read, and ``deadly`` ends the process.

    A deadly one does so while there is a file of that name, which it removes unless it is to end the next one too.
    """

    def __init__(self, count: int, bad: tuple[int, ...] = (), deadly: str = "", often: bool = False) -> None:
        self.images = 2 * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            shares = (4 * teacher()(self.images)).softmax(1)
        self.labels = torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(2))[:, 0]
        self.bad, self.deadly, self.often = bad, deadly, often
        self.here = os.getpid()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        if place in self.bad:
            raise OSError("broken file")
        if place == 70 and self.deadly and Path(self.deadly).exists() and os.getpid() != self.here:
            if not self.often:
                Path(self.deadly).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[place], int(self.labels[place])


def subject(workers: Any = None, shard: int = 32, pictures: Pictures | None = None, count: int = 200) -> Subject:
    large = LargeData.of(
        pictures or Pictures(count, bad=(11,)), shard_size=shard, workers=workers, unreadable=0.01, few=20
    )
    return Subject(convert(teacher(), moped_delta=0.1), teacher=teacher(), images=large.few, evaluation=large)


def sums(judged: Subject, passes: int = 3) -> list[bytes]:
    """Return what each look at the shards saw, as bytes."""
    assert judged.large is not None
    shards = shards_of(judged, passes, judged.large)
    return [pickle.dumps((look.tally, look.tried, look.unreadable)) for look in shards.looks()]


class Inline(Executor):
    """Does everything at once, and passes it through pickle as another process would."""

    workers = 2

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        packed = pickle.dumps((fn, args))
        self.sizes.append(len(packed))
        do, given = pickle.loads(packed)
        future: Future[Any] = Future()
        future.set_result(pickle.loads(pickle.dumps(do(*given))))
        return future


def test_an_executor_gives_the_same_bytes_as_this_process() -> None:
    here = sums(subject())
    assert len(here) == 6, "of seven shards, 1, 2, 3, 4, 6 and all"
    assert sums(subject(Inline())) == here
    with ThreadPoolExecutor(2) as pool:
        assert sums(subject(pool)) == here


@pytest.mark.nightly(NIGHTLY)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_processes_give_the_same_bytes(workers: int) -> None:
    judged = subject(partial(processes, workers))
    assert sums(judged) == sums(subject())
    assert sums(subject(shard=1, count=40)) == sums(subject(partial(processes, workers), shard=1, count=40))


@pytest.mark.nightly(NIGHTLY)
def test_a_killed_process_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    flag = tmp_path / "deadly"
    flag.touch()
    judged = subject(partial(processes, 2), pictures=Pictures(200, deadly=str(flag)))
    assert sums(judged) == sums(subject(pictures=Pictures(200)))
    assert not flag.exists()


@pytest.mark.nightly(NIGHTLY)
def test_a_shard_that_ends_two_processes_is_named(tmp_path: Path) -> None:
    flag = tmp_path / "deadly"
    flag.touch()
    judged = subject(partial(processes, 2), pictures=Pictures(200, deadly=str(flag), often=True))
    with pytest.raises(InputError, match=r"the process that had shard \d of the examples was ended twice"):
        measure_calibration_temperature(judged, band=NARROW)


@pytest.mark.nightly("a Ray cluster starts")
def test_ray_gives_the_same_bytes_also_where_a_task_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="runs where the extra pytest-bnn[ray] is installed")
    from pytest_bnn.many.engines import ray_cluster

    flag = tmp_path / "deadly"
    flag.touch()
    with ray_cluster(workers=2) as executor:
        assert sums(subject(executor, pictures=Pictures(200, deadly=str(flag)))) == sums(
            subject(pictures=Pictures(200))
        )
    assert not flag.exists()


class Breaking(Executor):
    """Breaks at the task with a number, as often as it is told; each stands for a pool that was made anew."""

    workers = 2
    made = 0

    def __init__(self, at: int, left: list[int]) -> None:
        self.at, self.left, self.broken = at, left, False
        type(self).made += 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if args[-1] == self.at and self.left[0]:
            self.left[0] -= 1
            self.broken = True
        if self.broken:
            future.set_exception(BrokenProcessPool("a child process terminated abruptly"))
        else:
            future.set_result(fn(*args))
        return future


def _square(task: int) -> int:
    return task * task


def test_tasks_of_a_broken_pool_are_done_again_one_by_one() -> None:
    left = [1]
    crew = Crew(partial(Breaking, 3, left))
    assert [result for _, result in InOrder(crew, _square, iter(range(8)))] == [n * n for n in range(8)]
    assert left == [0]
    with pytest.raises(InputError, match="the process that had 3 was ended twice"):
        list(InOrder(Crew(partial(Breaking, 3, [2])), _square, iter(range(8))))
    with pytest.raises(InputError, match="the process that had 3 was ended while it worked"):
        list(InOrder(Crew(Breaking(3, [1])), _square, iter(range(8))))


class Elsewhere(Inline):
    """Does everything at once as another process would: it says that another one did it, of the tasks with a number."""

    def __init__(self, tasks: Collection[int]) -> None:
        super().__init__()
        self.tasks = tasks

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        who, result = future.result()
        elsewhere: Future[Any] = Future()
        elsewhere.set_result(("another" if args[-1] in self.tasks else who, result))
        return elsewhere


@pytest.mark.parametrize(
    ("executor", "under_way"),
    [
        (Elsewhere(range(1000)), [1, 5, 6, 7]),
        (Elsewhere(range(2)), [1, 5, 6, 6, 6, 6, 7]),
        (Inline(), [1, 2, 3]),
        (ThreadPoolExecutor(2), [1, 2, 3]),
    ],
    ids=["processes", "processes, then this one", "this thread", "threads"],
)
def test_how_many_tasks_are_under_way(executor: Executor, under_way: list[int]) -> None:
    """Twice as many as workers, where other processes do them; else one: this thread goes on with each result."""
    sent = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            sent.append(number)
            yield number

    with executor:
        results = iter(InOrder(Crew(executor), _square, tasks()))
        for number, count in enumerate(under_way):
            assert next(results) == (number, number * number)
            assert len(sent) == count


def test_the_model_goes_to_workers_once_and_no_prediction_comes_back() -> None:
    with ThreadPoolExecutor(1) as pool:
        judged = subject(pool)
        sums(judged)
        parcel = judged.evaluations["parcel"]
        sums(judged, 4)
        assert judged.evaluations["parcel"] is parcel
        assert isinstance(parcel, Parcel)
        path = Path(parcel.content)
        assert path.exists(), "a file for workers of this machine"
    judged.evaluations.clear()
    del parcel
    gc.collect()
    assert not path.exists()
    inline = Inline()
    sums(subject(inline, shard=8, count=120))
    assert max(inline.sizes) - min(inline.sizes) < 2000


def test_a_model_that_cannot_be_sent_is_told_by_what_to_do() -> None:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            answers: Tensor = teacher()(x)
            return answers

    large = LargeData.of(Pictures(100), workers=Inline(), few=20)
    judged = Subject(Local(), teacher=teacher(), images=large.few, evaluation=large)
    with pytest.raises(InputError, match=r"cannot be sent to other processes.*without lambda functions"):
        measure_calibration_temperature(judged)


class Lambda(Pictures):
    """Has a function of no name, as transforms often have."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.change = lambda image: image


def test_what_cannot_be_sent_is_judged_here_where_nobody_asked_for_processes() -> None:
    """By default there are as many as there are free cores; a sound network must not be an error for that."""
    workers = partial(processes, 2)
    told = measure_calibration_temperature(subject(workers, pictures=Lambda(100)), band=NARROW, max_passes=3)
    here = measure_calibration_temperature(subject(pictures=Lambda(100)), band=NARROW, max_passes=3)
    assert told.measurements == here.measurements
    (more,) = set(told.notes) - set(here.notes)
    assert more.startswith("This process alone judged them: the model, its teacher or the data cannot be sent to other")
    with using(Settings(jobs=2)), pytest.raises(InputError, match="cannot be sent to other processes"):
        measure_calibration_temperature(subject(workers, pictures=Lambda(100)))


def test_a_pool_that_forks_is_refused() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool,
        pytest.raises(InputError, match="the executor forks its processes"),
    ):
        measure_calibration_temperature(subject(pool))


@pytest.mark.parametrize("nameless", [True, False])
def test_a_full_disk_is_told(nameless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_parcel, "_write", full)
    if not nameless:
        monkeypatch.setattr(_parcel, "_nameless", lambda packed: None)
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match=r"No space left on device.*TMPDIR"):
        measure_calibration_temperature(subject(pool))


def test_what_was_judged_before_an_interrupt_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that is asked again goes on behind the last look; no shard is judged twice."""
    judged = subject(pictures=(pictures := Pictures(200)))
    looks = shards_of(judged, 3, judged.large).looks()  # type: ignore[arg-type]
    first = next(looks)
    next(looks)
    looks.close()  # type: ignore[attr-defined]

    def gone(self: Pictures, place: int) -> Any:
        raise AssertionError("it is read again")

    monkeypatch.setattr(type(pictures), "__getitem__", gone)
    again = shards_of(judged, 3, judged.large).looks()  # type: ignore[arg-type]
    assert next(again) is first


class Interrupted(Pictures):
    """Interrupts once who reads an example of the third shard."""

    left = 1

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        third = torch.randperm(200, generator=torch.Generator().manual_seed(0))[64:96].tolist()
        if self.left and place == third[7]:
            self.left = 0
            raise KeyboardInterrupt
        return super().__getitem__(place)


def test_an_interrupt_in_the_middle_of_a_shard_loses_no_shard_and_counts_none_twice() -> None:
    whole = sums(subject(pictures=Pictures(200)))
    judged = subject(pictures=Interrupted(200))
    with pytest.raises(KeyboardInterrupt):
        sums(judged)
    assert sums(judged) == whole
    assert len(whole) > 3


def test_what_an_audit_has_opened_is_closed_behind_it() -> None:
    with ThreadPoolExecutor(1) as pool:
        judged = subject(pool)
        shards = shards_of(judged, 3, judged.large)  # type: ignore[arg-type]
        first = next(iter(shards.looks()))
        parcel = judged.evaluations["parcel"]
        assert isinstance(parcel, Parcel)
        path = Path(parcel.content)
        del parcel, shards
        dismiss(judged)
        assert not path.exists()
        assert pickle.dumps(first.tally) == pickle.dumps(next(shards_of(judged, 3, judged.large).looks()).tally)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", ["engine", "native", "own"])
def test_workers_draw_by_the_sampler_of_this_process(sampler: str) -> None:
    with using(Settings(sampler=sampler)):
        here, there = sums(subject(count=60)), subject(Inline(), count=60)
        assert sums(there) == here
    shards = there.evaluations["shards 3"]
    assert isinstance(shards, Shards)
    assert shards._setup.settings.sampler == sampler


class Behind(Executor):
    """Gives its tasks to another executor, so that its own kind does not tell who does them; joblib has such ones."""

    workers = 2

    def __init__(self, pool: Executor) -> None:
        self.pool = pool

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.pool.submit(fn, *args, **kwargs)


def test_no_thread_works_while_this_one_goes_on() -> None:
    """They share its random state."""
    running: list[int] = []

    def task(number: int) -> int:
        running.append(number)
        time.sleep(0.01)
        running.remove(number)
        return number

    with ThreadPoolExecutor(2) as pool:
        for executor in (pool, Behind(pool)):
            for number, result in InOrder(Crew(executor), task, iter(range(6))):
                time.sleep(0.005)
                assert (number, running) == (result, [])


@pytest.mark.nightly("a process is started")
def test_processes_that_nobody_waits_for_are_ended() -> None:
    pool = processes(1)
    pool.submit(time.sleep, 600)
    workers = list(pool._processes.values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode is not None


@pytest.mark.parametrize(("asked", "wanted"), [(3, (3,)), (1, None), (0, None)])
def test_jobs_that_are_asked_for_need_no_fork(
    asked: int, wanted: tuple[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS and Windows, or under a debugger."""
    monkeypatch.setattr(beside, "possible", lambda: False)
    given = argparse.Namespace(engine=None, evaluation_images="all", subject=[])
    with using(Settings(jobs=asked)), workers.of(given) as found:
        assert (found if wanted is None else found.args) == wanted  # type: ignore[union-attr]


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


NET = """
import torch
from torch.utils.data import Dataset
from pytest_bnn import convert
from tests.integration.test_large_data import Pictures, teacher

def bayesian():
    return convert(teacher(), moped_delta=0.1)

def data():
    return Pictures(60).images

def held_out():
    return Pictures(3000, bad=(5, 6))
"""


def test_the_command_line_and_python_judge_large_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "big_net.py").write_text(NET)
    parts = {"model": "bayesian", "teacher": "teacher", "data": "data", "evaluation": "held_out"}
    options = ["audit", "--checks", "calibration.temperature,scores.against_teacher"]
    options += [f"--{part}=big_net:{name}" for part, name in parts.items()]
    with inside(tmp_path):
        code = cli.main([*options, "--evaluation-images", "2000", "--shard-size", "500", "--unreadable", "0.01",
                         "--samples", "8"])  # fmt: skip
        assert code in (0, 1)
        run = AuditRun.from_json(Path("audit.json").read_text(encoding="utf-8"))
        for evidence in run.checks:
            assert evidence["examples"] <= 2000, evidence.explain()  # type: ignore[operator]
            assert any(note.startswith("Judged on") and "of 2000 examples" in note for note in evidence.notes)
        capsys.readouterr()
        for wrong, words in (
            (["--shard-size", "5"], "--shard-size without --evaluation-images"),
            (["--unreadable", "0.5"], "--unreadable without --evaluation-images"),
            (["--evaluation-images", "some"], "'some' is not a whole number from 1, or all"),
            (["--engine", "ray"], "--engine without --checkpoints or --evaluation-images"),
        ):
            with suppress(SystemExit):
                assert cli.main([*options, *wrong]) == 4
            assert words in capsys.readouterr().err
    found = audit_model(
        convert(teacher(), moped_delta=0.1), teacher=teacher(), data=Pictures(60).images, evaluation=Pictures(2500),
        checks=["calibration.temperature"], max_evaluation="all", shard_size=1000, executor=Inline(),
        options={"calibration.temperature": {"max_passes": 8}},
    )  # fmt: skip
    assert "of 2500 examples" in found.checks[0].notes[-1]
    with pytest.raises(InputError, match="max_evaluation without evaluation"):
        audit_model(convert(teacher()), data=Pictures(60).images, max_evaluation="all")


@pytest.mark.parametrize(
    "given",
    [
        {"shard_size": 5},
        {"unreadable": 0.5},
        {"executor": Inline()},
        {"executor": Inline},
        {"executor": partial(processes, 2)},
        {"executor": Inline(), "evaluation": None},
    ],
)  # fmt: skip
def test_what_is_said_of_shards_is_not_passed_over(given: dict[str, Any]) -> None:
    """Where there are none it would change nothing."""
    with pytest.raises(InputError, match=f"{next(iter(given))} without max_evaluation.*'all'.*leave out"):
        audit_model(
            convert(teacher()), data=Pictures(20), checks=["data.sane"], **{"evaluation": Pictures(20), **given}
        )


def test_an_executor_judges_what_was_opened_before() -> None:
    """Then it is known already how many examples there are."""
    inline = Inline()
    large = LargeData.of(Pictures(120), shard_size=32, few=20)
    audit_model(
        convert(teacher(), moped_delta=0.1), teacher=teacher(), data=Pictures(60).images, evaluation=large,
        checks=["calibration.temperature"], executor=inline, options={"calibration.temperature": {"max_passes": 8}},
    )  # fmt: skip
    assert inline.sizes, "it was asked"


class Counted(Inline):
    """Says how many there are that nobody has shut down."""

    open: set[int] = set()  # noqa: RUF012  of all of them

    def __init__(self) -> None:
        super().__init__()
        self.open.add(id(self))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.open.discard(id(self))


@pytest.mark.parametrize("times", [1, 2])
def test_workers_go_with_the_subject_where_nobody_dismisses_them(times: int) -> None:
    """As in a notebook, where a claim is measured and the subject forgotten."""
    judged = subject(Counted, count=60)
    for passes in range(3, 3 + times):
        sums(judged, passes)
    assert len(Counted.open) == 1, "one for all passes"
    del judged
    gc.collect()
    assert not Counted.open


def test_workers_of_ones_own_stay() -> None:
    mine = Counted()
    judged = subject(mine, count=60)
    sums(judged)
    del judged
    gc.collect()
    assert len(Counted.open) == 1
    mine.shutdown()


def test_workers_go_once_and_come_again() -> None:
    """Who dismisses them may ask again, and forget the subject then."""
    judged = subject(Counted, count=60)
    first = sums(judged)
    dismiss(judged)
    assert not Counted.open
    assert sums(judged) == first
    assert len(Counted.open) == 1
    del judged
    gc.collect()
    assert not Counted.open


def test_too_many_unreadable_examples_are_one_error_in_the_evidence() -> None:
    run = audit_model(
        convert(teacher(), moped_delta=0.1), teacher=teacher(), data=Pictures(60).images,
        evaluation=LargeData.of(Pictures(400, bad=tuple(range(100, 120))), few=5, shard_size=64),
        checks=["calibration.temperature"],
    )  # fmt: skip
    assert run.checks[0].verdict is Verdict.ERROR
    assert "cannot be read, more than 0.001 of 400" in run.checks[0].headline
    assert "--unreadable" in run.checks[0].remedy


@pytest.mark.filterwarnings("ignore")  # Ray Data's own
@pytest.mark.nightly("a Ray cluster starts")
def test_a_data_set_of_ray_data_is_read_by_shards() -> None:
    ray = pytest.importorskip("ray", reason="runs where the extra pytest-bnn[ray] is installed")
    ray_data = pytest.importorskip(
        "ray.data", reason="runs where pandas and pyarrow are installed", exc_type=ImportError
    )
    pictures = Pictures(300)
    rows = [
        {"image": image.numpy(), "label": int(label), "__key__": f"{number}.jpg"}
        for number, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True))
    ]
    rows[7]["image"] = rows[7]["image"] * float("nan")
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    try:
        held_out = ray_data.from_items(rows, override_num_blocks=6)
        large = LargeData.of(held_out, shard_size=64, few=20, unreadable=0.1)
        judged = Subject(teacher(), images=large.few, evaluation=large)
        last = list(shards_of(judged, 3, large).looks())[-1]
        evidence = measure_calibration_temperature(judged)
    finally:
        ray.shutdown()
    assert (last.tried, len(last.tally)) == (300, 299)
    assert "NaN" in last.unreadable[0].why
    assert any("blocks in random order" in note for note in evidence.notes)


def test_sums_that_may_not_be_written_to_are_read(recwarn: pytest.WarningsRecorder) -> None:
    """Ray's object store gives such arrays."""

    class Frozen(Inline):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = super().submit(fn, *args, **kwargs)
            _who, result = future.result()
            tally = result.tally
            for array in (tally.occurred, tally.own.logs, tally.own.largest, tally.own.unlikely):
                array.flags.writeable = False
            return future

    evidence = measure_calibration_temperature(subject(Frozen(), shard=100), max_passes=8)
    assert evidence["examples"] == 200
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]
