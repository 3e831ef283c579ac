"""``teacher.agreement`` for each task: a healthy conversion passes, a broken one fails for the right reason.

Networks are linear in their weights, so that what a pass says is Gaussian around the teacher, with a known width.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from pytest_bnn.checks import measure_teacher_agreement
from pytest_bnn.checks.teacher._items import Claim, Votes, hopeless, undecided, verdict
from pytest_bnn.checks.teacher._medians import Numbers
from pytest_bnn.conversion import convert
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.stats.betting import BettingTest, decidable_gap
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import Task

N = 40
BUDGET = Budget(alpha=1e-3, beta=1e-2)


class Net(nn.Module):
    """One layer, and what is made of its output."""

    def __init__(self, outputs: int, end: Any = None, *, inputs: int = 16, margin: float = 8.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Linear(inputs, outputs)
        with torch.no_grad():
            self.layer.weight.mul_(margin)
            self.layer.bias.zero_()
        self.end = end
        self.eval()

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return y if self.end is None else self.end(y)


def images(rows: int = N, inputs: int = 16) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1))


def changed(teacher: Net, how: Any) -> nn.Module:
    """Convert a teacher whose layer was changed: what is broken is what the layer says."""
    other = Net(teacher.layer.out_features, teacher.end)
    other.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        how(other.layer)
    return convert(other, moped_delta=0.02)


def judge(teacher: nn.Module, model: nn.Module | None = None, x: Tensor | None = None, **given: Any) -> Evidence:
    model = convert(teacher, moped_delta=0.02) if model is None else model
    return measure_teacher_agreement(model, teacher=teacher, images=images() if x is None else x, **given)


def sure(teacher: Net, *, least: float = 1.0) -> Tensor:
    """Images of which the teacher is sure: what it says is far from what would be something else."""
    many = images(400)
    with torch.no_grad():
        scores = teacher.layer(many)
    gaps = scores.abs().flatten() if scores.shape[1] == 1 else scores.topk(2, 1).values.diff(dim=1).abs().flatten()
    return many[gaps > least][:N]


def flip(layer: nn.Linear) -> None:
    layer.weight.neg_()
    layer.bias.neg_()


def roll(layer: nn.Linear) -> None:
    layer.weight.copy_(layer.weight.roll(1, 0))
    layer.bias.copy_(layer.bias.roll(1, 0))


def units(layer: nn.Linear) -> None:
    layer.weight.mul_(20)
    layer.bias.mul_(20).add_(100)


@pytest.mark.parametrize("ends", ["logit", "probability"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary(ends: str, dtype: torch.dtype) -> None:
    """The side of the threshold: a flipped logit is on the other one, everywhere."""
    teacher = Net(1, torch.sigmoid if ends == "probability" else None).to(dtype)
    x = sure(teacher.float()).to(dtype)
    teacher = teacher.to(dtype)
    labels = (teacher.layer(x).flatten() > 0).long()
    healthy = judge(teacher, x=x, labels=labels)
    assert healthy.verdict is Verdict.PASS, healthy.headline
    broken = judge(teacher, changed(teacher.float(), flip).to(dtype), x, labels=labels)
    assert broken.verdict is Verdict.FAIL
    assert f"agrees on 0 of {len(x)} images" in broken.headline
    assert broken.measurements[0].value == "binary"


def test_logits_between_0_and_1_by_chance() -> None:
    """Four logits that are all small and positive are no probabilities: a flipped one is on the other side of 0."""
    teacher = Net(1, lambda y: 0.05 * y, margin=40)
    with torch.no_grad():
        scores = teacher(images(400)).flatten()
    x = images(400)[(scores > 0.25) & (scores < 0.49)][:4]
    assert len(x) == 4
    labels = torch.tensor([1, 1, 1, 0])
    healthy = judge(teacher, x=x, labels=labels)
    assert healthy.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE), healthy.headline
    broken = judge(teacher, changed(teacher, flip), x, labels=labels)
    assert broken.verdict is not Verdict.PASS, broken.headline


@pytest.mark.fault("B44", "teacher.agreement")
@pytest.mark.parametrize("outputs", [1, 3])
def test_regression(outputs: int) -> None:
    """Targets in other units are far away everywhere, in the mean and in each output."""
    teacher = Net(outputs)
    labels = teacher(images()).detach()
    healthy = judge(teacher, labels=labels)
    assert healthy.verdict is Verdict.PASS, healthy.headline
    for how, said, remedy in ((units, "20 times the teacher's + 1", "same units"), (flip, "go the other way", "sign")):
        broken = judge(teacher, changed(teacher, how), labels=labels)
        assert broken.verdict is Verdict.FAIL
        assert "typical prediction" in broken.headline
        assert said in broken.headline
        assert remedy in broken.remedy


def test_one_of_several_numbers_is_enough() -> None:
    """Each output is judged by its own scale: one of them, small beside the others, in other units."""

    def scaled(layer: nn.Linear, by: float) -> None:
        layer.weight[1].mul_(by)
        layer.bias[1].mul_(by)

    teacher = Net(3)
    with torch.no_grad():
        scaled(teacher.layer, 1e-3)
    assert judge(teacher, task="regression").verdict is Verdict.PASS
    broken = judge(teacher, changed(teacher, lambda layer: scaled(layer, 20)), task="regression")
    assert broken.verdict is Verdict.FAIL


def places(y: Tensor) -> Tensor:
    """Three classes for each of 2 x 4 places."""
    return y.reshape(-1, 3, 2, 4)


def tokens(y: Tensor) -> Tensor:
    return y.reshape(-1, 8, 3)


@pytest.mark.parametrize("end", [places, tokens])
def test_dense(end: Any) -> None:
    """Classes of places: exchanged, or wrong at one place of eight."""
    teacher = Net(24, end, margin=40)
    x = images()
    labels = teacher(x).argmax(1 if end is places else 2)
    healthy = judge(teacher, x=x, labels=labels, min_agreement=0.9)
    assert healthy.verdict is Verdict.PASS, healthy.headline
    assert f"of {8 * N} places" in healthy.headline
    rolled = changed(teacher, lambda layer: layer.weight.copy_(layer.weight.roll(8 if end is places else 1, 0)))
    broken = judge(teacher, rolled, x, labels=labels, min_agreement=0.9)
    assert broken.verdict is Verdict.FAIL
    assert broken.headline.startswith("The mean prediction agrees on")


def test_one_channel_has_two_sides() -> None:
    """A mask of two: the sign at each place, which no choice among one class could judge."""
    teacher = Net(8, lambda y: y.unflatten(1, (1, 2, 4)), margin=40)
    labels = (teacher(images()) > 0).float()
    healthy = judge(teacher, labels=labels, min_agreement=0.9)
    assert healthy.verdict is Verdict.PASS, healthy.headline
    assert judge(teacher, changed(teacher, flip), labels=labels, min_agreement=0.9).verdict is Verdict.FAIL


def test_rare_positions() -> None:
    """A class that leads in few places: what is required is a share, and with all of them none may be wrong."""
    teacher = Net(24, places, margin=40)
    labels = teacher(images()).argmax(1)

    def lose(layer: nn.Linear) -> None:
        layer.weight[[7, 15, 23]] *= -1

    lost = changed(teacher, lose)
    assert judge(teacher, lost, labels=labels, min_agreement=0.8).verdict is Verdict.PASS
    assert judge(teacher, lost, labels=labels, min_agreement=0.95).verdict is Verdict.FAIL


def test_places_are_no_sample_of_a_population() -> None:
    """Those of an image depend on each other: no bound of Clopper and Pearson holds for them."""
    teacher = Net(24, places)
    evidence = judge(teacher, labels=teacher(images()).argmax(1), population=True, min_agreement=0.5)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "no random sample" in evidence.headline
    assert "without population" in evidence.headline


def test_an_unsure_teacher() -> None:
    """Its margins are below what passes can decide: not applicable, and the words say what would help."""
    teacher = Net(3, margin=0.02)
    evidence = judge(teacher, convert(teacher, moped_delta=1.0), labels=torch.arange(N) % 3)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "The teacher's own margins are below what 128 passes can decide on 40 of 40 images" in evidence.headline
    assert "give images of which the teacher is surer, or allow more passes (--samples)" in evidence.headline
    assert judge(teacher, changed(teacher, roll), labels=torch.arange(N) % 3).verdict is not Verdict.PASS


class Spread(nn.Module):
    """A head of its own for the variance, as likelihoods need it."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.mean_layer, self.spread_layer = nn.Linear(16, 1), nn.Linear(16, 1)
        self.named = named

    def forward(self, x: Tensor) -> Any:
        mean, log_variance = self.mean_layer(x), self.spread_layer(x)
        return {"mean": mean, "log_variance": log_variance} if self.named else (mean, log_variance)


