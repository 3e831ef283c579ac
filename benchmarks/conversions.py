"""How many generated networks a converter converts, and whether every conversion has every property.

``python -m benchmarks.conversions`` takes 10,000 random networks to `pytest_bnn.convert`, half of them to each
estimator, in about ten minutes on one core. ``--converter MODULE:FUNCTION`` takes another converter, which gets a
network alone.
"""

from __future__ import annotations

import argparse
import importlib
import re
import time
import warnings
from collections import Counter
from functools import partial
from typing import get_args

from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import nn

from pytest_bnn import convert, properties
from pytest_bnn.conversion import Estimator
from pytest_bnn.properties import Converter
from pytest_bnn.strategies import architectures, inputs_for


def converters(path: str | None) -> dict[str, Converter]:
    if path is None:
        return {f"convert(type={type!r})": partial(convert, type=type) for type in get_args(Estimator)}
    module, _, name = path.partition(":")
    return {path: getattr(importlib.import_module(module), name)}


def examine(convert: Converter, examples: int, start: int | None, reasons: Counter[str]) -> Counter[str]:
    """Check so many conversions; the first that lacks a property raises, with the smallest network that does."""
    counts: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, database=None, derandomize=False)
    @given(architectures(), st.data())
    def check(network: nn.Module, data: st.DataObject) -> None:
        trial = properties.check_conversion(convert, network, data.draw(inputs_for(network)))
        counts["refused" if trial.refused else "converted"] += 1
        if trial.refused:
            reasons[_reason(str(trial.error))] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (check if start is None else seed(start)(check))()
    return counts


def _reason(message: str) -> str:
    """Return what is wrong with the first module that a refusal names, without its numbers."""
    first = message.partition("nothing was touched: ")[2].partition(";")[0].partition(". ")[0]
    first = re.sub(r"(shared by).*?:", r"\1 two layers:", first)
    return re.sub(r"^.*?\) |'[^']*'|-?\d[\d.e+]*", lambda part: "" if part[0].endswith(") ") else "#", first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000, help="networks, over all converters")
    parser.add_argument("--converter", metavar="MODULE:FUNCTION", help="instead of pytest_bnn.convert")
    parser.add_argument("--seed", type=int, help="to repeat a run; random without")
    arguments = parser.parse_args()
    chosen = converters(arguments.converter)
    reasons: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, converter in chosen.items():
        begin = time.perf_counter()
        counts = examine(converter, arguments.examples // len(chosen), arguments.seed, reasons)
        total += counts
        print(f"{name}: {counts['converted']} converted, {counts['refused']} refused", end="")
        print(f", all with every property ({time.perf_counter() - begin:.0f} s)", flush=True)
    print(f"{total.total()} networks, {len(properties.PROPERTIES)} properties: no finding.")
    print(f"refused: {total['refused'] / total.total():.1%}, because the first module in question")
    for reason, count in reasons.most_common():
        print(f"  {count:5d}  {reason}")


if __name__ == "__main__":
    main()
