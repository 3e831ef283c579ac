"""When, with what and how an audit ran, and how to repeat it."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence

from pytest_bnn.audit.environment import versions
from pytest_bnn.sampling.threads import share


def provenance(*, seed: int, command: Sequence[str] | None = None, repeat: str = "") -> dict[str, str]:
    """Say when, with what and how an audit ran.

    Args:
        seed: Of all its randomness.
        command: The command that ran it.
        repeat: The command that repeats it, from `pytest_bnn.audit.repeating`.
    """
    now = datetime.datetime.now(datetime.UTC)
    said = {"created": now.strftime("%Y-%m-%d %H:%M:%S UTC"), "seed": str(seed)}
    if command is not None:
        said["command"] = shlex.join(command)
    if repeat:
        said["repeat"] = repeat
    return {**said, "threads": str(share()), **versions()}
