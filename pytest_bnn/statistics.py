"""Intervals and sequential tests. Each function names its source; none needs the data to be Gaussian."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: The default chance that a statistical check decides anything wrongly, over all images together.
ERROR_RATE = 1e-6

#: Bets of the mixture in `BettingTest`, as shares of the capital at stake.
_BETS = (1 / 16, 1 / 4, 1 / 2, 3 / 4, 1.0)


def clopper_pearson_lower(successes: int, trials: int, error_rate: float) -> float:
    """Give the exact lower confidence bound of a share, one-sided, at level ``1 - error_rate``.

    Source: Clopper and Pearson 1934, by the beta quantile of scipy.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials are impossible")
    if successes == 0:
        return 0.0
    from scipy.stats import beta

    return float(beta.ppf(error_rate, successes, trials - successes + 1))


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
        """Say for each entry whether its mean is positive, wrong with at most ``error_rate`` each."""
        return self.log_largest >= -torch.log(torch.tensor(error_rate, dtype=torch.float64))


class LeadingClassTest:
    """Decide per image, pass by pass, whether a given class leads the mean predictive distribution.

    "Leads" needs the class ahead of every other one, so every comparison must be decided (an
    intersection-union test, no correction); "does not lead" needs one class ahead of it (Bonferroni over the
    classes). The error rate is split over the images (Bonferroni), so it bounds the chance that any is wrong.
    """

    def __init__(self, leaders: Tensor, classes: int, error_rate: float = ERROR_RATE) -> None:
        self.leaders = leaders
        self._per_image = error_rate / max(1, len(leaders))
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

    def leading(self) -> Tensor:
        """Say for each image whether its class is decided to lead."""
        ahead = self._ahead.positive(self._per_image)
        ahead[torch.arange(len(self.leaders)), self.leaders] = True
        return ahead.all(dim=1)

    def overtaken(self) -> Tensor:
        """Say for each image whether some other class is decided to be ahead."""
        return self._behind.positive(self._per_image / max(1, self._classes - 1)).any(dim=1)
