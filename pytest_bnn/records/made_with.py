"""With which settings, data and versions audits were made, by digests, and which of these are not the same in all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from pytest_bnn.records.run import AuditRun

#: What an audit of a series says the digest of, in its provenance.
PARTS = ("settings", "data", "teacher", "modules", "versions")
#: Packages whose version may change what an audit finds.
PACKAGES = ("pytest-bnn", "torch", "bayesian-torch")
#: Settings that say who works, and change nothing of what is found.
WITHOUT_EFFECT = ("threads", "jobs")
#: As many hexadecimal digits of a digest are shown.
_SHOWN = 12
#: As many models are named that differ from most.
_NAMED = 3


class Row(Protocol):
    """A model in an index."""

    @property
    def name(self) -> str:
        """How it is called."""

    @property
    def made_with(self) -> Mapping[str, str]:
        """What `made_with` gave of its audit."""


def recorded(shared: Mapping[str, str]) -> dict[str, str]:
    """Return what the provenance of an audit says of what it shares with its series.

    Args:
        shared: The digests, by what they are of; empty for what was not given.
    """
    return {f"audit {name}": digest for name, digest in shared.items() if digest}


def made_with(run: AuditRun, data: str = "") -> dict[str, str]:
    """Return the first digits of the digests of what an audit was made with.

    An audit of a series has them on record. Of another one they are made of its own record, and cannot be held against
    those of a series: its settings are what was changed or cut and the seed.

    Args:
        run: The audit.
        data: The digest of the examples of its subject.
    """
    found = {name: run.provenance.get(f"audit {name}", "") for name in PARTS}
    if not any(found.values()):
        changed = [(one.name, one.value) for one in run.changed if one.name not in WITHOUT_EFFECT]
        settings = [changed, run.cut, run.provenance.get("seed")]
        versions = {name: run.provenance[name] for name in PACKAGES if name in run.provenance}
        found = {"settings": _of(settings), "data": data, "versions": _of(versions) if versions else ""}
    return {name: digest[:_SHOWN] for name, digest in found.items() if digest}


def of_a_series(row: Row) -> bool:
    """Return whether the digests of a row are those that its series has on record."""
    return "modules" in row.made_with


def differing(rows: Iterable[Row]) -> list[str]:
    """Say in sentences, without their full stop, what was not made with the same; none where all of it was."""
    every = list(rows)
    series, alone = [row for row in every if of_a_series(row)], [row for row in every if not of_a_series(row)]
    said = [words for group in (series, alone) for part in PARTS if (words := _differing(part, group))]
    if series and alone:
        said.append(
            f"{len(alone):,} of {len(every):,} {'was' if len(alone) == 1 else 'were'} not audited in a series of "
            "checkpoints: whether settings and data are those of the others is not on record"
        )
    return said


def _differing(part: str, rows: list[Row]) -> str:
    counts = Counter(row.made_with.get(part, "") for row in rows)
    if len(counts) < 2:
        return ""
    groups = []
    for place, (digest, count) in enumerate(sorted(counts.items(), key=lambda one: (-one[1], one[0]))):
        words = f"{count:,} with {digest}" if digest else f"{count:,} without any that is on record"
        if place:
            names = [row.name or "unnamed" for row in rows if row.made_with.get(part, "") == digest]
            more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
            words += f" ({', '.join(names[:_NAMED])}{more})"
        groups.append(words)
    return f"not all were made with the same {part}: {', '.join(groups)}"


def _of(said: object) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
