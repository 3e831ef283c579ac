"""Checkpoints of a converted network, as after a training."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.vendor.pretty import RepresentationPrinter
from torch import Generator, Tensor, nn

from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers
from pytest_bnn.strategies._layers import Draw, check_choice

#: What a posterior may be after a training; the first is what examples shrink to.
POSTERIOR_KINDS = ("healthy", "tiny", "large", "zeros", "mixed")

_PURE = POSTERIOR_KINDS[:-1]

#: Exponents of ten between which sigma is drawn; float32's rounding of rho stays inside of what is promised.
_TINY, _LARGE = (-19.9, -8.1), (0.05, 1.25)
#: The same for a healthy sigma, relative to the size of a tensor's mu.
_HEALTHY = (-1.9, -0.1)
_MOVED = 0.02
#: A tensor whose mu are smaller than this counts as this large: else a posterior at 0 could not leave it.
_SMALLEST_SIZE = 1e-3


class PosteriorState(OrderedDict[str, Tensor]):
    """A state dict that ``load_state_dict(state, strict=True)`` takes, and how it was made.

    Shown as the call that makes it again, for a converted network named ``converted``. Copies and pickles are plain
    state dicts, as ``torch.load`` wants them.
    """

    kind: str
    only: str | None
    seed: int
    _metadata: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, *, kind: str, only: str | None = None, seed: int = 0) -> PosteriorState:
        """Make a state of a converted network, which is not touched.

        Args:
            model: The converted network.
            kind: Of `POSTERIOR_KINDS`; see `posterior_states`.
            only: The one tensor of that kind, as in ``"0.weight"``, beside healthy ones; None for all tensors.
            seed: The seed of everything random.

        Raises:
            ValueError: There is no such kind, or no such posterior tensor.
        """
        tensors = [tensor for layer in bayesian_layers(model) for tensor in layer.tensors]
        if kind not in POSTERIOR_KINDS:
            raise ValueError(f"kind must be one of {', '.join(POSTERIOR_KINDS)}, not {kind!r}")
        if not tensors or only not in {None, *(tensor.name for tensor in tensors)}:
            raise ValueError(f"{type(model).__name__} has no posterior {only or 'at all'}")
        generator = Generator().manual_seed(seed)
        values: dict[int, Tensor] = {}
        for index, tensor in enumerate(tensors):
            chosen = kind if only in (None, tensor.name) else "healthy"
            pure = _PURE[(index + seed) % len(_PURE)] if chosen == "mixed" else chosen
            mu, sigma = _drawn(tensor, pure, generator)
            rho = sigma + torch.log(-torch.expm1(-sigma))
            values[id(tensor.mu)], values[id(tensor.rho)] = mu.to(tensor.mu), rho.to(tensor.rho)
        state = cls()
        current = model.state_dict(keep_vars=True)
        for name, value in current.items():
            state[name] = values.get(id(value), value).detach().clone()
        state._metadata = getattr(current, "_metadata", {})
        state.kind, state.only, state.seed = kind, only, seed
        return state

    def __repr__(self) -> str:
        """Return the call that makes the state."""
        only = "" if self.only is None else f", only={self.only!r}"
        return f"PosteriorState.of(converted, kind={self.kind!r}{only}, seed={self.seed})"

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        printer.text(repr(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (list(self.items()),), {"_metadata": self._metadata}

    def copy(self) -> OrderedDict[str, Tensor]:  # type: ignore[override]
        """Return a plain state dict with the same tensors."""
        return copy.copy(self)


def _drawn(tensor: PosteriorTensor, kind: str, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return mu and sigma of a tensor after a training, in float64 on the CPU."""

    def uniform(least: float, most: float) -> Tensor:
        return least + (most - least) * torch.rand(mu.shape, generator=generator, dtype=torch.float64)

    mu = tensor.mu.detach().double().cpu()
    size = max(float(mu.square().mean().sqrt()), _SMALLEST_SIZE)
    mu = mu + _MOVED * size * uniform(-1, 1)
    if kind == "zeros":
        pruned = uniform(0, 1) < 0.5
        pruned.view(-1)[0] = True
        mu = mu.masked_fill(pruned, 0.0)
    if kind == "tiny":
        return mu, 10 ** uniform(*_TINY)
    if kind == "large":
        return mu, 10 ** uniform(*_LARGE)
    return mu, (size * 10 ** uniform(*_HEALTHY)).clamp(max=10 ** _LARGE[1])


@st.composite
def _posterior_states(
    draw: Draw[Any], model: nn.Module, kinds: tuple[str, ...], names: tuple[str, ...]
) -> PosteriorState:
    kind = draw(st.sampled_from(kinds))
    only = None if kind in ("healthy", "mixed") else draw(st.sampled_from((None, *names)))
    return PosteriorState.of(model, kind=kind, only=only, seed=draw(st.integers(0, 9)))


def posterior_states(
    model: nn.Module, *, kinds: Collection[str] = POSTERIOR_KINDS
) -> st.SearchStrategy[PosteriorState]:
    """Generate state dicts of a converted network as after a training, for ``load_state_dict(state, strict=True)``.

    All values are finite. Every mu has moved by at most 2 % of its tensor's size: the root mean square of its mu, or
    0.001 where that is more. Frozen posteriors move like the others; what is no posterior is as in the network. The
    kinds:

    - ``"healthy"``: every sigma is between 1 % and 100 % of its tensor's size, and at most 20.
    - ``"tiny"``: every sigma is between 1e-20, which MOPED gives a weight of 0, and 1e-8: collapsed.
    - ``"large"``: every sigma is between 1 and 20.
    - ``"zeros"``: about half of a tensor's mu, and at least one, are exactly 0, as after pruning; sigma is healthy.
    - ``"mixed"``: the tensors take turns with the kinds above.

    A tiny, large or zero kind holds in all posterior tensors, or in one beside healthy ones. Examples shrink to
    ``PosteriorState.of(converted, kind='healthy', seed=0)``.

    Args:
        model: The converted network, which is not touched.
        kinds: What to choose from, of `POSTERIOR_KINDS`.

    Raises:
        InvalidArgument: The network has no Bayesian layer, or an argument is out of its range.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model={model!r} must be a torch.nn.Module")
    names = tuple(tensor.name for layer in bayesian_layers(model) for tensor in layer.tensors)
    if not names:
        raise InvalidArgument(f"{type(model).__name__} has no Bayesian layer: convert it first")
    check_choice("kinds", kinds, POSTERIOR_KINDS)
    return _posterior_states(model, tuple(kind for kind in POSTERIOR_KINDS if kind in kinds), names)
