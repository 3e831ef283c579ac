"""``loss.data``: the data term as people write it. What is right is not accused, what is wrong is, by its own cause."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert, kl
from pytest_bnn.checks import measure_kl_loss, measure_loss_data
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.tasks.likelihood import pull_of
from pytest_bnn.tasks.task import Task

Batch = tuple[Tensor, Any]
Loss = Callable[[nn.Module, Batch], Tensor]
ROWS, CLASSES, M = 24, 4, 30
ESTIMATOR = "Reparameterization"


def teacher(outputs: int = CLASSES, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    between: list[nn.Module] = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(6, 16), *between, nn.ReLU(), nn.Linear(16, outputs)).eval()


def given(labels: str = "classes") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(ROWS, 6, generator=generator)
    kinds: dict[str, Tensor] = {
        "classes": torch.randint(CLASSES, (ROWS,), generator=generator),
        "sides": torch.randint(2, (ROWS, 1), generator=generator).float(),
        "numbers": torch.randn(ROWS, 1, generator=generator),
    }
    return {"images": images, "labels": kinds[labels]}


def with_kl(term: Loss) -> Loss:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value: Tensor = term(model, batch) + get_kl_loss(model) / M
        return value

    return loss


def judged(term: Loss, *, labels: str = "classes", outputs: int = CLASSES, how: str = ESTIMATOR) -> Evidence:
    network = teacher(1 if labels != "classes" else outputs)
    model = convert(network, type=how, moped_delta=0.1)  # type: ignore[arg-type]
    return measure_loss_data(model, teacher=network, loss=with_kl(term), **given(labels))


# --- what is right ------------------------------------------------------------------------------------------------


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def focal(model: nn.Module, batch: Batch) -> Tensor:
    shares = model(batch[0]).log_softmax(1).gather(1, batch[1][:, None])[:, 0]
    value: Tensor = -((1 - shares.exp()) ** 2 * shares).mean()
    return value


def of_mean_scores(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(torch.stack([model(batch[0]) for _ in range(3)]).mean(0), batch[1])


def of_mean_shares(model: nn.Module, batch: Batch) -> Tensor:
    shares = torch.stack([model(batch[0]).softmax(1) for _ in range(3)]).mean(0)
    return functional.nll_loss(shares.log(), batch[1])


def by_several(model: nn.Module, batch: Batch) -> Tensor:
    return torch.stack([cross_entropy(model, batch) for _ in range(3)]).mean()


def shuffled(model: nn.Module, batch: Batch) -> Tensor:
    order = torch.randperm(len(batch[0]))
    return cross_entropy(model, (batch[0][order], batch[1][order]))


def augmented(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model, (batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]))


def mixed(model: nn.Module, batch: Batch) -> Tensor:
    order = torch.randperm(len(batch[0]))
    out = model(0.7 * batch[0] + 0.3 * batch[0][order])
    return 0.7 * functional.cross_entropy(out, batch[1]) + 0.3 * functional.cross_entropy(out, batch[1][order])


def with_ignored_rows(model: nn.Module, batch: Batch) -> Tensor:
    labels = batch[1].clone()
    labels[::3] = -100
    return functional.cross_entropy(model(batch[0]), labels)


def distilled(temperature: float, hard: float = 0.0, squared: bool = True) -> Loss:
    network = teacher()

    def term(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = (network(batch[0]) / temperature).softmax(1)
        out = model(batch[0])
        soft = functional.kl_div((out / temperature).log_softmax(1), target, reduction="batchmean")
        soft = soft * temperature**2 if squared else soft
        return (1 - hard) * soft + hard * functional.cross_entropy(out, batch[1])

    return term


HEALTHY: dict[str, Loss] = {
    "cross-entropy": cross_entropy,
    "its sum": lambda m, b: functional.cross_entropy(m(b[0]), b[1], reduction="sum"),
    "an eighth of it": lambda m, b: cross_entropy(m, b) / 8,
    "log_softmax and nll_loss": lambda m, b: functional.nll_loss(m(b[0]).log_softmax(1), b[1]),
    "smoothed labels": lambda m, b: functional.cross_entropy(m(b[0]), b[1], label_smoothing=0.1),
    "class weights": lambda m, b: functional.cross_entropy(m(b[0]), b[1], torch.tensor([1.0, 2.0, 0.5, 1.0])),
    "ignored rows": with_ignored_rows,
    "focal": focal,
    "margins": lambda m, b: functional.multi_margin_loss(m(b[0]), b[1]),
    "distillation": distilled(1.0),
    "distillation with T^2": distilled(4.0),
    "distillation and labels": distilled(4.0, 0.3),
    "distance to the teacher": lambda m, b: functional.mse_loss(m(b[0]), teacher()(b[0]).detach()),
    "mean scores": of_mean_scores,
    "mean shares": of_mean_shares,
    "several passes": by_several,
    "shuffled together": shuffled,
    "augmented": augmented,
    "mixed": mixed,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_right_data_term_passes(name: str) -> None:
    found = judged(HEALTHY[name], how="Flipout" if name in ("cross-entropy", "mean shares", "mixed") else ESTIMATOR)
    assert found.verdict is Verdict.PASS, found.explain()


class Masked(nn.Module):
    """Leaves the last class out, as a vocabulary that was padded does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(torch.arange(x.shape[1]) == x.shape[1] - 1, -1e9)


