"""``teacher.agreement`` beyond the share that agrees: classes that are lost, heads beside the first, probabilities.

Networks are linear in their weights, with so little noise that what is broken is what they say.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pytest_bnn import convert
from pytest_bnn.checks import measure_teacher_agreement
from pytest_bnn.checks.teacher._classes import _is_lost, class_counts, exchanged, images_needed
from pytest_bnn.checks.teacher._distances import distance_of, relation
from pytest_bnn.checks.teacher._items import Claim, Votes
from pytest_bnn.checks.teacher._medians import Numbers
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import Task

CLAIM = Claim(0.95, False, Budget())


class Net(nn.Module):
    """Scores that are the first inputs: an image says which class it is, and how surely."""

    def __init__(self, classes: int = 5, end: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(classes, classes)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(classes))
            self.layer.bias.zero_()
        self.end = end
        self.eval()

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return y if self.end is None else self.end(y)


def images(counts: list[int], *, margin: float = 6.0) -> tuple[Tensor, Tensor]:
    """So many images of each class, and the classes."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    noise = 0.3 * torch.randn(len(labels), len(counts), generator=torch.Generator().manual_seed(1))
    return noise + margin * nn.functional.one_hot(labels, len(counts)), labels


def tuned(teacher: Net, how: Callable[[nn.Linear], None] | None = None, end: Any = None) -> nn.Module:
    """A conversion whose weights have moved a little, as training moves them, and by a fault."""
    other = copy.deepcopy(teacher)
    other.end = end or teacher.end
    generator = torch.Generator().manual_seed(2)
    model: Any = convert(other, moped_delta=0.02)
    with torch.no_grad():
        mu, rho = model.layer.mu_weight, model.layer.rho_weight
        mu.add_(0.01 * torch.randn(mu.shape, generator=generator))
        rho.fill_(-4.0).add_(0.1 * torch.randn(rho.shape, generator=generator))
        if how is not None:
            layer = nn.Linear(*reversed(mu.shape))
            layer.weight.data, layer.bias.data = mu, model.layer.mu_bias
            how(layer)
            model.layer.mu_weight.copy_(layer.weight)
            model.layer.mu_bias.copy_(layer.bias)
    return model  # type: ignore[no-any-return]


def judge(teacher: nn.Module, model: nn.Module, x: Tensor, **given: Any) -> Evidence:
    return measure_teacher_agreement(model, teacher=teacher, images=x, stage="finetuned", **given)


def bias(index: int, by: float) -> Callable[[nn.Linear], None]:
    def change(layer: nn.Linear) -> None:
        layer.bias[index] += by

    return change


# Classes.


@pytest.mark.fault("B43", "teacher.agreement")
@pytest.mark.parametrize(
    ("counts", "lost"), [([48, 48, 48, 48, 8], 4), ([8, 190], 0), ([60, 60, 60, 8, 8], 3), ([100, 100, 10], 2)]
)
def test_a_rare_class_that_is_never_said_any_more(counts: list[int], lost: int) -> None:
    """It is 4 % of the images, so that the required share agrees: the class is named, and how many images it has."""
    x, labels = images(counts)
    teacher = Net(len(counts))
    healthy = judge(teacher, tuned(teacher), x, labels=labels)
    assert healthy.verdict is Verdict.PASS, healthy.headline
    found = judge(teacher, tuned(teacher, bias(lost, -12)), x, labels=labels, class_names=list("abcde"))
    assert found.verdict is Verdict.FAIL, found.headline
    assert f"class {lost} ({'abcde'[lost]}) is lost: the mean prediction says it on 0 of the {counts[lost]} images" in (
        found.headline
    )
    assert "Look for that class in the data" in found.remedy


def test_too_few_images_of_a_class_show_nothing() -> None:
    """Three images may disagree by chance, at the share that is allowed to: that is said."""
    x, labels = images([60, 60, 3])
    teacher = Net(3)
    found = judge(teacher, tuned(teacher, bias(2, -12)), x, labels=labels)
    assert found.verdict is Verdict.PASS, found.headline
    assert found["classes judged one by one"] == 2
    assert images_needed(0.05, Budget().alpha / 2 / 3) == 6
    note = next(m.note for m in found.measurements if m.name == "classes judged one by one")
    assert note == "of 3; the others have fewer than the 6 images that it takes"


def test_a_class_that_is_harder_than_others_is_not_lost() -> None:
    """Nearly half of its images are said to be another: many, and not most."""
    x, labels = images([80, 80, 80, 12])
    teacher = Net(4)
    x[-5:, 0] += 5.0
    assert teacher(x).argmax(1).tolist() == labels.tolist()
    found = judge(teacher, tuned(teacher, bias(0, 3.0)), x, labels=labels)
    assert found.verdict is Verdict.PASS, found.headline
    assert float(str(found["least agreement of a class"])) == pytest.approx(7 / 12)


