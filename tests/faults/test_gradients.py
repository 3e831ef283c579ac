"""``gradient.samples`` and ``memory.separate``: faults that show in training alone (A1, A5), seen before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from bayesian_torch.utils.util import MOPED
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from pytest_bnn import kl
from pytest_bnn.checks import measure_gradient_samples, measure_kl_loss, measure_memory_separate
from pytest_bnn.libraries.posterior import bayesian_layers, zero_noise
from pytest_bnn.records.evidence import Verdict

Bare = Callable[..., nn.Module]
Batch = tuple[Tensor, Tensor]
Given = tuple[Tensor, Tensor | None]


def _data_term(model: nn.Module, batch: Given) -> Tensor:
    assert batch[1] is not None
    return functional.cross_entropy(model(batch[0]), batch[1])


def several(samples: int) -> Callable[[nn.Module, Given], Tensor]:
    """A1: the loss of several samples with one backward pass, as the library's own examples write it."""

    def loss(model: nn.Module, batch: Given) -> Tensor:
        total: Tensor = torch.stack([_data_term(model, batch) for _ in range(samples)]).mean() + get_kl_loss(model) / 10
        return total

    return loss


def accumulated(model: nn.Module, batch: Given) -> Tensor:
    """The remedy: one backward pass a sample; what is returned has no graph any more."""
    total = torch.zeros(())
    for _ in range(3):
        part = (_data_term(model, batch) + get_kl_loss(model) / 10) / 3
        part.backward()
        total += part.detach()
    return total


def penalised(model: nn.Module, batch: Given, *, create_graph: bool = True) -> Tensor:
    """A gradient penalty: its gradient holds second derivatives."""
    value = _data_term(model, batch)
    slopes = torch.autograd.grad(
        value, list(model.parameters()), create_graph=create_graph, allow_unused=True, retain_graph=True
    )
    penalty = sum((slope.square().sum() for slope in slopes if slope is not None), start=torch.zeros(()))
    total: Tensor = value + 1e-3 * penalty + get_kl_loss(model) / 10
    return total


def test_a_gradient_penalty_is_not_taken_for_other_noise(
    teacher: nn.Module, estimator: str, bare: Bare, batch: Batch
) -> None:
    """It is a sound loss, and its gradient is not that of the weights alone."""
    model = bare(teacher, estimator)
    found = measure_gradient_samples(model, images=batch[0], labels=batch[1], loss=penalised)
    assert found.verdict is Verdict.NOT_APPLICABLE, found.explain()
    assert "create_graph=True" in found.headline


def test_a_gradient_that_is_only_looked_at_hides_no_fault(
    teacher: nn.Module, estimator: str, bare: Bare, batch: Batch
) -> None:
    """Without create_graph the loss's own gradient is what it would be."""

    def loss(model: nn.Module, given: Given) -> Tensor:
        return penalised(model, given, create_graph=False) + several(2)(model, given)

    model = bare(teacher, estimator)
    found = measure_gradient_samples(model, images=batch[0], labels=batch[1], loss=loss)
    assert found.verdict is Verdict.FAIL, found.explain()


@pytest.mark.fault("A1", "gradient.samples")
@pytest.mark.parametrize("samples", [2, 5])
def test_samples_that_share_a_backward_are_found(
    samples: int, teacher: nn.Module, estimator: str, bare: Bare, batch: Batch
) -> None:
    model = bare(teacher, estimator)
    found = measure_gradient_samples(model, images=batch[0], labels=batch[1], loss=several(samples))
    assert found.verdict is Verdict.FAIL, found.explain()
    assert found["forward passes of a loss"] == samples
    assert f"with {samples} forward passes" in found.headline
    assert "one backward pass for each forward pass" in found.remedy
    assert {layer.path for layer in found.layers} == {layer.path for layer in bayesian_layers(model)}


@pytest.mark.parametrize("scale", [1e-3, 1e-7])
def test_a_kl_term_that_outweighs_the_data_hides_nothing(
    scale: float, teacher: nn.Module, estimator: str, bare: Bare, batch: Batch
) -> None:
    """A sure network has a small data term. Its part is judged by its own length, as far as rounding leaves it.

    At 1e-7 float32 leaves nothing of it: neither loss is accused, and the reader is told.
    """

    def outweighed(samples: int) -> Callable[[nn.Module, Given], Tensor]:
        def loss(model: nn.Module, batch: Given) -> Tensor:
            data = torch.stack([_data_term(model, batch) for _ in range(samples)]).mean()
            total: Tensor = scale * data + get_kl_loss(model)
            return total

        return loss

    model = bare(teacher, estimator)
    right = measure_gradient_samples(model, images=batch[0], labels=batch[1], loss=outweighed(1))
    assert right.verdict is Verdict.PASS, right.explain()
    wrong = measure_gradient_samples(model, images=batch[0], labels=batch[1], loss=outweighed(2))
    assert wrong.verdict is (Verdict.FAIL if scale == 1e-3 else Verdict.PASS), wrong.explain()
    if scale == 1e-7:
        assert "Of the data's part of the gradient to rho nothing is left" in right.explain()
        assert "Of the data's part of the gradient to rho nothing is left" in wrong.explain()


