"""How long converting ResNet18 takes, beside a deep copy and ``dnn_to_bnn``: ``python -m benchmarks.conversion``.

The two take turns, so that both see the same machine; medians are compared.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torchvision
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from torch import nn

from pytest_bnn.conversion import Conversion, convert


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="conversions by each of the two (default: 15)")
    rounds = parser.parse_args(arguments).rounds
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.resnet18(num_classes=10).eval()
    given = Conversion()
    parameters = {name: getattr(given, name) for name in Conversion.__dataclass_fields__}

    def library() -> nn.Module:
        converted: nn.Module = copy.deepcopy(network)
        dnn_to_bnn(converted, parameters)
        return converted

    converters: dict[str, Callable[[], nn.Module]] = {"library": library, "ours": lambda: convert(network)}
    seconds: dict[str, list[float]] = {name: [] for name in converters}
    for round in range(-1, rounds):
        for name, converter in converters.items():
            start = time.perf_counter()
            converted = converter()
            if round >= 0:  # the first of each warms up
                seconds[name].append(time.perf_counter() - start)
            del converted
    library_ms, ours_ms = (1e3 * statistics.median(seconds[name]) for name in converters)
    print(f"deepcopy and dnn_to_bnn {library_ms:.0f} ms, convert() {ours_ms:.0f} ms: {library_ms / ours_ms:.1f} times")


if __name__ == "__main__":
    main()