def test_mean_and_log_variance() -> None:
    """The mean is judged: by its name, or by the user's; without either it is asked for. The variance is not."""
    teacher = Spread(named=True)
    assert judge(teacher).verdict is Verdict.PASS
    other = Spread(named=True)
    other.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        other.spread_layer.weight.mul_(-3)
    assert judge(teacher, convert(other, moped_delta=0.02)).verdict is Verdict.PASS
    with torch.no_grad():
        other.mean_layer.weight.mul_(-3)
    assert judge(teacher, convert(other, moped_delta=0.02)).verdict is Verdict.FAIL
    bare = Spread(named=False)
    asked = judge(bare)
    assert asked.verdict is Verdict.NOT_APPLICABLE
    assert "--output" in asked.headline
    assert judge(bare, output="0", task="regression").verdict is Verdict.PASS


class Beside(nn.Module):
    """The model returns features beside what its teacher returns alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        y = self.inner(x)
        return {"logits": y, "features": torch.cat([y, x], 1)}


def test_an_extra_output_beside_the_teacher_s_single_one() -> None:
    """The output that is judged is compared with the teacher's only one."""
    teacher = Net(3)
    x = sure(teacher)
    labels = teacher(x).argmax(1)
    evidence = judge(teacher, Beside(convert(teacher, moped_delta=0.02)), x, labels=labels)
    assert evidence.verdict is Verdict.PASS, evidence.headline
    broken = judge(teacher, Beside(changed(teacher, roll)), x, labels=labels)
    assert broken.verdict is Verdict.FAIL
    assert "agrees on" in broken.headline


