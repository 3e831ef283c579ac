"""One series of `benchmarks.scale`, in a process and an empty folder of its own: its times and its memory.

``python -m benchmarks.scale_run JSON`` takes the fields of a `Series` and prints the figures as JSON.
"""

from __future__ import annotations

import time

BEGAN = time.time()

import json  # noqa: E402  the time before all else
import sys  # noqa: E402
from concurrent.futures import Executor  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from benchmarks import scale_net  # noqa: E402
from benchmarks.resident import kib, peaks_of_children  # noqa: E402
from pytest_bnn import audit_many, audit_model  # noqa: E402
from pytest_bnn.many.engines import processes, ray_cluster  # noqa: E402
from pytest_bnn.many.index import rows_of, write_index  # noqa: E402
from pytest_bnn.options import Settings, using  # noqa: E402
from pytest_bnn.records.audits import read  # noqa: E402
from pytest_bnn.report import render_html  # noqa: E402
from pytest_bnn.report.files import write_texts  # noqa: E402

NET = "benchmarks.scale_net"


def main(one: dict[str, Any]) -> None:
    found = {"ready": time.time() - BEGAN}
    torch.set_num_threads(1)
    sharded = not one["checkpoints"]
    examples = 64 if sharded else one["examples"]
    images = torch.randn(examples, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.save([images, scale_net.teacher()(images).argmax(1)], scale_net.DATA)
    around = ray_cluster(workers=one["processes"]) if one["engine"] == "ray" else nullcontext()
    with around as executor, using(Settings(threads=1)):
        found |= by_shards(one, images, executor) if sharded else checkpoints(one, executor)
    found["own"] = kib("VmHWM") / 1024
    found["example bytes"] = Path(scale_net.IMAGES if sharded else scale_net.DATA).stat().st_size / one["examples"]
    if not sharded:
        found |= files()
    print(json.dumps(found))


def by_shards(one: dict[str, Any], images: torch.Tensor, executor: Executor | None) -> dict[str, float]:
    """Judge one model on labelled examples."""
    scale_net.save_labelled(one["examples"])
    several = partial(processes, one["processes"]) if one["processes"] > 1 else None
    start = time.perf_counter()
    with peaks_of_children() as peaks:
        run = audit_model(
            scale_net.bayesian(),
            teacher=scale_net.teacher(),
            data=images,
            executor=executor or several,
            evaluation=scale_net.Labelled(one["examples"]),
            max_evaluation="all",
            shard_size=500,
            checks=["calibration.temperature"],
            options={"calibration.temperature": {"band": (0.9999, 1.0001)}},
        )
    seconds = time.perf_counter() - start
    worker = 0.0 if executor else max(peaks.values(), default=kib("VmHWM")) / 1024
    (check,) = run.checks
    return {"seconds": seconds, "drawn": number(check["examples"]) * check.samples, "worker": worker}


def number(value: object) -> float:
    """Return the value of a measurement that is a number."""
    assert isinstance(value, int | float)
    return float(value)


def checkpoints(one: dict[str, Any], executor: Executor | None) -> dict[str, float]:
    """Save checkpoints, and audit them."""
    network, data = scale_net.bayesian(), f"{NET}:held_out"
    for number in range(one["checkpoints"]):
        torch.save({**network.state_dict()}, f"{number}.pt")
    start = time.perf_counter()
    audit_many(f"{NET}:bayesian", [], folder="none", images=one["examples"], data=data)
    loading = time.perf_counter() - start
    checks = None if one["engine"] == "all checks" else ["layers.replaced", "kl.present", "scale.predicts"]
    start = time.perf_counter()
    audit_many(
        f"{NET}:bayesian",
        ["[0-9]*.pt"],
        folder="out",
        jobs=one["processes"],
        executor=executor,
        images=one["examples"],
        teacher=f"{NET}:teacher",
        data=data,
        checks=checks,
        loss=f"{NET}:loss",
        num_batches=45,
        options={"scale.predicts": {"passes": one["passes"]}},
    )
    return {"loading": loading, "seconds": time.perf_counter() - start}


def files() -> dict[str, float]:
    """Return what the audits say of themselves, and what it takes to write them."""
    audits = [path for path in Path("out").glob("*.json") if path.name != "index.json"]
    runs = [read(path) for path in audits]
    predicted = [check for run in runs for check in run.checks if check.id == "scale.predicts"]
    start = time.perf_counter()
    write_texts({Path("again.html"): render_html(runs[0]), Path("again.json"): runs[0].to_json()})
    writing = time.perf_counter() - start
    start = time.perf_counter()
    index = Path("all/index.html")
    write_index([row for _ in range(200) for row in rows_of(audits[0], read(audits[0]), index)], index)
    return {
        "writing": writing,
        "index": (time.perf_counter() - start) / 200,
        "worker": max((number(check["memory"]) for check in predicted), default=0.0),
        "drawn": sum(number(check["drawn"]) for check in predicted),
        "checkpoint bytes": Path("0.pt").stat().st_size,
        "audit bytes": sum(path.stat().st_size for path in Path("out").glob("0-*")),
    }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
