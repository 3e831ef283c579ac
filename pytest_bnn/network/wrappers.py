"""Where one network lies in another: module paths paired by structure, whatever wraps either of them.

A wrapper is not known by its name. ``DataParallel``, ``torch.compile``, an average of weights or a class around a
network all put the same tree of modules under a prefix, and that is what is looked for, in both directions. No Bayesian
word here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

#: How well a module of the model (second) takes the place of one of the original network (first); 0: not at all.
Fits = Callable[[nn.Module, nn.Module], int]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the modules of one network lie in another.

    Attributes:
        paths: The path in the original network to that in the model, for all modules that were found.
        prefix: Under which path of the model the original network's tree lies; empty where the roots match.
        copies: Several places where the original network lies equally well; then nothing is paired.
    """

    paths: dict[str, str]
    prefix: str = ""
    copies: tuple[str, ...] = ()


def places(original: nn.Module, model: nn.Module, anchors: list[str], fits: Fits) -> Places:
    """Pair the module paths of an original network with those of a model that was made from it.

    The same path wins where nothing fits better. Else the tree is looked for under every module of the model, as it
    is and without the wrappers of the original. What then remains is looked for part by part, where a part fits in one
    place only: a backbone and a head under other names, for example.

    Args:
        original: The network that the model was made from.
        model: The model.
        anchors: Paths of the original network's modules that must be found again.
        fits: Compares two modules.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    sources = dict(original.named_modules(remove_duplicate=False))
    search = _Search(sources, modules, anchors, fits)
    best = search.score("", "")
    found = [("", "")]
    if best < (2 * len(anchors), len(anchors)):
        inner = list(_inner(original, anchors))
        tried = {(root, start): search.score(root, start) for root in inner for start in modules}
        highest = max(tried.values())
        if highest > best and 2 * highest[1] > len(anchors):
            found = _one_each([pair for pair, score in tried.items() if score == highest], modules)
    if len({start for _, start in found}) > 1:
        return Places({}, copies=tuple(dict.fromkeys(start for _, start in found)))
    root, start = found[0]
    paths = {}
    for path in sources:
        if _is_under(path, root):
            place = _join(start, path[len(root) :].lstrip("."))
            if place in modules:
                paths[path] = place
    search.parts(paths)
    return Places(paths, prefix=start)


class _Search:
    def __init__(
        self, sources: dict[str, nn.Module], modules: dict[str, nn.Module], anchors: list[str], fits: Fits
    ) -> None:
        self.sources, self.modules, self.anchors, self.fits = sources, modules, anchors, fits
        self._known: dict[tuple[str, str], int] = {}

    def fit(self, path: str, place: str) -> int:
        if place not in self.modules:
            return 0
        if (path, place) not in self._known:
            self._known[path, place] = self.fits(self.sources[path], self.modules[place])
        return self._known[path, place]

    def score(self, root: str, start: str) -> tuple[int, int]:
        """Return how well, and how many, anchors under a root are found under a path of the model."""
        found = [self.fit(p, _join(start, p[len(root) :].lstrip("."))) for p in self.anchors if _is_under(p, root)]
        return sum(found), sum(map(bool, found))

    def parts(self, paths: dict[str, str]) -> None:
        """Add the parts of the original network, the largest first, that fit as a whole in one place that is free."""
        missing = [p for p in self.anchors if not self.fit(p, paths.get(p, "\0"))]
        taken = {id(self.modules[paths[p]]) for p in self.anchors if p not in missing}
        for root in self.sources:
            anchors = [p for p in missing if _is_under(p, root)]
            if len(anchors) < 2:
                continue
            inside = [p for p in self.anchors if _is_under(p, root)]
            scores = {start: self._whole(root, start, inside, taken) for start in self.modules}
            highest = max(scores.values())
            starts = [start for start, score in scores.items() if score == highest]
            if highest and len({id(self.modules[start]) for start in starts}) == 1:
                for path in self.sources:
                    place = _join(starts[0], path[len(root) :].lstrip("."))
                    if _is_under(path, root) and place in self.modules:
                        paths[path] = place
                taken |= {id(self.modules[paths[p]]) for p in inside}
                missing = [p for p in missing if p not in anchors]

    def _whole(self, root: str, start: str, anchors: list[str], taken: set[int]) -> int:
        pairs = [(p, _join(start, p[len(root) :].lstrip("."))) for p in anchors]
        found = [self.fit(p, place) for p, place in pairs]
        free = all(found) and not any(id(self.modules[place]) in taken for _, place in pairs)
        return sum(found) if free else 0


def _inner(network: nn.Module, anchors: list[str]) -> Iterator[str]:
    """Yield the paths that hold all anchors, from the network itself inwards."""
    path, module = "", network
    while True:
        yield path
        inside = [name for name in module._modules if all(_is_under(a, _join(path, name)) for a in anchors)]
        if not inside or not anchors:
            return
        path, module = _join(path, inside[0]), module.get_submodule(inside[0])


def _one_each(pairs: list[tuple[str, str]], modules: dict[str, nn.Module]) -> list[tuple[str, str]]:
    """Leave out what is the same module at a second path."""
    return list({id(modules[start]): (root, start) for root, start in reversed(pairs)}.values())[::-1]


def _is_under(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")


def _join(start: str, path: str) -> str:
    return f"{start}.{path}" if start and path else start or path


@contextmanager
def eager() -> Iterator[None]:
    """Let what ``torch.compile`` compiled run as it was written, so that hooks and replaced parameters count."""
    with torch.compiler.set_stance("force_eager"):
        yield
