"""`posterior_states`: checkpoints that load strictly and are what they are called, by torch's softplus in float64."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from torch import nn

from pytest_bnn import convert
from pytest_bnn.checks import measure_kl_present
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers
from pytest_bnn.strategies import (
    POSTERIOR_KINDS,
    ConversionExample,
    PosteriorState,
    architectures,
    conversions,
    posterior_states,
)

#: Explaining a failure, which nobody reads here, takes most of a find(). What is rare comes in clumps.
FIND = settings(max_examples=2000, database=None, phases=[Phase.generate, Phase.shrink])


def tensors_of(model: nn.Module) -> dict[str, PosteriorTensor]:
    return {tensor.name: tensor for layer in bayesian_layers(model) for tensor in layer.tensors}


def loaded(model: nn.Module, state: PosteriorState) -> nn.Module:
    twin = copy.deepcopy(model)
    twin.load_state_dict(state, strict=True)
    return twin


def kinds_of(before: PosteriorTensor, after: PosteriorTensor) -> set[str]:
    """Say what a tensor has become, from its values alone."""
    start, mu = before.mu.detach().double(), after.mu.detach().double()
    sigma = nn.functional.softplus(after.rho.detach().double())
    size = max(float(start.square().mean().sqrt()), 1e-3)
    assert bool(torch.isfinite(mu).all())
    assert bool(torch.isfinite(after.sigma).all())
    zeros = mu == 0
    moved = (mu - start)[~zeros].abs()
    assert bool((moved <= 0.0201 * size).all())
    if bool(((sigma >= 1e-20) & (sigma <= 1e-8)).all()):
        found = {"tiny"}
    else:
        healthy = ((sigma >= 0.01 * size) & (sigma <= size) & (sigma <= 20)).all()
        found = {
            name for name, holds in {"healthy": healthy, "large": ((sigma >= 1) & (sigma <= 20)).all()}.items() if holds
        }
    if bool(zeros.any()) and "healthy" in found:
        assert mu.numel() < 50 or 0.2 < float(zeros.double().mean()) < 0.8
        return {"zeros"}
    return found


LATER = pytest.mark.nightly("seconds each; every push has one kind alone, and the mixture of all")


@pytest.mark.parametrize(
    "kind", [kind if kind in ("tiny", "mixed") else pytest.param(kind, marks=LATER) for kind in POSTERIOR_KINDS]
)
def test_a_state_loads_strictly_and_is_what_it_is_called(kind: str) -> None:
    seen: set[str] = set()

    @given(conversions(), st.data())
    def check(example: ConversionExample, data: st.DataObject) -> None:
        model = example.converted
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = data.draw(posterior_states(model, kinds=[kind]))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "was touched"
        twin = loaded(model, state)
        after = twin.state_dict()
        assert after.keys() == state.keys() == before.keys()
        assert all(torch.equal(after[name], state[name]) and state[name].dtype == before[name].dtype for name in state)
        posterior = {id(parameter) for t in tensors_of(model).values() for parameter in (t.mu, t.rho)}
        for name, value in model.state_dict(keep_vars=True).items():
            if id(value) not in posterior:
                assert torch.equal(state[name], before[name])
        for name, tensor in tensors_of(model).items():
            found = kinds_of(tensor, tensors_of(twin)[name])
            expected = "healthy" if state.only not in (None, name) else kind
            assert expected in found or (expected == "mixed" and found), f"{name} is {found}, not {expected}"
            seen.update(found)
        assert twin(example.x).shape == model(example.x).shape

    check()
    assert seen >= (set(POSTERIOR_KINDS) - {"mixed"} if kind == "mixed" else {kind})


def test_one_tensor_alone_may_be_collapsed() -> None:
    model = convert(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    state = find(posterior_states(model, kinds=["tiny"]), lambda state: state.only == "1.weight", settings=FIND)
    evidence = measure_kl_present(loaded(model, state))
    assert evidence.verdict == "warn"
    assert evidence["dead sigma"] == 8


@given(conversions(), st.data())
def test_the_shown_call_makes_the_state_again(example: ConversionExample, data: st.DataObject) -> None:
    state = data.draw(posterior_states(example.converted))
    again = eval(repr(state), {"PosteriorState": PosteriorState, "converted": example.converted})
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_shared_layer_has_one_posterior_in_the_state() -> None:
    """A state dict names it twice, and would load whichever comes last."""
    shared = architectures(features=["shared"], kinds=["Linear"])
    example = find(
        conversions(shared),
        lambda e: len(set(map(id, e.converted.parameters()))) < len(e.converted.state_dict()),
        settings=FIND,
    )
    state = find(posterior_states(example.converted), lambda state: True, settings=FIND)
    names: dict[int, list[str]] = {}
    for name, value in example.converted.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    twins = [group for group in names.values() if len(group) > 1]
    assert twins
    assert all(torch.equal(state[group[0]], state[name]) for group in twins for name in group)


def test_copies_and_files_are_plain_state_dicts() -> None:
    """torch.load with weights_only takes no classes from elsewhere."""
    model = convert(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    state = find(posterior_states(model), lambda state: True, settings=FIND)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    copies: list[Any] = [torch.load(file, weights_only=True), copy.deepcopy(state), state.copy()]
    versions: Any = model.state_dict()
    for plain in copies:
        assert type(plain) is OrderedDict
        assert vars(plain) == vars(versions)
        assert all(torch.equal(plain[name], state[name]) for name in state)
        model.load_state_dict(plain, strict=True)


def test_the_smallest_state_is_a_healthy_one() -> None:
    """And drawing leaves the global random state alone."""
    model = convert(nn.Linear(1, 1))
    before = torch.get_rng_state()
    state = find(posterior_states(model), lambda state: True, settings=FIND)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(state) == "PosteriorState.of(converted, kind='healthy', seed=0)"


def test_an_argument_out_of_range_is_refused() -> None:
    model = convert(nn.Linear(1, 1))
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("model", {}, "Module"),
        (nn.Linear(1, 1), {}, "convert it first"),
        (model, {"kinds": ["dead"]}, "kinds"),
        (model, {"kinds": []}, "kinds"),
    ]
    for argument, options, named in wrong:
        with pytest.raises(InvalidArgument, match=named):
            posterior_states(argument, **options)
    with pytest.raises(ValueError, match="kind must be one of"):
        PosteriorState.of(model, kind="dead")
    with pytest.raises(ValueError, match=r"no posterior 1\.weight"):
        PosteriorState.of(model, kind="tiny", only="1.weight")


def test_bfloat16_keeps_what_is_promised() -> None:
    """Its rounding of rho is the coarsest that a conversion can have."""
    model = convert(nn.Sequential(nn.Linear(30, 30)).bfloat16())
    for kind in ("healthy", "tiny", "large"):
        twin = loaded(model, PosteriorState.of(model, kind=kind))
        sigma = nn.functional.softplus(tensors_of(twin)["0.weight"].rho.detach().double())
        low, high = {"healthy": (0.0005, 0.2), "tiny": (1e-20, 1e-8), "large": (1, 20)}[kind]
        assert low <= float(sigma.min()) < float(sigma.max()) <= high
