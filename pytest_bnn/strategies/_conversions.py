"""Conversions: a network, what became of it, and an input for both."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.vendor.pretty import RepresentationPrinter
from torch import Tensor, nn

from pytest_bnn.conversion import convert_with
from pytest_bnn.conversion.parameters import Conversion
from pytest_bnn.network.isolation import preserved_random_state
from pytest_bnn.strategies._layers import KINDS, Draw, check_bound
from pytest_bnn.strategies._networks import FEATURES, architectures, inputs_for
from pytest_bnn.strategies._priors import prior_parameters
from pytest_bnn.strategies._source import IMPORTS, show, source
from pytest_bnn.strategies._teachers import teachers

#: The features of `architectures` that ``convert()`` never refuses, with `CONVERTIBLE_KINDS`.
CONVERTIBLE_FEATURES = tuple(f for f in FEATURES if f not in ("subclass", "namesake", "LoRA", "tied", "values"))
#: The kinds of layers that ``convert()`` never refuses.
CONVERTIBLE_KINDS = tuple(kind for kind in KINDS if kind != "LSTM")

_IMPORT = "from pytest_bnn.conversion import Conversion, convert_with"
_DEFAULT = Conversion()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConversionExample:
    """One conversion.

    Args:
        teacher: The network that was converted.
        parameters: How.
        seed: The seed of the random posterior, without MOPED.
        converted: What ``convert_with(teacher, parameters)`` gave.
        x: A batch of inputs for both, in the dtype of both.
    """

    teacher: nn.Module
    parameters: Conversion
    seed: int
    converted: nn.Module
    x: Tensor

    def __repr__(self) -> str:
        """Return the code that makes ``network``, ``converted`` and ``x``."""
        changed = {f.name: getattr(self.parameters, f.name) for f in fields(Conversion)}
        changed = {name: value for name, value in changed.items() if value != getattr(_DEFAULT, name)}
        arguments = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        lines = [
            _code("network", self.teacher).replace(IMPORTS, f"{IMPORTS}\n{_IMPORT}", 1),
            *([] if self.parameters.moped_enable else [f"torch.manual_seed({self.seed})"]),
            f"converted = convert_with(network, Conversion({arguments}))",
            _code("x", self.x),
        ]
        return "\n".join(lines)

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        show(repr(self), printer)


def _code(name: str, example: nn.Module | Tensor) -> str:
    try:
        code = source(example)
    except LookupError:
        return f"{name} = ...  # not drawn by pytest_bnn.strategies: {type(example).__name__}"
    return code if isinstance(example, nn.Module) else f"{name} = {code}"


@st.composite
def _conversions(
    draw: Draw[Any],
    networks: st.SearchStrategy[nn.Module],
    parameters: st.SearchStrategy[Conversion],
    batches: tuple[int, int],
) -> ConversionExample:
    teacher, conversion = draw(networks), draw(parameters)
    seed = 0 if conversion.moped_enable else draw(st.integers(0, 9))
    with preserved_random_state():
        if not conversion.moped_enable:
            torch.manual_seed(seed)
        converted = convert_with(teacher, conversion)
    x = draw(inputs_for(teacher, min_batch=batches[0], max_batch=batches[1]))
    return ConversionExample(teacher=teacher, parameters=conversion, seed=seed, converted=converted, x=x)


def conversions(
    networks: st.SearchStrategy[nn.Module] | None = None,
    parameters: st.SearchStrategy[Conversion] | None = None,
    *,
    min_batch: int = 1,
    max_batch: int = 3,
) -> st.SearchStrategy[ConversionExample]:
    """Generate conversions by ``convert_with``, each with its teacher and an input for both networks.

    An example is shown as the code that makes all of it. Examples shrink to a converted ``nn.Linear(1, 1)`` under the
    default parameters.

    Args:
        networks: What to convert. Default: `teachers`, and `architectures` of what ``convert()`` never refuses
            (`CONVERTIBLE_FEATURES`, `CONVERTIBLE_KINDS`), all in eval mode. Give networks that it accepts: a
            ConversionError is not caught.
        parameters: Default: `prior_parameters`.
        min_batch: The smallest batch, at least 1.
        max_batch: The largest batch.

    Raises:
        InvalidArgument: An argument is no strategy, or a bound is out of its range.
    """
    check_bound("min_batch", min_batch, 1)
    check_bound("max_batch", max_batch, min_batch)
    for name, value in (("networks", networks), ("parameters", parameters)):
        if value is not None and not isinstance(value, st.SearchStrategy):
            raise InvalidArgument(f"{name}={value!r} must be a strategy")
    if networks is None:
        # In train mode, BatchNorm refuses a batch of 1, and a forward changes the teacher.
        features = [feature for feature in CONVERTIBLE_FEATURES if feature != "modes"]
        networks = st.one_of(architectures(features=features, kinds=CONVERTIBLE_KINDS), teachers())
    return _conversions(networks, prior_parameters() if parameters is None else parameters, (min_batch, max_batch))
