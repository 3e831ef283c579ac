"""Mutants of a Bayesian network: for every layer, everything that `pytest_bnn.libraries` reads, broken in every way.

A mutant breaks one attribute of one layer. `EXPECTED` says beforehand what becomes of it: which check has to find it,
or why none has to. Used by `benchmarks.mutation` and ``tests/faults``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from benchmarks.mutators import EXTREMES, FACTORS, Apply, of_layer, of_tensor
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers


class Fate(enum.StrEnum):
    """What has to become of a mutant."""

    #: One of the named checks fails.
    KILLED = "killed"
    #: The same model, to the bit or in distribution: whoever accuses it is wrong.
    EQUIVALENT = "equivalent"
    #: Another model that a user may want; a check may fail if what comes out of it breaks a claim.
    CHOICE = "a choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    fate: Fate
    by: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One attribute of one layer (or of its weight or bias) broken in one way; ``size`` weights are concerned."""

    path: str
    attribute: str
    mutation: str
    apply: Apply
    role: str = ""
    size: int = 0

    @property
    def kind(self) -> tuple[str, str]:
        return self.attribute, self.mutation

    @property
    def name(self) -> str:
        where = f"{self.path}.{self.role}" if self.role else self.path
        return f"{where}: {self.attribute} {self.mutation}"


def _killed(*by: str) -> Expectation:
    return Expectation(fate=Fate.KILLED, by=by)


def _choice(reason: str) -> Expectation:
    return Expectation(fate=Fate.CHOICE, reason=reason)


def _equivalent(reason: str) -> Expectation:
    return Expectation(fate=Fate.EQUIVALENT, reason=reason)


_SIGMA = "how wide the posterior is, is the user's choice, unless the predictions suffer"
_PRIOR = "another sound prior: reported by `kl.present`, not judged"
_SAME_PRIOR = "all priors are the same, so nothing changes"

#: What has to become of each kind of mutant, in the order of the table.
EXPECTED: dict[tuple[str, str], Expectation] = {
    **{("mu", f"scaled by {f}"): _killed("mean.equals_teacher") for f in FACTORS},
    ("mu", "swapped"): _killed("mean.equals_teacher"),
    ("mu", "permuted"): _killed("mean.equals_teacher"),
    ("mu", "NaN"): _killed("kl.present", "kl.loss", "mean.equals_teacher", "noise.varies"),
    ("mu", "aliased"): _killed("mean.equals_teacher", "memory.separate"),
    ("mu", "aliased with the teacher"): _killed("memory.separate"),
    ("mu", "frozen"): _choice("means may be kept while sigma is trained"),
    **{("sigma", f"scaled by {f}"): _choice(_SIGMA) for f in EXTREMES},
    ("sigma", "swapped"): _killed("posterior.start"),
    ("sigma", "permuted"): _killed("posterior.start"),
    ("sigma", "NaN"): _killed("kl.present", "kl.loss", "noise.varies"),
    ("sigma", "aliased"): _killed("kl.present", "memory.separate"),
    ("sigma", "frozen"): _killed("kl.present", "kl.loss"),
    **{("prior mean", f"scaled by {f}"): _choice(_PRIOR) for f in EXTREMES},
    ("prior mean", "swapped"): _equivalent(_SAME_PRIOR),
    ("prior mean", "NaN"): _killed("kl.present", "kl.loss"),
    ("prior mean", "aliased with mu"): _killed("memory.separate"),
    **{("prior sigma", f"scaled by {f}"): _choice(_PRIOR) for f in EXTREMES},
    ("prior sigma", "swapped"): _equivalent(_SAME_PRIOR),
    ("prior sigma", "NaN"): _killed("kl.present", "kl.loss"),
    **{("draw", f"scaled by {f}"): _killed("noise.posterior") for f in FACTORS},
    ("draw", "swapped"): _equivalent("two buffers of one shape change places; both are filled anew in each pass"),
    ("draw", "permuted"): _equivalent("permuted independent normal noise is independent normal noise"),
    ("draw", "NaN"): _killed("noise.posterior", "noise.varies", "noise.spread"),
    ("draw", "aliased"): _killed("noise.posterior"),
    ("draw", "aliased with the next pass"): _killed("noise.posterior"),
    ("draw", "buffer shared"): _killed("memory.separate", "gradient.samples"),
    ("draw", "frozen"): _killed("noise.posterior"),
    ("draw", "detached"): _killed("gradient.samples"),
    **{("KL", f"scaled by {f}"): _killed("kl.present", "kl.loss") for f in FACTORS},
    ("KL", "swapped"): _equivalent("the sum over layers is the same"),
    ("KL", "NaN"): _killed("kl.present"),
    ("KL", "aliased"): _killed("kl.present", "kl.loss"),
    ("KL", "frozen"): _killed("kl.present", "kl.loss"),
    ("KL", "detached"): _killed("kl.present", "kl.loss"),
    ("path", "swapped"): _killed("mean.equals_teacher"),
    ("path", "aliased"): _killed("mean.equals_teacher", "layers.replaced"),
    ("path", "frozen"): _killed("layers.replaced"),
    ("path", "detached"): _killed("layers.replaced"),
}


def mutants(model: nn.Module) -> Iterator[Mutant]:
    """Yield every mutant of a healthy model; what needs a layer of equal shape only where there is one."""
    layers = bayesian_layers(model)
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    for tensor in tensors:
        for attribute, mutation, apply in of_tensor(tensor, _partner(tensor, tensors), _later(tensor, tensors)):
            yield Mutant(
                path=tensor.path,
                role=tensor.role,
                attribute=attribute,
                mutation=mutation,
                apply=apply,
                size=tensor.count,
            )
    for layer in layers:
        for attribute, mutation, apply in of_layer(layer, _twin(layer, layers)):
            yield Mutant(path=layer.path, attribute=attribute, mutation=mutation, apply=apply, size=layer.weights)


def _partner(tensor: PosteriorTensor, tensors: list[PosteriorTensor]) -> PosteriorTensor | None:
    """Return another tensor of the same shape, one that is drawn before it where there is one."""
    return next((t for t in tensors if t is not tensor and t.mu.shape == tensor.mu.shape), None)


def _later(tensor: PosteriorTensor, tensors: list[PosteriorTensor]) -> PosteriorTensor | None:
    rest = tensors[tensors.index(tensor) + 1 :]
    return next((t for t in rest if t.mu.shape == tensor.mu.shape), None)


def _twin(layer: BayesianLayer, layers: tuple[BayesianLayer, ...]) -> BayesianLayer | None:
    shapes = [t.mu.shape for t in layer.tensors]
    return next((o for o in layers if o is not layer and [t.mu.shape for t in o.tensors] == shapes), None)