@pytest.mark.parametrize("margin", [12.0, 40.0, 200.0])
@pytest.mark.parametrize("masked", [False, True])
def test_a_network_that_is_sure_of_its_labels_is_not_blamed(margin: float, masked: bool) -> None:
    """What is left of the pull is rounding: on a score beside the label's, which has none any more."""
    network: Any = nn.Sequential(nn.Linear(6, CLASSES), Masked() if masked else nn.Identity()).eval()
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[:, :CLASSES] = margin * torch.eye(CLASSES)
        network[0].bias.zero_()
    labels = torch.arange(ROWS) % (CLASSES - 1)
    images = functional.one_hot(labels, 6).float()
    model = convert(network, moped_delta=0.01)
    found = measure_loss_data(model, teacher=network, images=images, labels=labels, loss=with_kl(cross_entropy))
    assert found.verdict is not Verdict.FAIL, found.explain()
    weight = measure_kl_loss(model, images=images, labels=labels, loss=with_kl(cross_entropy), num_batches=M)
    assert weight.verdict is Verdict.PASS, weight.explain()


NUMBERS: dict[str, tuple[str, Loss]] = {
    "mse": ("numbers", lambda m, b: functional.mse_loss(m(b[0]), b[1])),
    "l1": ("numbers", lambda m, b: functional.l1_loss(m(b[0]), b[1])),
    "huber": ("numbers", lambda m, b: functional.smooth_l1_loss(m(b[0]), b[1])),
    "quantile": ("numbers", lambda m, b: torch.maximum(0.9 * (b[1] - m(b[0])), 0.1 * (m(b[0]) - b[1])).mean()),
    "logit": ("sides", lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[1])),
    "share": ("sides", lambda m, b: functional.binary_cross_entropy(m(b[0]).sigmoid(), b[1])),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_right_data_term_of_numbers_passes_and_its_negative_fails(name: str) -> None:
    labels, term = NUMBERS[name]
    found = judged(term, labels=labels)
    assert found.verdict is Verdict.PASS, found.explain()
    wrong = judged(lambda m, b: -term(m, b), labels=labels)
    assert wrong.verdict is Verdict.FAIL, wrong.explain()
    assert "away from their labels" in wrong.headline


