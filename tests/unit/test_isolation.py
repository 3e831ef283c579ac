"""Whatever runs inside `undisturbed` leaves no trace in the model, its gradients and the random generators."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.conversion import convert
from pytest_bnn.network.isolation import preserved_random_state, replaced, seed_everything, undisturbed


def network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(18, 3))
    return convert(model)


def images() -> Tensor:
    return torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def everything(model: nn.Module) -> dict[str, Any]:
    """Return all that a user could notice: tensors by identity and bytes, gradients, modes, hooks, attributes."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        found[f"{path} mode"] = module.training
        found[f"{path} attributes"] = sorted(module.__dict__)
        found[f"{path} children"] = [(name, id(child)) for name, child in module._modules.items()]
        for name, value in module.__dict__.items():
            if name.endswith("_hooks"):
                found[f"{path} {name}"] = list(value)
        for kind in ("_parameters", "_buffers"):
            for name, tensor in module.__dict__[kind].items():
                if tensor is not None:
                    found[f"{path} {name}"] = (id(tensor), tensor.requires_grad, tensor.detach().numpy().tobytes())
                    found[f"{path} {name} grad"] = None if tensor.grad is None else tensor.grad.tolist()
    return found


def generators() -> tuple[list[int], list[int], object]:
    state: Any = numpy.random.get_state()
    return torch.get_rng_state().tolist(), state[1].tolist(), random.getstate()


def vandalize(model: nn.Module) -> None:
    """Do to a model, by way of its public interface, what a careless loss or forward would."""
    model.train()
    model.register_forward_hook(lambda m, i, o: o)
    model.get_submodule("0").register_forward_pre_hook(lambda m, i: None)
    model(images()).sum().backward()
    model.get_submodule("1").register_buffer("extra", torch.ones(1))
    model.get_submodule("1").running_mean = torch.full((2,), 5.0)
    model.get_submodule("1").cache = 3  # type: ignore[assignment]
    model.register_module("more", nn.Linear(1, 1))
    model.get_submodule("4").mu_weight = nn.Parameter(torch.zeros(3, 18))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.rand(3)
    numpy.random.rand()
    random.random()


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_left_of_what_ran_inside(raises: bool, training: bool) -> None:
    """Parameters, buffers, gradients, modes, hooks, children, attributes and random states, also after an error."""
    model = network().train(training)
    model(images()).sum().backward()
    before, random_before = everything(model), generators()
    escaped = True
    with suppress(RuntimeError):
        with undisturbed(model, seed=1):
            vandalize(model)
            if raises:
                raise RuntimeError("inside")
        escaped = False
    assert escaped is raises, "the error must come through"
    assert everything(model) == before
    assert generators() == random_before


def test_a_weight_that_is_changed_in_place_comes_back() -> None:
    """A forward that clips its weights, or a loss that steps an optimizer, writes into the parameter itself."""
    model = network()
    before = everything(model)
    with undisturbed(model, seed=1), torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(2)
    assert everything(model) == before


def test_a_pending_backward_gives_the_gradient_it_would_have_given() -> None:
    """A check between forward and backward must not overwrite the noise that the graph still points to."""
    model = network().eval()
    torch.manual_seed(5)
    model(images()).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(5)
    loss = model(images()).square().sum()
    with undisturbed(model, seed=1):
        model(images())
        model(images()).sum().backward()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected[name]), name


def test_gradients_are_empty_inside_and_whole_outside() -> None:
    """A check reads gradients of its own; the user's accumulated ones are the same objects afterwards."""
    model = network()
    model(images()).sum().backward()
    mine = [parameter.grad for parameter in model.parameters()]
    with undisturbed(model, seed=1):
        assert all(parameter.grad is None for parameter in model.parameters())
        model(images()).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is grad for parameter, grad in zip(model.parameters(), mine, strict=True))


def test_a_model_in_training_mode_runs_in_eval_mode_inside() -> None:
    """A user who calls the audit inside the training loop means the network as it would be used."""
    model = network().train()
    with undisturbed(model, seed=1):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


