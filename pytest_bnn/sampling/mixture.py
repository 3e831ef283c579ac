"""What passes say of classes together: the mixture of their distributions, pass by pass, without keeping them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Up to so many numbers probabilities are kept in float64.
SMALL = 4_000_000

#: Numbers of one pass that are worked on at a time.
_BLOCK = 2_000_000


def by_rows(of: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return what a function gives for the rows of tensors, ``[N]``, which it gets some rows at a time, in float64.

    Args:
        of: Gets the rows of each tensor; those of floating point are in float64.
        tensors: Of ``N`` rows each; the first one is the widest.
    """
    rows = max(1, _BLOCK // max(1, tensors[0].shape[1]))
    blocks = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    return torch.cat([of(*(part.double() if part.is_floating_point() else part for part in block)) for block in blocks])


def entropy_of(log_shares: Tensor) -> Tensor:
    """Return the entropy of log probabilities ``[N, C]`` in nats, ``[N]``."""
    return by_rows(lambda logs: torch.special.entr(logs.exp()).sum(1), log_shares)


def scored(shares: Tensor, labels: Tensor) -> Tensor:
    """Return the Brier score of probabilities ``[N, C]`` at labels ``[N]``, in [0, 2], ``[N]``."""
    return shares.square().sum(1) - 2 * shares.gather(1, labels[:, None])[:, 0] + 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Mixture:
    """The mean distribution over classes of ``N`` examples, and how much the passes differ.

    Attributes:
        passes: How many there were.
        log_shares: Logs of the mean probabilities, ``[N, C]``.
        expected_entropy: Mean entropy of a pass, in nats, ``[N]``.
        squares: Mean over passes of the sum of squared probabilities, ``[N]``.
    """

    passes: int
    log_shares: Tensor
    expected_entropy: Tensor
    squares: Tensor

    @property
    def entropy(self) -> Tensor:
        """Entropy of the mean probabilities in nats, ``[N]``: the total uncertainty."""
        return entropy_of(self.log_shares)

    @property
    def mutual_information(self) -> Tensor:
        """Between class and weights, in nats, ``[N]``: the part of the uncertainty that the passes disagree on."""
        return (self.entropy - self.expected_entropy).clamp_min(0)

    @property
    def variance(self) -> Tensor:
        """Variance of the probabilities over passes, summed over classes, unbiased, ``[N]``; 0 for a single pass."""
        if self.passes < 2:
            return torch.zeros_like(self.squares)
        gap = self.squares - by_rows(lambda logs: logs.exp().square().sum(1), self.log_shares)
        return gap.clamp_min(0) * (self.passes / (self.passes - 1))

    def part(self, rows: Tensor) -> Mixture:
        """Return the mixture for some of the examples; this one where these are all, in their order."""
        if torch.equal(rows, torch.arange(len(self.squares))):
            return self
        return Mixture(
            passes=self.passes,
            log_shares=self.log_shares[rows],
            expected_entropy=self.expected_entropy[rows],
            squares=self.squares[rows],
        )

    def brier(self, labels: Tensor) -> Tensor:
        """Return the Brier score of each example, ``[N]``, without the bias of a finite number of passes.

        It lies in [0, 2], but for the correction.

        Args:
            labels: Classes, ``[N]``.

        Source: Ferro 2014, "Fair scores for ensemble forecasts".
        """
        plain = by_rows(lambda logs, y: scored(logs.exp(), y), self.log_shares, labels)
        return plain - self.variance / self.passes


class Mixing:
    """Takes passes one after the other and becomes a `Mixture`."""

    def __init__(self) -> None:
        self.passes = 0
        self._log_sum = self._entropy = self._squares = torch.zeros(0)

    def take(self, log_shares: Tensor) -> None:
        """Take the log probabilities of one pass, ``[N, C]``."""
        if not self.passes:
            dtype = torch.float64 if log_shares.numel() <= SMALL else torch.float32
            self._log_sum = torch.full(log_shares.shape, -math.inf, dtype=dtype)
            self._entropy = torch.zeros(len(log_shares), dtype=torch.float64)
            self._squares = torch.zeros(len(log_shares), dtype=torch.float64)
        self.passes += 1
        rows = max(1, _BLOCK // max(1, log_shares.shape[1]))
        for start in range(0, len(log_shares), rows):
            part = slice(start, start + rows)
            logs = log_shares[part].detach().cpu().double()
            shares = logs.exp()
            self._log_sum[part] = torch.logaddexp(self._log_sum[part].double(), logs).to(self._log_sum.dtype)
            self._entropy[part] += torch.special.entr(shares).sum(1)
            self._squares[part] += shares.square().sum(1)

    def result(self) -> Mixture:
        """Return the mixture of the passes so far."""
        self._log_sum -= math.log(self.passes)
        return Mixture(
            passes=self.passes,
            log_shares=self._log_sum,
            expected_entropy=self._entropy / self.passes,
            squares=self._squares / self.passes,
        )