class Branch(nn.Module):
    """A second head that the loss does not use, a branch whose factor begins at 0, a unit that never fires."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.inner = nn.Linear(6, 16), nn.Linear(16, 16)
        self.gamma = nn.Parameter(torch.zeros(16))
        self.head, self.unused = nn.Linear(16, CLASSES), nn.Linear(16, 3)
        self.dead = nn.Linear(16, 16)
        with torch.no_grad():
            self.dead.bias.fill_(-1e3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.body(x))
        h = h + self.gamma * self.inner(h) + torch.relu(self.dead(h))
        return {"logits": self.head(h), "other": self.unused(h)}


def test_a_gradient_of_0_that_the_network_explains_is_no_fault() -> None:
    network = Branch().eval()
    model = convert(network, moped_delta=0.01)

    def term(m: nn.Module, b: Batch) -> Tensor:
        return functional.cross_entropy(m(b[0])["logits"], b[1])

    found = measure_loss_data(model, teacher=network, loss=with_kl(term), **given())
    assert found.verdict is Verdict.PASS, found.explain()
    assert "No data come to `unused`" in found.explain()


def test_blank_inputs_say_nothing() -> None:
    network = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    images, labels = torch.zeros(ROWS, 6), torch.arange(ROWS) % 3
    found = measure_loss_data(convert(network), images=images, labels=labels, loss=with_kl(cross_entropy))
    assert found.verdict is not Verdict.FAIL, found.explain()


def test_a_bias_in_front_of_batch_norm_is_healthy_in_train_mode() -> None:
    network = teacher(norm=True)
    model = convert(network, moped_delta=0.1)

    def term(m: nn.Module, b: Batch) -> Tensor:
        m.train()
        return cross_entropy(m, b)

    found = measure_loss_data(model, teacher=network, loss=with_kl(term), **given())
    assert found.verdict is Verdict.PASS, found.explain()
    assert "in eval and train mode" in found.headline


# --- what is wrong ------------------------------------------------------------------------------------------------


def rolled(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model, (batch[0].roll(1, 0), batch[1]))


def shuffled_labels(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model, (batch[0], batch[1][torch.randperm(len(batch[1]))]))


def without_grad(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        features = model[:2](batch[0])  # type: ignore[index]
    return functional.cross_entropy(model[2](features), batch[1])  # type: ignore[index]


def detached_features(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model[2](model[:2](batch[0]).detach()), batch[1])  # type: ignore[index]


def of_a_copy(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(copy.deepcopy(model), batch)


WRONG: dict[str, tuple[Loss, str]] = {
    "item": (lambda m, b: torch.tensor(cross_entropy(m, b).item()), "detached"),
    "detached": (lambda m, b: cross_entropy(m, b).detach(), "detached"),
    "by class": (lambda m, b: (m(b[0]).argmax(1) != b[1]).float().mean(), "detached"),
    "none": (lambda m, b: 0.0 * b[0].sum() + m(b[0]).detach().sum() * 0, "no data term"),
    "factor 0": (lambda m, b: 0 * cross_entropy(m, b), "does not change with the outputs"),
    "one score": (lambda m, b: m(b[0])[:, :1].softmax(1).log().sum(), "does not change with the outputs"),
    "backbone without gradients": (without_grad, "cut off from 1 of 2 layers, `0` first"),
    "features detached": (detached_features, "cut off from 1 of 2 layers, `0` first"),
    "a copy": (of_a_copy, "never calls it"),
    "maximised": (lambda m, b: -cross_entropy(m, b), "away from their labels"),
    "log-likelihood minimised": (lambda m, b: m(b[0]).log_softmax(1).gather(1, b[1][:, None]).mean(), "away from"),
    "several, maximised": (lambda m, b: -by_several(m, b), "away from their labels"),
    "scores": (lambda m, b: functional.nll_loss(m(b[0]), b[1]), "scores for log-probabilities"),
    "scores by hand": (lambda m, b: -m(b[0]).gather(1, b[1][:, None]).mean(), "scores for log-probabilities"),
    "images rolled": (rolled, "labels of other rows"),
    "labels shuffled": (shuffled_labels, "labels of other rows"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.fault("B24", "loss.data")
def test_a_wrong_data_term_is_found(name: str) -> None:
    """B24: a data term that is detached, constant, of another network or other rows, or has another sign."""
    term, words = WRONG[name]
    found = judged(term, how="Flipout" if name in ("item", "maximised", "features detached") else ESTIMATOR)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert words in found.headline


def sure(how: str) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """A network that is sure of its answers, its conversion, and examples with the labels that it gives."""
    network = teacher()
    with torch.no_grad():
        network.get_submodule("2").get_parameter("weight").mul_(200)
    images = given()["images"]
    return (
        network,
        convert(network, type=how, moped_delta=0.01),  # type: ignore[arg-type]
        {"images": images, "labels": network(images).argmax(1)},
    )


@pytest.mark.parametrize("how", ["Reparameterization", "Flipout"])
@pytest.mark.parametrize("wrong", [rolled, lambda m, b: cross_entropy(m, (b[0], b[1].sort().values))])
@pytest.mark.fault("B24", "loss.data")
def test_labels_of_other_rows_are_found_where_the_network_is_sure(wrong: Loss, how: str) -> None:
    """B24: a trained network is sure of its classes: rows that are pulled toward another one are pulled strongly."""
    network, model, data = sure(how)
    found = measure_loss_data(model, teacher=network, loss=with_kl(wrong), **data)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "labels of other rows" in found.headline


@pytest.mark.parametrize(
    "name", ["cross-entropy", "class weights", "ignored rows", "shuffled together", "smoothed labels"]
)
def test_a_sure_network_is_not_accused(name: str) -> None:
    network, model, data = sure("Reparameterization")
    found = measure_loss_data(model, teacher=network, loss=with_kl(HEALTHY[name]), **data)
    assert found.verdict is Verdict.PASS, found.explain()


def test_a_sure_network_with_some_wrong_labels_is_not_accused() -> None:
    network, model, data = sure("Reparameterization")
    data["labels"][::4] = (data["labels"][::4] + 1) % CLASSES
    found = measure_loss_data(model, teacher=network, loss=with_kl(cross_entropy), **data)
    assert found.verdict is Verdict.PASS, found.explain()


def squared(model: nn.Module, batch: Batch) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def sides(model: nn.Module, batch: Batch) -> Tensor:
    return functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def in_another_order(term: Loss, of: int) -> Loss:
    """A loss whose inputs (0) or labels (1) are rolled by one place."""
    return lambda m, b: term(m, (b[0].roll(1, 0) if of == 0 else b[0], b[1].roll(1, 0) if of == 1 else b[1]))


def broadcast(model: nn.Module, batch: Batch) -> Tensor:
    value: Tensor = (model(batch[0]) - batch[1].squeeze(1)).square().mean()
    return value


MISPAIRED: dict[str, tuple[Loss, str, str]] = {
    "squared distance, labels rolled": (in_another_order(squared, 1), "numbers", "labels of other rows"),
    "squared distance, inputs rolled": (in_another_order(squared, 0), "numbers", "labels of other rows"),
    "sides, labels rolled": (in_another_order(sides, 1), "sides", "labels of other rows"),
    "sides, inputs rolled": (in_another_order(sides, 0), "sides", "labels of other rows"),
    "labels broadcast": (broadcast, "numbers", "toward the mean of all labels"),
    "labels broadcast, summed": (lambda m, b: 32 * broadcast(m, b), "numbers", "toward the mean of all labels"),
    "sides, maximised": (lambda m, b: -sides(m, b), "sides", "maximised"),
    "distance, maximised": (lambda m, b: -squared(m, b), "numbers", "maximised"),
}


def test_sides_that_are_exchanged_in_the_loss_are_a_warning() -> None:
    """A mistake as a rule, and now and then a convention."""
    found = judged(lambda m, b: sides(m, (b[0], 1 - b[1])), labels="sides")
    assert found.verdict is Verdict.WARN, found.explain()
    assert "0 and 1 are exchanged" in found.headline


@pytest.mark.parametrize("name", MISPAIRED)
@pytest.mark.fault("B24", "loss.data")
def test_labels_of_other_rows_are_found_among_numbers(name: str) -> None:
    """B24: numbers and sides that are paired with the labels of other rows, or with all of them at once."""
    term, labels, words = MISPAIRED[name]
    found = judged(term, labels=labels)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert words in found.headline


RIGHT: dict[str, tuple[Loss, str]] = {
    "squared distance": (squared, "numbers"),
    "shuffled together": (lambda m, b: squared(m, (b[0].flip(0), b[1].flip(0))), "numbers"),
    "absolute distance": (lambda m, b: functional.l1_loss(m(b[0]), b[1]), "numbers"),
    "Huber": (lambda m, b: functional.huber_loss(m(b[0]), b[1], delta=0.1), "numbers"),
    "standardised labels": (lambda m, b: squared(m, (b[0], (b[1] - 1) / 3)), "numbers"),
    "labels far away": (lambda m, b: squared(m, (b[0], b[1] + 1e4)), "numbers"),
    "weights of rows": (lambda m, b: ((m(b[0]) - b[1]).square() * b[1].exp()).mean(), "numbers"),
    "sides": (sides, "sides"),
    "sides shuffled together": (lambda m, b: sides(m, (b[0].flip(0), b[1].flip(0))), "sides"),
    "some sides wrong": (lambda m, b: sides(m, (b[0], torch.cat([1 - b[1][:4], b[1][4:]]))), "sides"),
    "sides, weighted": (
        lambda m, b: functional.binary_cross_entropy_with_logits(m(b[0]), b[1], pos_weight=torch.tensor(3.0)),
        "sides",
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_numbers_with_their_own_labels_are_not_accused(name: str) -> None:
    term, labels = RIGHT[name]
    found = judged(term, labels=labels)
    assert found.verdict is Verdict.PASS, found.explain()


def test_one_straight_line_through_centred_numbers_is_not_accused() -> None:
    """Labels that are twice the outputs pull as their mean would, save that each pull is toward the row's own."""
    images = torch.linspace(-1, 1, ROWS)[:, None]
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    model = convert(network, moped_delta=0.1)
    labels = 2 * network(images).detach()
    found = measure_loss_data(model, teacher=network, loss=with_kl(squared), images=images, labels=labels)
    assert found.verdict is Verdict.PASS, found.explain()


