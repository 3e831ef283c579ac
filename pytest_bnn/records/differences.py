"""What else differs between two audits: settings, data, seed, versions, what was left out; as sentences."""

from __future__ import annotations

import re
from typing import Final

from pytest_bnn.records.matching import SubjectKey, key_of
from pytest_bnn.records.run import AuditRun, SubjectRecord

_VERSION: Final = re.compile(r"\d+\.\d+[\w.+-]*|missing")
#: Settings that decide no verdict.
_HARMLESS: Final = frozenset({"seed", "threads"})
_DEFAULT: Final = "the default"


def differences(before: AuditRun, now: AuditRun, pairs: dict[SubjectKey, SubjectKey]) -> tuple[str, ...]:
    """Return a sentence for each difference that a change may come from.

    Args:
        before: The earlier audit.
        now: The later one.
        pairs: The subjects' keys of now by those of before.
    """
    said = [
        f"The setting {name} was {old}, and is {new} now."
        for name, old, new in _different(_settings(before), _settings(now))
    ]
    seeds = before.provenance.get("seed"), now.provenance.get("seed")
    if None not in seeds and seeds[0] != seeds[1]:
        said.append(f"The seed was {seeds[0]}, and is {seeds[1]} now.")
    devices = before.provenance.get("device"), now.provenance.get("device")
    if None not in devices and devices[0] != devices[1]:
        said.append(f"The device was {devices[0]}, and is {devices[1]} now.")
    said += _of_data(before, now, pairs)
    versions = [
        f"{name} {old} (now {new})"
        for name, old in before.provenance.items()
        if (new := now.provenance.get(name, old)) != old and _VERSION.fullmatch(old) and _VERSION.fullmatch(new)
    ]
    if versions:
        said.append(f"The earlier audit was made with other versions: {', '.join(versions)}.")
    said += [f"Left out now: {words}." for words in now.cut if words not in before.cut]
    said += [f"Left out before: {words}." for words in before.cut if words not in now.cut]
    return tuple(said)


def _different(old: dict[str, str], new: dict[str, str]) -> list[tuple[str, str, str]]:
    names = [name for name in dict.fromkeys((*old, *new)) if name not in _HARMLESS]
    both = [(name, old.get(name, _DEFAULT), new.get(name, _DEFAULT)) for name in names]
    return [(name, was, is_) for name, was, is_ in both if was != is_]


def _settings(run: AuditRun) -> dict[str, str]:
    """Return what was not at its default, by name."""
    said = {
        name.removeprefix("set "): value.rpartition(" (")[0] or value
        for name, value in run.provenance.items()
        if name.startswith("set ")
    }
    return {**said, **{change.name: change.value for change in run.changed if not change.tests}}


def _of_data(before: AuditRun, now: AuditRun, pairs: dict[SubjectKey, SubjectKey]) -> list[str]:
    def by_key(run: AuditRun) -> dict[SubjectKey, SubjectRecord]:
        return {key_of(record): record for record in run.subjects}

    old, new = by_key(before), by_key(now)
    said = []
    for key, other in pairs.items():
        if key not in old or other not in new:
            continue
        one, two = old[key], new[other]
        if one.data_sha256 and two.data_sha256 and one.data_sha256 != two.data_sha256:
            said.append(f"The data of {two.name!r} are others than before.")
        elif one.images != two.images:
            said.append(f"{two.name!r} was judged on {one.images:,} examples, and is on {two.images:,} now.")
    return said
