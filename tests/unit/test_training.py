"""Fine-tuning against an independent loop with Adam and the KL written out, and what it must leave alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pytest_bnn.conversion import convert
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.run import TrainingStep
from pytest_bnn.training.finetune import distillation_loss, finetune, number_of_batches


def teacher_network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(27, 4)
    ).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        model.get_buffer("1.running_var").fill_(0.7)
    return model.eval()


def images(count: int = 10, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(1)).to(dtype)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def kl_of_means(model: nn.Module) -> Tensor:
    """The library's KL by torch.distributions: a mean over each tensor, summed over tensors (FAULTS A11)."""
    terms = []
    for layer in bayesian_layers(model):
        for tensor in layer.tensors:
            found = Normal(tensor.mu, nn.functional.softplus(tensor.rho))
            terms.append(kl_divergence(found, Normal(tensor.prior_mu, tensor.prior_sigma)).mean())
    return torch.stack(terms).sum()


def by_hand(
    model: nn.Module,
    teacher: nn.Module,
    data: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    decay: float,
    weight: float,
    seed: int,
) -> list[dict[str, float]]:
    """Train by the book: fresh gradients from autograd.grad, Adam as in Kingma and Ba 2015, algorithm 1."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    first, second = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    order: list[Tensor] = []
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(1, steps + 1):
            order = order or list(torch.randperm(len(data)).split(batch))
            chosen = data[order.pop(0)]
            with torch.no_grad():
                target = teacher(chosen)
            data_term, kl = (model(chosen) - target).square().mean(), kl_of_means(model)
            gradients = torch.autograd.grad(data_term + weight * kl, parameters)
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            with torch.no_grad():
                for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g * g)
                    scaled = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
                    p.sub_(rate * decay ** (step - 1) * scaled)
                share = torch.softmax(model(data[:1]), dim=-1).max()
            found.append(
                {
                    "loss": float((data_term + weight * kl).detach()),
                    "data_term": float(data_term.detach()),
                    "kl": float(kl.detach()),
                    "gradient_norm": float(norm),
                    "learning_rate": rate * decay ** (step - 1),
                    "percent": 100 * float(share),
                }
            )
    return found


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_the_trajectory_is_that_of_a_loop_written_by_hand(estimator: str) -> None:
    """In float64, step by step: order, loss, single-step gradient norm (a forgotten zero_grad shows), rate, top-1."""
    teacher, data = teacher_network(torch.float64), images(10, torch.float64)
    model = convert(teacher, type=estimator)  # type: ignore[arg-type]
    twin = convert(teacher, type=estimator)  # type: ignore[arg-type]
    trajectory = finetune(model, teacher, data, steps=8, batch=4, learning_rate=0.01, decay=0.8, kl_weight=0.3, seed=5)
    expected = by_hand(twin, teacher, data, steps=8, batch=4, rate=0.01, decay=0.8, weight=0.3, seed=5)
    assert [record.step for record in trajectory] == list(range(1, 9))
    for record, wanted in zip(trajectory, expected, strict=True):
        for name, value in wanted.items():
            assert getattr(record, name) == pytest.approx(value, rel=1e-6), (record.step, name)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9, msg=name)


def test_every_number_of_the_trajectory_is_finite_and_named() -> None:
    """The report draws it as it is; the top-1 class carries the name it was given."""
    teacher = teacher_network()
    names = ("a", "b")
    trajectory = finetune(convert(teacher), teacher, images(), steps=6, batch=3, class_names=names)
    assert len(trajectory) == 6
    for record in trajectory:
        for number in (record.loss, record.data_term, record.kl, record.gradient_norm, record.learning_rate):
            assert math.isfinite(number)
            assert number > 0
        assert 25 <= record.percent <= 100
        assert record.top1 in ("a", "b", "class 2", "class 3")


def test_top1_is_named_by_its_index() -> None:
    """A head with one huge bias leaves no doubt which class leads."""
    teacher = teacher_network()
    with torch.no_grad():
        teacher.get_parameter("5.bias")[2] = 1000.0
    model = convert(teacher, moped_delta=1e-6)
    kept: dict[str, Sequence[str]] = {"third": ("zeroth", "first", "third"), "class 2": ("zeroth", "first")}
    for name, names in kept.items():
        (record,) = finetune(model, teacher, images(), steps=1, class_names=names)
        assert record.top1 == name
        assert record.percent == pytest.approx(100)


@pytest.mark.parametrize(("count", "batch", "batches"), [(10, 4, 3), (10, 5, 2), (3, 32, 1), (1, 1, 1), (64, 32, 2)])
def test_kl_is_weighted_by_one_over_the_number_of_batches(count: int, batch: int, batches: int) -> None:
    """The ELBO over one pass through the data (FAULTS B3); any other weight shows in loss - data_term."""
    teacher = teacher_network()
    trajectory = finetune(convert(teacher), teacher, images(count), steps=3, batch=batch)
    assert number_of_batches(count, batch) == math.ceil(count / batch) == batches
    for record in trajectory:
        assert record.loss == pytest.approx(record.data_term + record.kl / batches, rel=1e-6)


def test_kl_in_the_trajectory_is_the_unweighted_one() -> None:
    """First step, before anything moved: torch.distributions knows the number."""
    teacher = teacher_network()
    model = convert(teacher)
    with torch.no_grad():
        expected = float(kl_of_means(model))
    (record,) = finetune(model, teacher, images(), steps=1, kl_weight=0.0)
    assert record.kl == pytest.approx(expected, rel=1e-5)
    assert record.loss == pytest.approx(record.data_term)


def test_the_loss_for_users_is_the_loss_that_is_minimized() -> None:
    """`distillation_loss` is what the audit checks, so it has to be the same function."""
    teacher, data = teacher_network(), images(4)
    model = convert(teacher).eval()
    loss = distillation_loss(teacher, 0.25)
    torch.manual_seed(0)
    found = loss(model, (data, None))
    torch.manual_seed(0)
    expected = (model(data) - teacher(data).detach()).square().mean() + 0.25 * kl_of_means(model)
    assert found.requires_grad
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_same_seed_gives_the_same_trajectory() -> None:
    """A report that cannot be repeated proves nothing; another seed is another run."""
    teacher = teacher_network()
    runs = []
    for seed, global_seed in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(global_seed)
        trajectory = finetune(convert(teacher), teacher, images(), steps=4, batch=4, seed=seed)
        runs.append([(r.loss, r.kl, r.gradient_norm, r.percent) for r in trajectory])
    for one, same in zip(runs[0], runs[1], strict=True):
        assert one == pytest.approx(same, rel=1e-6)
    assert runs[0][0][0] != pytest.approx(runs[2][0][0], rel=1e-6)


def test_the_global_generator_is_left_alone() -> None:
    """Training inside somebody's seeded test must not shift what that test draws next."""
    teacher = teacher_network()
    model = convert(teacher)
    before = torch.get_rng_state()
    finetune(model, teacher, images(), steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_teacher_and_all_running_statistics_are_untouched() -> None:
    """Bit by bit, also when both networks come in training mode, where BatchNorm would learn (FAULTS A5, A25)."""
    teacher = teacher_network().train()
    model = convert(teacher)
    before, running = state_of(teacher), state_of(model.get_submodule("1"))
    finetune(model, teacher, images(), steps=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    batchnorm = model.get_submodule("1")
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(batchnorm.state_dict()[name], running[name])
    assert not torch.equal(batchnorm.state_dict()["weight"], running["weight"]), "the affine part is trained"


def test_dropout_is_off_while_training() -> None:
    """Eval mode throughout: with zero noise and zero KL weight, a copy equal to its teacher has no loss at all."""
    teacher = teacher_network().train()
    model = convert(teacher, moped_delta=1e-9)
    (record,) = finetune(model, teacher, images(), steps=1, kl_weight=0.0)
    assert record.data_term == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("stop", [False, True])
def test_modes_come_back_as_they_were(stop: bool) -> None:
    """A mix of train and eval survives in both networks, also when the progress callback raises."""
    teacher = teacher_network()
    model = convert(teacher).train()
    model.get_submodule("1").eval()
    teacher[3].train()
    modes = [[m.training for m in network.modules()] for network in (model, teacher)]

    def progress(record: TrainingStep) -> None:
        assert not any(m.training for network in (model, teacher) for m in network.modules())
        if stop:
            raise KeyboardInterrupt

    if stop:
        with pytest.raises(KeyboardInterrupt):
            finetune(model, teacher, images(), steps=2, progress=progress)
    else:
        finetune(model, teacher, images(), steps=2, progress=progress)
    assert [[m.training for m in network.modules()] for network in (model, teacher)] == modes


def test_progress_sees_every_step_as_it_is_done() -> None:
    """A live display counts on each record coming once, in order, before the next step."""
    teacher = teacher_network()
    model = convert(teacher)
    seen: list[TrainingStep] = []
    weights: list[Tensor] = []

    def progress(record: TrainingStep) -> None:
        seen.append(record)
        weights.append(bayesian_layers(model)[0].tensors[0].mu.detach().clone())

    trajectory = finetune(model, teacher, images(), steps=5, progress=progress)
    assert tuple(seen) == trajectory
    assert all(not torch.equal(one, other) for one, other in pairwise(weights))


def test_frozen_parameters_stay_and_no_gradient_is_left_behind() -> None:
    """What the user froze is not trained; what was trained starts clean in the user's next loop."""
    teacher = teacher_network()
    model = convert(teacher)
    layer = bayesian_layers(model)[0].tensors[0]
    layer.rho.requires_grad_(False)
    rho, mu = layer.rho.detach().clone(), layer.mu.detach().clone()
    finetune(model, teacher, images(), steps=2)
    assert torch.equal(layer.rho, rho)
    assert not torch.equal(layer.mu, mu)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_network_without_a_posterior_is_refused() -> None:
    """There is no KL term to train with (FAULTS A13)."""
    teacher = teacher_network()
    with pytest.raises(InputError, match=r"no Bayesian layer.*convert"):
        finetune(teacher_network(), teacher, images(), steps=1)


def test_images_with_nan_are_refused_at_the_step_they_meet() -> None:
    """One NaN poisons every weight in one step; the error says where it came from, and modes come back."""
    teacher = teacher_network()
    model = convert(teacher).train()
    before = state_of(model)
    bad = images()
    bad[3] = float("nan")
    with pytest.raises(InputError, match=r"loss is nan at step 1 \(data term nan, KL \d.*images for NaN"):
        finetune(model, teacher, bad, steps=3, batch=len(bad))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 0},
        {"batch": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"decay": 0.0},
        {"decay": 1.5},
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_moves(given: dict[str, float]) -> None:
    teacher = teacher_network()
    model = convert(teacher)
    before = state_of(model)
    with pytest.raises(ValueError, match="at least 1"):
        finetune(model, teacher, images(), **given)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
