"""The recorder: a plain call inside a test reaches the report, and nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.policy import inconclusive_policy
from pytest_bnn.records.recorder import Recorder, record, recording
from pytest_bnn.records.run import AuditRun, SubjectRecord


def evidence(id: str = "layers.replaced", verdict: Verdict = Verdict.PASS) -> Evidence:
    return Evidence(
        id=id,
        verdict=verdict,
        subject="resnet18",
        stage="converted",
        claim="Layers became Bayesian",
        headline="20 of 21",
    )


def subject() -> SubjectRecord:
    return SubjectRecord(name="s", stage="converted", model="ResNet", teacher=None, images=4)


def test_the_policy_is_that_of_the_recorder_in_force() -> None:
    """pytest's --bnn-inconclusive reaches a plain call in a test; outside of pytest the strict one holds."""
    run = AuditRun(checks=(evidence(verdict=Verdict.INCONCLUSIVE),))
    assert inconclusive_policy() == "fail"
    with pytest.raises(AssertionError):
        run.raise_for_failures()
    with recording(Recorder(inconclusive="warn")):
        assert inconclusive_policy() == "warn"
        assert run.raise_for_failures() is run
        with pytest.raises(AssertionError):
            run.raise_for_failures(inconclusive="fail")
    assert inconclusive_policy() == "fail"


def test_records_reach_the_recorder_and_are_drained_once() -> None:
    """The plugin takes a delta per test phase: nothing twice, nothing lost, in order."""
    with recording(Recorder()) as recorder:
        record(evidence("a"))
        record(subject())
        record(evidence("b"))
        first = recorder.drain()
        record(evidence("c"))
    assert [check.id for check in first.checks] == ["a", "b"]
    assert first.subjects == (subject(),)
    assert [check.id for check in recorder.drain().checks] == ["c"]
    assert recorder.drain() == AuditRun()


def test_without_a_recorder_records_go_nowhere_quietly() -> None:
    """The same functions work in a notebook."""
    recorder = Recorder()
    with recording(recorder):
        pass
    record(evidence())
    assert recorder.drain() == AuditRun()


def test_recorders_nest_and_unwind_also_after_exceptions() -> None:
    """pytester runs pytest inside pytest; the inner run must not leak into the outer one."""
    with recording(Recorder()) as outer:
        inner = Recorder()
        with suppress(RuntimeError), recording(inner):
            record(evidence("inner"))
            raise RuntimeError
        record(evidence("outer"))
    assert [check.id for check in outer.checks] == ["outer"]
    assert [check.id for check in inner.checks] == ["inner"]


def test_a_thread_of_its_own_has_no_recorder() -> None:
    """A ContextVar, not a global: a background thread does not write into a test's report."""
    with recording(Recorder()) as recorder:
        thread = threading.Thread(target=lambda: record(evidence("thread")))
        thread.start()
        thread.join()
        record(evidence("test"))
    assert [check.id for check in recorder.checks] == ["test"]


@pytest.fixture(autouse=True)
def no_recorder() -> Iterator[None]:
    """Keep these tests' records out of a report of this very test run."""
    from pytest_bnn.records import recorder as module

    token = module._recorder.set(None)
    yield
    module._recorder.reset(token)
