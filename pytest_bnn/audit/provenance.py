"""When, with what and how an audit ran, and which settings were not at their defaults."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence

from pytest_bnn.audit.environment import versions
from pytest_bnn.checks.choices import changes
from pytest_bnn.sampling.threads import share


def provenance(*, seed: int, command: Sequence[str] | None = None) -> dict[str, str]:
    """Say when, with what and how an audit ran.

    What is in force and not a default stands under ``"set NAME"``, with its value and where it was set.
    """
    now = datetime.datetime.now(datetime.UTC)
    said = {"created": now.strftime("%Y-%m-%d %H:%M:%S UTC"), "seed": str(seed)}
    if command is not None:
        said["command"] = shlex.join(command)
    changed = {f"set {name}": words for name, words in changes().items()}
    return {**said, **changed, "threads": str(share()), **versions()}