@pytest.mark.parametrize("loss", [several(1), accumulated], ids=["one pass", "accumulated"])
def test_losses_with_the_right_gradient_pass(
    loss: Callable[[nn.Module, Given], Tensor], teacher: nn.Module, estimator: str, bare: Bare, batch: Batch
) -> None:
    found = measure_gradient_samples(bare(teacher, estimator), images=batch[0], labels=batch[1], loss=loss)
    assert found.verdict is Verdict.PASS, found.explain()


def by_distributions(model: nn.Module, batch: Given) -> Tensor:
    """A summed KL by torch.distributions, where the square of a sigma near 0 underflows."""
    terms = [
        kl_divergence(Normal(tensor.mu, functional.softplus(tensor.rho)), Normal(tensor.prior_mu, tensor.prior_sigma))
        for layer in bayesian_layers(model)
        for tensor in layer.tensors
    ]
    return _data_term(model, batch) + torch.cat([term.flatten() for term in terms]).sum()


def test_an_infinite_gradient_of_the_kl_is_said_to_be_one(
    teacher: nn.Module, estimator: str, bare: Bare, batch: Batch
) -> None:
    """What MOPED makes of a weight of 0 has a KL, and by torch.distributions no finite gradient of it."""
    model = bare(teacher, estimator)
    given: Any = {"images": batch[0], "labels": batch[1]}
    sound = measure_kl_loss(model, loss=by_distributions, kl_weight=1, **given)
    assert sound.verdict is Verdict.PASS, sound.explain()
    tensors = [tensor for layer in bayesian_layers(model) for tensor in layer.tensors]
    with torch.no_grad():
        tensors[1].rho.view(-1)[0] = math.log(math.expm1(1e-20))
    assert bool(torch.isfinite(by_distributions(model, batch)))
    found = measure_kl_loss(model, loss=by_distributions, kl_weight=1, **given)
    assert found.verdict is Verdict.FAIL, found.explain()
    said = f"gradient to rho is NaN or infinite in 1 of {len(tensors)} tensors, `{tensors[1].name}` first"
    assert said in found.headline
    assert [layer.path for layer in found.layers] == [tensors[1].path]
    assert "the smallest sigma is 1e-20" in found.explain()
    assert "get_kl_loss(model)" in found.remedy
    samples = measure_gradient_samples(model, loss=by_distributions, **given)
    assert samples.verdict is Verdict.NOT_APPLICABLE
    assert "see kl.loss" in samples.headline
    for right in (several(1), lambda model, batch: _data_term(model, batch) + kl(model, convention="sum") / 10):
        remedied = measure_kl_loss(model, loss=right, kl_weight=1 / 10, **given)
        assert remedied.verdict is Verdict.PASS, remedied.explain()


def test_a_data_term_without_a_finite_derivative_is_found(
    teacher: nn.Module, estimator: str, bare: Bare, batch: Batch
) -> None:
    """How far the noise moves an output that it does not move: 0, the square root of 0, whose derivative is infinite.

    The KL term beside it is right all the same.
    """

    def loss(always: bool) -> Callable[[nn.Module, Given], Tensor]:
        def loss(model: nn.Module, batch: Given) -> Tensor:
            out = model(batch[0])
            with torch.no_grad(), zero_noise(model):
                noisy = always or not torch.equal(out, model(batch[0]))
            distance = (out - out.detach()).square().sum().sqrt() if noisy else out.square().sum().sqrt()
            total: Tensor = distance + get_kl_loss(model) / 10
            return total

        return loss

    model = bare(teacher, estimator)
    given: Any = {"images": batch[0], "labels": batch[1]}
    found = measure_gradient_samples(model, loss=loss(always=True), **given)
    assert found.verdict is Verdict.FAIL, found.explain()
    tensors = sum(len(layer.tensors) for layer in bayesian_layers(model))
    said = f"gradient to mu or rho is NaN or infinite in {tensors} of {tensors} tensors, `stem.weight`"
    assert said in found.headline
    assert "a square root" in found.remedy
    for always in (False, True):
        weighed = measure_kl_loss(model, loss=loss(always), kl_weight=0.1, **given)
        assert weighed.verdict is Verdict.PASS, weighed.explain()


