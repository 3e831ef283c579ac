"""A model beside its teacher: which layer is which, and what the model's weights tell of its history.

Whatever pairs paths of the model with paths of the teacher uses `align`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.libraries.fingerprint import Fingerprint, cosine, fingerprint, relation, score_bound
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.naming import called
from pytest_bnn.network.wrappers import Fits, places
from pytest_bnn.records.evidence import Stage

#: Error rate at which unrelated weights look related, over all tensors of a model together.
UNRELATED_ERROR = 1e-6

#: A cosine that a trained network may well keep to its start: weights that could not show it are no evidence.
MODERATE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """Which module of the teacher is which of the model.

    Attributes:
        paths: The teacher's module paths to the model's, wherever a counterpart was found.
        prefix: Under which path of the model the teacher's tree lies; empty where the paths are the same.
        elsewhere: Of the teacher's layers that lie at another place within that tree: how each was found.
        copies: Several places where the teacher lies equally well; nothing is paired then.
        pairs: Each posterior weight tensor with the teacher's weight.
    """

    paths: dict[str, str]
    prefix: str = ""
    elsewhere: dict[str, str] | None = None
    copies: tuple[str, ...] = ()
    pairs: tuple[tuple[PosteriorTensor, Tensor], ...] = ()

    @property
    def moved(self) -> dict[str, str]:
        """The teacher's layers that lie at another place, and how each was found."""
        return self.elsewhere or {}

    def teacher_paths(self) -> dict[str, str]:
        """The model's module paths to the teacher's."""
        return {place: path for path, place in reversed(self.paths.items())}


def align(model: nn.Module, teacher: nn.Module | None) -> Alignment:
    """Find the teacher's modules in a model, through wrappers of either; neither is changed.

    By the paths, if need be under a prefix; then by parts that fit in one place; a layer that is still missing is
    looked for inside the module at its path, then by its weights, and last by its shape where that is without rival.
    """
    if teacher is None:
        return Alignment({})
    sources = _weights(teacher)
    weights = {path: weight for path, (_, weight) in sources.items()}
    by_module = {id(layer.module): layer for layer in bayesian_layers(model)}
    of_source = {id(module): weight for module, weight in sources.values()}

    shapes = {id(module): weight.shape for module, weight in _weights(model).values()}

    def fits(source: nn.Module, module: nn.Module) -> int:
        shape = of_source[id(source)].shape
        if id(module) in by_module:
            return 2 * bool(_tensors(by_module[id(module)], shape))
        return int(shapes.get(id(module)) == shape)

    found = places(teacher, model, list(weights), fits)
    if found.copies:
        return Alignment({}, copies=found.copies)
    search = _Elsewhere(teacher, model, dict(found.paths), weights, by_module, fits)
    search.run(found.prefix)
    pairs = []
    for path, weight in weights.items():
        layer = search.layer_at(path)
        if layer is not None and search.how.get(path) != BY_SHAPE:
            pairs += [(tensor, weight) for tensor in _tensors(layer, weight.shape)]
    return Alignment(search.paths, prefix=found.prefix, elsewhere=search.how, pairs=tuple(pairs))


#: How a layer was found that is not at its path.
WITHIN, BY_PART = "inside the module at its path", "by the structure around it"
BY_WEIGHTS, BY_SHAPE = "by its weights", "by its shape, which no other has"


class _Elsewhere:
    """Looks for the layers of the teacher that are at another path than the rest of its tree."""

    def __init__(
        self,
        teacher: nn.Module,
        model: nn.Module,
        paths: dict[str, str],
        weights: dict[str, Tensor],
        by_module: dict[int, BayesianLayer],
        fits: Fits,
    ) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.sources = dict(teacher.named_modules(remove_duplicate=False))
        self.paths, self.weights, self.by_module, self.fits = paths, weights, by_module, fits
        self.how: dict[str, str] = {}

    def layer_at(self, path: str) -> BayesianLayer | None:
        """Return the Bayesian layer that a path of the teacher leads to."""
        return self.by_module.get(id(self.modules.get(self.paths.get(path, "\0"))))

    def run(self, prefix: str) -> None:
        """Complete the paths."""
        missing = []
        for path in self.weights:
            place = self.paths.get(path)
            if place is None or not self.fits(self.sources[path], self.modules[place]):
                missing.append(path)
            elif not place.endswith(path) and not path.endswith(place):
                self.how[path] = BY_PART
        taken = {id(layer.module) for path in self.weights if path not in missing and (layer := self.layer_at(path))}
        free = [layer for layer in self.by_module.values() if id(layer.module) not in taken]
        missing = [path for path in missing if not self._within(path, free)]
        for path, layer, _ in sorted(self._related(missing, free), key=lambda found: -found[2]):
            if path in missing and layer in free:
                self._found(path, layer, BY_WEIGHTS, free)
                missing.remove(path)
        self._alone(missing, free)

    def _found(self, path: str, layer: BayesianLayer, how: str, free: list[BayesianLayer]) -> None:
        self.paths[path], self.how[path] = layer.path, how
        free.remove(layer)

    def _within(self, path: str, free: list[BayesianLayer]) -> bool:
        place = self.paths.get(path)
        if place is None:
            return False
        fitting = [layer for layer in free if layer.path.startswith(f"{place}." if place else "")]
        fitting = [layer for layer in fitting if _tensors(layer, self.weights[path].shape)]
        if len(fitting) != 1 or (not place and len(self.weights) > 1):
            return False
        self._found(path, fitting[0], WITHIN, free)
        return True

    def _related(self, missing: list[str], free: list[BayesianLayer]) -> Iterator[tuple[str, BayesianLayer, float]]:
        trials = [(p, layer, t) for p in missing for layer in free for t in _tensors(layer, self.weights[p].shape)]
        for path, layer, tensor in trials:
            weight = self.weights[path]
            found = cosine(tensor, weight)
            if is_related([found], [weight.numel()], UNRELATED_ERROR / len(trials)):
                yield path, layer, found

    def _alone(self, missing: list[str], free: list[BayesianLayer]) -> None:
        """Pair what has a shape that nothing else has among what is left."""
        for path in missing:
            shape = self.weights[path].shape
            rivals = [other for other in missing if self.weights[other].shape == shape]
            fitting = [layer for layer in free if _tensors(layer, shape)]
            if len(rivals) == len(fitting) == 1:
                self._found(path, fitting[0], BY_SHAPE, free)


