"""The strategies keep their promises: networks run, their code rebuilds them, bad arguments are refused."""

from __future__ import annotations

import re
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from torch import Tensor, nn

from pytest_bnn.network.isolation import preserved_random_state
from pytest_bnn.strategies import FEATURES, KINDS, architectures, inputs_for, layers, source

#: To the first network of a kind that is rare and comes in clumps.
GENERATE = settings(max_examples=2000, deadline=None, database=None, phases=[Phase.generate])
#: Explaining a failure, which nobody reads here, takes most of a find().
FIND = settings(max_examples=2000, deadline=None, database=None, phases=[Phase.generate, Phase.shrink])


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = network.eval()(x)
    out = out[0] if isinstance(out, tuple) else out
    assert isinstance(out, Tensor)
    return out


@given(architectures(), st.data())
def test_a_network_runs_on_its_inputs_one_output_an_input(network: nn.Module, data: st.DataObject) -> None:
    x = data.draw(inputs_for(network, min_batch=2, max_batch=2))
    out = outputs(network, x)
    assert out.shape[0] == 2
    assert out.dtype == x.dtype
    assert bool(torch.isfinite(out).all())


@given(architectures(features=["modes"], kinds=["Linear", "Conv", "normalisation"]), st.data())
def test_a_network_runs_in_the_modes_that_it_has(network: nn.Module, data: st.DataObject) -> None:
    """In train mode a BatchNorm refuses a single value for each channel."""
    with torch.no_grad():
        network(data.draw(inputs_for(network)))


def test_where_a_batchnorm_trains_a_batch_is_two_at_least_if_it_may_be() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    network.input_shape = (1,)  # type: ignore[assignment]
    assert len(find(inputs_for(network.eval()), lambda x: True)) == 1
    assert len(find(inputs_for(network.train()), lambda x: True)) == 2
    assert len(find(inputs_for(network.train(), max_batch=1), lambda x: True)) == 1


@given(architectures(), st.data())
def test_the_shown_code_rebuilds_the_network_to_the_bit(network: nn.Module, data: st.DataObject) -> None:
    x = data.draw(inputs_for(network))
    namespace: dict[str, Any] = {}
    with preserved_random_state():
        exec(source(network), namespace)
        again = eval(source(x), {"torch": torch})
    twin = namespace["network"]
    assert torch.equal(again, x)
    state, other = network.state_dict(), twin.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert [m.training for m in network.modules()] == [m.training for m in twin.modules()]
    assert [p.requires_grad for p in network.parameters()] == [p.requires_grad for p in twin.parameters()]
    torch.testing.assert_close(outputs(network, x), outputs(twin, x), rtol=0, atol=0)


@given(layers(), st.data())
def test_a_single_layer_runs(layer: nn.Module, data: st.DataObject) -> None:
    assert outputs(layer, data.draw(inputs_for(layer))).numel() > 0


@pytest.mark.parametrize("kind", ["Linear", "Conv", "ConvTranspose", "LSTM"])
def test_a_kind_alone_gives_networks_of_it(kind: str) -> None:
    found = find(architectures(kinds=[kind], features=()), lambda network: True, settings=GENERATE)
    assert any(kind in type(module).__name__ for module in found.modules())


def test_the_smallest_network_is_one_linear_layer() -> None:
    assert "nn.Linear(1, 1)" in source(find(architectures(), lambda network: True, settings=FIND))


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_shows_in_some_of_the_networks_drawn_for_it(feature: str) -> None:
    """A feature that draws nothing would make every test of it empty: plain chains never look like this."""
    if feature == "root":
        assert "Network" not in source(find(architectures(features=["root"]), lambda n: type(n) is nn.Linear))
        return
    featured = architectures(features=[feature], kinds=["Linear", "Conv"], dtypes=[torch.float32])
    find(featured, lambda n: bool(words(n) - plain_words()), settings=GENERATE)


def words(network: nn.Module) -> set[str]:
    """Return the names in a network's code, those of its own class aside."""
    code = source(network).split("class Network")[0] + source(network).split("network = ")[1]
    return set(re.findall(r"[A-Za-z_]+", code))


@cache
def plain_words() -> set[str]:
    """Return the names in the code of plain chains."""
    seen = set[str]()

    @settings(max_examples=300, derandomize=True, deadline=None, database=None)
    @given(architectures(features=[], kinds=["Linear", "Conv"], dtypes=[torch.float32]))
    def draw(network: nn.Module) -> None:
        seen.update(words(network))

    draw()
    return seen


@pytest.mark.parametrize(
    "seed",
    [0, *(pytest.param(seed, marks=pytest.mark.nightly("one seed shows it in every push")) for seed in (3, 7, 14, 21))],
)
def test_a_network_shrinks_to_the_least_that_has_the_trait(seed: int) -> None:
    """The layers before it are left out too. With all seeds but the first, other ways to draw a chain kept some."""
    strided = find(
        architectures(),
        lambda n: any(isinstance(m, nn.Conv2d) and m.stride[0] == 2 for m in n.modules()),
        settings=FIND,
        random=Random(seed),
    )
    assert sum(isinstance(m, nn.Conv2d | nn.Linear | nn.LSTM) for m in strided.modules()) == 1


def test_drawing_leaves_the_global_random_state_alone() -> None:
    """hypothesis seeds Python's and numpy's generators itself, torch's is the user's."""
    before = torch.get_rng_state()
    find(architectures(), lambda network: True, settings=FIND)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_layers": 0},
        {"min_layers": 3, "max_layers": 2},
        {"max_channels": 0},
        {"kinds": ["Conv2d"]},
        {"kinds": ["pooling"]},
        {"features": ["shortcut"]},
        {"dtypes": [torch.int64]},
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        architectures(**wrong)


def test_inputs_need_a_network_that_knows_its_input_shape() -> None:
    with pytest.raises(InvalidArgument, match="input_shape"):
        inputs_for(nn.Linear(2, 2))
    with pytest.raises(InvalidArgument, match="Module"):
        inputs_for("network")  # type: ignore[arg-type]

    class Own(nn.Linear):
        input_shape = (2,)

    assert find(inputs_for(Own(2, 2)), lambda x: True).shape[1:] == (2,)


def test_a_copy_has_no_source() -> None:
    with pytest.raises(LookupError, match="copy"):
        source(nn.Linear(1, 1))


def test_kinds_are_named_as_documented() -> None:
    assert KINDS[0] == "Linear"


def test_inputs_have_the_dtype_of_a_layer_that_has_only_buffers() -> None:
    layer = nn.BatchNorm1d(1, affine=False).double().eval()
    layer.input_shape = (1,)  # type: ignore[assignment]
    assert outputs(layer, find(inputs_for(layer), lambda x: True)).dtype == torch.float64
