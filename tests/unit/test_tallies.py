"""Sums over shards say what the predictions say: likelihoods within valid bounds, all else to rounding."""

from __future__ import annotations

import math
import pickle
from functools import reduce

import pytest
import torch
from torch import Tensor

from pytest_bnn.checks._knowing import Answers
from pytest_bnn.checks._labelled import Labelled
from pytest_bnn.checks._predictions import Predicted
from pytest_bnn.checks._summed import Summed
from pytest_bnn.checks._tallies import Tally, merged, odds_points, temperature_points
from pytest_bnn.sampling.mixture import Mixing
from pytest_bnn.stats.convex import Convex
from pytest_bnn.stats.intervals import chance_at_any_time, hoeffding_radius_of, radius_at_any_time
from pytest_bnn.tasks.task import Task
from tests.checks.predicting import following, generator, scores


def labelled(count: int = 3000, classes: int = 5, factor: float = 1.0, seed: int = 0, size: float = 2.0) -> Labelled:
    """Four passes around scores, which are ``factor`` times those that the labels follow, and a teacher's."""
    logits = scores(count, classes, size, seed)
    mixing = Mixing()
    for number in range(4):
        noise = 0.2 * torch.randn(count, classes, generator=generator(100 * seed + number))
        mixing.take(torch.log_softmax(factor * logits + noise, 1))
    found = Predicted(
        mixture=mixing.result(),
        teacher=torch.log_softmax(factor * logits, 1).double(),
        task=Task(kind="classification"),
    )
    return Labelled(
        predicted=found, labels=following(logits, seed + 1), rows=torch.arange(count), left_out=0, known=True
    )  # fmt: skip


def in_shards(found: Labelled, size: int) -> Tally:
    parts = torch.arange(len(found)).split(size)
    return reduce(merged, [Tally.of(found.part(rows), {}) for rows in parts])


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_sums_say_what_the_predictions_say(factor: float, classes: int) -> None:
    exact = labelled(factor=factor, classes=classes)
    summed = Summed(tally=in_shards(exact, 700), known=True)
    assert len(summed) == len(exact)
    pairs = [(summed.own, exact.own), (summed.its, exact.its)]
    for told, side in pairs:
        assert told is not None
        assert side is not None
        for name in ("accuracy", "confidence", "log_likelihood", "brier"):
            assert getattr(told, name) == pytest.approx(getattr(side, name), rel=1e-9), name
        assert told.ruled_out == side.ruled_out == 0
        assert told.classes == side.classes
        best = math.exp(side.temperature.best)
        assert told.temperature.best == pytest.approx(side.temperature.best, abs=3e-4)
        assert told.brier_at(best) == pytest.approx(side.brier_at(best), rel=2e-3)
        for number in side.classes:
            assert told.occurred(number) == side.occurred(number)
            assert told.predicted(number) == pytest.approx(side.predicted(number))
    assert summed.scores is not None
    assert exact.scores is not None
    for name in ("own", "its", "gap", "squares"):
        assert getattr(summed.scores, name) == pytest.approx(getattr(exact.scores, name), rel=1e-9, abs=1e-12)
    assert summed.brier_of_a_pass == pytest.approx(exact.brier_of_a_pass)


@pytest.mark.parametrize(
    "count", [60, 3000, pytest.param(30_000, marks=pytest.mark.nightly("every push has a tenth of the labels"))]
)
@pytest.mark.parametrize("error_rate", [1e-3, 1e-8])
def test_intervals_from_sums_hold_the_exact_ones_and_are_hardly_wider(count: int, error_rate: float) -> None:
    exact = labelled(count, factor=1.6)
    told = Summed(tally=in_shards(exact, 999)).own
    families = [(told.temperature, exact.own.temperature)]
    families += [(told.odds(number), exact.own.odds(number)) for number in exact.own.classes]
    for summed, own in families:
        wide, narrow = summed.interval(error_rate), own.interval(error_rate)
        assert wide.low <= narrow.low + 2e-4
        assert wide.high >= narrow.high - 2e-4
        assert wide.high - wide.low <= 1.15 * (narrow.high - narrow.low) + 0.03
        assert summed.log_mixture == pytest.approx(own.log_mixture, rel=1e-9), "mixed members are summed exactly"
        assert summed.log_evidence(0.33) <= own.log_evidence(0.33) + 1e-6, "a guess never rejects"


def test_shares_of_zero_and_labels_of_them_are_counted_not_summed() -> None:
    logs = torch.tensor([[0.0, -math.inf, -math.inf], [math.log(0.5), math.log(0.5), -math.inf]]).double().repeat(20, 1)
    mixing = Mixing()
    mixing.take(logs)
    labels = torch.tensor([0, 1]).repeat(20)
    labels[0] = 2
    found = Labelled(
        predicted=Predicted(mixture=mixing.result(), teacher=None, task=Task(kind="classification")),
        labels=labels, rows=torch.arange(40), left_out=3,
    )  # fmt: skip
    told = Summed(tally=in_shards(found, 7))
    assert told.own.ruled_out == found.own.ruled_out == 1
    assert told.own.classes == found.own.classes
    assert told.its is None
    assert told.scores is None
    inside = Labelled(predicted=found.predicted, labels=torch.tensor([0, 1]).repeat(20), rows=found.rows, left_out=0)
    for number in (0, 1):
        own, summed = inside.own.odds(number), Summed(tally=in_shards(inside, 7)).own.odds(number)
        assert summed.log_mixture == pytest.approx(own.log_mixture)
    own, summed = inside.own.temperature, Summed(tally=in_shards(inside, 7)).own.temperature
    assert summed.log_mixture == pytest.approx(own.log_mixture)


