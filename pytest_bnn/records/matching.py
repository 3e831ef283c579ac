"""Which subject of an audit is which of an earlier one: by key, name and stage, else where there is only one answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from pytest_bnn.records.evidence import Evidence, Stage
from pytest_bnn.records.run import AuditRun, SubjectRecord

#: Key, name and stage.
SubjectKey: TypeAlias = tuple[str, str, Stage]


def key_of(item: Evidence | SubjectRecord) -> SubjectKey:
    """Return what tells subjects apart."""
    return item.key, item.subject if isinstance(item, Evidence) else item.name, item.stage


def matched(before: AuditRun, now: AuditRun) -> tuple[dict[SubjectKey, SubjectKey], tuple[str, ...]]:
    """Match the subjects of two audits.

    Returns:
        The key of now by the key of before, for subjects that are on both sides, and sentences about those whose name
        or stage changed.
    """
    old, new = _subjects(before), _subjects(now)
    weights_before, weights_now = _weights(before), _weights(now)
    pairs: dict[SubjectKey, SubjectKey] = {key: key for key in old if key in set(new)}
    # From what says most to what says least; at each, only what is there once on both sides.
    for same in (
        lambda key, _: key[1:],
        lambda key, _: (key[0], key[1]),
        lambda key, _: key[1],
        lambda key, weights: weights.get(key),
    ):
        _pair_off(pairs, _left(old, pairs), weights_before, _left(new, pairs.values()), weights_now, same)
    if len(old) == len(new) == 1:
        pairs.setdefault(old[0], new[0])
    return pairs, tuple(_said(one, other) for one, other in pairs.items() if one[1:] != other[1:])


def _subjects(run: AuditRun) -> list[SubjectKey]:
    return list(dict.fromkeys(key_of(check) for check in run.checks))


def _weights(run: AuditRun) -> dict[SubjectKey, str]:
    return {key_of(record): record.sha256 for record in run.subjects if record.sha256}


def _left(keys: Iterable[SubjectKey], taken: Iterable[SubjectKey]) -> list[SubjectKey]:
    gone = set(taken)
    return [key for key in keys if key not in gone]


def _pair_off(
    pairs: dict[SubjectKey, SubjectKey],
    old: Iterable[SubjectKey],
    weights_before: dict[SubjectKey, str],
    new: Iterable[SubjectKey],
    weights_now: dict[SubjectKey, str],
    same: Callable[[SubjectKey, dict[SubjectKey, str]], Any],
) -> None:
    """Pair those that are alike in what ``same`` gives, None aside, and that are the only such on their side."""
    sides: dict[Any, tuple[list[SubjectKey], list[SubjectKey]]] = defaultdict(lambda: ([], []))
    for side, keys, weights in ((0, old, weights_before), (1, new, weights_now)):
        for key in keys:
            sides[same(key, weights)][side].append(key)
    for feature, (ours, theirs) in sides.items():
        if feature is not None and len(ours) == len(theirs) == 1:
            pairs[ours[0]] = theirs[0]


def _said(before: SubjectKey, now: SubjectKey) -> str:
    if before[1] == now[1]:
        return f"{now[1]!r} was {before[2]} before and is {now[2]} now."
    return f"{now[1]!r} is taken to be what was called {before[1]!r} before."
