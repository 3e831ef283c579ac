"""`ConversionMachine`: ours stays sound whatever is done to it, and what breaks only later is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from torch import nn

from pytest_bnn import ConversionError, convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.properties import PropertyError
from pytest_bnn.strategies import ConversionMachine

#: An example has a dozen steps, so that fewer are enough.
EXAMPLES = settings().max_examples // 4


class FlipoutMachine(ConversionMachine):
    convert = staticmethod(lambda network: convert(network, type="Flipout"))


LATER = pytest.mark.nightly("seconds; in every push the same rules run for the other estimator, or find another fault")


@pytest.mark.parametrize("machine", [ConversionMachine, pytest.param(FlipoutMachine, marks=LATER)])
def test_our_conversion_stays_sound(machine: type[ConversionMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=EXAMPLES, stateful_step_count=12))


def copies_nothing(converted: nn.Module, network: nn.Module) -> None:
    vars(converted)["__deepcopy__"] = lambda memo: converted


def loads_nothing(converted: nn.Module, network: nn.Module) -> None:
    vars(converted)["load_state_dict"] = lambda state: None


def trains_its_teacher(converted: nn.Module, network: nn.Module) -> None:
    before = dict(network.named_modules())
    for layer in bayesian_layers(converted):
        for tensor in layer.tensors:
            weight = getattr(before[layer.path], tensor.role)
            if weight.shape == tensor.mu.shape:
                tensor.mu.data = weight.data


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (copies_nothing, "posterior_is_as_expected: mu of .* has other values"),
        pytest.param(loads_nothing, "posterior_is_as_expected: (mu|rho) of .* has other values", marks=LATER),
        (trains_its_teacher, "teacher_is_untouched: .* has other values now"),
    ],
)
def test_what_breaks_only_in_use_is_caught(change: Callable[[nn.Module, nn.Module], None], found: str) -> None:
    def broken(network: nn.Module) -> nn.Module:
        converted = convert(network)
        change(converted, network)
        return converted

    class Broken(ConversionMachine):
        convert = staticmethod(broken)

    with pytest.raises(PropertyError, match=found):
        run_state_machine_as_test(
            Broken,
            settings=settings(  # up to the first failure, which 50 examples hold nearly always
                max_examples=1000, stateful_step_count=10, phases=[Phase.generate], report_multiple_bugs=False
            ),
        )


def test_a_refused_network_is_left_aside() -> None:
    seen = []

    def choosy(network: nn.Module) -> nn.Module:
        seen.append(network)
        if any(isinstance(module, nn.Linear) for module in network.modules()):
            raise ConversionError("no Linear", fix="use convolutions")
        return convert(network)

    class Choosy(ConversionMachine):
        convert = staticmethod(choosy)

    run_state_machine_as_test(Choosy, settings=settings(max_examples=5, stateful_step_count=2))
    assert len(seen) >= 5
