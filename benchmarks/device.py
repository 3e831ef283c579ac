"""How long Monte-Carlo passes of ResNet18 take on an accelerator: the library, the native sampler, and the limit.

``python -m benchmarks.device`` draws 100 passes of 64 images of 224x224 in one process: by bayesian-torch's own loop,
by the native sampler, and as a limit those of the deterministic network on the same device. They take turns, so that
all see the same machine; medians are compared. Without an accelerator it takes a small size on the CPU, and says so:
such figures say nothing of a card.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from torch import Tensor, nn

from pytest_bnn.conversion import Conversion, Estimator
from pytest_bnn.network import devices
from pytest_bnn.sampling.native.handshake import shake_hands


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return the figures: seconds for all passes, by what drew them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--estimator", default="Reparameterization", choices=("Reparameterization", "Flipout"))
    parser.add_argument("--size", type=int, help="side of the images (default: 224; 32 on the CPU)")
    parser.add_argument("--images", type=int, help="images of a batch (default: 64; 8 on the CPU)")
    parser.add_argument("--passes", type=int, help="passes (default: 100; 10 on the CPU)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which medians are taken (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)
    device = devices.find(given.device, "--device")
    small = device.type == "cpu"
    size, images, passes = given.size or (32 if small else 224), given.images or (8 if small else 64), given.passes
    found = measure(device, given.estimator, size, images, passes or (10 if small else 100), given.rounds)
    if small:
        print("No accelerator: a small size on the CPU, which says nothing of a card.")
    print(_table(found))
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def measure(
    device: torch.device, estimator: Estimator, size: int, images: int, passes: int, rounds: int
) -> dict[str, Any]:
    """Measure all of them in turns."""
    torch.manual_seed(0)
    limit = torchvision.models.resnet18(num_classes=1000).eval().to(device)
    library = torchvision.models.resnet18(num_classes=1000).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dnn_to_bnn(library, asdict(Conversion(type=estimator)))
    library = library.eval().to(device)
    batch, rows = torch.randn(images, 3, size, size, device=device), torch.arange(images, device=device)
    start = time.perf_counter()
    native = shake_hands(library, batch, 0)
    validation = _until_done(device) - start
    ways: dict[str, Callable[[], object]] = {
        "library": lambda: _loop(library, batch, passes),
        "native": lambda: native.run(range(passes), batch, rows),
        "deterministic": lambda: _loop(limit, batch, passes),
    }
    for way in ways.values():  # what is chosen and allocated once
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            start = _until_done(device)
            way()
            seconds[name].append(_until_done(device) - start)
            if device.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated(device) / 2**20
    return {
        "device": devices.named(device),
        "torch": torch.__version__,
        "estimator": estimator,
        "work": f"{passes} passes of {images} images of {size}x{size}",
        "passes at once": native.at_once(images),
        "sampler": native.noise,
        "validation": validation,
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "peak MiB": memory,
    }


def _loop(network: nn.Module, images: Tensor, passes: int) -> Tensor:
    """What users write: one call a pass."""
    with torch.no_grad():
        return torch.stack([network(images) for _ in range(passes)])


def _until_done(device: torch.device) -> float:
    """Wait for a device, and return the time."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _table(found: dict[str, Any]) -> str:
    seconds = found["seconds"]
    lines = [
        f"{found['work']}, {found['estimator']}, on {found['device']}, torch {found['torch']}",
        f"{found['sampler']}; {found['passes at once']} at once; validated in {found['validation']:.2f} s",
        "| what | seconds | native / it | peak MiB |",
        "|---|---|---|---|",
    ]
    for name, value in seconds.items():
        peak = f"{found['peak MiB'][name]:.0f}" if name in found["peak MiB"] else ""
        lines.append(f"| {name} | {value:.3g} | {seconds['native'] / value:.2f} | {peak} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