def _tensors(layer: BayesianLayer, shape: torch.Size) -> list[PosteriorTensor]:
    return [tensor for tensor in layer.tensors if tensor.role == "weight" and tensor.mu.shape == shape]


def _weights(network: nn.Module) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return each module with a weight, by path, and that weight; a parametrized one is computed, changing nothing."""
    found = {}
    for path, module in network.named_modules():
        # By its methods: what TorchScript made of a module has no dictionaries.
        weight = module.__dict__.get("weight", dict(module.named_parameters(recurse=False)).get("weight"))
        if "weight" in getattr(dict(module.named_children()).get("parametrizations"), "_modules", {}):
            with undisturbed(module, seed=0), torch.no_grad():
                weight = module.weight
        if isinstance(weight, Tensor) and not is_lazy(weight):
            found[path] = (module, weight.detach())
    return found


def is_related(cosines: list[float], sizes: list[int], error: float) -> bool:
    """Return whether cosines at these sizes are above those of unrelated tensors, wrongly with ``error``."""
    usable = [(c, n) for c, n in zip(cosines, sizes, strict=True) if math.isfinite(c) and n > 1]
    if not usable:
        return False
    values, counts = (torch.tensor(column, dtype=torch.float64) for column in zip(*usable, strict=True))
    single, pooled = relation(values, counts)
    # Half of the error for the tensors one by one, half for all together.
    return single >= score_bound(len(usable), error / 2) or pooled >= score_bound(1, error / 2)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a model is, and why: in words that complete "the model was taken as ... since"."""

    stage: Stage
    why: str
    told: bool = False


def standing_of(alignment: Alignment, prints: Sequence[Fingerprint] | None = None) -> Standing:
    """Say what a model is, by what its weights tell of their history beside the teacher's.

    ``"converted"``: no training step was taken, since every mu is the teacher's weight to the bit, or sigma is still
    the constant share of abs(mu) that MOPED sets. ``"finetuned"``: mu has moved, sigma too, and the weights are related
    to the teacher's. ``"unrelated"``: all cosines are like those of weights that have nothing to do with each other,
    in tensors large enough to show it. ``"unknown"``: nothing to compare, or no evidence either way.

    Args:
        alignment: The model beside its teacher.
        prints: Those of the alignment's pairs, where they are known already.
    """
    if alignment.copies:
        places = ", ".join(called(place) for place in alignment.copies[:3])
        return Standing("unknown", f"the teacher's layers lie in several places of the model: {places}")
    if prints is None:
        prints = [fingerprint(tensor, weight) for tensor, weight in alignment.pairs]
    if not prints:
        return Standing("unknown", "no posterior tensor has a counterpart in the teacher")
    cosines, sizes = [p.cosine for p in prints], [p.size for p in prints]
    related = any(p.equal for p in prints) or is_related(cosines, sizes, UNRELATED_ERROR)
    could_show = is_related([MODERATE if math.isfinite(c) else c for c in cosines], sizes, UNRELATED_ERROR)
    if all(p.equal for p in prints):
        return Standing("converted", "every mu is the teacher's weight to the bit")
    if all(p.untouched for p in prints) or _only_mu_was_changed(prints):
        if hidden := sum(p.hidden for p in prints):
            return Standing(
                "unknown",
                f"mu is not the teacher's weight in {hidden} of {len(prints)} weight tensors, and so near to it that "
                "rounding hides whether sigma was trained with it",
            )
        why = "no training step was taken: sigma is where a conversion puts it"
        return Standing("converted", why) if related else _unrelated(prints, why, could_show)
    if related:
        moved = sum(not p.equal for p in prints)
        return Standing(
            "finetuned", f"mu of {moved} of {len(prints)} weight tensors has moved from the teacher's weights"
        )
    return _unrelated(prints, "nothing of the teacher is left in any of them", could_show)


def _unrelated(prints: Sequence[Fingerprint], why: str, could_show: bool) -> Standing:
    untouched = all(p.untouched for p in prints)
    if not (could_show or (untouched and any(p.random_start for p in prints))):
        few = f"{sum(p.size for p in prints)} weights are too few to tell whether they come from the teacher's"
        return Standing("unknown", few)
    return Standing("unrelated", why)


def _only_mu_was_changed(prints: Sequence[Fingerprint]) -> bool:
    """Return whether every sigma is where the conversion put it, and most mu are no trained copy of the teacher's."""
    moved = [p for p in prints if not p.untouched]
    trained = [p for p in moved if is_related([p.cosine], [p.size], UNRELATED_ERROR / len(moved))]
    return all(p.untrained_sigma for p in moved) and 2 * len(trained) <= len(prints)


def stage_of(model: nn.Module, teacher: nn.Module | None) -> Stage:
    """Say what a model is: see `standing_of`."""
    return standing_of(align(model, teacher)).stage


def weight_pairs(model: nn.Module, teacher: nn.Module | None) -> list[tuple[PosteriorTensor, Tensor]]:
    """Return each posterior weight tensor with the weight that it has in the teacher, where there is one."""
    return list(align(model, teacher).pairs)
