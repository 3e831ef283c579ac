"""Error budgets, intervals and sequential tests. Each names its source; none needs the data to be Gaussian."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_bnn.options import in_force

if TYPE_CHECKING:
    from torch import Tensor

#: Bets of the mixture in `BettingTest`, as shares of the capital at stake.
_BETS = (1 / 16, 1 / 4, 1 / 2, 3 / 4, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How often verdicts by sampling may be wrong.

    ``alpha`` bounds the chance of a false alarm, a sound model that fails; ``beta`` that of a missed fault, a model
    beyond the threshold that passes. Both hold for all checks of a run together.
    """

    alpha: float = 1e-6
    beta: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 0.5:
                raise ValueError(f"{name} must lie between 0 and 0.5, not {value!r}")

    @classmethod
    def in_force(cls) -> Budget:
        """Give the budget of the settings in force: ``--bnn-alpha`` and ``--bnn-beta``."""
        settings = in_force()
        return cls(alpha=settings.alpha, beta=settings.beta)

    def split(self, parts: int) -> Budget:
        """Give the share of one of so many checks: together they stay within the budget (Bonferroni)."""
        return Budget(alpha=self.alpha / max(1, parts), beta=self.beta / max(1, parts))


@functools.lru_cache(maxsize=4096)
def certain_majority(trials: int, error_rate: float) -> int | None:
    """Give how many of ``trials`` fair coins must show heads to say, wrong with ``error_rate``, that they are not fair.

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


def trials_needed(error_rate: float) -> int:
    """Give the least number of trials that decides anything in `median_bounds`: where all of them agree."""
    trials = 1
    while certain_majority(trials, error_rate) is None:
        trials += 1
    return trials


def draws_below_median(error_rate: float) -> int:
    """Give how many independent draws all lie below their median with a chance of at most ``error_rate``.

    Whatever their distribution: each does with a chance of at most one half, so it is the least n with
    ``2**-n <= error_rate``. This is the sign test, where the number of draws is settled beforehand.
    """
    return 1 - math.frexp(error_rate)[1]


def median_bounds(values: Tensor, error_rate: float) -> tuple[Tensor, Tensor]:
    """Give a lower and an upper confidence bound of the median of each column, each wrong with ``error_rate``.

    The values of a column, ``[trials, ...]``, are independent draws of one distribution, of which nothing is assumed:
    no moments, no symmetry, no density. The bounds are order statistics. They hold together for every number of
    trials, so that one may look after each and stop when one likes. Where there are too few trials they are infinite.

    Source: Howard and Ramdas 2022, "Sequential estimation of quantiles", by the betting test of
    Waudby-Smith and Ramdas 2024 for the share of values beyond a point.
    """
    trials = len(values)
    needed = certain_majority(trials, error_rate)
    if needed is None:
        infinite = torch.full(values.shape[1:], math.inf, dtype=values.dtype)
        return -infinite, infinite
    ordered = values.sort(0).values
    return ordered[trials - needed], ordered[needed - 1]


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


def clopper_pearson_upper(successes: int, trials: int, error_rate: float) -> float:
    """Give the exact upper confidence bound of a share, one-sided, at level ``1 - error_rate``."""
    return 1 - clopper_pearson_lower(trials - successes, trials, error_rate)


def trials_for_share(share: float, observed: float, error_rate: float) -> int | None:
    """Give how many trials, of which the share ``observed`` succeeds, carry the claim of at least ``share``.

    None where no number does: the observed share is not above the claimed one. By bisection of `clopper_pearson_lower`.
    """

    def carries(trials: int) -> bool:
        return clopper_pearson_lower(math.floor(observed * trials + 1e-9), trials, error_rate) >= share

    if observed <= share:
        return None
    low, high = 1, 1
    while not carries(high):
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if carries(middle) else (middle + 1, high)
    return high


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
        """Say for each image whether its class is decided to lead, any wrongly with at most ``error_rate``."""
        ahead = self._ahead.positive(error_rate / max(1, len(self.leaders)))
        ahead[torch.arange(len(self.leaders)), self.leaders] = True
        return ahead.all(dim=1)

    def overtaken(self, error_rate: float) -> Tensor:
        """Say for each image whether some other class is decided to be ahead, any wrongly with ``error_rate``."""
        return self._behind.positive(error_rate / max(1, len(self.leaders)) / max(1, self._classes - 1)).any(dim=1)