def test_the_length_reported_is_that_against_a_gradient_by_hand() -> None:
    """One weight, two samples: autograd on w = mu + sigma * eps, with the noise that the layer drew, is the oracle."""
    torch.manual_seed(0)
    from bayesian_torch.layers import LinearReparameterization

    layer = LinearReparameterization(1, 1, bias=False)
    layer.dnn_to_bnn_flag = True
    x, seen = torch.tensor([[2.0]]), []

    def loss(model: nn.Module, batch: Given) -> Tensor:
        total = torch.zeros(())
        for _ in range(2):
            total = total + model(batch[0]).pow(3).sum()
            seen.append(layer.get_buffer("eps_weight").clone())
        return total

    found = measure_gradient_samples(layer, images=x, labels=torch.zeros(1), loss=loss)
    rho = layer.rho_weight.detach().double().requires_grad_()
    mu = layer.mu_weight.detach().double()

    def gradient(noises: list[Tensor], used: list[Tensor]) -> float:
        """The data term's slope at the weights of ``used``, times the noise in the buffer at the backward pass."""
        total = 0.0
        for eps, drawn in zip(noises, used, strict=True):
            w = (mu + torch.nn.functional.softplus(rho.detach()) * drawn.double()).requires_grad_()
            (slope,) = torch.autograd.grad((2 * w).pow(3).sum(), w)
            total += float((slope * eps.double() * torch.sigmoid(rho.detach())).sum())
        return total

    used = seen[:2]
    wrong, exact = gradient([used[1]] * 2, used), gradient(used, used)
    assert found["length of that gradient to rho"] == pytest.approx(abs(wrong / exact), rel=1e-4)
    assert found["cosine of that gradient to rho"] == pytest.approx(1.0 if wrong * exact > 0 else -1.0)


def test_noise_cut_from_the_graph_is_found(teacher: nn.Module, bare: Bare, batch: Batch) -> None:
    """The outputs are right and the KL is there: only sigma never hears of the data."""
    model = bare(teacher, "Reparameterization")
    head: Any = model.get_submodule("head")

    def forward(x: Tensor) -> Tensor:
        sigma = functional.softplus(head.rho_weight).detach()
        weight = head.mu_weight + sigma * head.eps_weight.data.normal_()
        return functional.linear(x, weight, head.mu_bias)

    head.forward = forward
    found = measure_gradient_samples(model, images=batch[0], labels=batch[1], loss=several(1))
    assert found.verdict is Verdict.FAIL, found.explain()
    assert [layer.path for layer in found.layers] == ["head"]
    assert "sigma learns from the KL alone" in found.headline


def test_a_layer_that_the_loss_does_not_see_is_not_accused(teacher: nn.Module, bare: Bare, batch: Batch) -> None:
    """Nothing of the data reaches the rho of a layer whose output is multiplied by 0, and nothing should."""
    model = bare(teacher, "Reparameterization")

    def loss(model: nn.Module, batch: Given) -> Tensor:
        total: Tensor = 0 * _data_term(model, batch) + get_kl_loss(model)
        return total

    found = measure_gradient_samples(model, images=batch[0], labels=batch[1], loss=loss)
    assert found.verdict is Verdict.PASS, found.explain()


def test_a_loss_with_a_state_is_not_judged(teacher: nn.Module, bare: Bare, batch: Batch) -> None:
    """Annealing by its own counter: the gradients differ for a reason of the loss's own."""
    calls = [0]

    def loss(model: nn.Module, batch: Given) -> Tensor:
        calls[0] += 1
        return calls[0] * several(1)(model, batch)

    found = measure_gradient_samples(bare(teacher, "Flipout"), images=batch[0], labels=batch[1], loss=loss)
    assert found.verdict is Verdict.NOT_APPLICABLE
    assert "a state of its own" in found.headline