def test_presumed_scores_never_fail() -> None:
    """Three outputs without labels and loss may be quantities: where they do not agree, the words say how to tell."""
    teacher = Net(3)
    x = sure(teacher)
    assert judge(teacher, x=x).verdict is Verdict.PASS
    broken = judge(teacher, changed(teacher, roll), x)
    assert broken.verdict is Verdict.NOT_APPLICABLE
    assert "--task classification (task= in Python)" in broken.headline
    assert judge(teacher, changed(teacher, roll), x, task="classification").verdict is Verdict.FAIL
    assert judge(teacher, changed(teacher, roll), x, labels=teacher(x).argmax(1)).verdict is Verdict.FAIL


@pytest.mark.parametrize("mask", [-1e9, -math.inf])
def test_masked_classes(mask: float) -> None:
    """Scores of classes that are left out: no class leads there, and nothing is NaN."""

    def end(y: Tensor) -> Tensor:
        return torch.cat([y, torch.full_like(y[:, :2], mask)], 1)

    teacher = Net(3, end)
    x = sure(teacher)
    labels = teacher(x).argmax(1)
    healthy = judge(teacher, x=x, labels=labels)
    assert healthy.verdict is Verdict.PASS, healthy.headline
    assert all(not isinstance(m.value, float) or math.isfinite(m.value) for m in healthy.measurements)
    assert judge(teacher, changed(teacher, roll), x, labels=labels).verdict is Verdict.FAIL


# Statistics.

CLAIM = Claim(1.0, False, BUDGET)


@pytest.mark.parametrize("error_rate", [1e-4, 1e-2, 0.05])
@pytest.mark.parametrize("draws", [8, 32, 128])
def test_the_gap_that_can_be_decided(draws: int, error_rate: float) -> None:
    """Oracle: the test itself, with that gap in each draw, and with a little less."""
    gap = decidable_gap(draws, error_rate)

    def decides(constant: float) -> bool:
        test = BettingTest((1,))
        for _ in range(draws):
            test.update(torch.tensor([constant], dtype=torch.float64), torch.arange(1))
        return bool(test.positive(error_rate))

    if gap > 1:
        assert not decides(1.0)
    else:
        assert decides(min(1.0, gap))
        assert not decides(gap - 2e-4)


def numbers(passes: Tensor, allowed: float, looks: int = 3) -> Numbers:
    """Take passes ``[passes, images]`` of one number each; the teacher says 0."""
    images_ = passes.shape[1]
    found = Numbers(CLAIM, torch.zeros(images_, 1), torch.tensor([allowed]), looks)
    found.take(passes[..., None], torch.arange(images_))
    return found


@pytest.mark.parametrize("law", ["normal", "skewed", "heavy"])
def test_typical_outputs_are_decided_rightly(law: str) -> None:
    """On the border either decision is wrong: each happens at most at its error rate. Oracle: scipy's medians."""
    frozen = {"normal": scipy.stats.norm(), "skewed": scipy.stats.expon(), "heavy": scipy.stats.cauchy()}[law]
    repeats, claim = 400, Claim(1.0, False, Budget(alpha=0.05, beta=0.05))
    draws = torch.as_tensor(frozen.rvs((64, repeats), random_state=3)) - frozen.median() + 1.0
    wrong = torch.zeros(2)
    for index in range(repeats):
        items = Numbers(claim, torch.zeros(1, 1), torch.tensor([1.0]), 1)
        items.take(draws[:, index].reshape(-1, 1, 1), torch.arange(1))
        wrong += torch.tensor([float(items.leading.any()), float(items.overtaken.any())])
    # What twenty binomial deviations above the rate would be is a mistake, not chance.
    assert float(wrong.max()) <= scipy.stats.binom(repeats, 0.05).ppf(1 - 1e-6)


