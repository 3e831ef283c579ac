"""Fine-tuning by the engine: Adam on the same loss, with noise of its own."""

from __future__ import annotations

import copy
import itertools
import math
import re
from dataclasses import replace
from typing import Any

import numpy
import pytest
import scipy.stats
import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn

from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.options import Settings, using
from pytest_bnn.sampling.bank import PassBank
from pytest_bnn.sampling.engine import kernels, posterior_kernels
from pytest_bnn.sampling.engine.noise import Scratch
from pytest_bnn.sampling.engine.plan import Unsupported
from pytest_bnn.training import finetune as training
from pytest_bnn.training.engine import FusedSteps, fused_steps
from pytest_bnn.training.finetune import finetune


def teacher_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 64),
        nn.Linear(64, 5),
    ).eval()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def made(model: nn.Module, teacher: nn.Module, kl_weight: float = 0.5) -> FusedSteps:
    with torch.no_grad():
        target = teacher(images())
    return fused_steps(model, images(), target, data_term=nn.functional.mse_loss, kl_weight=kl_weight, seed=0)


@pytest.mark.parametrize("frozen", ["", "mu_", "rho_"])
def test_steps_are_those_of_torchs_adam_on_the_librarys_loss(frozen: str) -> None:
    """Given the same noise, step by step: data term, KL, gradient norm, and every parameter."""
    teacher = teacher_network()
    model = convert(teacher).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and frozen in name))
    twin: Any = copy.deepcopy(model)
    steps = made(model, teacher)
    noise = {(v.tensor.path, v.tensor.role): v.eps for v in steps.tensors.values()}
    for layer in bayesian_layers(twin):

        def forward(x: Tensor, layer: Any = layer) -> Tensor:
            used = [t.mu + torch.log1p(torch.exp(t.rho)) * noise[t.path, t.role].view_as(t.mu) for t in layer.tensors]
            weight, bias = used
            if layer.kind == "Linear":
                return nn.functional.linear(x, weight, bias)
            return nn.functional.conv2d(x, weight, bias, padding=1)

        layer.module.forward = forward
    trained = [p for p in twin.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    target = teacher(images()).detach()
    for _ in range(12):
        optimizer.zero_grad()
        data_term, kl = nn.functional.mse_loss(twin(images()), target), get_kl_loss(twin)
        (data_term + 0.5 * kl).backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in trained if p.grad is not None))
        found, _ = steps.forward(images(), target)
        found_kl, found_norm = steps.update(1e-2)
        optimizer.step()
        assert found == pytest.approx(float(data_term.detach()), rel=1e-4)
        assert found_kl == pytest.approx(float(kl.detach()), rel=1e-5)
        assert found_norm == pytest.approx(norm, rel=1e-4)
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.nightly("a hundred and twenty trainings; every push compares single steps, to their digits")
def test_it_converges_like_the_plain_loop() -> None:
    """The loss after 30 steps, over seeds, has one distribution; it is not that of 20 steps."""
    teacher = teacher_network()
    ends: dict[tuple[str, int], list[float]] = {("own", 30): [], ("engine", 30): [], ("own", 20): []}
    for (sampler, steps), found in ends.items():
        for seed in range(40):
            model = convert(teacher, moped_delta=0.3)
            with using(Settings(sampler=sampler)):
                trajectory = finetune(
                    model, teacher, images(), steps=steps, learning_rate=0.03, decay=1, kl_weight=0.05, seed=seed
                )
            found.append(trajectory[-1].loss)
    assert scipy.stats.ks_2samp(ends["own", 30], ends["engine", 30]).pvalue > 1e-3
    assert scipy.stats.ks_2samp(ends["own", 20], ends["engine", 30]).pvalue < 1e-3


def halved_kl(model: Any) -> None:
    kl = model[4].kl_loss
    model[4].kl_loss = lambda: kl() / 2


def detached_kl(model: Any) -> None:
    kl = model[5].kl_loss
    model[5].kl_loss = lambda: kl().detach()


def hook(model: Any) -> None:
    model[2].register_forward_hook(lambda module, inputs, output: output + 1)


def frozen_noise(model: Any) -> None:
    class Same(type(model[5])):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.mu_weight, self.mu_bias)

    model[5].__class__ = Same


def detached_noise(model: Any) -> None:
    forward = type(model[5]).forward

    def cut(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return forward(self, x)  # type: ignore[no-any-return]

    model[5].__class__ = type("Cut", (type(model[5]),), {"forward": cut})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (halved_kl, "the engine's KL is"),
        (detached_kl, "gradient to 5"),
        (hook, "forward hook"),
        (frozen_noise, "5"),
        (detached_noise, "5"),
    ],
)
def test_what_the_engine_does_not_train(change: Any, reason: str) -> None:
    """It is trained by its own forward, as ever."""
    teacher = teacher_network()
    model, twin = convert(teacher), convert(teacher)
    change(model)
    change(twin)
    with pytest.raises(Unsupported, match=reason):
        made(model, teacher)
    trajectories = []
    for one, sampler in ((model, "auto"), (twin, "own")):
        with using(Settings(sampler=sampler)):
            trajectories.append(finetune(one, teacher, images(), steps=training.LEAST_STEPS))
    numbers = [[replace(step, trainer="") for step in trajectory] for trajectory in trajectories]
    assert numbers[0] == numbers[1]
    said = trajectories[0][0].trainer
    assert re.fullmatch(rf"own forward \(.*{reason}.*\)", said), said
    assert {step.trainer for step in trajectories[1]} == {"own forward (chosen)"}