def test_where_every_answer_is_right_the_temperature_has_no_lower_end() -> None:
    exact = labelled(400, size=30.0)
    exact = Labelled(
        predicted=exact.predicted, labels=exact.own.log_shares.argmax(1), rows=exact.rows, left_out=0, known=True
    )
    told, own = Summed(tally=in_shards(exact, 90)).own.temperature.interval(1e-6), exact.own.temperature.interval(1e-6)
    assert told.low == own.low == -math.inf
    assert told.high >= own.high - 2e-4


def test_who_knows_the_labels_is_told_from_sums() -> None:
    for classes, factor in ((2, 1.0), (5, 1.0), (5, 0.0)):
        exact = labelled(500, classes, factor)
        own = Answers.of(exact.own.log_shares, exact.labels)
        told = Summed(tally=in_shards(exact, 77)).own.answers
        assert told.known() == own.known()
        assert torch.equal(told.said, own.said)
        if classes == 2:
            assert told.ordered is not None
            assert own.ordered is not None
            assert own.ordered - 0.03 < told.ordered <= own.ordered, "examples of one bin count as none in order"


def test_sums_do_not_depend_on_how_examples_are_parted_but_for_rounding() -> None:
    exact = labelled(150)
    whole = Tally.of(exact, {})
    for size in (1, 7, 64, 150):
        parted = in_shards(exact, size)
        assert (parted.occurred == whole.occurred).all()
        assert (parted.own.said == whole.own.said).all()
        assert parted.own.right == whole.own.right
        for name in ("logs", "log_slopes", "briers", "unlikely", "odds_slopes", "predicted", "logits"):
            one, other = (torch.from_numpy(getattr(tally.own, name)) for tally in (parted, whole))
            assert float((one - other).abs().max()) <= 1e-9 * float(other.abs().max()), name
        assert (parted.own.largest == whole.own.largest).all()
    again = in_shards(exact, 64)
    assert pickle.dumps(again) == pickle.dumps(in_shards(exact, 64))


def test_groups_add_up_by_name() -> None:
    exact = labelled(100)
    parts = [exact.part(rows) for rows in torch.arange(100).split(50)]
    first, second = Tally.of(parts[0], {"a": parts[0]}), Tally.of(parts[1], {"a": parts[1], "b": parts[1]})
    both = merged(first, second).groups
    assert list(both) == ["a", "b"]
    assert (len(both["a"]), len(both["b"])) == (100, 50)
    assert Summed(tally=both["a"]).own.temperature.best == pytest.approx(exact.own.temperature.best, abs=3e-4)


def test_a_convex_function_lies_within_its_bounds() -> None:
    at = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_()
    offsets = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)

    def true(x: Tensor) -> Tensor:
        return torch.logsumexp(torch.outer(x, offsets), 1)

    values = true(at)
    (slopes,) = torch.autograd.grad(values.sum(), at)
    convex = Convex(points=at.detach(), values=values.detach(), slopes=slopes)
    inside = torch.linspace(-3, 3, 400, dtype=torch.float64)
    assert bool((convex.least(inside) <= true(inside) + 1e-12).all())
    assert bool((convex.most(inside) >= true(inside) - 1e-12).all())
    assert float((convex.near(inside) - true(inside)).abs().max()) < 1e-3
    beyond = torch.tensor([-9.0, 9.0], dtype=torch.float64)
    assert bool((convex.least(beyond) <= true(beyond)).all())
    assert bool(torch.isinf(convex.most(beyond)).all())
    assert bool((convex.near(at.detach()) == convex.values).all())


def test_the_bound_at_any_time_holds_at_any_time_and_is_a_tenth_wider() -> None:
    """Fair coins, looked at after each of 2,000 of them, leave a bound of 5 % in at most 5 % of all runs."""
    steps = torch.randint(0, 2, (2000, 400), generator=generator(5)).double().mul(2).sub(1).cumsum(0)
    bounds = torch.tensor([n * radius_at_any_time(4.0 * n, n, 0.05) for n in range(1, 2001)]).double()
    assert float((steps > bounds[:, None]).any(0).double().mean()) <= 0.05
    for squares in (1e-6, 1e-2, 1.0, 800.0, 1e6):
        wide, narrow = radius_at_any_time(squares, 100, 1e-8), hoeffding_radius_of(squares, 100, 1e-8)
        assert 1 < wide / narrow < 1.2
        assert chance_at_any_time(100 * wide, squares) == pytest.approx(1e-8, rel=1e-6)
    assert chance_at_any_time(0.0, 1.0) == 1


def test_points_hold_the_members_of_the_mixture() -> None:
    for points in (odds_points(), temperature_points()):
        assert bool((points.diff() > 0).all())
