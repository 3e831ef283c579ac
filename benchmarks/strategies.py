"""How long drawing and building a network takes: ``python -m benchmarks.strategies``."""

from __future__ import annotations

import statistics
import time
import warnings

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_bnn.strategies import architectures

EXAMPLES = 300


def main() -> None:
    seconds: list[float] = []

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(st.data())
    def draw(data: st.DataObject) -> None:
        start = time.perf_counter()
        data.draw(architectures())
        seconds.append(time.perf_counter() - start)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draw()
    print(
        f"{len(seconds)} networks drawn and built, torch's part included: "
        f"median {1e3 * statistics.median(seconds):.2f} ms, most {1e3 * max(seconds):.1f} ms"
    )


if __name__ == "__main__":
    main()