def test_the_chance_of_a_lost_class_is_binomial() -> None:
    """Oracle: scipy's tail, at both sides of the level and of one half."""
    for against, n in ((7, 8), (6, 8), (5, 8), (4, 8), (30, 100)):
        tail = float(stats.binom(n, 0.05).sf(against - 1))
        assert _is_lost(against, n, 0.05, tail * 1.01) is (against > n / 2)
        assert not _is_lost(against, n, 0.05, tail * 0.99)
    for level in (1e-3, 1e-8):
        n = images_needed(0.05, level)
        assert 0.05**n <= level < 0.05 ** (n - 1)


def test_lost_classes_by_chance_are_as_rare_as_stated() -> None:
    """Images that disagree independently at the rate that is allowed: over 4000 sets, at a level of 1 in 20."""
    generator = torch.Generator().manual_seed(0)
    level, wrong = 0.05, 0
    for _ in range(4000):
        against = [int((torch.rand(6, generator=generator) < 0.05).sum()) for _ in range(4)]
        wrong += any(_is_lost(k, 6, 0.05, level / 4) for k in against)
    assert wrong <= stats.binom(4000, level).ppf(1 - 1e-6)


def places(y: Tensor) -> Tensor:
    """One class for each of 4 x 4 places, all places of an image alike, and one place that is another class."""
    return y[:, :, None, None].expand(-1, -1, 4, 4) + torch.zeros(4, 4)


def test_a_class_of_places_is_judged_by_images() -> None:
    """Places of an image depend on each other: 16 of them in one image are one observation."""
    x, _ = images([60, 60, 8])
    teacher = Net(3, places)
    labels = teacher(x).argmax(1)
    assert judge(teacher, tuned(teacher), x, labels=labels, min_agreement=0.9).verdict is Verdict.PASS
    found = judge(teacher, tuned(teacher, bias(2, -12)), x, labels=labels, min_agreement=0.9)
    assert found.verdict is Verdict.FAIL
    assert "class 2 is lost: the mean prediction says it on 0 of the 8 images in which it has places" in found.headline
    few, _ = images([60, 60, 2])
    found = judge(teacher, tuned(teacher, bias(2, -12)), few, labels=teacher(few).argmax(1), min_agreement=0.9)
    assert found.verdict is Verdict.PASS, found.headline


def one_logit(y: Tensor) -> Tensor:
    return y[:, 1:] - y[:, :1]


def test_a_rare_side_of_a_threshold() -> None:
    x, labels = images([190, 8])
    teacher = Net(2, one_logit)
    assert judge(teacher, tuned(teacher), x, labels=labels).verdict is Verdict.PASS
    found = judge(teacher, tuned(teacher, bias(1, -12)), x, labels=labels)
    assert found.verdict is Verdict.FAIL
    assert "class 1 is lost" in found.headline


@pytest.mark.fault("B45", "teacher.agreement")
@pytest.mark.parametrize("order", [[1, 0, 2, 3, 4], [1, 2, 3, 4, 0], [4, 3, 2, 1, 0]])
def test_classes_in_another_order_are_said_to_be(order: list[int]) -> None:
    x, labels = images([20] * 5)
    teacher = Net()

    def permute(layer: nn.Linear) -> None:
        layer.weight.copy_(layer.weight[order])
        layer.bias.copy_(layer.bias[order])

    found = judge(teacher, tuned(teacher, permute), x, labels=labels)
    assert found.verdict is Verdict.FAIL
    assert "the classes are in another order: it says" in found.headline
    assert f"{order[0]} as 0" in found.headline
    assert "order of classes" in found.remedy


def test_random_answers_are_no_order() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(60, 4, generator=generator)
    items = Votes.of(teacher, Task(kind="classification"), CLAIM, 0)
    items.take(torch.randn(4, 60, 4, generator=generator), torch.arange(60))
    assert exchanged(items) == ""
    assert sum(count.images for count in class_counts(items)) == 60


# Labels that the teacher contradicts, and images that are too close to call.