class Shares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1)


TWICE: dict[str, Loss] = {
    "in the loss": lambda m, b: functional.cross_entropy(m(b[0]).softmax(1), b[1]),
    "by hand": lambda m, b: functional.nll_loss(m(b[0]).softmax(1).log_softmax(1), b[1]),
    "summed": lambda m, b: functional.cross_entropy(m(b[0]).softmax(1), b[1], reduction="sum"),
    "class weights": lambda m, b: functional.cross_entropy(
        m(b[0]).softmax(1), b[1], torch.tensor([1.0, 2.0, 0.5, 1.0])
    ),
    "ignored rows": lambda m, b: with_ignored_rows(lambda x: m(x).softmax(1), b),  # type: ignore[arg-type]
    "several passes": lambda m, b: torch.stack([functional.cross_entropy(m(b[0]).softmax(1), b[1])] * 2).mean(),
}


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.fault("B24", "loss.data")
def test_probabilities_that_are_taken_for_scores_are_a_warning(name: str) -> None:
    """B24: the loss cannot come below log(1 + (classes - 1) / e), however right the network is."""
    found = judged(TWICE[name], how="Flipout" if name == "summed" else ESTIMATOR)
    assert found.verdict is Verdict.WARN, found.explain()
    assert "takes probabilities for scores" in found.headline


