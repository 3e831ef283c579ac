"""What an audit says of itself while it runs, how long it says it still takes, and what that costs."""

from __future__ import annotations

import io
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_bnn import audit_model, convert
from pytest_bnn.checks import measure_noise_varies
from pytest_bnn.commands import watching
from pytest_bnn.commands.pace import Pace, in_words, seconds_of
from pytest_bnn.progress import EVERY, Event, begin, drawn, so_far
from pytest_bnn.progress import watching as watched_by
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.run import AuditRun
from pytest_bnn.sampling.bank import PassBank


def network() -> nn.Module:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval())


IMAGES = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def test_an_audit_says_which_check_of_how_many_it_judges() -> None:
    """In the order of the report; the last one has nothing ahead."""
    told: list[Event] = []
    ids = ("layers.replaced", "noise.varies", "kl.present")
    audit_model(network(), data=IMAGES, name="mine", checks=ids, progress=told.append)
    begun = {event.check: event for event in reversed(told)}
    assert [(begun[id].number, begun[id].of, begun[id].subject) for id in ids] == [(n, 3, "mine") for n in (1, 2, 3)]
    assert begun["layers.replaced"].ahead == ("noise.varies", "kl.present")
    assert begun["kl.present"].ahead == ()
    assert begun["noise.varies"].most_passes == 128