def test_where_the_teacher_is_wrong_a_trained_model_may_differ() -> None:
    """It learned the labels: on a tenth of the images it says them, and the teacher does not."""
    x, labels = images([20, 20, 20, 20, 20])
    teacher = Net()
    model = tuned(teacher)
    wrong = torch.arange(0, 100, 10)

    def answers(y: Tensor) -> Tensor:
        y = y.clone()
        y[wrong] = y[wrong].roll(1, 1)
        return y

    teacher.end = answers
    found = judge(teacher, model, x, labels=labels)
    assert found.verdict is Verdict.PASS, found.headline
    assert any("10 images are left out, on which the teacher contradicts their labels" in note for note in found.notes)
    assert judge(teacher, model, x, task="classification").verdict is Verdict.FAIL, "without labels nobody is right"
    assert judge(teacher, model, x, labels=(labels + 1) % 5).verdict is Verdict.FAIL, "a teacher at chance is no judge"


class Tossing(nn.Module):
    """The model's answers, and for faint images one of two by the toss of a coin."""

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__()
        self.model, self.share = model, share

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        faint = (x.max(1, keepdim=True).values < 4) & (torch.rand(()) > self.share)
        return torch.where(faint, y.roll(1, 1), y)


def test_images_that_are_too_close_to_call_leave_nothing_open() -> None:
    """Seven of a hundred images are near ties of the model: no number of passes that is usual decides them."""
    x, labels = images([20] * 5)
    x[:70:10] *= 0.5
    teacher = Net()
    model = Tossing(tuned(teacher), 0.55)
    found = judge(teacher, model, x, labels=labels)
    assert found.verdict is Verdict.NOT_APPLICABLE, found.headline
    assert "7 images are too close to call for 128 passes" in found.headline
    assert "--samples" in found.headline
    few = judge(teacher, model, x, labels=labels, max_passes=16)
    assert few.verdict is Verdict.INCONCLUSIVE, "fewer passes than by default are the user's own choice"
    against = judge(teacher, Tossing(tuned(teacher), 0.4), x, labels=labels)
    assert against.verdict is Verdict.INCONCLUSIVE, "where the mean so far does not agree it stays open"


# Probabilities.


def scaled(by: float) -> Callable[[Tensor], Tensor]:
    return lambda y: by * y


@pytest.mark.parametrize("by", [0.25, 0.1])
@pytest.mark.parametrize("binary", [False, True])
def test_a_temperature_left_in_the_head_is_a_warning(by: float, binary: bool) -> None:
    """Each class is the teacher's, and the probabilities are not; the factor is shown."""
    x, labels = images([20, 20] if binary else [20] * 5)
    end = one_logit if binary else None
    teacher = Net(2 if binary else 5, end)
    healthy = judge(teacher, tuned(teacher), x, labels=labels)
    assert healthy.verdict is Verdict.PASS
    assert float(str(healthy["distance without noise"])) < 0.02
    inner = end or scaled(1.0)
    cold = judge(teacher, tuned(teacher, end=lambda y: by * inner(y)), x, labels=labels)
    if binary and by == 0.25:
        assert cold.verdict is Verdict.PASS, "a sigmoid of 1.5 in place of 6 is .18 away"
        return
    assert cold.verdict is Verdict.WARN, cold.headline
    assert "The leading classes are the teacher's on" in cold.headline
    said = re.search(r"its scores are (\S+) times the teacher's", cold.headline)
    assert said is not None
    assert float(said[1]) == pytest.approx(by, rel=0.02)
    assert "temperature" in cold.remedy
    assert judge(teacher, tuned(teacher, end=lambda y: by * inner(y)), x, labels=labels, distance=1).verdict in (
        Verdict.PASS,
        Verdict.NOT_APPLICABLE,
    )


@pytest.mark.fault("B47", "teacher.agreement")
def test_softmax_twice_is_a_warning() -> None:
    """The model gives probabilities of probabilities, where the teacher gives probabilities."""
    x, labels = images([20] * 5)
    teacher = Net(end=lambda y: torch.softmax(y, 1))
    assert judge(teacher, tuned(teacher), x, labels=labels).verdict is Verdict.PASS
    twice = judge(teacher, tuned(teacher, end=lambda y: torch.softmax(torch.softmax(y, 1), 1)), x, labels=labels)
    assert twice.verdict is Verdict.WARN, twice.headline


def test_one_of_two_gives_probabilities() -> None:
    """Each is read as what it is: a deployed model that returns mean probabilities agrees with a teacher of scores."""
    x, labels = images([20] * 5)
    teacher = Net()
    found = judge(teacher, tuned(teacher, end=lambda y: torch.softmax(y, 1)), x, labels=labels)
    assert found.verdict is Verdict.PASS, found.headline
    assert any("The model gives probabilities, the teacher scores" in note for note in found.notes)
    teacher = Net(end=lambda y: torch.softmax(y, 1))
    found = judge(teacher, tuned(teacher, end=scaled(1.0)), x, labels=labels)
    assert found.verdict is Verdict.PASS, found.headline
    assert any("The model gives scores, the teacher probabilities" in note for note in found.notes)


