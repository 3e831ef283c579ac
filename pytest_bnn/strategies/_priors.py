"""The parameters of a conversion."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any, get_args

from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument

from pytest_bnn.conversion.parameters import Conversion, Estimator
from pytest_bnn.strategies._layers import Draw, check_choice

_DEFAULTS = {field.name: field.default for field in fields(Conversion)}
_WITHOUT_MOPED, _WITH_MOPED = ("posterior_mu_init", "posterior_rho_init"), ("moped_delta",)

Bounds = dict[str, tuple[float, float]]


@st.composite
def _prior_parameters(draw: Draw[Any], types: tuple[str, ...], moped: tuple[bool, ...], bounds: Bounds) -> Conversion:
    estimator, enabled = draw(st.sampled_from(types)), draw(st.sampled_from(moped))
    unused = _WITHOUT_MOPED if enabled else _WITH_MOPED
    given: dict[str, Any] = {"type": estimator, "moped_enable": enabled}
    for name, (least, most) in bounds.items():
        if name not in unused:
            given[name] = draw(_numbers(name, least, most))
    return Conversion(**given)


def _numbers(name: str, least: float, most: float) -> st.SearchStrategy[float]:
    default: Any = _DEFAULTS[name]
    numbers = st.floats(least, most, allow_subnormal=False)
    return st.one_of(st.just(default), numbers) if least <= default <= most else numbers


def prior_parameters(
    *,
    types: Collection[str] = get_args(Estimator),
    moped: Collection[bool] = (True, False),
    min_prior_mu: float = -1.0,
    max_prior_mu: float = 1.0,
    min_prior_sigma: float = 0.01,
    max_prior_sigma: float = 10.0,
    min_posterior_mu_init: float = -0.1,
    max_posterior_mu_init: float = 0.1,
    min_posterior_rho_init: float = -10.0,
    max_posterior_rho_init: float = 1.0,
    min_moped_delta: float = 0.01,
    max_moped_delta: float = 1.0,
) -> st.SearchStrategy[Conversion]:
    """Generate the parameters of a conversion, as records for ``convert_with``.

    What has no effect stays at its default: ``moped_delta`` without MOPED, ``posterior_mu_init`` and
    ``posterior_rho_init`` with it. Examples shrink to the defaults, or into the bounds where these leave a default out.

    Args:
        types: The estimators to choose from.
        moped: Whether MOPED is on: ``[True]``, ``[False]`` or both.
        min_prior_mu: The smallest prior mean.
        max_prior_mu: The largest.
        min_prior_sigma: The smallest standard deviation of the prior, above 0.
        max_prior_sigma: The largest.
        min_posterior_mu_init: The smallest mean of the random posterior means.
        max_posterior_mu_init: The largest.
        min_posterior_rho_init: The smallest mean of the random rho.
        max_posterior_rho_init: The largest.
        min_moped_delta: The smallest sigma / abs(w) under MOPED, above 0.
        max_moped_delta: The largest.

    Raises:
        InvalidArgument: An argument is out of its range.
    """
    check_choice("types", types, get_args(Estimator))
    if not isinstance(moped, Collection) or not moped or not all(isinstance(enabled, bool) for enabled in moped):
        raise InvalidArgument(f"moped={moped!r} must be a collection of True, False or both")
    bounds = {
        "prior_mu": (min_prior_mu, max_prior_mu),
        "prior_sigma": (min_prior_sigma, max_prior_sigma),
        "posterior_mu_init": (min_posterior_mu_init, max_posterior_mu_init),
        "posterior_rho_init": (min_posterior_rho_init, max_posterior_rho_init),
        "moped_delta": (min_moped_delta, max_moped_delta),
    }
    for name, (least, most) in bounds.items():
        _check_bounds(name, least, most)
    ordered = tuple(estimator for estimator in get_args(Estimator) if estimator in types)
    return _prior_parameters(ordered, tuple(on for on in (True, False) if on in moped), bounds)


def _check_bounds(name: str, least: float, most: float) -> None:
    """Refuse what `Conversion` would refuse, and bounds in the wrong order."""
    for side, value in (("min", least), ("max", most)):
        try:
            Conversion(**{name: value})  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"{side}_{name}={value!r}: {error}") from error
    if least > most:
        raise InvalidArgument(f"min_{name}={least!r} must not be above max_{name}={most!r}")
