"""Mutants of a Bayesian network: everything that the audit reads, of the network and its loss, broken in every way.

A mutant breaks one attribute of one tensor, of one layer or of the loss. `benchmarks.expected` says beforehand what
becomes of it. Used by `benchmarks.mutation` and ``tests/faults``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.mutators import draws, history, kept, layers, objective, posterior
from benchmarks.mutators.case import Apply, Case, Ways
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One attribute broken in one way: of the layer or norm at ``path``, of its tensor ``role``, or of the loss.

    ``size`` weights are concerned. ``shortfall`` says why no check can be asked to see it, where none can.
    """

    path: str
    attribute: str
    mutation: str
    apply: Apply
    role: str = ""
    size: int = 0
    shortfall: str = ""

    @property
    def kind(self) -> tuple[str, str]:
        return self.attribute, self.mutation

    @property
    def name(self) -> str:
        where = f"{self.path}.{self.role}" if self.role else self.path
        return f"{where or 'all'}: {self.attribute} {self.mutation}"


def mutants(case: Case) -> Iterator[Mutant]:
    """Return every mutant of a healthy case; what needs a layer of equal shape only where there is one.

    Of a fine-tuned model those alone that another history makes another mutant.
    """
    found = bayesian_layers(case.model)
    if case.trained:
        for layer in found:
            yield from _of(history.of_training(layer), layer.path, size=layer.weights)
        yield from _of(history.of_training_of_all())
    else:
        yield from _of_fresh(case, found)
    for path, name, attribute in kept.norms_of(case.model):
        said = f"trained {attribute}" if case.trained else attribute
        for mutant in _of(kept.of_kept(path, name, said), path, name):
            permuted = mutant.mutation == "permuted"
            yield replace(mutant, shortfall=kept.shortfall(case.model, path, name)) if permuted else mutant


def _of_fresh(case: Case, found: tuple[BayesianLayer, ...]) -> Iterator[Mutant]:
    tensors = [tensor for layer in found for tensor in layer.tensors]
    for tensor in tensors:
        partner, later = _partner(tensor, tensors), _later(tensor, tensors)
        yield from _of(posterior.of_posterior(tensor, partner), tensor.path, tensor.role, tensor.count)
        yield from _of(draws.of_draw(tensor, partner, later), tensor.path, tensor.role, tensor.count)
    for layer in found:
        for ways in (
            layers.of_layer(layer, _twin(layer, found)),
            layers.of_forward(layer),
            draws.of_training(layer),
            history.of_start(layer),
        ):
            yield from _of(ways, layer.path, size=layer.weights)
    yield from _of(draws.of_draws())
    yield from _of(history.of_start_of_all())
    yield from _of(objective.of_loss(case))


def _of(ways: Ways, path: str = "", role: str = "", size: int = 0) -> Iterator[Mutant]:
    for attribute, mutation, apply in ways:
        yield Mutant(path=path, role=role, attribute=attribute, mutation=mutation, apply=apply, size=size)


def _partner(tensor: PosteriorTensor, tensors: list[PosteriorTensor]) -> PosteriorTensor | None:
    """Return another tensor of the same shape, one that is drawn before it where there is one."""
    return next((t for t in tensors if t is not tensor and t.mu.shape == tensor.mu.shape), None)


def _later(tensor: PosteriorTensor, tensors: list[PosteriorTensor]) -> PosteriorTensor | None:
    rest = tensors[tensors.index(tensor) + 1 :]
    return next((t for t in rest if t.mu.shape == tensor.mu.shape), None)


def _twin(layer: BayesianLayer, layers: tuple[BayesianLayer, ...]) -> BayesianLayer | None:
    shapes = [t.mu.shape for t in layer.tensors]
    return next((o for o in layers if o is not layer and [t.mu.shape for t in o.tensors] == shapes), None)