def test_a_model_that_learned_to_be_surer_is_healthy() -> None:
    """A teacher of few epochs is unsure, and the fine-tuned model is not; nor is one that noise makes unsure."""
    x, labels = images([20] * 5, margin=1.5)
    teacher = Net()
    surer = judge(teacher, tuned(teacher, end=scaled(8.0)), x, labels=labels)
    assert surer.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE), surer.headline
    x, labels = images([20] * 5)
    noisy: Any = tuned(teacher)
    with torch.no_grad():
        noisy.layer.rho_weight.fill_(-1.2)
    found = judge(teacher, noisy, x, labels=labels)
    assert found.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE), found.headline
    assert float(str(found["distance of probabilities"])) > 2 * float(str(found["distance without noise"]))


def test_distances_are_total_variation() -> None:
    """Oracle: half of the sum of differences by torch, of the softmax at mu."""
    x, labels = images([10] * 5)
    teacher, model = Net(), tuned(Net(), end=scaled(0.5))
    subject = Subject(model, teacher=teacher, images=x, labels=labels, stage="finetuned")
    scores = teacher(x).detach()
    items = Votes.of(scores, Task(kind="classification"), CLAIM, 0)
    items.take(subject.bank.draw(0, 2), torch.arange(50))
    found = distance_of(subject, items, scores, items.task, labels)
    layer: Any = model.layer
    calm = torch.softmax(0.5 * (x @ layer.mu_weight.T + layer.mu_bias), 1).detach()
    oracle = 0.5 * (calm - torch.softmax(scores, 1)).abs().sum(1).mean()
    assert found is not None
    assert found.calm == pytest.approx(float(oracle), rel=1e-4)
    assert not found.surer
    assert found.scale.startswith("its scores are 0.5")


# Several outputs.


class Heads(nn.Module):
    """Two questions about one image, with the labels of both by name."""

    def __init__(self, *, regression: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.kind = nn.Linear(5, 5), nn.Linear(5, 5)
        with torch.no_grad():
            for layer in (self.layer, self.kind):
                layer.weight.copy_(torch.eye(5))
                layer.bias.zero_()
        self.regression = regression
        self.eval()

    def forward(self, x: Tensor) -> Any:
        second = self.kind(x.flip(1))
        return {"colour": self.layer(x), "kind": second[:, :1] if self.regression else second}


def heads(regression: bool, how: Callable[[nn.Linear], None] | None) -> tuple[nn.Module, nn.Module, Any]:
    x, labels = images([20] * 5)
    teacher, other = Heads(regression=regression), Heads(regression=regression)
    if how is not None:
        with torch.no_grad():
            how(other.kind)
    second = x[:, 4:] if regression else labels.flip(0)
    return teacher, convert(other, moped_delta=0.02), (x, {"colour": labels, "kind": second})


def negate(layer: nn.Linear) -> None:
    layer.weight.neg_()


@pytest.mark.fault("B46", "teacher.agreement")
@pytest.mark.parametrize("regression", [False, True])
def test_a_second_head_that_is_broken_is_named(regression: bool) -> None:
    """Labels say what each means; with the first one sound, the second decides."""
    teacher, model, (x, labels) = heads(regression, None)
    healthy = judge(teacher, model, x, labels=labels)
    assert healthy.verdict is Verdict.PASS, healthy.headline
    assert any(m.name.startswith("output ") for m in healthy.measurements), "both are judged"
    teacher, model, (x, labels) = heads(regression, negate)
    found = judge(teacher, model, x, labels=labels)
    assert found.verdict is Verdict.FAIL, found.headline
    assert found.headline.startswith("Output kind: ")
    assert found.certainty is not None
    assert found.certainty.alpha == Budget().alpha
    only = judge(teacher, model, x, labels=labels["colour"], output="colour")
    assert only.verdict is Verdict.PASS, "the output that the user names is the only one"


def test_outputs_of_which_nothing_is_known_are_not_judged() -> None:
    """Features beside scores may be anything after a fine-tuning."""

    class WithFeatures(Heads):
        def forward(self, x: Tensor) -> Any:
            return {"logits": self.layer(x), "features": self.kind(x)}

    x, labels = images([20] * 5)
    teacher, other = WithFeatures(), WithFeatures()
    with torch.no_grad():
        other.kind.weight.neg_()
    found = judge(teacher, convert(other, moped_delta=0.02), x, labels=labels)
    assert found.verdict is Verdict.PASS, found.headline


# Regressions.


@pytest.mark.parametrize(("slope", "offset"), [(0.05, -5.0), (-1.0, 0.0), (20.0, 100.0)])
def test_the_relation_of_a_regression_is_a_line(slope: float, offset: float) -> None:
    """Oracle: scipy's linear regression; what no line explains is not said to follow one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    y = torch.stack([x[:, 0], slope * x[:, 1] + offset + 0.01 * abs(slope) * x[:, 0]], 1)
    items = Numbers(CLAIM, x, torch.tensor([0.5, 0.5], dtype=torch.float64))
    items.take(y.expand(4, 50, 2), torch.arange(50))
    words, opposite = relation(items)
    line = stats.linregress(x[:, 1].numpy(), y[:, 1].numpy())
    sign = "+" if line.intercept >= 0 else "-"
    wanted = f"output 1 (from 0) is {line.slope:.3g} times the teacher's {sign} {abs(line.intercept):.3g} (correlation "
    assert words.startswith(wanted)
    assert opposite is (slope < 0)
    items = Numbers(CLAIM, x, torch.tensor([0.5, 0.5], dtype=torch.float64))
    items.take(torch.randn(4, 50, 2, generator=generator), torch.arange(50))
    assert relation(items) == ("", False)


@pytest.mark.parametrize(("delta", "words"), [(0.01, "the noise is not the cause"), (6.0, "smaller moped_delta")])
def test_the_remedy_blames_the_noise_only_where_it_is_to_blame(delta: float, words: str) -> None:
    """A network of other weights disagrees without noise as well; one of the teacher's own does not."""
    torch.manual_seed(0)
    teacher, other = (nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8)).eval() for _ in range(2))
    with torch.no_grad():
        teacher.get_parameter("2.weight").mul_(8)  # sure of its classes
    model = convert(other if delta == 0.01 else teacher, moped_delta=delta)
    images = 3 * torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    found = measure_teacher_agreement(model, teacher=teacher, images=images, task="classification")
    # So much noise leaves every class open, with the same remedy.
    assert found.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE), found.explain()
    assert words in found.remedy


