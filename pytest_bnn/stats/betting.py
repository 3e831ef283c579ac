"""Sequential tests by betting: one may look after every draw and stop when one likes. Each names its source."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Bets of the mixture in `BettingTest`, as shares of the capital at stake.
_BETS = (1 / 16, 1 / 4, 1 / 2, 3 / 4, 1.0)


@functools.lru_cache(maxsize=4096)
def certain_majority(trials: int, error_rate: float) -> int | None:
    """Return how many of ``trials`` coins must show heads to call them unfair, wrongly with at most ``error_rate``.

    However often one looks: it is the count at which the capital of `BettingTest` has reached ``1 / error_rate``.
    None where no count is enough.
    """
    for heads in range(trials + 1):
        if _log_capital(heads, trials - heads) >= -math.log(error_rate):
            return heads
    return None


def _log_capital(wins: int, losses: int) -> float:
    logs = [wins * math.log1p(bet) + losses * math.log1p(-bet) for bet in _BETS if bet < 1]
    logs += [wins * math.log(2)] if losses == 0 else []
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs) / len(_BETS))


class BettingTest:
    """Decide, after any number of draws, which means of bounded variables are positive.

    For each entry it plays a fair-at-zero game: capital starts at 1 and is multiplied by ``1 + bet * x`` with
    every draw x in [-1, 1]. Where the mean is not positive, the capital is a nonnegative supermartingale, so
    that the chance that it ever reaches ``1 / error_rate`` is at most ``error_rate`` (Ville's inequality),
    however often one looks and whenever one stops. The capital is the mean over a grid of bets.

    Source: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting",
    section 4, with a fixed mixture of constant bets.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._log_capital = torch.zeros(len(_BETS), *shape, dtype=torch.float64)
        self._bets = torch.tensor(_BETS, dtype=torch.float64).reshape(-1, *[1] * len(shape))
        self.log_largest = torch.zeros(shape, dtype=torch.float64)

    def update(self, draws: Tensor, rows: Tensor) -> None:
        """Take one draw for each entry of ``rows`` (indices into the first dimension), in [-1, 1]."""
        if not bool(((draws >= -1) & (draws <= 1)).all()):
            raise ValueError("draws must lie in [-1, 1]; NaN does not")
        self._log_capital[:, rows] += torch.log1p(self._bets * draws.double())
        capital = torch.logsumexp(self._log_capital[:, rows], dim=0) - math.log(len(_BETS))
        self.log_largest[rows] = torch.maximum(self.log_largest[rows], capital)

    def positive(self, error_rate: float) -> Tensor:
        """Return for each entry whether its mean is positive, wrong with at most ``error_rate`` each."""
        return self.log_largest >= -torch.log(torch.tensor(error_rate, dtype=torch.float64))


class LeadingClassTest:
    """Decide per image, pass by pass, whether a given class leads the mean predictive distribution.

    "Leads" needs the class ahead of every other one, so every comparison must be decided (an
    intersection-union test, no correction); "does not lead" needs one class ahead of it (Bonferroni over the
    classes). Error rates are split over the images (Bonferroni), so they bound the chance that any is wrong.
    """

    def __init__(self, leaders: Tensor, classes: int) -> None:
        self.leaders = leaders
        self._classes = classes
        self._ahead = BettingTest((len(leaders), classes))
        self._behind = BettingTest((len(leaders), classes))

    def update(self, probabilities: Tensor, rows: Tensor) -> None:
        """Take the class probabilities ``[rows, classes]`` of one pass."""
        leaders = self.leaders[rows]
        gap = probabilities.double().gather(1, leaders[:, None]) - probabilities.double()
        gap = gap.clamp(-1, 1)
        self._ahead.update(gap, rows)
        self._behind.update(-gap, rows)

    def leading(self, error_rate: float) -> Tensor:
        """Return for each image whether its class is decided to lead, any wrongly with at most ``error_rate``."""
        ahead = self._ahead.positive(error_rate / max(1, len(self.leaders)))
        ahead[torch.arange(len(self.leaders)), self.leaders] = True
        return ahead.all(dim=1)

    def overtaken(self, error_rate: float) -> Tensor:
        """Return for each image whether some other class is decided to be ahead, any wrongly with ``error_rate``."""
        return self._behind.positive(error_rate / max(1, len(self.leaders)) / max(1, self._classes - 1)).any(dim=1)


def decidable_gap(draws: int, error_rate: float) -> float:
    """Return the least constant gap that `BettingTest` decides after so many draws; above 1 where it decides none."""

    def decides(gap: float) -> bool:
        capital = [draws * math.log1p(bet * gap) for bet in _BETS]
        largest = max(capital)
        mean = largest + math.log(sum(math.exp(c - largest) for c in capital)) - math.log(len(_BETS))
        return mean >= -math.log(error_rate)

    low, high = 0.0, 1.0
    if not decides(high):
        return math.inf
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def log_capital_of(draws: Tensor) -> float:
    """Return the log of the capital of a `BettingTest` after all of some draws in [-1, 1], ``[N]``.

    ``log(1 / error_rate)`` or more says that their mean is positive, wrongly with at most ``error_rate``.
    """
    if not bool(((draws >= -1) & (draws <= 1)).all()):
        raise ValueError("draws must lie in [-1, 1]; NaN does not")
    bets = torch.tensor(_BETS, dtype=torch.float64)[:, None]
    capital = torch.log1p(bets * draws.double()).sum(1)
    return float(torch.logsumexp(capital, 0)) - math.log(len(_BETS))