def of_a_network_of_shares(term: Loss) -> Evidence:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES), Shares()).eval()
    return measure_loss_data(convert(network, moped_delta=0.1), loss=with_kl(term), **given())


@pytest.mark.fault("B24", "loss.data")
def test_a_network_of_probabilities_is_told_from_its_loss() -> None:
    """The softmax may lie in the network; the logarithm of what it gives is right, by either function."""
    found = of_a_network_of_shares(cross_entropy)
    assert found.verdict is Verdict.WARN, found.explain()
    assert "takes probabilities for scores" in found.headline
    right: list[Loss] = [
        lambda m, b: functional.nll_loss(m(b[0]).log(), b[1]),
        lambda m, b: functional.cross_entropy(m(b[0]).log(), b[1]),
        lambda m, b: (m(b[0]) - functional.one_hot(b[1], CLASSES)).square().sum(1).mean(),
    ]
    for term in right:
        found = of_a_network_of_shares(term)
        assert found.verdict is Verdict.PASS, found.explain()


@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_distillation_without_its_factor_is_a_warning(temperature: float) -> None:
    found = judged(distilled(temperature, squared=False))
    assert found.verdict is Verdict.WARN, found.explain()
    assert f"temperature {temperature:g} without the factor {temperature:g}^2" in found.headline