# A destroyed model.


def noisy(teacher: Net, rho: float) -> nn.Module:
    model: Any = tuned(teacher)
    with torch.no_grad():
        model.layer.rho_weight.fill_(rho)
        model.layer.rho_bias.fill_(rho)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize(("classes", "rho"), [(5, 6.0), (5, 20.0), (10, 9.0), (3, 9.0), (8, 4.0)])
def test_a_model_that_noise_destroyed_probably_fails(classes: int, rho: float) -> None:
    """No number of passes makes a use of it: the words say so, and the remedy is sigma."""
    x, labels = images([24] * classes, margin=2.0)
    teacher = Net(classes)
    found = judge(teacher, noisy(teacher, rho), x, labels=labels)
    assert found.verdict is Verdict.INCONCLUSIVE, found.headline
    assert found["agreement of the mean prediction"] < 0.8  # type: ignore[operator]
    assert found.headline.startswith("Probably fails: the mean prediction agrees on ")
    assert "Make sigma smaller" in found.remedy
    assert "without noise the model agrees on 100 % of the images" in found.remedy
    assert "--samples" not in found.remedy


def test_near_the_threshold_more_passes_are_the_remedy() -> None:
    """A point estimate of 85 % says little with every image open."""
    x, labels = images([40] * 5, margin=2.0)
    teacher = Net(5)
    found = judge(teacher, noisy(teacher, 3.0), x, labels=labels)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert not found.headline.startswith("Probably fails")
    assert "--samples" in found.remedy


def test_a_destroyed_model_that_is_wrong_without_noise_too_is_not_called_noisy() -> None:
    """The cause is only said where it was shown."""
    x, labels = images([24] * 5, margin=2.0)
    teacher = Net(5)
    model: Any = noisy(teacher, 6.0)
    with torch.no_grad():
        model.layer.mu_weight.copy_(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))
    found = judge(teacher, model, x, labels=labels)
    assert found.verdict is Verdict.INCONCLUSIVE, found.headline
    assert found.headline.startswith("Probably fails")
    assert "the noise is not the cause" in found.remedy


@pytest.mark.parametrize(("classes", "rho"), [(5, -4.0), (5, -1.0), (10, -2.0), (3, 0.0), (8, 1.0)])
def test_a_healthy_model_never_probably_fails(classes: int, rho: float) -> None:
    x, labels = images([24] * classes, margin=4.0)
    teacher = Net(classes)
    found = judge(teacher, noisy(teacher, rho), x, labels=labels)
    assert found.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE), found.headline
    assert "probably fails" not in found.headline
