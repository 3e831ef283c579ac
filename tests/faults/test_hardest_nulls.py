"""Whole checks on models that are exactly at their threshold, again and again: wrong verdicts stay within the budget.

The budgets are loose, so that wrong verdicts happen and can be counted; no seed is chosen. At the threshold every draw
is a fair coin, so that the chance of a wrong verdict is known exactly, from the betting game's capital in fractions: it
is within the promised rate, and the counts are those of a binomial distribution with it.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pytest_bnn import checks
from pytest_bnn.checks.noise import source as source_module
from pytest_bnn.checks.noise import varies as varies_module
from pytest_bnn.conversion import convert
from pytest_bnn.options import Settings, using
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import Subject

#: Models of each case, and the chance that one level of a case here fails although all is well.
MODELS, RATE = 100, 1e-4
LEVELS = (0.4, 0.1)
#: Of the side that is not counted: its verdicts seldom get in the way, and its first look comes early.
OTHER = 0.05
MAX_PASSES = 32
#: Enough of them that an error rate which is not split over them would show.
IMAGES = torch.linspace(-1, 1, 32).reshape(16, 2)
SCALE = float(IMAGES.double().std())
FLOOR = 0.01

LATER = pytest.mark.nightly("a hundred models for each case; every push counts at the floor and at a tie")


@pytest.fixture(autouse=True)
def _own_forward() -> Iterator[None]:
    """None of these models is one that the engine knows; it need not find that out each time."""
    with using(Settings(sampler="own")):
        yield


@pytest.fixture(autouse=True)
def _noise_of_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checks take the models' noise for their weights', which draw none: what is counted is the statistics."""
    for module in (varies_module, source_module):
        monkeypatch.setattr(module, "cannot_vary", lambda subject, *_: torch.zeros(len(IMAGES), dtype=torch.bool))


def at_alpha(level: float) -> Budget:
    return Budget(alpha=level, beta=OTHER)


def at_beta(level: float) -> Budget:
    return Budget(alpha=OTHER, beta=level)


def count(wrong: Verdict, subjects: Iterable[Subject], judge: Callable[[Subject, Budget], Evidence]) -> Counter[float]:
    """Say at how many subjects a check gives the wrong verdict, by level; the levels see the same passes."""
    of = at_alpha if wrong is Verdict.FAIL else at_beta
    found: Counter[float] = Counter()
    for subject in subjects:
        for level in LEVELS:
            found[level] += judge(subject, of(level)).verdict is wrong
    return found


def hold(found: Mapping[float, int], chance: Callable[[float], float], models: int = MODELS) -> None:
    """Wrong verdicts are within the level, and as frequent as this chance of them says."""
    for level in LEVELS:
        assert 0.05 < chance(level) / level <= 1, "no test, or a broken promise"
        assert stats.binomtest(found[level], models, chance(level)).pvalue > RATE, (found, chance(level))


def hold_at_most(found: Mapping[float, int]) -> None:
    """Wrong verdicts are no more frequent than the level allows."""
    for level in LEVELS:
        assert stats.binom.sf(found[level] - 1, MODELS, level) > RATE, found


@functools.cache
def capital(wins: int, losses: int) -> Fraction:
    """What a gambler owns who began with 1, a fifth on each of five bets, and won and lost fair coins so often."""
    bets = (Fraction(1, 16), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1))
    return sum(((1 + bet) ** wins * (1 - bet) ** losses for bet in bets), Fraction(0)) / len(bets)


def coins(against: float, in_favour: float, looks: Iterable[int]) -> tuple[float, float]:
    """Return the chances that fair coins decide against, and in favour, at one of these numbers of coins.

    In favour where heads own ``1 / in_favour``, else against where tails own ``1 / against``; then it is over.
    """
    open_, decided, last = {0: 1.0}, [0.0, 0.0], 0
    for look in looks:
        for _ in range(look - last):
            open_ = {heads: (open_.get(heads - 1, 0) + open_.get(heads, 0)) / 2 for heads in range(look + 1)}
        last = look
        for heads in range(look + 1):
            won, lost = capital(heads, look - heads), capital(look - heads, heads)
            if won * Fraction(in_favour) >= 1:
                decided[1] += open_.pop(heads)
            elif lost * Fraction(against) >= 1:
                decided[0] += open_.pop(heads)
    return decided[0], decided[1]


def any_of(images: int, chance: float) -> float:
    return 1 - (1 - chance) ** images


