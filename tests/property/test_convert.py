"""`convert()` on generated networks: a faithful copy, or a refusal with a reason; the network untouched either way."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_bnn import ConversionError, convert
from pytest_bnn.conversion import Estimator
from pytest_bnn.isolation import undisturbed
from pytest_bnn.posterior import bayesian_layers, kl, zero_sigma
from pytest_bnn.strategies import architectures, inputs_for

#: More refusals than this would be a way out. Refused are subclasses with a forward of
#: their own, LSTM, LoRA, shared tensors, and weights of 1000 under MOPED.
MOST_REFUSED = 0.3

EXAMPLES = 150


def state_of(network: nn.Module) -> list[object]:
    parts: list[object] = [(name, type(module), module.training) for name, module in network.named_modules()]
    parts += [(name, p.requires_grad) for name, p in network.named_parameters()]
    return parts


def in_eval_mode(network: nn.Module) -> nn.Module:
    for module in network.modules():
        module.training = False
    return network


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = network(x)
    assert isinstance(out, Tensor)
    return out


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_a_conversion_is_faithful_or_refused_with_a_reason(estimator: Estimator) -> None:
    verdicts: list[bool] = []
    reasons: list[str] = []

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
    @given(architectures(), st.data())
    def check(network: nn.Module, data: st.DataObject) -> None:
        x = data.draw(inputs_for(network))
        before, values = state_of(network), copy.deepcopy(network.state_dict())
        random_state = torch.get_rng_state()
        try:
            converted = convert(network, type=estimator)
        except ConversionError as refusal:
            verdicts.append(False)
            reasons.append(str(refusal))
        else:
            verdicts.append(True)
            assert bayesian_layers(converted)
            total = kl(converted)
            assert total is not None
            assert bool(torch.isfinite(total))
            with undisturbed(converted, network, seed=0), zero_sigma(converted):
                mean = outputs(in_eval_mode(converted), x)
                expected = outputs(in_eval_mode(network), x)
            torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max())))
        assert torch.equal(torch.get_rng_state(), random_state)
        assert state_of(network) == before
        assert all(torch.equal(value, values[name]) for name, value in network.state_dict().items())

    check()
    assert all("cannot be converted" in reason and "nothing was touched" in reason for reason in reasons)
    assert sum(verdicts) >= (1 - MOST_REFUSED) * len(verdicts)
