"""What the audits of a series depend on beside their checkpoints, as digests: by these it is known what is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from pytest_bnn.audit.named import Named, Parts
from pytest_bnn.checks import registry
from pytest_bnn.checks.choices import Choices
from pytest_bnn.data.digests import of_examples
from pytest_bnn.data.given import named_series, named_sets
from pytest_bnn.data.joining import as_tensors
from pytest_bnn.data.large import LargeData
from pytest_bnn.data.samples import samples_of
from pytest_bnn.many import modules
from pytest_bnn.network.devices import where
from pytest_bnn.options import Settings
from pytest_bnn.records.made_with import PACKAGES, WITHOUT_EFFECT

#: What does not change what an audit finds.
_WITHOUT_EFFECT = (*WITHOUT_EFFECT, "device")  # where the model is says what device, and of which kind


def digests(
    parts: Parts,
    *,
    checks: Sequence[str] | None,
    options: Mapping[str, Mapping[str, object]],
    settings: Settings,
    choices: Choices,
    plugins: Sequence[str],
    folder: Path,
) -> dict[str, str]:
    """Return a digest of each thing that an audit depends on, by what it is.

    Args:
        parts: What is audited, loaded.
        checks: The ids of the checks; None for all.
        options: Options of single checks.
        settings: The settings in force.
        choices: What was chosen for options of checks.
        plugins: Modules that declare checks.
        folder: As in `modules.digests`.

    Raises:
        InputError: A module changed since it was imported.
    """
    effective = {name: value for name, value in asdict(settings).items() if name not in _WITHOUT_EFFECT}
    said = {
        "named": asdict(parts.named),
        "checks": checks,
        "options": _effective(options, choices),
        "settings": effective,
        "device": getattr(where(parts.model), "type", ""),
    }
    named = [*(name.partition(":")[0] for name in functions(parts.named)), *plugins, *choices.plugins]
    installed = sorted(
        f"{one.value} {one.dist.version if one.dist else ''}" for one in entry_points(group=registry.GROUP)
    )
    return {
        "settings": _of(said),
        "data": _of(_examples(parts, int(settings.seed))),
        "teacher": "" if parts.teacher is None else _of_all(parts.teacher.state_dict()),
        "modules": _of(modules.digests(named, folder)),
        "versions": _of([*map(_version, PACKAGES), *installed]),
    }


def _effective(options: Mapping[str, Mapping[str, object]], choices: Choices) -> list[tuple[str, str]]:
    """Return the options of checks as they are in force, whether a command line, a table or Python gave them.

    Those of a pattern of checks come last, from the weakest to the strongest: of two, the later one counts.
    """
    found = {f"{id}.{name}": str(value) for id, given in options.items() for name, value in given.items()}
    patterns = []
    for id, name in choices.by_name:
        choice = choices.strongest(id, name)
        assert choice is not None
        value = str(choice.given[0] if len(choice.given) == 1 else choice.given)
        if choice in choices.by_name[id, name] and "*" in id:
            patterns.append(((choice.source.level, choice.place), (f"{id}.{name}", value)))
        else:
            found.setdefault(f"{id}.{name}", value)
    return [*sorted(found.items()), *(said for _, said in sorted(patterns))]


def functions(named: Named) -> list[str]:
    """Return the functions that are named, ``MODULE:NAME`` each."""
    return [name for name in asdict(named).values() if isinstance(name, str) and ":" in name]


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return what is not the same in two of `digests`."""
    return [name for name in one if one[name] != other.get(name)]


def _of_all(tree: Any) -> str:
    return of_examples(as_tensors(tree), objects=True)


def _examples(parts: Parts, seed: int) -> list[str]:
    """Return the digests of all examples that are judged on, read as an audit reads them."""

    def taken(name: str, examples: Any) -> str:
        if isinstance(examples, LargeData):  # all of it is read shard by shard, for as long as it takes
            few, whole = examples.few, examples.data.digest()
            return f"{name} {_of_all([few.item, few.places])} {examples.total} {examples.shard_size} {whole}"
        samples = samples_of(examples, name, parts.named.images, seed=seed, dim=parts.named.batch_dim)
        return f"{name} {_of_all([samples.item, samples.places])}"

    given = {"data": parts.data, "evaluation": parts.evaluation}
    sets = {f"ood {name}": one for name, one in named_sets(parts.ood, parts.data).items()}
    series = {
        f"shifts {name} {number}": step
        for name, steps in named_series(parts.shifts).items()
        for number, step in enumerate(steps)
    }
    return [taken(name, one) for name, one in {**given, **sets, **series}.items() if one is not None]


def _of(said: object) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
