"""Which files, which data, which code and which machine it was: what makes an audit comparable with another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pytest_bnn.records.run import AuditRun, FileDigest
from pytest_bnn.report.outline import Group, Outline
from pytest_bnn.report.wording import seconds

#: What is named of an audit as a whole, by the name in its provenance.
_OF_THE_AUDIT: Final[Mapping[str, str]] = {
    "baseline": "Baseline",
    "commit": "Commit",
    "created": "When",
    "duration": "Duration",
    "machine": "Machine",
}
_VERSIONS: Final = ("pytest-bnn", "torch", "bayesian-torch", "python")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a subject is, by digests and sources; ``state`` and ``data`` are SHA-256, empty where they are not known."""

    group: Group
    model: str
    state: str
    data: str
    examples: int
    files: tuple[FileDigest, ...]
    sources: tuple[tuple[str, str], ...]


def identities(shape: Outline) -> tuple[Identity, ...]:
    """Return what each subject that was described is."""
    return tuple(
        Identity(
            group=group,
            model=record.model,
            state=record.sha256,
            data=record.data_sha256,
            examples=record.images,
            files=record.files,
            sources=tuple(record.sources.items()),
        )
        for group in shape.groups
        for record in group.records
    )


def of_the_audit(run: AuditRun) -> tuple[tuple[str, str], ...]:
    """Return what is known of the audit as a whole, named: baseline, commit, when, duration, machine, versions."""
    checks = sum(check.seconds for check in run.checks)
    provenance = {**({"duration": f"{seconds(checks)} in checks"} if checks > 0 else {}), **run.provenance}
    said = [(name, provenance[key]) for key, name in _OF_THE_AUDIT.items() if provenance.get(key)]
    versions = [f"{name} {provenance[name]}" for name in _VERSIONS if provenance.get(name)]
    return (*said, ("Versions", ", ".join(versions))) if versions else tuple(said)
