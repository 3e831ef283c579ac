"""What any conversion of a network into a Bayesian one must hold to: one function a property, and all of them in one.

Made for networks from `pytest_bnn.strategies`, and for any converter: bayesian-torch's, ours, a user's own. Bayesian
layers are recognised as `pytest_bnn.libraries.posterior` does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

from pytest_bnn.properties.behaviour import (
    forward_runs,
    kl_is_closed_form,
    mean_equals_teacher,
    noise_is_posterior,
    seeds_decide,
    state_dict_round_trip,
    twice_is_refused_or_idempotent,
)
from pytest_bnn.properties.outcome import (
    failure_is_a_refusal,
    failure_leaves_nothing_half_done,
    refusal_names_the_module,
    teacher_is_untouched,
)
from pytest_bnn.properties.structure import (
    every_layer_is_called,
    hooks_survive,
    layers_are_replaced,
    modes_survive,
    requires_grad_survives,
    sharing_survives,
    tensors_survive,
)
from pytest_bnn.properties.trial import Converter, PropertyError, Trial, attempt

__all__ = [
    "FAILURE_PROPERTIES",
    "PROPERTIES",
    "Converter",
    "Property",
    "PropertyError",
    "Trial",
    "attempt",
    "check_conversion",
    "every_layer_is_called",
    "failure_is_a_refusal",
    "failure_leaves_nothing_half_done",
    "forward_runs",
    "hooks_survive",
    "kl_is_closed_form",
    "layers_are_replaced",
    "mean_equals_teacher",
    "modes_survive",
    "noise_is_posterior",
    "refusal_names_the_module",
    "refusals",
    "requires_grad_survives",
    "seeds_decide",
    "sharing_survives",
    "state_dict_round_trip",
    "teacher_is_untouched",
    "tensors_survive",
    "twice_is_refused_or_idempotent",
]

#: Raises `PropertyError` where a trial lacks it; the summary line of its docstring is its claim.
Property = Callable[[Trial], None]

#: What a conversion must have, in the order in which `check_conversion` looks.
PROPERTIES: tuple[Property, ...] = (
    teacher_is_untouched,
    layers_are_replaced,
    tensors_survive,
    modes_survive,
    requires_grad_survives,
    hooks_survive,
    sharing_survives,
    forward_runs,
    mean_equals_teacher,
    every_layer_is_called,
    kl_is_closed_form,
    noise_is_posterior,
    state_dict_round_trip,
    seeds_decide,
    twice_is_refused_or_idempotent,
)

#: What must hold where the converter raised.
FAILURE_PROPERTIES: tuple[Property, ...] = (
    failure_leaves_nothing_half_done,
    failure_is_a_refusal,
    refusal_names_the_module,
)

#: Fewer conversions than these are no ground for a share of refusals.
_LEAST = 20

_refused: ContextVar[list[str] | None] = ContextVar("pytest_bnn_refused", default=None)


def check_conversion(
    convert: Converter, network: nn.Module, x: Tensor, *, seed: int = 0, skip: Collection[Property] = ()
) -> Trial:
    """Convert a network and require every property of the result, or of the refusal.

    The converter gets a copy, so the network stays as it is. Where it raises `pytest_bnn.ConversionError`,
    `FAILURE_PROPERTIES` must hold; where it gives a network, `PROPERTIES`; any other exception is a finding.

    Args:
        convert: Gives the converted network for a deterministic one: a new one, or its argument changed in place.
        network: Deterministic; from `pytest_bnn.strategies.architectures`, or any other that runs.
        x: A batch for it, ``[N, ...]``.
        seed: The seed of all randomness.
        skip: Properties that the converter does not claim, such as `mean_equals_teacher` where posteriors start at
            random.

    Returns:
        The trial, which says whether the network was refused.

    Raises:
        PropertyError: An AssertionError with the name of the first property that does not hold.
    """
    trial = attempt(convert, network, x, seed=seed)
    counted = _refused.get()
    if counted is not None:
        counted.append(str(trial.error) if trial.refused else "")
    for holds in PROPERTIES if trial.error is None else FAILURE_PROPERTIES:
        if holds not in skip:
            holds(trial)
    return trial


@contextmanager
def refusals(*, limit: float) -> Iterator[None]:
    """Fail where too many of the conversions inside were refused: refusing everything is no way to be right.

    As a decorator it stands above ``@given``, so that it counts all examples of a test; as a context manager it
    surrounds the run. Fewer than twenty conversions are not judged.

    Args:
        limit: The largest share of refusals, from 0 to 1.

    Raises:
        AssertionError: The share is larger; the most frequent reasons are named.
    """
    if not 0 <= limit <= 1:
        raise ValueError(f"limit must be between 0 and 1, not {limit!r}")
    counted: list[str] = []
    token = _refused.set(counted)
    try:
        yield
    finally:
        _refused.reset(token)
    reasons = Counter(reason for reason in counted if reason)
    if len(counted) >= _LEAST and reasons.total() > limit * len(counted):
        common = "".join(f"\n  {count} times: {reason}" for reason, count in reasons.most_common(3))
        raise AssertionError(
            f"refusals: {reasons.total()} of {len(counted)} conversions were refused, more than {limit:.0%}:{common}"
        )