def test_typical_outputs_are_decided() -> None:
    """Near is near and far is far, whatever the tails; a median at the border is open."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 3, generator=generator)
    items = numbers(noise * 0.1 + torch.tensor([0.0, 5.0, 1.0]), 1.0)
    assert items.leading.tolist() == [True, False, False]
    assert items.overtaken.tolist() == [False, True, False]
    assert undecided(items).tolist() == [2]
    assert verdict(items) is Verdict.FAIL
    outliers = noise * 0.1
    outliers[::5] = 1e6
    assert bool(numbers(outliers, 1.0).leading.all()), "a fifth of the passes elsewhere moves no median"


def votes(shares: Tensor, teacher: Tensor, claim: Claim = CLAIM) -> Votes:
    """Take passes ``[passes, images, classes]`` of probabilities."""
    items = Votes.of(teacher, Task(kind="classification", shares=True), claim, 0)
    items.take(shares, torch.arange(len(teacher)))
    return items


def test_a_tie_is_decided_at_the_error_rate_only() -> None:
    """Each pass says one of two classes by the throw of a coin: neither leads. Oracle: the rates asked for."""
    repeats, passes, rate = 300, 128, 0.49
    generator = torch.Generator().manual_seed(2)
    throws = torch.rand(passes, repeats, generator=generator)
    teacher = torch.tensor([[0.9, 0.1]]).repeat(repeats, 1)
    claim = Claim(1.0, False, Budget(alpha=rate, beta=rate))

    def with_heads(share: float) -> Votes:
        heads = (throws < share).double()
        return votes(torch.stack([heads, 1 - heads], -1), teacher, claim)

    most = scipy.stats.binom(repeats, rate / repeats).ppf(1 - 1e-6)
    fair = with_heads(0.5)
    assert int(fair.leading.sum()) <= most
    assert int(fair.overtaken.sum()) <= most
    assert bool(with_heads(0.9).leading.all()), "and it does decide"
    assert bool(with_heads(0.1).overtaken.all())


def test_few_images_of_a_population_are_hopeless() -> None:
    """Where all agree and still too few carry the claim, no passes help. Oracle: scipy's beta quantile."""
    claim = Claim(0.95, True, BUDGET)
    for count in (20, 200):
        teacher = torch.tensor([[0.9, 0.1]]).repeat(count, 1)
        items = votes(teacher.repeat(64, 1, 1), teacher, claim)
        lower = scipy.stats.beta.ppf(claim.of_passes.beta, count, 1)
        assert (verdict(items) is Verdict.PASS) is bool(lower >= 0.95)
        assert hopeless(items) is not bool(lower >= 0.95)


def test_a_random_choice_of_places() -> None:
    """Of more places than can be judged: the same from a seed, in order, and each is that of its image."""
    teacher = torch.randn(3, 4, 100, 100, generator=torch.Generator().manual_seed(0))
    task = Task(kind="dense")
    items, again, other = (Votes.of(teacher, task, CLAIM, seed) for seed in (0, 0, 1))
    assert torch.equal(items.chosen, again.chosen)
    assert not torch.equal(items.chosen, other.chosen)
    assert items.count == 16_384
    items.take(teacher[None], torch.arange(3))
    assert torch.allclose(items.sums, items.expected)
    assert items.rows_of(torch.tensor([0, items.count - 1])).tolist() == [0, 2]
    items.take(teacher[None, 1:2], torch.tensor([1]))
    counted = items.counts.unique().tolist()
    assert counted == [1, 2]
    assert torch.allclose(items.mean, items.expected)


def test_the_task_is_shown_in_the_evidence() -> None:
    """With what decided it."""
    subject = Subject(convert(Net(3)), teacher=Net(3), images=images(), labels=torch.arange(N) % 3)
    evidence = measure_teacher_agreement(subject)
    if evidence.verdict is not Verdict.NOT_APPLICABLE:
        assert (evidence.measurements[0].name, evidence.measurements[0].value) == ("task", "classification")
        assert "whole numbers below 3" in str(evidence.measurements[0].note)
