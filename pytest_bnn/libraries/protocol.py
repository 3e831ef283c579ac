"""What an adapter of a library tells the checks: its capabilities, and how the library calls things."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

from torch import Tensor, nn

from pytest_bnn.libraries.gaussian import PosteriorTensor

#: What a check may ask of a library, as `pytest_bnn.check` takes it in ``can``.
Capability: TypeAlias = Literal["draws", "mean_mode", "silence", "mean_field", "divergence", "used_weights", "words"]

CAPABILITIES: frozenset[Capability] = frozenset(get_args(Capability))

#: What an adapter promises with each, in words. See `pytest_bnn.libraries.silence` for ``mean_mode`` and ``silence``,
#: `pytest_bnn.libraries.gaussian.PosteriorTensor` for ``mean_field``, `...capture` for ``used_weights``.
PROMISES: dict[str, str] = {
    "draws": "a forward pass draws anew from torch's global generators",
    "mean_mode": "with every sigma at 0 the layers compute with mu",
    "silence": "every draw of a layer can be made 0 with the graph of sigma intact",
    "mean_field": "mu, sigma and prior of every weight are told",
    "divergence": "the KL term is told as the library computes it",
    "used_weights": "the weights that a call uses are seen at a functional call such as F.linear",
    "words": "how the library's converter, its KL and its width are called",
}

#: How a library puts together the KL of single weights.
Convention: TypeAlias = Literal["mean per tensor", "sum", "mean over all weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How a library calls what messages speak about."""

    library: str
    kl: str
    rho: str
    convert: str
    wider: str
    narrower: str


class Adapter(Protocol):
    """One library of Bayesian layers. An adapter is stateless; it must not import its library before a model did."""

    #: What the library is called, as ``pip`` knows it.
    name: str
    can: frozenset[Capability]
    words: Words
    #: How the library's own KL may be put together, the usual way first.
    conventions: tuple[Convention, ...]

    def layer(self, path: str, module: nn.Module) -> BayesianLayer | None:
        """Return the layer that a module is; None where it owns no posterior, or is not the library's."""
        ...

    def owns(self, module: nn.Module) -> bool:
        """Return whether a module is the library's, composites included."""
        ...

    def is_stock(self, layer: BayesianLayer) -> bool:
        """Return whether a layer's forward is one functional call with drawn tensors, which gives the output."""
        ...

    def border(self, layer: BayesianLayer) -> tuple[list[int], str] | None:
        """Return how a layer pads its input before its call; None where the call itself does."""
        ...

    def layer_kl(self, layer: BayesianLayer) -> Tensor:
        """Return a layer's KL as the library computes it, with its graph."""
        ...

    def brings_own_kl(self, layer: BayesianLayer) -> bool:
        """Return whether a layer's class, on purpose, computes a KL that is not the library's."""
        ...

    def kl(self, model: nn.Module) -> Tensor | None:
        """Return a model's KL as the library computes it, with its graph; None where it finds no layer."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class BayesianLayer:
    """A layer with a posterior: ``kind`` is what it was (``Conv2d``), ``estimator`` how it draws."""

    path: str
    module: nn.Module
    kind: str
    estimator: str
    tensors: tuple[PosteriorTensor, ...]
    adapter: Adapter

    @property
    def name(self) -> str:
        """How messages call it: its path and its class."""
        return f"{self.path or 'the model'} ({type(self.module).__name__})"

    @property
    def weights(self) -> int:
        """How many weights have a posterior here."""
        return sum(tensor.count for tensor in self.tensors)

    @property
    def noise(self) -> list[Tensor]:
        """The buffers that its noise is drawn into, where it has any."""
        found = [getattr(self.module, tensor.eps_name, None) for tensor in self.tensors]
        return [eps for eps in found if isinstance(eps, Tensor)]

    @property
    def is_stock(self) -> bool:
        """Whether a functional call with a drawn weight and bias is all that it does, as the CPU sampler assumes."""
        return self.adapter.is_stock(self)

    @property
    def border(self) -> tuple[list[int], str] | None:
        """How it pads its input before its call, for ``torch.nn.functional.pad``; None where the call itself pads."""
        return self.adapter.border(self)

    def kl(self) -> Tensor:
        """Return the KL term as the layer itself, or its library, computes it, with its graph."""
        return self.adapter.layer_kl(self)


def tensors_of(layers: Iterable[BayesianLayer]) -> tuple[PosteriorTensor, ...]:
    """Return the posterior tensors of some layers."""
    return tuple(tensor for layer in layers for tensor in layer.tensors)
