"""When, where, with what and how an audit ran, and how to repeat it."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence

import torch
from torch import nn

from pytest_bnn.audit.beside import in_words
from pytest_bnn.audit.environment import versions
from pytest_bnn.audit.origin import commit, machine
from pytest_bnn.network.devices import named, where


def provenance(
    *,
    seed: int,
    model: nn.Module | None = None,
    command: Sequence[str] | None = None,
    repeat: str = "",
    duration: float | None = None,
    threads: str = "",
) -> dict[str, str]:
    """Say when, where, with what and how an audit ran.

    Args:
        seed: The seed of all randomness.
        model: Whose device is told; none is when None, as of a session whose models are on several.
        command: The command that ran it, word by word.
        repeat: The command that repeats it, from `pytest_bnn.audit.repeating`.
        duration: How long it took, in seconds.
        threads: With how many threads it worked; those of this process now when empty.
    """
    now = datetime.datetime.now(datetime.UTC)
    said = {"created": now.strftime("%Y-%m-%d %H:%M:%S UTC"), "seed": str(seed)}
    if command is not None:
        said["command"] = shlex.join(command)
    if duration is not None:
        said["duration"] = lasting(duration)
    said |= {name: words for name, words in (("commit", commit()), ("machine", machine())) if words}
    if repeat:
        said["repeat"] = repeat
    if model is not None:
        said["device"] = named(where(model) or torch.device("cpu"))
    return {**said, "threads": threads or in_words(), **versions()}


def lasting(seconds: float) -> str:
    """Write how long an audit took: "3.21 s", "1,250 s"."""
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.0f} s"