def test_every_step_says_what_computed_it() -> None:
    teacher = teacher_network()
    few, many = (finetune(convert(teacher), teacher, images(), steps=steps) for steps in (1, training.LEAST_STEPS))
    assert [step.trainer for step in few] == [f"own forward (fewer than {training.LEAST_STEPS} steps)"]
    assert {step.trainer for step in many} == {"engine (Philox4x32-10, compiled)"}


def test_flipout_is_trained_by_its_own_forward() -> None:
    teacher = teacher_network()
    with pytest.raises(Unsupported, match="0 uses Flipout"):
        made(convert(teacher, type="Flipout"), teacher)


def test_looking_leaves_a_model_as_it_was() -> None:
    teacher = teacher_network()
    model = convert(teacher).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    made(model, teacher)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_bank_of_passes_notices_that_its_model_was_trained() -> None:
    teacher = teacher_network()
    model = convert(teacher)
    bank = PassBank(model, images(), 0, sampler="auto")
    before = bank.draw(0, 1)
    assert bank.sampler.startswith("engine")
    with using(Settings(sampler="engine")):
        finetune(model, teacher, images(), steps=3, learning_rate=0.1)
    assert not torch.equal(bank.draw(0, 1), before)


def test_parts_and_their_order_change_nothing() -> None:
    size = 3 * kernels.NUMBERS + 100
    generator = numpy.random.default_rng(0)

    def run(parts: list[tuple[int, int]]) -> list[Any]:
        random = numpy.random.default_rng(7)
        mu, rho, weight, eps, gradient = (random.normal(size=size).astype(numpy.float32) for _ in range(5))
        moments = numpy.zeros((4, size), dtype=numpy.float32)
        prior = numpy.zeros(1, dtype=numpy.float32), numpy.ones(1, dtype=numpy.float32)
        rates = numpy.array([0.1, 0.1, 0.9, 0.999, 0.03, 1e-8], dtype=numpy.float32)
        scratch = Scratch()
        for start, stop in parts:
            posterior_kernels.adam_step(
                mu, rho, weight, eps, gradient, moments, *prior, numpy.float32(0.1), rates,
                start, stop, 3, 1, 5, 6, scratch.words, scratch.normals, numpy.zeros(3),
            )  # fmt: skip
        return [mu, rho, weight, eps, moments]

    whole = run([(0, size)])
    cuts = [*range(0, size, kernels.NUMBERS), size]
    parts = list(itertools.pairwise(cuts))
    generator.shuffle(parts)
    for one, other in zip(whole, run(parts), strict=True):
        assert numpy.array_equal(one, other)


def test_exponential_and_logarithm_are_numpys() -> None:
    x = numpy.linspace(-86, 87, 200_001, dtype=numpy.float32)
    exp = numpy.array([kernels.exp(value) for value in x[::20]], dtype=numpy.float64)
    assert numpy.abs(exp / numpy.exp(x[::20].astype(numpy.float64)) - 1).max() < 3e-7
    small = numpy.geomspace(1e-30, 1e30, 10_001, dtype=numpy.float32)
    log1p = numpy.array([kernels.log1p(value) for value in small], dtype=numpy.float64)
    assert numpy.abs(log1p / numpy.log1p(small.astype(numpy.float64)) - 1).max() < 3e-7


@pytest.mark.parametrize(
    "rho",
    [numpy.linspace(-86, -2.5, 100_001)[:-1], numpy.linspace(-86, 30, 100_001), numpy.array([-3.0, 2.0])],
    ids=["small", "all", "few"],
)
def test_sigma_is_numpys(rho: numpy.typing.NDArray[numpy.float64]) -> None:
    """By the series where all of a block are small, and by the logarithm where one is not."""
    rho = rho.astype(numpy.float32)
    grown, sigma = numpy.empty_like(rho), numpy.empty_like(rho)
    posterior_kernels.take_sigma(rho, grown, sigma)
    wanted = numpy.exp(rho.astype(numpy.float64))
    assert numpy.abs(grown / wanted - 1).max() < 3e-7
    assert numpy.abs(sigma / numpy.log1p(wanted) - 1).max() < 4e-7


def test_sums_of_logarithms_are_numpys() -> None:
    """Of everything that float32 has, the smallest and the largest together too."""
    size = kernels.NUMBERS
    spread = numpy.geomspace(1.2e-38, 3.4e38, size).astype(numpy.float32)
    numpy.random.default_rng(0).shuffle(spread)
    for values in (spread, spread[:1].repeat(size), numpy.full(size, 1e-30, dtype=numpy.float32)):
        wanted = numpy.log(values.astype(numpy.float64))
        found = posterior_kernels.sum_of_logarithms(values)
        assert abs(found - wanted.sum()) < 1e-6 * numpy.abs(wanted).sum()