@pytest.mark.parametrize("sampler", ["own", "engine"])
def test_passes_are_told_while_they_are_drawn(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the own forward and by the engine, and again where they were kept."""
    monkeypatch.setattr("pytest_bnn.progress.EVERY", 0.0)
    told: list[Event] = []
    with watched_by(told.append):
        bank = PassBank(network(), IMAGES, 0, sampler=sampler)
        begin(Event(check="first"))
        list(bank.blocks(0, 12))
        begin(Event(check="second"))
        list(bank.blocks(0, 12))
    passes = {name: max(e.passes for e in told if e.check == name) for name in ("first", "second")}
    assert passes == {"first": 12, "second": 12}


def test_a_plain_measure_tells_too() -> None:
    """A test with one assert may take as long as an audit."""
    told: list[Event] = []
    with watched_by(told.append):
        measure_noise_varies(network(), images=IMAGES, name="alone")
    assert (told[0].check, told[0].subject, told[0].number) == ("noise.varies", "alone", 0)


def test_who_watches_cannot_make_a_check_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed terminal in the middle of a check is no verdict about the model."""
    monkeypatch.setattr("pytest_bnn.progress.EVERY", 0.0)

    def closed(event: Event) -> None:
        if event.passes:
            raise BrokenPipeError

    run = audit_model(network(), data=IMAGES, checks=["noise.varies"], progress=closed)
    assert run.verdict is Verdict.PASS


def test_without_a_watcher_nothing_happens() -> None:
    """Whoever calls a check in a notebook has no watcher."""
    begin(Event(check="x"))
    so_far("words")
    drawn()(3)


def test_telling_costs_next_to_nothing_and_has_no_thread() -> None:
    """A million passes are told a few times a second; the threads are those of before."""
    told: list[Event] = []
    before = threading.active_count()
    with watched_by(told.append):
        begin(Event(check="x", most_passes=10))
        tell, start = drawn(), time.perf_counter()
        for _ in range(10_000):
            tell(1)
        took = time.perf_counter() - start
        assert threading.active_count() == before
    assert len(told) <= 2 + took / EVERY


def test_other_threads_count_and_stay_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's workers draw passes; only the thread that asked talks."""
    monkeypatch.setattr("pytest_bnn.progress.EVERY", 0.0)
    speakers: list[int] = []
    with watched_by(lambda _: speakers.append(threading.get_ident())):
        begin(Event(check="x"))
        worker = threading.Thread(target=drawn(), args=(5,))
        worker.start()
        worker.join()
        assert set(speakers) == {threading.get_ident()}
        so_far("words")
    assert set(speakers) == {threading.get_ident()}


def test_an_event_reads_as_a_line() -> None:
    """Examples of what stands on a screen."""
    assert str(Event(note="loading torch")) == "loading torch"
    assert str(Event(check="kl.loss")) == "kl.loss"
    event = Event(check="noise.spread", subject="net", number=7, of=28, passes=64, most_passes=128)
    assert str(event) == "check 7 of 28, noise.spread on net, 64 of at most 128 passes drawn"
    event = Event(check="noise.spread", passes=300, most_passes=128, certainty="3 of 9 not decided yet")
    assert str(event) == "noise.spread, 300 passes drawn, 3 of 9 not decided yet"
    assert str(Event(check="noise.spread", passes=1)) == "noise.spread, 1 pass drawn"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_left_is_what_the_checks_ahead_took_before() -> None:
    """By hand: 4 s are left of a check of 10 s, and one of 20 s follows; at half the speed it is twice as much."""
    clock = Clock()
    pace = Pace({"a": 10.0, "b": 10.0, "c": 20.0}, clock)
    pace.take(Event(check="a", number=1, of=3, ahead=("b", "c")))
    clock.now += 6
    assert pace.left() == pytest.approx(4 + 10 + 20)
    clock.now += 14  # 20 s instead of 10
    pace.take(Event(check="b", number=2, of=3, ahead=("c",)))
    assert pace.left() == pytest.approx(2 * (10 + 20))
    assert pace.elapsed == 20


def test_time_left_is_not_said_where_nothing_is_known() -> None:
    """In the first half of a first audit; after that, checks ahead count as those that are done."""
    clock = Clock()
    pace = Pace({}, clock)
    assert pace.left() is None
    pace.take(Event(note="fine-tuning"))
    assert pace.left() is None
    for number, id in enumerate("abcd", 1):
        pace.take(Event(check=id, number=number, of=6, ahead=tuple("abcdef"[number:])))
        assert (pace.left() is None) == (number < 3)
        clock.now += 5
    assert pace.left() == pytest.approx(0 + 2 * 5)


def test_the_second_model_takes_what_the_first_one_took() -> None:
    """The same checks were just seen."""
    clock = Clock()
    pace = Pace({}, clock)
    for number, id in enumerate("ab", 1):
        pace.take(Event(check=id, subject="one", number=number, of=4, ahead=(*"ab"[number:], "a", "b")))
        clock.now += 7
    pace.take(Event(check="a", subject="two", number=3, of=4, ahead=("b",)))
    assert pace.left() == pytest.approx(14)


def test_durations_come_from_the_report_that_is_there(tmp_path: Path) -> None:
    """Two models: the mean of both. Anything else that has this name says nothing."""
    checks = tuple(
        Evidence(id="kl.loss", subject=name, stage="unknown", verdict=Verdict.PASS, claim="c", headline="h", seconds=s)
        for name, s in (("one", 1.0), ("two", 3.0))
    )
    path = tmp_path / "audit.json"
    assert seconds_of(path) == {}
    path.write_text(AuditRun(checks=checks).to_json(), encoding="utf-8")
    assert seconds_of(path) == {"kl.loss": 2.0}
    path.write_bytes(b"\xff{")
    assert seconds_of(path) == {}


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, "5 s"), (12, "10 s"), (57, "55 s"), (58, "1 min"), (150.1, "3 min"), (7200, "120 min")]
)
def test_durations_are_rough(seconds: float, words: str) -> None:
    """Nobody can say them better."""
    assert in_words(seconds) == words


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error, whole lines, also where the audit itself says nothing for long; none once it has ended."""
    monkeypatch.setattr(watching, "FIRST", 0.01)
    monkeypatch.setattr(watching, "NEXT", 0.01)
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with watching.progress() as say:
        say("loading \x1b[31mtorch")
        while stderr.getvalue().count("\n") < 3:
            time.sleep(0.005)
    said = stderr.getvalue()
    assert said.splitlines()[-1] == "pytest-bnn: 0 s: loading �[31mtorch"
    time.sleep(0.05)
    assert stderr.getvalue() == said


def test_quiet_and_short_audits_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first seconds are over there is nothing to say."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with watching.progress() as say:
        say("loading torch")
    with watching.progress(quiet=True) as say:
        say("loading torch")
    assert stderr.getvalue() == ""