class Noisy(nn.Module):
    """Its input with noise of each image, whose size is its layer's sigma: none where that is 0.

    ``coin`` noise is there or not; a pair of passes differs in one half of the cases, and by the same amount.
    Otherwise it is normal on two outputs: the squared spread of a pair is exponential, with the median log 2, so that
    ``size`` is the median spread of a pair, relative to the outputs' scale. The first ``loud`` images have far more;
    where noise is ``common`` all images have the same.
    """

    def __init__(self, size: float, *, coin: bool = False, loud: int = 0, common: bool = False) -> None:
        super().__init__()
        self.layer = convert(nn.Linear(1, 1, bias=False).eval())
        self.coin, self.loud, self.common = coin, loud, common
        with torch.no_grad():
            sigma = SCALE * size * (10 if coin else 1 / math.sqrt(math.log(2)))
            self.get_parameter("layer.rho_weight").fill_(math.log(math.expm1(sigma)))

    def forward(self, x: Tensor) -> Tensor:
        of = x[:1] if self.common else x
        noise = torch.bernoulli(torch.full((len(of), 1), 0.5)).expand_as(of) if self.coin else torch.randn_like(of)
        if self.loud:
            noise = torch.where(x[:, :1] < IMAGES[self.loud, 0], 1000 * torch.randn_like(x), noise)
        return x + nn.functional.softplus(self.get_parameter("layer.rho_weight")) * noise


@functools.cache
def noisy(*, coin: bool = False, loud: int = 0, common: bool = False, models: int = MODELS) -> tuple[Subject, ...]:
    """Models at the floor, with passes of their own, which the tests share."""
    model = Noisy(FLOOR, coin=coin, loud=loud, common=common)
    return tuple(Subject(model, images=IMAGES, seed=seed) for seed in range(models))


def varies(subject: Subject, budget: Budget) -> Evidence:
    return checks.measure_noise_varies(subject, min_spread=FLOOR, budget=budget, max_passes=2 * MAX_PASSES)


def looks(beta: float, step: int, last: int) -> list[int]:
    """The pairs after which a check looks: first when all of them, being heads, would decide, then every few."""
    first = next(pairs for pairs in range(1, 100) if capital(pairs, 0) * Fraction(beta) >= 1)
    return [*range(first, last, step), last]


@pytest.mark.nightly("hundreds of audits; every push has the hardest null of the other checks")
def test_varies_fails_images_at_the_floor_no_more_often_than_alpha() -> None:
    """Every image is at the floor, and each may be the one that is accused, until it is cleared."""
    hold(
        count(Verdict.FAIL, noisy(), varies),
        lambda alpha: any_of(len(IMAGES), coins(alpha / len(IMAGES), OTHER, looks(OTHER, 8, MAX_PASSES))[0]),
    )


@pytest.mark.nightly("hundreds of audits; every push has the hardest null of the other checks")
def test_varies_passes_an_image_at_the_floor_no_more_often_than_beta() -> None:
    """The last image alone is there, and varies in one half of the pairs; the others vary beyond doubt."""
    hold(
        count(Verdict.PASS, noisy(coin=True, loud=15), varies),
        lambda beta: coins(OTHER / len(IMAGES), beta, looks(beta, 8, MAX_PASSES))[1],
    )


