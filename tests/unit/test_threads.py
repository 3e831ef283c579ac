"""Threads: the process's share of the cores, the user's word over it, and torch's own setting put back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from pytest_bnn import convert, finetune
from pytest_bnn.checks.check import Check, Finding
from pytest_bnn.errors import InputError
from pytest_bnn.options import Settings, using
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.recorder import Recorder, recording
from pytest_bnn.sampling.threads import limited, share
from pytest_bnn.subject import Subject


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    with recording(Recorder()):
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("workers", "wanted"), [("", 6), ("1", 6), ("2", 4), ("3", 2), ("16", 1), ("0", 6), ("x", 6)])
def test_workers_split_the_cores(workers: str, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with two threads each on two cores are slower together than one; torch's own limit is kept."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", workers)
    assert share() == wanted


def test_the_users_word_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """--bnn-threads is over the share and over torch's setting."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "8")
    with using(Settings(threads=7)), limited():
        assert torch.get_num_threads() == 7
    assert share() == 1


@pytest.mark.parametrize("raised", [None, ZeroDivisionError("ours"), InputError("the user's", fix="do")])
def test_a_check_uses_its_share_and_puts_torchs_setting_back(
    raised: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the check breaks, or refuses its input."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "4")
    seen = []

    def find(_: Subject) -> Finding:
        seen.append(torch.get_num_threads())
        if raised is not None:
            raise raised
        return Finding(verdict=Verdict.PASS, headline="")

    check = Check(id="some.check", claim="Something.")
    if isinstance(raised, InputError):
        with pytest.raises(InputError):
            check.run(Subject(nn.Identity()), find)
    else:
        check.run(Subject(nn.Identity()), find)
    assert seen == [2]
    assert torch.get_num_threads() == 6


def test_fine_tuning_uses_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the longest part of an audit."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "4")
    teacher = nn.Sequential(nn.Linear(2, 2)).eval()
    seen: list[int] = []
    finetune(
        convert(teacher), teacher, torch.ones(2, 2), steps=1, progress=lambda _: seen.append(torch.get_num_threads())
    )
    assert seen == [2]
    assert torch.get_num_threads() == 6
