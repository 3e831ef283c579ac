"""What many checkpoints, examples and passes cost: ``python -m benchmarks.scale [--ray]``.

Each series runs in a process of its own, the sizes interleaved and repeated; shown are medians. Efficiency is the time
of one process over that of several and their number, for the same checkpoints. The peaks of memory are those of the
largest process of a series, its own and those that it started.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NET = """
import os

import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from pytest_bnn import convert
from torch import nn


def teacher():
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10)).eval()


def bayesian():
    return convert(teacher(), moped_delta=0.05)


def held_out():
    images = torch.randn(int(os.environ["EXAMPLES"]), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, teacher()(images).argmax(1)


def loss(model, batch):
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels) + get_kl_loss(model) / 45
"""

#: Saves checkpoints, audits them, and says how long that took and how much memory the largest process had.
RUN = """
import json, os, resource, sys, time
from contextlib import nullcontext
import torch
import scale_net
from pytest_bnn import audit_many
from pytest_bnn.options import Settings, using

checkpoints, processes, engine, passes, examples = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
if __name__ == "__main__":
    torch.set_num_threads(1)
    network = scale_net.bayesian()
    for number in range(int(checkpoints)):
        torch.save(network.state_dict(), f"{number}.pt")
    from pytest_bnn.many.engines import ray_cluster

    around = ray_cluster(workers=processes) if engine == "ray" else nullcontext()
    with around as executor, using(Settings(samples=int(passes), threads=1)):
        start = time.perf_counter()
        audit_many("scale_net:bayesian", ["*.pt"], folder="out", jobs=processes, executor=executor,
                   images=int(examples), teacher="scale_net:teacher", data="scale_net:held_out",
                   loss="scale_net:loss", num_batches=45)
        seconds = time.perf_counter() - start
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"seconds": seconds, "own": peaks[0], "children": peaks[1]}))
"""


@dataclass(frozen=True)
class Series:
    """One line of the table."""

    checkpoints: int = 4
    processes: int = 1
    engine: str = "processes"
    passes: int = 32
    examples: int = 128


def series(*, ray: bool) -> Iterator[Series]:
    """Yield what is measured: each work at 1, 4 and 16 times its size, where several processes share it too."""
    for times in (1, 4, 16):
        yield Series(checkpoints=4 * times)
        yield Series(checkpoints=4 * times, processes=2)
        if ray:
            yield Series(checkpoints=4 * times, processes=2, engine="ray")
    for times in (4, 16):
        yield Series(checkpoints=1, passes=32 * times)
        yield Series(checkpoints=1, examples=128 * times)
    yield Series(checkpoints=1)


def measured(one: Series) -> dict[str, float]:
    """Run a series in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scale_net.py").write_text(NET, encoding="utf-8")
        (Path(folder) / "run.py").write_text(RUN, encoding="utf-8")
        command = [sys.executable, "run.py", one.checkpoints, one.processes, one.engine, one.passes, one.examples]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "EXAMPLES": str(one.examples),
            "PYTHONPATH": f"{folder}:{Path.cwd()}",
        }
        done = subprocess.run(  # noqa: S603  ourselves
            [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ray", action="store_true", help="with Ray too, which must be installed")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    found: dict[Series, list[dict[str, float]]] = defaultdict(list)
    for _ in range(given.repeats):
        for one in series(ray=given.ray):
            found[one].append(measured(one))
    print("| checkpoints | processes | engine | passes | examples | s | s each | efficiency | peak MiB (own, others) |")
    print("|---|---|---|---|---|---|---|---|---|")
    seconds = {one: statistics.median(run["seconds"] for run in runs) for one, runs in found.items()}
    for one, runs in found.items():
        alone = seconds.get(Series(checkpoints=one.checkpoints, passes=one.passes, examples=one.examples))
        efficiency = f"{alone / seconds[one] / one.processes:.2f}" if alone and one.processes > 1 else ""
        own, others = (statistics.median(run[name] for run in runs) for name in ("own", "children"))
        cells = [one.checkpoints, one.processes, one.engine, one.passes, one.examples, f"{seconds[one]:.1f}",
                 f"{seconds[one] / one.checkpoints:.2f}", efficiency, f"{own:.0f}, {others:.0f}"]  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
