"""The gradients of one evaluation of a loss, kept as they came; in double precision when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pytest_bnn.libraries.cut import Key

#: The gradients to a tensor's mu and to its rho; None where none came.
Pair = tuple[Tensor | None, Tensor | None]


class Gradients(Mapping[Key, Pair]):
    """The gradients to each posterior tensor's mu and rho, of the parameters behind them.

    Reading gives float64, made anew each time: a tensor's at once, not the network's. Do not write into what is kept.

    Args:
        kept: As the backward pass gave them.
    """

    def __init__(self, kept: Mapping[Key, Pair] | None = None) -> None:
        self._kept: dict[Key, Pair] = dict(kept or {})

    def __getitem__(self, key: Key) -> Pair:
        to_mu, to_rho = self._kept[key]
        return _double(to_mu), _double(to_rho)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def as_kept(self, key: Key) -> Pair:
        """Return a tensor's two as the backward pass gave them."""
        return self._kept[key]

    def to_mu(self, key: Key) -> Tensor | None:
        """Return the first of a tensor's two alone."""
        return _double(self._kept[key][0])

    def to_rho(self, key: Key) -> Tensor | None:
        """Return the second of a tensor's two alone."""
        return _double(self._kept[key][1])

    def share(self, other: Gradients) -> None:
        """Keep the tensors of other gradients in place of those that are the same number for number."""
        for key, pair in self._kept.items():
            to_mu, to_rho = (
                theirs if _same(mine, theirs) else mine
                for mine, theirs in zip(pair, other._kept.get(key, (None, None)), strict=True)
            )
            self._kept[key] = to_mu, to_rho


def _double(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.double()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype is other.dtype and torch.equal(one, other)
