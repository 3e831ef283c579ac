"""How long drawing takes, building included: ``python -m benchmarks.strategies``."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

from hypothesis import find, given, settings
from hypothesis import strategies as st

from pytest_bnn.strategies import (
    architectures,
    conversions,
    inputs_for,
    layers,
    losses,
    posterior_states,
    prior_parameters,
    teachers,
)

EXAMPLES = 300


def measure(make: Callable[[Any], st.SearchStrategy[Any]], of: st.SearchStrategy[Any] | None = None) -> str:
    """Time the draws of a strategy, or of one that is made for an example of another, which is not timed."""
    seconds: list[float] = []

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def draw(data: st.DataObject) -> None:
        example = None if of is None else data.draw(of)
        start = time.perf_counter()
        data.draw(make(example))
        seconds.append(time.perf_counter() - start)

    draw()
    return f"median {1e3 * statistics.median(seconds):6.2f} ms, most {1e3 * max(seconds):7.1f} ms, {len(seconds)} draws"


def main() -> None:
    # torchvision and what else loads at the first draw is no part of a draw.
    find(teachers(), lambda teacher: True, settings=settings(max_examples=1, database=None))
    strategies: dict[str, tuple[Callable[[Any], st.SearchStrategy[Any]], st.SearchStrategy[Any] | None]] = {
        "layers": (lambda _: layers(), None),
        "architectures": (lambda _: architectures(), None),
        "inputs_for": (inputs_for, architectures()),
        "teachers": (lambda _: teachers(), None),
        "prior_parameters": (lambda _: prior_parameters(), None),
        "conversions": (lambda _: conversions(), None),
        "posterior_states": (lambda example: posterior_states(example.converted), conversions()),
        "losses": (lambda example: losses(example.teacher), conversions()),
    }
    print("drawing and building, torch's part included:")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (make, of) in strategies.items():
            print(f"{name:17} {measure(make, of)}", flush=True)


if __name__ == "__main__":
    main()
