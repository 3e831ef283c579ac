"""The tensors without a posterior that a model has of its teacher: beside the teacher's, and how to put these back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.libraries.posterior import is_bayesian
from pytest_bnn.network.isolation import replaced
from pytest_bnn.subject import Subject

#: Words for one and the same tensor of a norm.
_SCALES = frozenset(["weight", "gamma", "scale", "g", "alpha"])
_SHIFTS = frozenset(["bias", "beta", "shift", "b"])


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """One tensor that is the model's and the teacher's: the module at ``path`` of the model, and its name there."""

    path: str
    module: nn.Module
    name: str
    now: Tensor
    before: Tensor

    @property
    def buffer(self) -> bool:
        """Whether it is a buffer, and no parameter."""
        return self.name in self.module._buffers

    @property
    def start(self) -> int | None:
        """The constant that all its values have, 1 or 0, while the teacher's have not; None where there is none."""
        for value in (1, 0):
            if bool((self.now == value).all()):
                return None if bool((self.before == value).all()) else value
        return None


def kept(subject: Subject) -> list[Kept]:
    """Return the tensors without a posterior that model and teacher both have, by their modules' places and shapes."""
    assert subject.teacher is not None
    sources = dict(subject.teacher.named_modules())
    modules = dict(subject.model.named_modules())
    paths = {path: place for path, place in subject.alignment.paths.items() if path in sources and place in modules}
    # Where nothing is left of a module's own tensors, they may be in a module further in, or elsewhere.
    paths = {p: place for p, place in paths.items() if _has_tensors(modules[place]) or not _own(sources[p])}
    found = []
    taken = set()
    for path, place in [*paths.items(), *_alone(sources, modules, paths)]:
        now = modules[place]
        if now is sources[path] or is_bayesian(now) or place in taken:
            continue
        taken.add(place)
        found += list(_pairs(place, sources[path], now))
    return found


def _pairs(place: str, original: nn.Module, now: nn.Module) -> Iterator[Kept]:
    mine = {**dict(now.named_parameters(recurse=False)), **dict(now.named_buffers(recurse=False))}
    for name, before in _own(original).items():
        same = next((n for n in (name, *_synonyms(name)) if n in mine), None)
        if same is None or is_lazy(mine[same]) or mine[same].is_meta or before.is_meta:
            continue
        value = mine[same].detach()
        if value.shape == before.shape and value.is_floating_point() and value.numel():
            yield Kept(place, now, same, value, before.to(value))


def _own(module: nn.Module) -> dict[str, Tensor]:
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return {name: tensor.detach() for name, tensor in own.items() if not is_lazy(tensor)}


def _has_tensors(module: nn.Module) -> bool:
    return bool(_own(module)) or is_bayesian(module)


def _synonyms(name: str) -> Iterable[str]:
    return sorted(next((words for words in (_SCALES, _SHIFTS) if name in words), frozenset[str]()))


def _alone(
    sources: dict[str, nn.Module], modules: dict[str, nn.Module], paths: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Pair what is at another place in the model and has tensors of shapes that nothing else has."""
    groups: dict[Any, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    taken = set(paths.values())
    for side, (known, free) in enumerate(((sources, set(sources) - paths.keys()), (modules, set(modules) - taken))):
        for path in known:
            if path in free and not is_bayesian(known[path]) and (own := _own(known[path])):
                groups[tuple(sorted(tuple(t.shape) for t in own.values()))][side].append(path)
    for theirs, mine in groups.values():
        if len(theirs) == len(mine) == 1:
            yield theirs[0], mine[0]


@contextmanager
def restored(tensors: Iterable[Kept]) -> Iterator[None]:
    """Put the teacher's values there for a while."""
    entries = []
    for one in tensors:
        place: dict[str, Any] = one.module._buffers if one.buffer else one.module._parameters
        value = one.before.clone()
        entries.append((place, one.name, value if one.buffer else nn.Parameter(value, requires_grad=False)))
    with torch.no_grad(), replaced(entries):
        yield
