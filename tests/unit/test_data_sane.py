"""``data.sane``: copies, classes, and whether the teacher knows the labels; hard problems are no fault."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pytest_bnn.checks import measure_data_sane, measure_teacher_agreement
from pytest_bnn.checks.data._knowledge import (
    _least_p,
    best_possible,
    chance,
    claimed_wrongly,
    is_at_chance,
    other_order,
)
from pytest_bnn.conversion import convert
from pytest_bnn.data.batch import Batch
from pytest_bnn.data.repeats import repeats
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.counts import at_least_of_fair, at_most, chance_of_equal_counts, chance_of_order
from pytest_bnn.tasks.answers import Answers

CLASSES = 10


class Oracle(nn.Module):
    """Says the class that the first number of an example is, as surely as it is told to, by scores of many values."""

    def __init__(self, classes: int = CLASSES, scale: float = 10.0) -> None:
        super().__init__()
        self.classes, self.scale = classes, scale
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        said = x[:, 0].round().long().clamp(0, self.classes - 1)
        scores = self.scale * self.weight * nn.functional.one_hot(said, self.classes).to(x)
        return scores + 1e-3 * x[:, 1:2]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples(said: Tensor) -> Tensor:
    """Distinct examples of which `Oracle` says these classes."""
    return torch.cat([said[:, None].float(), torch.randn(len(said), 3, generator=seeded(9))], 1)


def measure(said: Tensor, labels: Tensor | None, teacher: nn.Module | None = None, **given: Any) -> Evidence:
    teacher = teacher or Oracle()
    bayesian = convert(nn.Sequential(nn.Linear(4, CLASSES)))
    return measure_data_sane(bayesian, **{"teacher": teacher, "images": examples(said), "labels": labels, **given})


def classes(n: int = 128, count: int = CLASSES, seed: int = 1) -> Tensor:
    return torch.randint(count, (n,), generator=seeded(seed))


def noisy(labels: Tensor, share: float, count: int = CLASSES, seed: int = 2) -> Tensor:
    """Replace a share of labels by random classes."""
    hit = torch.rand(len(labels), generator=seeded(seed)) < share
    return torch.where(hit, torch.randint(count, (len(labels),), generator=seeded(seed + 1)), labels)


def of_shares(shares: list[float], n: int, seed: int = 3) -> Tensor:
    return torch.multinomial(torch.tensor(shares), n, replacement=True, generator=seeded(seed))


@pytest.mark.parametrize("n", [4, 16, 128, 600])
@pytest.mark.parametrize("wrong", [0.0, 0.3, 0.6])
def test_a_teacher_that_knows_passes(n: int, wrong: float) -> None:
    """With label noise, too, and with few examples."""
    said = classes(n)
    evidence = measure(said, noisy(said, wrong))
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert "the teacher is right on" in evidence.headline


@pytest.mark.parametrize("knows", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_hard_problem_never_fails(knows: float, scale: float, seed: int) -> None:
    """However sure the teacher is, and however little better than chance: at most a warning."""
    said = classes(400, seed=seed)
    evidence = measure(said, noisy(said, 1 - knows, seed=seed), Oracle(scale=scale))
    assert evidence.verdict in (Verdict.PASS, Verdict.WARN), evidence.explain()


SOUND: dict[str, tuple[Tensor, Tensor | None, dict[str, Any]]] = {
    "no labels": (classes(), None, {}),
    "few examples": (classes(6), (classes(6) + 1) % CLASSES, {}),
    "labels of a regression": (classes(), torch.randn(128, generator=seeded()), {}),
    "labels of several numbers": (classes(), torch.randn(128, 3, generator=seeded()), {}),
    "99 % of one class, and no other answer": (torch.zeros(400).long(), of_shares([0.99, 0.01], 400), {}),
    "99 % of one class, 4096 of them": (torch.zeros(4096).long(), of_shares([0.99, 0.01], 4096), {}),
    "ignored labels": (classes(), torch.where(classes(seed=8) < 3, -100, classes()), {}),
    "labels beyond the outputs": (classes(), classes() + 300, {}),
    "one class is never learned": (torch.where(classes(400) == 3, 8, classes(400)), classes(400), {}),
    "sorted, and complete": (classes().sort().values, classes().sort().values, {}),
    "few kinds of examples": (classes(), classes(), {"images": classes()[:, None].float().expand(-1, 4).clone()}),
    "no teacher": (classes(), classes(), {"teacher": None}),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_data_pass(name: str) -> None:
    said, labels, given = SOUND[name]
    evidence = measure(said, labels, **given) if given.get("teacher", 1) else _alone(said, labels)
    assert evidence.verdict is Verdict.PASS, evidence.explain()


def _alone(said: Tensor, labels: Tensor | None) -> Evidence:
    return measure_data_sane(convert(nn.Sequential(nn.Linear(4, 10))), images=examples(said), labels=labels)


@pytest.mark.parametrize("positive", [0.03, 0.3, 0.5])
def test_two_classes_by_one_logit(positive: float) -> None:
    """Balanced training makes a teacher worse than the commonest label, which is no fault; flipped labels are one."""

    class Logit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return 6 * self.weight * (x[:, :1] - 0.5)

    labels = of_shares([1 - positive, positive], 600)
    said = noisy(labels, 0.3, 2)
    bayesian = convert(nn.Sequential(nn.Linear(4, 1)))
    given: Any = {"teacher": Logit(), "images": examples(said)}
    assert measure_data_sane(bayesian, labels=labels, **given).verdict is Verdict.PASS
    assert measure_data_sane(bayesian, labels=labels[:, None].float(), **given).verdict is Verdict.PASS
    flipped = measure_data_sane(bayesian, labels=1 - labels, **given)
    assert flipped.verdict is Verdict.FAIL
    assert "its 0 is the labels' 1, its 1 is the labels' 0" in flipped.headline


def test_examples_without_the_preprocessing_of_the_training() -> None:
    """The teacher says one class nearly always and is sure of it; the labels are ten."""
    said = torch.where(torch.arange(128) < 125, 1, 2)
    evidence = measure(said, classes())
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "says class 1 for 125 of 128" in evidence.headline
    assert "normalisation" in evidence.remedy
    assert "order of the classes" in evidence.remedy
    unsure = measure(said, classes(), Oracle(scale=0.5))
    assert unsure.verdict is Verdict.WARN  # a teacher that claims nothing is at chance, and that is all
    assert measure(said[:12], classes(12)).verdict is not Verdict.FAIL  # too few to be sure


@pytest.mark.parametrize("order", ["all", "two", "cycle", "reversed"])
def test_labels_in_another_order(order: str) -> None:
    by = {
        "all": torch.randperm(CLASSES, generator=seeded(4)),
        "two": torch.tensor([0, 1, 2, 8, 4, 5, 6, 7, 3, 9]),
        "cycle": torch.arange(CLASSES).roll(1),
        "reversed": torch.arange(CLASSES).flip(0),
    }[order]
    said = classes(300)
    evidence = measure(said, by[noisy(said, 0.1)])
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "another order" in evidence.headline
    first = int((by != torch.arange(CLASSES)).nonzero()[0])
    assert f"its {first} is the labels' {int(by[first])}" in evidence.headline
    assert evidence.threshold is not None
    assert float(str(evidence.threshold.observed)) < float(str(evidence.threshold.allowed))


def test_labels_of_other_examples_are_a_warning() -> None:
    """No better than chance, as a hard problem may be: nothing more is shown."""
    said = classes(300)
    evidence = measure(said, said[torch.randperm(300, generator=seeded(5))])
    assert evidence.verdict is Verdict.WARN
    assert "no better than chance" in evidence.headline
    assert "each label is its own example's" in evidence.remedy


def test_copies_are_counted() -> None:
    said = torch.full((128,), 3)
    one = examples(said)[:1].repeat(128, 1)
    evidence = measure(said, None, images=one)
    assert evidence.verdict is Verdict.WARN
    assert "All 128 examples are one and the same" in evidence.headline
    four = examples(classes(4)).repeat(32, 1)
    assert "The 128 examples are 4, each of them 32 times" in measure(said, None, images=four).headline
    assert measure(said, None, images=four)["distinct examples"] == 4


@pytest.mark.parametrize("distinct", [1, 4])
def test_copies_show_nothing_of_a_population(distinct: int) -> None:
    teacher: Any = nn.Sequential(nn.Linear(4, 10))
    with torch.no_grad():
        teacher[0].weight *= 100
    copies = examples(classes(distinct)).repeat(128 // distinct, 1)
    given: Any = {"teacher": teacher, "task": "classification"}
    model = convert(teacher, moped_delta=1e-3)
    evidence = measure_teacher_agreement(model, images=copies, population=True, **given)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "nothing of a population" in evidence.headline
    assert "without population" in evidence.headline
    others = measure_teacher_agreement(model, images=examples(classes()), population=True, **given)
    assert others.verdict is not Verdict.NOT_APPLICABLE


def test_one_class_and_the_first_of_sorted_data() -> None:
    evidence = measure(torch.zeros(40).long(), torch.zeros(40).long())
    assert evidence.verdict is Verdict.WARN
    assert "All 40 labels are class 0" in evidence.headline
    assert measure(torch.zeros(12).long(), torch.zeros(12).long()).verdict is Verdict.PASS
    first = torch.arange(4).repeat_interleave(30)
    evidence = measure(first, first)
    assert evidence.verdict is Verdict.WARN
    assert "sorted and end at class 3 of 10" in evidence.headline


def test_a_teacher_with_one_output_for_all() -> None:
    class Dead(Oracle):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(0 * x)

    evidence = measure(classes(), None, Dead())
    assert evidence.verdict is Verdict.WARN
    assert "one output for all of 128 distinct examples" in evidence.headline


def test_copies_of_wrong_answers_count_once() -> None:
    """Ten distinct examples are ten, however often they are repeated."""
    said, labels = torch.ones(10).long(), torch.arange(10)
    images = examples(said).repeat(13, 1)
    evidence = measure_data_sane(
        convert(nn.Sequential(nn.Linear(4, 10))), teacher=Oracle(), images=images, labels=labels.repeat(13)
    )
    assert evidence.verdict is Verdict.WARN
    assert evidence["distinct examples"] == 10


def test_rows_of_several_inputs_are_compared_together() -> None:
    one = torch.arange(6.0).reshape(6, 1) // 2
    found = repeats(Batch.of(one, other=torch.tensor([0, 0, 1, 1, 1, 2])))
    assert (found.distinct, found.first.tolist(), found.counts.tolist()) == (4, [0, 2, 4, 5], [2, 2, 1, 1])
    assert repeats(one).distinct == 3
    assert repeats(one.bfloat16()).copied is False  # three pairs are no rare thing
    assert repeats(torch.arange(128.0).reshape(64, 2).repeat(2, 1)).copied


def test_the_tail_of_unequal_coins_is_that_of_all_their_throws() -> None:
    """By counting every outcome, and where all are equal by the binomial distribution."""
    chances = torch.tensor([0.1, 0.5, 0.9, 0.3], dtype=torch.float64)
    for most in range(-1, 5):
        by_hand = sum(
            math.prod(float(p) if hit else 1 - float(p) for p, hit in zip(chances, throw, strict=True))
            for throw in itertools.product([0, 1], repeat=4)
            if sum(throw) <= most
        )
        assert at_most(most, chances) == pytest.approx(by_hand)
    assert at_most(40, torch.full((300,), 0.2)) == pytest.approx(stats.binom.cdf(40, 300, 0.2))
    assert at_least_of_fair(9, 10) == pytest.approx(stats.binomtest(9, 10, 0.5, "greater").pvalue)


def test_chances_of_counts_and_orders_are_those_of_all_outcomes() -> None:
    draws = [tuple(sorted(draw.count(kind) for kind in range(3))) for draw in itertools.product(range(3), repeat=6)]
    assert chance_of_equal_counts(6, 3) == pytest.approx(draws.count((2, 2, 2)) / len(draws))
    assert chance_of_equal_counts(7, 3) == 0
    orders = list(itertools.permutations([0, 0, 1, 1, 1]))
    assert chance_of_order([2, 0, 3]) == pytest.approx(sum(list(o) == sorted(o) for o in orders) / len(orders))


def answers(said: Tensor, labels: Tensor, sure: float = 0.9) -> Answers:
    return Answers(said, torch.full((len(said),), sure, dtype=torch.float64), labels, CLASSES)


def test_what_is_possible_is_the_best_of_all_pairings() -> None:
    """By trying every pairing of a few answers and labels; chance is the mean over them."""
    said, labels = torch.tensor([1, 1, 2, 1, 0]), torch.tensor([2, 2, 1, 0, 0])
    pairings = [zip(said.tolist(), order, strict=True) for order in itertools.permutations(labels.tolist())]
    right = [sum(one == other for one, other in pairing) for pairing in pairings]
    assert best_possible(answers(said, labels)) == max(right)
    assert chance(answers(said, labels)) * 5 == pytest.approx(sum(right) / len(right))
    assert claimed_wrongly(answers(said, labels)) == pytest.approx(stats.binom.cdf(max(right), 5, 0.45))


@pytest.mark.parametrize("knows", [0.0, 0.02])
def test_false_alarms_are_as_rare_as_declared(knows: float) -> None:
    """At a loose rate, in many data sets of answers without, or with little, relation to the labels."""
    rate, alarms = 0.05, 0
    for seed in range(300):
        labels = classes(60, 4, seed)
        said = noisy(labels, 1 - knows, 4, seed + 1000)
        alarms += bool(other_order(answers(said, labels), rate))
    assert stats.binomtest(alarms, 300, rate, "greater").pvalue > 1e-3


def test_at_chance_needs_enough_labels_to_say_so() -> None:
    wrong = (classes(300) + 1 + classes(300, 9, 7)) % CLASSES
    assert is_at_chance(answers(classes(300), wrong), Budget())
    assert not is_at_chance(answers(classes(6), wrong[:6]), Budget())
    assert not is_at_chance(answers(classes(300), classes(300)), Budget())


def test_a_constant_teacher_is_no_fault_where_one_class_is_nearly_all() -> None:
    class Constant(Oracle):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(0 * x)

    labels = of_shares([0.99, 0.01], 300)
    assert measure(labels, labels, Constant()).verdict is Verdict.PASS
    assert measure(labels, 1 - labels, Constant()).verdict is Verdict.FAIL


def test_knowledge_of_one_rare_class_is_knowledge() -> None:
    """Fisher's exact test, against scipy's own: an accuracy below that of the commonest label may still know."""
    labels = of_shares([0.95, 0.05], 300)
    said = torch.where(labels == 1, 1, noisy(labels, 0.5, 2))
    by_scipy = stats.fisher_exact(_table(said, labels), "greater").pvalue
    assert _least_p(answers(said, labels)) == pytest.approx(2 * by_scipy)  # of two classes, and for both the same
    assert not is_at_chance(answers(said, labels), Budget())


def _table(said: Tensor, labels: Tensor) -> Any:
    return [[int(((said == a) & (labels == b)).sum()) for b in (1, 0)] for a in (1, 0)]


@pytest.mark.parametrize("task", ["auto", "classification"])
def test_several_outputs_of_which_one_is_named(task: Any) -> None:
    """Where no output is known to decide, nothing is said of the labels."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 6)
            self.oracle = Oracle()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.body(x), self.oracle(x)

    said = classes()
    model = Two()
    model.set_submodule("body", convert(nn.Linear(4, 6)))
    given: Any = {"images": examples(said), "labels": (said + 1) % CLASSES}
    assert measure_data_sane(model, teacher=Two(), **given).verdict is Verdict.PASS
    named = measure_data_sane(model, teacher=Two(), output="1", task=task, **given)
    assert named.verdict is Verdict.FAIL, named.explain()
    assert "another order" in named.headline


def test_labels_in_another_order_beside_the_data_are_found() -> None:
    """The data are right; those that claims about predictions are judged on count the classes from another one on."""
    generator = torch.Generator().manual_seed(3)
    classes = torch.randint(CLASSES, (400,), generator=generator)
    inputs = torch.stack([classes.float(), torch.randn(400, generator=generator)], 1)
    given: dict[str, Any] = {"images": inputs[:200], "labels": classes[:200], "teacher": Oracle()}
    right = measure_data_sane(Oracle(), evaluation=(inputs[200:], classes[200:]), **given)
    assert right.verdict is Verdict.PASS, right.explain()
    moved = measure_data_sane(Oracle(), evaluation=(inputs[200:], (classes[200:] + 1) % CLASSES), **given)
    assert moved.verdict is Verdict.FAIL, moved.explain()
    assert moved.headline.startswith("Of the examples of --evaluation: the labels count the classes in another order")