@pytest.mark.fault("B25", "loss.data")
def test_a_teacher_in_train_mode_is_found_and_left_as_it_was() -> None:
    """B25: distillation toward a teacher whose BatchNorm takes each batch's statistics."""
    network = teacher(norm=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def term(m: nn.Module, b: Batch) -> Tensor:
        network.train()
        with torch.no_grad():
            target = network(b[0])
        return functional.mse_loss(m(b[0]), target)

    found = measure_loss_data(convert(network), teacher=network, loss=with_kl(term), **given())
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "runs the teacher in train mode" in found.headline
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_another_network_that_is_trained_beside_it_is_healthy_and_left_as_it_was() -> None:
    network = teacher()
    beside = nn.Sequential(nn.Linear(CLASSES, 8), nn.BatchNorm1d(8)).train()
    before = {name: value.clone() for name, value in beside.state_dict().items()}

    def term(m: nn.Module, b: Batch) -> Tensor:
        out = m(b[0])
        value: Tensor = functional.cross_entropy(out, b[1]) + 0.1 * beside(out).square().mean()
        return value

    found = measure_loss_data(convert(network), teacher=network, loss=with_kl(term), **given())
    assert found.verdict is Verdict.PASS, found.explain()
    assert all(torch.equal(value, before[name]) for name, value in beside.state_dict().items())


def at_the_mean(model: nn.Module) -> None:
    """Compute with mu in train mode, past the layers."""
    inner = model.forward

    def forward(x: Tensor) -> Tensor:
        if not model.training:
            out: Tensor = inner(x)
            return out
        first, last = (layer.module for layer in bayesian_layers(model))
        hidden = torch.relu(functional.linear(x, first.mu_weight, first.mu_bias))  # type: ignore[arg-type]
        return functional.linear(hidden, last.mu_weight, last.mu_bias)  # type: ignore[arg-type]

    model.forward = forward


def silent_layers(model: nn.Module) -> None:
    """Let the layers themselves leave their noise out in train mode."""
    for layer in bayesian_layers(model):
        module: Any = layer.module

        def forward(x: Tensor, module: Any = module, inner: Any = module.forward) -> Any:
            return functional.linear(x, module.mu_weight, module.mu_bias) if module.training else inner(x)

        module.forward = forward


@pytest.mark.parametrize("change", [at_the_mean, silent_layers])
@pytest.mark.fault("B26", "loss.data")
def test_noise_in_eval_mode_alone_is_found(change: Callable[[nn.Module], None]) -> None:
    """B26: noise made training unstable, so that it was left out there: sigma never sees the data."""
    network = teacher()
    model = convert(network, moped_delta=0.1)
    change(model)
    found = measure_loss_data(model, teacher=network, loss=with_kl(cross_entropy), **given())
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "In train mode 2 of 2 layers compute with mu" in found.headline


# --- the size of the data term, beside which the KL has its weight ------------------------------------------------


def weighed(term: Loss, of_kl: Callable[[nn.Module], Tensor], **declared: Any) -> Evidence:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return term(model, batch) + of_kl(model)

    return measure_kl_loss(convert(teacher(), moped_delta=0.1), loss=loss, **declared, **given())


def summed(model: nn.Module) -> Tensor:
    return kl(model, convention="sum")


def eighth(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model, batch) / 8


def whole(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def tripled(model: nn.Module, batch: Batch) -> Tensor:
    return 3 * by_several(model, batch)


def library(model: nn.Module) -> Tensor:
    value: Tensor = get_kl_loss(model) / M
    return value


Weighed = dict[str, tuple[Loss, Callable[[nn.Module], Tensor], dict[str, int]]]

RIGHT_WEIGHT: Weighed = {
    "the library's": (cross_entropy, library, {"num_batches": M}),
    "all of it an eighth": (eighth, lambda m: library(m) / 8, {"num_batches": M}),
    "sum beside sum": (whole, lambda m: summed(m) / M, {"num_batches": M}),
    "sum beside mean, by examples": (cross_entropy, lambda m: summed(m) / 720, {"num_batches": M}),
    "by examples, declared": (cross_entropy, lambda m: summed(m) / 720, {"num_data": 720}),
    "several passes": (by_several, library, {"num_batches": M}),
    "mean shares": (of_mean_shares, library, {"num_batches": M}),
}

WRONG_WEIGHT: Weighed = {
    "the data an eighth": (eighth, library, {"num_batches": M}),
    "sum beside mean": (cross_entropy, lambda m: summed(m) / M, {"num_batches": M}),
    "by other examples": (cross_entropy, lambda m: summed(m) / 720, {"num_data": 7200}),
    "several passes, added": (tripled, library, {"num_batches": M}),
    "the library's beside a sum, by examples": (whole, lambda m: get_kl_loss(m) / 720, {"num_batches": M}),
}


@pytest.mark.parametrize("name", RIGHT_WEIGHT)
def test_a_weight_that_is_right_beside_the_data_term_passes(name: str) -> None:
    term, of_kl, declared = RIGHT_WEIGHT[name]
    found = weighed(term, of_kl, **declared)
    assert found.verdict is Verdict.PASS, found.explain()


@pytest.mark.parametrize("name", WRONG_WEIGHT)
@pytest.mark.fault("B27", "kl.loss")
def test_a_weight_that_is_wrong_beside_the_data_term_is_found(name: str) -> None:
    """B27: the KL of an epoch beside the mean of a batch, or beside a part of the data term."""
    term, of_kl, declared = WRONG_WEIGHT[name]
    found = weighed(term, of_kl, **declared)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "beside a data term" in found.headline


def test_a_loss_whose_halves_do_not_add_up_is_judged_by_its_weight_alone() -> None:
    """In-batch contrast: doubling the batch neither halves a row's factor nor keeps it."""

    def contrast(model: nn.Module, batch: Batch) -> Tensor:
        out = functional.normalize(model(batch[0]))
        return functional.cross_entropy(out @ out.T / 0.5, torch.arange(len(out)))

    assert weighed(contrast, lambda m: get_kl_loss(m) / M, num_batches=M).verdict is Verdict.PASS
    assert weighed(contrast, lambda m: get_kl_loss(m) / 7, num_batches=M).verdict is Verdict.FAIL


# --- the forms themselves, against autograd -----------------------------------------------------------------------


def test_the_factor_of_a_row_is_what_the_loss_was_multiplied_by() -> None:
    torch.manual_seed(1)
    scores, labels = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 5
    for factor in (0.3, 2.0, -1.0):
        leaf = scores.clone().requires_grad_()
        (factor * functional.cross_entropy(leaf, labels, reduction="sum")).backward()
        assert leaf.grad is not None
        pull = pull_of(Task(kind="classification"), leaf.detach(), leaf.grad, labels, None)
        assert pull.form == "cross-entropy"
        assert pull.scale is not None
        assert pull.scale.tolist() == pytest.approx([factor] * 9)
        assert pull.implied is not None
        assert pull.implied.tolist() == labels.tolist()


def test_the_classes_of_a_gradient_are_found_without_labels() -> None:
    torch.manual_seed(1)
    scores, labels = torch.randn(9, 5, dtype=torch.float64), torch.tensor([3, 1, 4, 1, 0, 2, 2, 3, 4])
    leaf = scores.clone().requires_grad_()
    functional.cross_entropy(leaf, labels).backward()
    assert leaf.grad is not None
    pull = pull_of(Task(kind="classification"), leaf.detach(), leaf.grad, None, None)
    assert pull.sign == 1
    assert pull.implied is not None
    assert pull.implied.tolist() == labels.tolist()


# --- what pushes outputs away from something, and is meant to -------------------------------------------------------


def complementary(model: nn.Module, batch: Batch) -> Tensor:
    """Pushes each row away from a class that it is not."""
    others = (batch[1] + 1 + torch.arange(ROWS) % (CLASSES - 1)) % CLASSES
    return functional.nll_loss((1 - model(batch[0]).softmax(1) + 1e-6).log(), others)


def unlikelihood(model: nn.Module, batch: Batch) -> Tensor:
    return functional.nll_loss((1 - model(batch[0]).softmax(1) + 1e-6).log(), batch[1])


def rewards(model: nn.Module, batch: Batch) -> Tensor:
    """A policy's gradient where every action was a bad one."""
    chosen = model(batch[0]).log_softmax(1).gather(1, batch[1][:, None])[:, 0]
    value: Tensor = (torch.linspace(0.5, 2, ROWS) * chosen).mean()
    return value


def hinge_of_triplets(model: nn.Module, batch: Batch) -> Tensor:
    """0 for all that the network gives: a row is nearer to itself than to others."""
    scores = model(batch[0])
    return functional.triplet_margin_loss(scores, scores, scores.roll(1, 0), margin=1e-4)


AWAY: dict[str, tuple[str, Loss]] = {
    "complementary labels": ("classes", complementary),
    "unlikelihood": ("classes", unlikelihood),
    "bad rewards": ("classes", rewards),
    "hinge at 0": ("classes", hinge_of_triplets),
    "critic": ("sides", lambda m, b: (m(b[0]) * (2 * b[1] - 1)).mean()),
}


@pytest.mark.parametrize("name", AWAY)
def test_a_push_that_is_no_lost_sign_is_not_accused(name: str) -> None:
    """Labels may be what a row is not, or what an output is compared with only after a function of it."""
    labels, term = AWAY[name]
    found = judged(term, labels=labels)
    assert found.verdict is Verdict.PASS, found.explain()


OTHER_UNITS: dict[str, tuple[float, Loss]] = {
    "a residual": (9, lambda m, b: functional.mse_loss(m(b[0]) + 99, b[1])),
    "the negative": (9, lambda m, b: functional.l1_loss(-m(b[0]), b[1])),
    "standardised": (9, lambda m, b: functional.smooth_l1_loss(m(b[0]), (b[1] - 9) / 2 - 5)),
    "a logarithm": (99, lambda m, b: functional.poisson_nll_loss(m(b[0]) + 6, b[1])),
    "a share of the whole": (9, lambda m, b: functional.mse_loss(m(b[0]), b[1] / b[1].sum() - 5)),
}


@pytest.mark.parametrize("name", OTHER_UNITS)
def test_numbers_that_are_compared_in_other_units_are_not_accused(name: str) -> None:
    """All outputs are on one side of their labels, and rightly pulled to what is on their other side."""
    offset, term = OTHER_UNITS[name]
    network = teacher(1)
    data = given("numbers")
    data["labels"] = data["labels"].clamp(-1, 1) + offset
    found = measure_loss_data(convert(network, moped_delta=0.1), teacher=network, loss=with_kl(term), **data)
    assert found.verdict is Verdict.PASS, found.explain()
    wrong = measure_loss_data(
        convert(network, moped_delta=0.1),
        teacher=network,
        loss=with_kl(lambda m, b: -functional.huber_loss(m(b[0]), b[1])),
        **data,
    )
    assert wrong.verdict is Verdict.FAIL, wrong.explain()


def test_a_lost_sign_is_found_whatever_the_weights_of_the_classes() -> None:
    weights = torch.linspace(0.2, 2, CLASSES)
    found = judged(lambda m, b: -functional.cross_entropy(m(b[0]), b[1], weight=weights))
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "away from their labels" in found.headline