@LATER
@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.PASS])
@pytest.mark.parametrize("band", [(FLOOR, 1e6), (1e-9, FLOOR)], ids=["least", "most"])
def test_spread_at_an_end_of_the_band_is_wrong_no_more_often_than_promised(
    band: tuple[float, float], verdict: Verdict
) -> None:
    """All images have the same noise, so the spread of the outputs is that of an image, whose median is known.

    Each end of the band has half of alpha; to pass takes both, so each has the whole of beta.
    """

    def judge(subject: Subject, budget: Budget) -> Evidence:
        return checks.measure_noise_spread(subject, band=band, budget=budget, max_passes=MAX_PASSES)

    def chance(level: float) -> float:
        if verdict is Verdict.PASS:
            return coins(OTHER / 2, level, looks(level, 4, MAX_PASSES // 2))[1]
        return coins(level / 2, OTHER, looks(OTHER, 4, MAX_PASSES // 2))[0]

    hold(count(verdict, noisy(common=True, models=4 * MODELS), judge), chance, 4 * MODELS)


@pytest.mark.parametrize("coin", [False, True], ids=["normal", "coin"])
def test_source_fails_a_model_at_the_floor_as_often_as_all_coins_show_tails(coin: bool) -> None:
    """The sign test: its rate is the first power of one half that is not above alpha, and no less."""

    def judge(subject: Subject, budget: Budget) -> Evidence:
        return checks.measure_noise_source(subject, min_spread=FLOOR, budget=budget)

    found = count(Verdict.FAIL, noisy(coin=coin, common=True), judge)
    hold(found, lambda alpha: 0.5 ** math.ceil(-math.log2(alpha)))


class Ballots(nn.Module):
    """Votes for two classes: the first input is the mean share of the first class, ``hard`` votes are all or nothing.

    Otherwise the share is uniform where the mean is one half. Shares of 0 and 1 are certain.
    """

    def __init__(self, *, hard: bool) -> None:
        super().__init__()
        self.hard = hard

    def forward(self, x: Tensor) -> Tensor:
        mean = x[:, 0]
        share = torch.bernoulli(mean) if self.hard else torch.where(mean == 0.5, torch.rand_like(mean), mean)
        return torch.stack([share, 1 - share], dim=1)


class First(nn.Module):
    """The first class, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.9, 0.1]).expand(len(x), 2)


@functools.cache
def voting(for_it: int, ties: int, against: int, *, hard: bool) -> tuple[Subject, ...]:
    """Models of which so many images are certain for the teacher's class, tie, and are certain against it."""
    shares = torch.tensor([1.0] * for_it + [0.5] * ties + [0.0] * against)[:, None]
    return tuple(Subject(Ballots(hard=hard), teacher=First(), images=shares, seed=seed) for seed in range(MODELS))


TIES = [
    pytest.param((0, 16, 0), 1, Verdict.PASS, id="all tie and one suffices", marks=LATER),
    pytest.param((8, 8, 0), 9, Verdict.PASS, id="one short"),
    pytest.param((0, 16, 0), 16, Verdict.FAIL, id="all tie and none may be lost", marks=LATER),
    pytest.param((0, 8, 8), 8, Verdict.FAIL, id="exactly enough"),
]


@pytest.mark.parametrize(("images", "needed", "verdict"), TIES)
def test_agreement_takes_ties_for_something_else_no_more_often_than_promised(
    images: tuple[int, int, int], needed: int, verdict: Verdict
) -> None:
    """A class that ties neither leads nor is overtaken: here one image that does would be enough for the verdict.

    Each image has its part of the error rate, and only those that tie can use theirs up.
    """

    def judge(subject: Subject, budget: Budget) -> Evidence:
        return checks.measure_teacher_agreement(
            subject, min_agreement=needed / sum(images), budget=budget, max_passes=MAX_PASSES
        )

    found = count(verdict, voting(*images, hard=True), judge)
    # Against the teacher, half of it is kept for classes of which many images disagree.
    part = sum(images) * (2 if verdict is Verdict.FAIL else 1)
    hold(found, lambda level: any_of(images[1], coins(1e-9, level / part, range(1, MAX_PASSES + 1))[1]))


@LATER
@pytest.mark.parametrize(("images", "needed", "verdict"), TIES[1:3])
def test_agreement_of_votes_that_are_not_all_or_nothing(
    images: tuple[int, int, int], needed: int, verdict: Verdict
) -> None:
    """The game is then played for less, and wrong verdicts are rarer."""

    def judge(subject: Subject, budget: Budget) -> Evidence:
        return checks.measure_teacher_agreement(
            subject, min_agreement=needed / sum(images), budget=budget, max_passes=MAX_PASSES
        )

    hold_at_most(count(verdict, voting(*images, hard=False), judge))


@LATER
@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.PASS])
def test_agreement_of_a_population_at_the_threshold(verdict: Verdict) -> None:
    """Images of a population of which .8 agree. To make it hard, what does not agree ties, or what does.

    Half of the level goes to the choice of images and half to their passes.
    """
    subjects = []
    for seed in range(MODELS):
        agrees = torch.rand(60, generator=torch.Generator().manual_seed(seed)) < 0.8
        shares = torch.where(agrees, 1.0, 0.5) if verdict is Verdict.PASS else torch.where(agrees, 0.5, 0.0)
        subjects.append(Subject(Ballots(hard=True), teacher=First(), images=shares[:, None], seed=seed))

    def judge(subject: Subject, budget: Budget) -> Evidence:
        return checks.measure_teacher_agreement(
            subject, min_agreement=0.8, population=True, budget=budget, max_passes=MAX_PASSES
        )

    hold_at_most(count(verdict, subjects, judge))