def test_a_layer_that_keeps_noise_from_pass_to_pass_is_right(teacher: nn.Module, bare: Bare, batch: Batch) -> None:
    """Its gradient is right for the noise it uses, which is another one each time; also when the check comes again."""
    model = bare(teacher, "Reparameterization")
    head: Any = model.get_submodule("head")
    before = [torch.randn_like(head.mu_weight)]

    def forward(x: Tensor) -> Tensor:
        noise, before[0] = before[0], head.eps_weight.data.normal_().clone()
        return functional.linear(x, head.mu_weight + functional.softplus(head.rho_weight) * noise, head.mu_bias)

    head.forward = forward
    for _ in range(3):
        found = measure_gradient_samples(model, images=batch[0], labels=batch[1], loss=several(1))
        assert found.verdict is Verdict.PASS, found.explain()


def test_two_layers_that_fill_one_noise_buffer(teacher: nn.Module, bare: Bare, batch: Batch) -> None:
    """Every forward is right; before the backward the second layer has written over what the first one drew."""
    model = bare(teacher, "Reparameterization")
    one, other = model.get_submodule("block.conv1"), model.get_submodule("block.conv2")
    other._buffers["eps_kernel"] = one._buffers["eps_kernel"]
    found = measure_memory_separate(model, teacher=teacher)
    assert found.verdict is Verdict.FAIL
    assert "`block.conv1.eps_kernel` shares memory with `block.conv2.eps_kernel`" in found.explain()
    gradient = measure_gradient_samples(model, images=batch[0], labels=batch[1], loss=several(1))
    assert gradient.verdict is Verdict.FAIL, gradient.explain()
    assert [layer.path for layer in gradient.layers] == ["block.conv1"]
    assert "a noise buffer of its own" in gradient.remedy


@pytest.mark.fault("A5", "memory.separate")
def test_the_moped_of_the_library_shares_memory(teacher: nn.Module, bare: Bare, tmp_path: Path) -> None:
    """A5: utils.MOPED() puts the teacher's own tensors into mu and prior; training the BNN changes its teacher."""
    model = bare(teacher, "Reparameterization")
    assert measure_memory_separate(model, teacher=teacher).verdict is Verdict.PASS
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    MOPED(model, teacher, tmp_path / "teacher.pt", 0.1)
    before = teacher.get_parameter("head.weight").clone()
    with torch.no_grad():
        model.get_parameter("head.mu_weight").add_(1)
    assert not torch.equal(teacher.get_parameter("head.weight"), before)
    found = measure_memory_separate(model, teacher=teacher)
    assert found.verdict is Verdict.FAIL
    assert "`head.mu_weight` shares memory with the teacher's `head.weight`" in str(found.layers)
    assert "`head.mu_weight` shares memory with `head.prior_weight_mu`" in str(found.layers)


def test_shared_memory_is_listed_in_the_order_of_the_model(bare: Bare) -> None:
    """Memory is another place in every run, the evidence is the same. Here the last layer lies before the others."""
    model = bare(nn.Sequential(*[nn.Linear(3, 3) for _ in range(3)]).eval(), "Reparameterization")
    memory = torch.zeros(3, 9)
    for place, (at, name) in enumerate([(2, "eps_weight"), (0, "eps_weight"), (1, "eps_weight")]):
        layer = model.get_submodule(str(at))
        for other in (name, "prior_weight_mu"):
            layer._buffers[other] = memory[place].view(3, 3)
    found = measure_memory_separate(model)
    assert [layer.path for layer in found.layers] == ["0", "1", "2"]
    model.get_submodule("1")._buffers["eps_weight"] = memory[0].view(3, 3)
    found = measure_memory_separate(model)
    assert [layer.finding for layer in found.layers] == [
        "`0.eps_weight` shares memory with `0.prior_weight_mu`.",
        "`1.eps_weight` shares memory with `2.eps_weight`.",
        "`1.eps_weight` shares memory with `2.prior_weight_mu`.",
        "`2.eps_weight` shares memory with `2.prior_weight_mu`.",
    ]


def test_parts_of_one_storage_that_do_not_overlap_pass(teacher: nn.Module, bare: Bare) -> None:
    """Flat parameters, as optimizers make them: one storage, each tensor with bytes of its own."""
    model = bare(teacher, "Flipout")
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = 0
    for parameter in model.parameters():
        parameter.data = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    assert measure_memory_separate(model, teacher=teacher).verdict is Verdict.PASS


def test_priors_may_share_memory(teacher: nn.Module, bare: Bare) -> None:
    """Nothing writes a prior: one tensor for all of them saves memory and harms nobody."""
    model = bare(teacher, "Reparameterization")
    one, other = model.get_submodule("block.conv1"), model.get_submodule("block.conv2")
    other._buffers["prior_weight_mu"] = one._buffers["prior_weight_mu"]
    assert measure_memory_separate(model).verdict is Verdict.PASS
