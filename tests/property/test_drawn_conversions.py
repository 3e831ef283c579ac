"""`prior_parameters` and `conversions`: valid, faithful, shown as the code that makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.vendor.pretty import pretty
from torch import nn
from torchvision.models.resnet import ResNet

from pytest_bnn import ConversionError
from pytest_bnn.checks import measure_layers_replaced
from pytest_bnn.conversion import Conversion
from pytest_bnn.libraries.posterior import bayesian_layers, zero_sigma
from pytest_bnn.network.isolation import preserved_random_state
from pytest_bnn.strategies import ConversionExample, architectures, conversions, prior_parameters, teachers

#: Explaining a failure, which nobody reads here, takes most of a find(). What is rare comes in clumps.
FIND = settings(max_examples=2000, database=None, phases=[Phase.generate, Phase.shrink])


@given(prior_parameters(min_prior_sigma=0.5, max_prior_sigma=2, min_moped_delta=0.2, max_moped_delta=0.3))
def test_parameters_keep_their_bounds_and_what_is_unused_its_default(parameters: Conversion) -> None:
    assert 0.5 <= parameters.prior_sigma <= 2
    assert -1 <= parameters.prior_mu <= 1
    if parameters.moped_enable:
        assert 0.2 <= parameters.moped_delta <= 0.3
        assert (parameters.posterior_mu_init, parameters.posterior_rho_init) == (0, -3)
    else:
        assert parameters.moped_delta == 0.1
        assert -0.1 <= parameters.posterior_mu_init <= 0.1
        assert -10 <= parameters.posterior_rho_init <= 1


@pytest.mark.parametrize(
    ("trait", "smallest"),
    [
        (lambda p: True, Conversion()),
        (lambda p: p.type == "Flipout", Conversion(type="Flipout")),
        (lambda p: not p.moped_enable, Conversion(moped_enable=False)),
        (lambda p: p.prior_mu > 0.5, Conversion(prior_mu=1.0)),
        (lambda p: p.prior_sigma > 1, Conversion(prior_sigma=2.0)),
        (lambda p: p.moped_delta > 0.1, Conversion(moped_delta=1.0)),
    ],
    ids=["any", "Flipout", "no MOPED", "prior mean", "prior sigma", "delta"],
)
def test_parameters_shrink_to_the_defaults_but_for_the_trait(
    trait: Callable[[Conversion], bool], smallest: Conversion
) -> None:
    assert find(prior_parameters(), trait, settings=FIND) == smallest


def test_parameters_without_moped_vary_too() -> None:
    found = find(
        prior_parameters(moped=[False]),
        lambda p: p.posterior_mu_init not in (0, 0.1) and p.posterior_rho_init < -3,
        settings=FIND,
    )
    assert found.type == "Reparameterization"


def test_a_default_outside_of_the_bounds_is_not_drawn() -> None:
    assert find(prior_parameters(min_prior_sigma=3), lambda p: True, settings=FIND) == Conversion(prior_sigma=3.0)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"types": ["flipout"]}, "types"),
        ({"types": ()}, "types"),
        ({"moped": True}, "moped"),
        ({"moped": []}, "moped"),
        ({"min_prior_sigma": 0}, "min_prior_sigma"),
        ({"max_prior_sigma": float("inf")}, "max_prior_sigma"),
        ({"min_prior_mu": 2}, "min_prior_mu.*max_prior_mu"),
        ({"min_moped_delta": -1.0}, "min_moped_delta"),
        ({"max_posterior_rho_init": "1"}, "max_posterior_rho_init"),
    ],
    ids=str,
)
def test_a_bound_that_no_conversion_could_have_is_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        prior_parameters(**wrong)


@given(conversions())
def test_a_conversion_is_complete_and_its_teacher_at_the_mean(example: ConversionExample) -> None:
    replaced = measure_layers_replaced(example.converted, teacher=example.teacher, images=example.x)
    assert replaced.verdict == "pass", replaced.headline
    with torch.no_grad(), zero_sigma(example.converted), preserved_random_state():
        mean, expected = example.converted(example.x), example.teacher(example.x)
    assert bool(torch.isfinite(mean).all())
    assert mean.shape == expected.shape
    if example.parameters.moped_enable:
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max())))


@given(conversions())
def test_a_conversion_has_its_parameters(example: ConversionExample) -> None:
    """The posterior that torch's softplus gives in float64, not the layer's."""
    parameters = example.parameters
    for layer in bayesian_layers(example.converted):
        assert layer.estimator == parameters.type
        for tensor in layer.tensors:
            torch.testing.assert_close(tensor.prior_mu, torch.full_like(tensor.prior_mu, parameters.prior_mu))
            torch.testing.assert_close(tensor.prior_sigma, torch.full_like(tensor.prior_sigma, parameters.prior_sigma))
            if parameters.moped_enable:
                sigma = nn.functional.softplus(tensor.rho.detach().double())
                expected = parameters.moped_delta * tensor.mu.detach().double().abs()
                torch.testing.assert_close(sigma, expected, rtol=1e-4, atol=1e-9)


def rebuilt(code: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    with preserved_random_state():
        exec(code, namespace)
    return namespace


@given(conversions())
def test_the_shown_code_makes_the_whole_conversion_to_the_bit(example: ConversionExample) -> None:
    made = rebuilt(repr(example))
    assert torch.equal(made["x"], example.x)
    for network, twin in ((example.teacher, made["network"]), (example.converted, made["converted"])):
        state, other = network.state_dict(), twin.state_dict()
        assert state.keys() == other.keys()
        assert all(torch.equal(state[name], other[name]) for name in state)
    assert [p.requires_grad for p in example.converted.parameters()] == [
        p.requires_grad for p in made["converted"].parameters()
    ]


def test_the_smallest_conversion_is_one_linear_layer_by_default_parameters() -> None:
    """And hypothesis shows an example as its own repr does; drawing leaves the global random state alone."""
    before = torch.get_rng_state()
    smallest = find(conversions(), lambda example: not example.parameters.moped_enable, settings=FIND)
    assert torch.equal(torch.get_rng_state(), before)
    *_, network, seed, converted, x = repr(smallest).splitlines()
    assert network == "network = Network(nn.Linear(1, 1)).eval()"
    assert seed == "torch.manual_seed(0)"
    assert converted == "converted = convert_with(network, Conversion(moped_enable=False))"
    assert x == "x = torch.randn((1, 1), generator=torch.Generator().manual_seed(0))"
    assert pretty(smallest) == repr(smallest)


TRAITS: dict[str, Callable[[ConversionExample], bool]] = {
    "ResNet": lambda example: isinstance(example.teacher, ResNet),
    "a root layer": lambda example: type(example.teacher) is nn.Linear,
    "Flipout": lambda example: example.parameters.type == "Flipout",
    "no MOPED": lambda example: not example.parameters.moped_enable,
    "float64": lambda example: example.x.dtype is torch.float64,
    "a batch of 3": lambda example: len(example.x) == 3,
    "attention": lambda example: any(isinstance(m, nn.MultiheadAttention) for m in example.teacher.modules()),
    "frozen": lambda example: any(not p.requires_grad for p in example.converted.parameters()),
}


@pytest.mark.nightly("thousands of examples until the rarest kind is there")
def test_every_kind_of_conversion_shows_up() -> None:
    """Attention does last: in one of five runs of 1,500 examples there was none."""
    missing = set(TRAITS)

    def completes(example: ConversionExample) -> bool:
        missing.difference_update([name for name in missing if TRAITS[name](example)])
        return not missing

    find(conversions(), completes, settings=settings(max_examples=15_000, phases=[Phase.generate]))
    assert not missing


class Unknown(nn.Linear):
    input_shape = (2,)


def test_networks_and_parameters_of_ones_own() -> None:
    """A network from elsewhere has no source, and the example says so."""
    parameters = prior_parameters(moped=[False], types=["Flipout"])
    drawn = find(conversions(teachers(max_stages=1), parameters, min_batch=2), lambda example: True, settings=FIND)
    assert isinstance(drawn.teacher, ResNet)
    assert drawn.parameters == Conversion(moped_enable=False, type="Flipout")
    assert len(drawn.x) == 2
    own = find(conversions(st.builds(Unknown, st.just(2), st.just(1))), lambda example: True, settings=FIND)
    assert "network = ...  # not drawn by pytest_bnn.strategies: Unknown" in repr(own)


def test_a_refusal_is_not_hidden() -> None:
    with pytest.raises(ConversionError, match="recurrent"):
        find(conversions(architectures(kinds=["LSTM"], features=())), lambda example: True, settings=FIND)


@pytest.mark.parametrize(
    "wrong", [{"networks": nn.Linear(1, 1)}, {"parameters": Conversion()}, {"min_batch": 0}, {"max_batch": 0}], ids=str
)
def test_an_argument_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        conversions(**wrong)
