"""Cores: those that the process may use, by affinity and quota, less those that others keep busy."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from pytest_bnn.sampling import cores


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_quota", lambda: math.inf)


@pytest.mark.parametrize(("quota", "wanted"), [(math.inf, 8), (3.0, 3), (2.5, 3), (0.5, 1), (64.0, 8)])
def test_the_quota_of_a_container_counts(
    quota: float, wanted: int, eight: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container with 2 cores of a machine with 64 must not start 64 threads."""
    monkeypatch.setattr(cores, "_quota", lambda: quota)
    assert cores.usable() == wanted


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, 4.0),
        ({}, math.inf),
        ({"cpu.max": "what\n"}, math.inf),
    ],
)
def test_quotas_of_both_versions_are_read(files: dict[str, str], wanted: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cores._quota_of(tmp_path) == wanted


@pytest.mark.parametrize(("busy", "wanted"), [(0.0, 8), (0.4, 8), (1.0, 7), (6.7, 1), (20.0, 1)])
def test_cores_that_others_keep_busy_are_not_free(
    busy: float, wanted: int, eight: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process itself used does not count."""
    looks = iter([cores._Use(at=10.0, busy=100 + 10 * (busy + 2), own=20.0)])
    monkeypatch.setattr(cores, "_known", [(cores._Use(at=0.0, busy=100.0, own=0.0), None)])
    monkeypatch.setattr(cores, "_look", lambda: next(looks))
    assert cores.free() == wanted


@pytest.mark.parametrize(("busy", "wanted"), [(0.0, 3), (5.0, 3), (6.0, 2), (8.0, 1)])
def test_what_others_use_beside_a_quota_takes_nothing_of_it(
    busy: float, wanted: int, eight: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container with 3 cores of a machine of 8 has them all while 5 are busy for others."""
    monkeypatch.setattr(cores, "_quota", lambda: 3.0)
    monkeypatch.setattr(cores, "_known", [(cores._Use(at=0.0, busy=0.0, own=0.0), None)])
    monkeypatch.setattr(cores, "_look", lambda: cores._Use(at=10.0, busy=10 * busy, own=0.0))
    assert cores.free() == wanted


def test_it_is_looked_at_again_later(eight: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every question, and not for good."""
    looks = iter(cores._Use(at=at, busy=busy, own=0.0) for at, busy in ((1.0, 3.0), (2.0, 10.0), (9.0, 3.0)))
    monkeypatch.setattr(cores, "_known", [(cores._Use(at=0.0, busy=0.0, own=0.0), None)])
    monkeypatch.setattr(cores, "_look", lambda: next(looks))
    assert [cores.free() for _ in range(3)] == [5, 5, 8]


def test_where_the_system_does_not_tell_all_are_free(eight: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_known", [(cores._Use(at=0.0, busy=0.0, own=0.0), None)])
    monkeypatch.setattr(cores, "_look", lambda: None)
    assert cores.free() == 8


def test_the_real_system_is_read() -> None:
    assert 1 <= cores.free() <= cores.usable() <= (os.cpu_count() or 1)