def test_a_single_submodule_left_in_training_mode_stays_so() -> None:
    """That is a fault for the checks to find; mending it silently would hide it (FAULTS B12)."""
    model = network().eval()
    model.get_submodule("2").train()
    with undisturbed(model, seed=1):
        assert [path for path, module in model.named_modules() if module.training] == ["2"]
    assert [path for path, module in model.named_modules() if module.training] == ["2"]


def test_a_root_in_training_mode_with_parts_in_eval_comes_back_mixed() -> None:
    """Frozen BatchNorm in a training loop."""
    model = network().train()
    model.get_submodule("1").eval()
    modes = [module.training for module in model.modules()]
    with undisturbed(model, seed=1):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_each_of_several_models_is_judged_by_its_own_mode() -> None:
    """Model and teacher are often in different modes."""
    training, evaluating = network().train(), network().eval()
    evaluating.get_submodule("2").train()
    with undisturbed(training, evaluating, seed=1):
        assert not any(module.training for module in training.modules())
        assert evaluating.get_submodule("2").training


def test_the_seed_starts_all_three_generators() -> None:
    """Same seed, same numbers inside, whatever the state outside; another seed, other numbers."""
    model = network()

    def inside(seed: int) -> tuple[float, float, float]:
        with undisturbed(model, seed=seed):
            return float(torch.rand(1)), float(numpy.random.rand()), random.random()

    torch.manual_seed(1)
    one = inside(7)
    torch.manual_seed(2)
    numpy.random.seed(2)
    random.seed(2)
    assert inside(7) == one
    assert all(a != b for a, b in zip(one, inside(8), strict=True))


def test_buffers_that_two_modules_share_stay_shared_inside() -> None:
    """A clone for each owner would make one of them read stale values."""
    one, two = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    two.running_mean = one.running_mean
    original = one.running_mean
    with undisturbed(nn.Sequential(one, two), seed=0):
        assert one.running_mean is two.running_mean
        assert one.running_mean is not original
    assert one.running_mean is two.running_mean is original


def test_nesting_unwinds_in_order() -> None:
    """Checks that share a bank of passes nest."""
    model = network()
    before = everything(model)
    with undisturbed(model, seed=1):
        outer = float(torch.rand(1))
        with undisturbed(model, seed=2):
            vandalize(model)
        inner = float(torch.rand(1))
    assert everything(model) == before
    with undisturbed(model, seed=1):
        assert (float(torch.rand(1)), float(torch.rand(1))) == (outer, inner)


@pytest.mark.parametrize("raises", [False, True])
def test_random_states_come_back(raises: bool) -> None:
    """torch, numpy and Python, after seeding and drawing, with and without an exception."""
    before = generators()
    try:
        with preserved_random_state():
            seed_everything(3)
            torch.rand(1)
            numpy.random.rand()
            random.random()
            assert generators() != before
            if raises:
                raise RuntimeError
    except RuntimeError:
        assert raises
    assert generators() == before


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 + 1, 2**80])
def test_seeds_of_any_size_are_usable(seed: int) -> None:
    """numpy takes 32 bits, torch 64; a pass seed has 63, a user's seed any number."""
    with preserved_random_state():
        seed_everything(seed)
        one = float(torch.rand(1)), float(numpy.random.rand()), random.random()
        seed_everything(seed)
        assert (float(torch.rand(1)), float(numpy.random.rand()), random.random()) == one


def test_replaced_values_come_back_also_when_an_entry_fails() -> None:
    """The second entry does not exist; the first must not stay replaced."""
    values = {"a": 1, "b": 2}
    with replaced([(values, "a", 10), (values, "a", 11), (values, "b", 20)]):
        assert values == {"a": 11, "b": 20}
    assert values == {"a": 1, "b": 2}
    with pytest.raises(KeyError), replaced([(values, "a", 10), (values, "missing", 1)]):
        pass
    assert values == {"a": 1, "b": 2}


def test_what_is_never_written_is_neither_copied_nor_compared() -> None:
    model = nn.BatchNorm1d(3).eval()
    weight, mean = model.weight, model.running_mean
    assert mean is not None
    with undisturbed(model, seed=0, unwritten=[weight, mean]):
        assert model.running_mean is mean
        assert model.running_var is not None
        inside = model.running_var
        weight.data.fill_(7.0)
    assert model.running_var is not inside
    assert bool((model.weight == 7).all()), "the caller's word was taken for it"
