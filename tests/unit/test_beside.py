"""Checks side by side: the same verdicts and numbers as one after the other, whatever becomes of the forks."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_bnn import convert
from pytest_bnn.audit import beside, forks
from pytest_bnn.audit.beside import Task, each, elsewhere, side_by_side
from pytest_bnn.audit.forks import Claims, Fork, LostError
from pytest_bnn.audit.run import audit_model
from pytest_bnn.errors import InputError
from pytest_bnn.options import Settings, using
from pytest_bnn.progress import Event
from pytest_bnn.records.recorder import Recorder, recording
from pytest_bnn.records.run import AuditRun

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone; runs there")


@pytest.fixture(autouse=True)
def nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have used torch's compiler, beside whose workers nothing is forked."""
    monkeypatch.delitem(sys.modules, "torch._inductor.async_compile", raising=False)


#: Fast checks; those that are shared out have others beside them.
FEW = ("layers.replaced", "memory.separate", "posterior.start", "noise.varies", "kl.present", "predictions.rows")


def net() -> tuple[nn.Module, nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    images = torch.randn(24, 6)
    with torch.no_grad():
        labels = teacher(images).argmax(1)
    return convert(teacher, moped_delta=0.05), teacher, (images, labels)


def plain(run: AuditRun) -> str:
    """Leave out what is no verdict and no number: times, with how many processes, and which check drew passes first.

    As text, in which a NaN is equal to another one.
    """
    checks = tuple(replace(one, seconds=0, sampler="") for one in run.checks)
    return replace(run, checks=checks, provenance={}, changed=()).to_json()


def audited(
    jobs: int, checks: Collection[str] | None = FEW, progress: Callable[[Event], None] | None = None
) -> AuditRun:
    model, teacher, data = net()
    with using(Settings(jobs=jobs, threads=1, samples=8)), recording(Recorder()):
        return audit_model(model, teacher=teacher, data=data, checks=checks, name="net", progress=progress)


def ignore(*_: object) -> None:
    """Nobody watches."""


def doing(*tasks: Callable[[], object], here: Collection[int] = (), jobs: int = 2) -> dict[int, object]:
    with using(Settings(jobs=jobs)), side_by_side(len(tasks)):
        return each([Task(task, here=n in here) for n, task in enumerate(tasks)], begin=ignore, take=ignore)


@pytest.mark.parametrize("jobs", [2, 3])
def test_the_same_as_one_after_the_other(jobs: int) -> None:
    """Verdicts, numbers, description and order; only times may differ."""
    assert plain(audited(jobs)) == plain(audited(1))


@pytest.mark.nightly("two audits of all checks")
def test_all_checks_are_the_same_side_by_side() -> None:
    """What checks have drawn and computed for the report crosses with them."""
    one, other = audited(1, None), audited(3, None)
    assert one.subjects[0].prediction_summary is not None
    assert plain(other) == plain(one)


def test_forks_really_work_beside_this_process() -> None:
    """Each task runs once, and not all of them here."""

    def slow() -> int:
        time.sleep(0.1)
        return os.getpid()

    found = doing(*[slow] * 6, jobs=3)
    assert sorted(found) == list(range(6))
    assert os.getpid() in found.values()
    assert len(set(found.values())) > 1


def test_what_must_be_done_here_is() -> None:
    """Others' checks may count on the process that they were declared in."""
    found = doing(*[os.getpid] * 5, here=range(5))
    assert set(found.values()) == {os.getpid()}


def test_a_lost_fork_loses_nothing() -> None:
    """What a killed fork had begun is done here."""
    mine = os.getpid()

    def deadly() -> str:
        if os.getpid() != mine:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return "done"

    assert set(doing(*[deadly] * 5).values()) == {"done"}


def test_where_no_process_can_be_made_all_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may have so many and no more; nothing is left open."""

    def no_room() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_room)
    assert set(doing(*[os.getpid] * 4).values()) == {os.getpid()}
    with using(Settings(jobs=2)), side_by_side(2), elsewhere(os.getpid, received=ignore) as other:
        assert other.result() == os.getpid()


def test_groups_are_read_where_what_they_read_is_open() -> None:
    """Two processes would move each other's place in a file."""
    model, teacher, data = net()
    asked: set[int] = set()

    def group(number: int) -> str:
        asked.add(number)
        return str(number % 2)

    checks = ("layers.replaced", "memory.separate", "noise.varies", "slices.temperature", "slices.scores")
    with using(Settings(jobs=4, samples=8)):
        audit_model(model, teacher=teacher, data=data, checks=checks, slices=group)
    assert asked == set(range(24))


def test_what_is_raised_is_raised_here() -> None:
    """An error in a fork becomes the error that it is without forks."""

    def wrong() -> object:
        raise InputError("the data are wrong", fix="mend them")

    with pytest.raises(InputError, match="the data are wrong"):
        doing(lambda: time.sleep(0.2), wrong, wrong)


def test_a_fork_ends_with_the_block_that_made_it() -> None:
    """Also where the work here raises: nothing goes on behind."""
    pids: list[int] = []

    def work(send: Callable[[int], None]) -> None:
        send(os.getpid())
        time.sleep(60)

    def broken_off() -> None:
        with Fork(work) as fork:
            pids.append(next(iter(fork.received(wait=True))))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_what_a_fork_prints_is_shown_when_it_is_received(capsys: pytest.CaptureFixture[str]) -> None:
    """A lock of this process's streams may be held while it is forked, so a fork never writes to them."""

    def work(send: Callable[[int], None]) -> None:
        sys.stdout.write("said in the fork\n")
        send(1)

    with Fork(work) as fork:
        assert fork.result() == 1
    assert capsys.readouterr().out == "said in the fork\n"


def test_a_stuck_fork_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that a thread of this process held is never released in a fork; what it had begun is done here."""
    monkeypatch.setattr(forks, "STUCK", 2.0)
    mine = os.getpid()

    def stuck() -> str:
        if os.getpid() != mine:
            time.sleep(1000)
        time.sleep(0.1)
        return "done"

    assert set(doing(*[stuck] * 3).values()) == {"done"}


def test_a_fork_that_sends_nothing_is_lost() -> None:
    with Fork[int](ignore) as fork, pytest.raises(LostError):
        fork.result()


def test_a_number_is_claimed_once() -> None:
    with Claims(3) as claims:
        assert claims.left()
        assert [claims.claim(n) for n in (0, 2, 0, 1, 1)] == [True, True, False, True, False]
        assert not claims.left()


def test_elsewhere_gives_what_it_does_and_hands_over_what_came_from_a_fork() -> None:
    received: list[int] = []
    with using(Settings(jobs=2)), side_by_side(2), elsewhere(os.getpid, received=received.append) as other:
        assert other.result() != os.getpid()
    assert len(received) == 1
    with using(Settings(jobs=1)), side_by_side(2), elsewhere(os.getpid, received=received.append) as other:
        assert other.result() == os.getpid()
    assert len(received) == 1, "what is done here is known here"


def test_what_no_fork_does_is_done_first() -> None:
    """As if it stood before the block: reports and progress tell the first subject first."""
    order: list[str] = []
    with using(Settings(jobs=1)), side_by_side(2), elsewhere(lambda: order.append("first"), received=ignore) as other:
        order.append("second")
    other.result()
    assert order == ["first", "second"]


def test_a_place_is_free_when_its_work_is_done() -> None:
    """Whether or not somebody has received the result, which may be larger than what a pipe holds."""

    def slow() -> int:
        time.sleep(0.1)
        return os.getpid()

    with using(Settings(jobs=2)), side_by_side(2), elsewhere(lambda: bytes(2**22), received=ignore) as other:
        time.sleep(0.5)
        found = each([Task(slow) for _ in range(6)], begin=ignore, take=ignore)
        assert other.result() == bytes(2**22)
    assert len(set(found.values())) == 2


def test_evidence_is_recorded_once_and_in_order() -> None:
    """Whatever finishes first: a report does not depend on it."""
    model, teacher, data = net()
    with using(Settings(jobs=3, samples=8)), recording(Recorder()) as recorder:
        run = audit_model(model, teacher=teacher, data=data, checks=FEW)
    assert recorder.checks == list(run.checks)
    assert [evidence.id for evidence in recorder.checks] == [one.id for one in run.checks]


def test_what_was_found_before_an_interrupt_is_recorded() -> None:
    """As without forks."""

    def interrupt(event: Event) -> None:
        if event.check == "posterior.start":
            raise KeyboardInterrupt

    model, teacher, data = net()
    with using(Settings(jobs=1, samples=8)), recording(Recorder()) as recorder, pytest.raises(KeyboardInterrupt):
        audit_model(model, teacher=teacher, data=data, checks=FEW, progress=interrupt)
    assert [evidence.id for evidence in recorder.checks] == ["layers.replaced", "memory.separate"]


def test_nothing_is_forked_where_it_could_go_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A debugger, an accelerator in use, another thread than the main one, a process that may have no children."""
    assert forks.possible() is (sys.gettrace() is None)
    with monkeypatch.context() as compiling:
        compiling.setitem(sys.modules, "torch._inductor.async_compile", torch)
        assert not forks.possible()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert not forks.possible()
    with using(Settings(jobs=4)), side_by_side(3):
        assert beside._places.get() is None
        assert beside.jobs() == 1


def test_several_threads_are_of_one_process() -> None:
    """A fork with more than one thread would wait for threads that are not there."""
    with using(Settings(jobs=4, threads=2)), side_by_side(3):
        assert beside._places.get() is None
    with using(Settings(jobs=4)):
        with side_by_side(5):
            assert beside.in_words() == "1 in each of 4 processes"
        with side_by_side(1):
            assert "processes" not in beside.in_words(), "a single check is not shared"
    with using(Settings(jobs=4, threads=2)):
        assert beside.in_words() == "2"


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model, teacher, data = net()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with using(Settings(jobs=2, samples=8)), recording(Recorder()):
        audit_model(model, teacher=teacher, data=data, checks=FEW)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_an_interrupt_ends_forks_too(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group of processes; no fork is left."""
    script = tmp_path / "held.py"
    script.write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist has it ignored\n"
        "from pytest_bnn.audit.beside import Task, each, side_by_side\n"
        "from pytest_bnn.options import Settings, using\n"
        "def slow():\n"
        "    print(os.getpid(), flush=True)\n"
        "    open(str(os.getpid()), 'w').close()\n"
        "    time.sleep(60)\n"
        "with using(Settings(jobs=2)), side_by_side(2):\n"
        "    each([Task(slow), Task(slow)], begin=lambda *_: None, take=lambda *_: None)\n"
    )
    command = [sys.executable, str(script)]
    running = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(pids := [int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()]) < 2:
        assert time.monotonic() < deadline, running.communicate(timeout=1)
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    assert b"KeyboardInterrupt" in running.communicate(timeout=30)[1]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
