"""Tallies of shards that were judged, kept on disk: an audit that was ended goes on behind them.

A tally is found again by all that it depends on: what whoever keeps it says of the networks and the settings, the
examples of the shard with their labels, number by number, and the passes. What is read is numbers and texts; nothing in
it is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from pytest_bnn.checks._tallies import SideSums, Tally
from pytest_bnn.data.digests import of_examples
from pytest_bnn.data.large import Kept
from pytest_bnn.data.samples import Samples
from pytest_bnn.errors import WriteError
from pytest_bnn.replacing import replace_files

#: The ending of files with a tally, by which they are known to be ours.
SUFFIX = ".tally"

#: What has parts of its own.
_INSIDE: dict[tuple[Any, str], Any] = {
    (Tally, "own"): SideSums,
    (Tally, "its"): SideSums,
}

#: The part of a file that says what is not there, and how groups are called.
_SAID = "said"


def path_of(kept: Kept, samples: Samples, passes: int, groups: Mapping[int, str], known: frozenset[int]) -> Path:
    """Return the file of a shard's tally.

    Args:
        kept: Where tallies are kept, and of what.
        samples: The examples of the shard, as they were read.
        passes: Of the model.
        groups: Those of examples, by their numbers.
        known: Digests of examples that count in an earlier shard.
    """
    places = samples.places.tolist()
    groups_here = [groups.get(place) for place in places]
    said = [kept.key, of_examples(samples.item), places, passes, groups_here, sorted(known)]
    return Path(kept.folder) / (hashlib.sha256(json.dumps(said).encode()).hexdigest() + SUFFIX)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Found:
    """What the passes of a shard gave.

    Attributes:
        tally: Of the examples that count.
        digests: Of these examples, in their order.
        shares: Whether the outputs are probabilities already.
    """

    tally: Tally
    digests: NDArray[numpy.uint64]
    shares: bool


_INSIDE[Found, "tally"] = Tally


def load(path: Path) -> Found | None:
    """Return what is in a file; None where there is none, or none that is whole."""
    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            found: Found = _restored(Found, "", arrays, json.loads(str(arrays[_SAID])))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return found


def save(path: Path, found: Found) -> None:
    """Write what was found, whole or not at all; where the disk does not take it, it is found again another time."""
    arrays: dict[str, Any] = {}
    said: dict[str, Any] = {"none": [], "groups": {}}
    _flattened(found, "", arrays, said)
    content = io.BytesIO()
    numpy.savez(content, allow_pickle=False, **arrays, **{_SAID: numpy.array(json.dumps(said))})
    with contextlib.suppress(WriteError):
        replace_files({path: content.getvalue()})


def _flattened(one: Any, prefix: str, arrays: dict[str, Any], said: dict[str, Any]) -> None:
    for field in fields(one):
        name, value = f"{prefix}{field.name}", getattr(one, field.name)
        if value is None:
            said["none"].append(name)
        elif is_dataclass(value):
            _flattened(value, f"{name}.", arrays, said)
        elif isinstance(value, Mapping):
            said["groups"][name] = list(value)
            for number, part in enumerate(value.values()):
                _flattened(part, f"{name}.{number}.", arrays, said)
        else:
            arrays[name] = numpy.asarray(value)


def _restored(kind: Any, prefix: str, arrays: Any, said: Mapping[str, Any]) -> Any:
    found: dict[str, Any] = {}
    for field in fields(kind):
        name = f"{prefix}{field.name}"
        if name in said["none"]:
            found[field.name] = None
        elif name in said["groups"]:
            names = enumerate(said["groups"][name])
            found[field.name] = {group: _restored(Tally, f"{name}.{n}.", arrays, said) for n, group in names}
        elif (kind, field.name) in _INSIDE:
            found[field.name] = _restored(_INSIDE[kind, field.name], f"{name}.", arrays, said)
        else:
            value = arrays[name]
            found[field.name] = value.item() if value.ndim == 0 else value
    return kind(**found)
