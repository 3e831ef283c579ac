"""Freed memory stays for the next pass, unless the environment says otherwise, and goes back when it is told to."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from pytest_bnn.sampling.freed import give_memory_back, keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")

#: What a pass does with memory: layers' outputs of 8 MiB come and go. Page faults of twenty rounds, and KiB given back.
ROUNDS = """
import resource
import sys
import torch
from pytest_bnn.sampling.freed import give_memory_back, keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024

if sys.argv[1] == "keep":
    keep_freed_memory()

def round():
    x = torch.zeros(2 * 2**20)
    for _ in range(4):
        x = x + 1

for _ in range(10):
    round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    round()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
held = resident()
give_memory_back()
print(faults, held - resident())
"""


def rounds(how: str, **environment: str) -> tuple[int, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, how], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    faults, given_back = done.stdout.split()
    return int(faults), int(given_back)


@glibc
def test_passes_reuse_their_memory_and_give_it_back() -> None:
    """A hundred outputs of 2,048 pages each come and go: fewer than one in ten takes new pages."""
    faults, given_back = rounds("keep")
    assert faults < 10 * 2048
    assert given_back > 8 * 1024


@glibc
@pytest.mark.nightly("starts two processes that import torch")
@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}],
    ids=["MALLOC_", "tunables"],
)
def test_the_environment_decides(environment: dict[str, str]) -> None:
    faults, _ = rounds("keep", **environment)
    assert faults > 90 * 2048


@pytest.mark.parametrize("raised", [OSError, TypeError, AttributeError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, raised: type[Exception]) -> None:
    def library(_name: object) -> object:
        asked.append(raised)
        raise raised

    asked: list[object] = []
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", library)
    keep_freed_memory.__wrapped__()
    give_memory_back()
    assert len(asked) == 2
