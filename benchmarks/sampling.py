"""How long passes, KL, conversion and fine-tuning of ResNet18 take: the library, the engine, the hardware's limit.

``python -m benchmarks.sampling`` measures in one process, in turns, so that all see the same machine, and compares
medians. The limit is the deterministic network with BatchNorm folded, channels_last, on all cores, plus a bare fill of
one pass's noise on all cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pytest_bnn.conversion import Conversion, convert
from pytest_bnn.sampling.engine.handshake import shake_hands
from pytest_bnn.sampling.engine.noise import PhiloxNoise, Scratch
from pytest_bnn.sampling.engine.run import Engine
from pytest_bnn.sampling.freed import give_memory_back
from pytest_bnn.sampling.threads import limited
from pytest_bnn.training.divergence import fixed_sigma, kl
from pytest_bnn.training.engine import fused_steps

#: Seconds before each measurement: torch's threads spin for some milliseconds after their work, on a core of the next.
PAUSE = 0.02

#: Steps of fine-tuning.
STEPS = 40


@dataclass(frozen=True)
class Work:
    """A work of so many passes, of which each round measures a few."""

    name: str
    size: int
    images: int
    passes: int
    measured: int
    estimator: str = "Reparameterization"


WORKS = (
    Work("predict-32-b1", 32, 1, 100, 8),
    Work("predict-224-b1", 224, 1, 100, 6),
    Work("flipout-32-b1", 32, 1, 100, 8, "Flipout"),
    Work("flipout-224-b1", 224, 1, 100, 6, "Flipout"),
    Work("predict-32-b8", 32, 8, 100, 6),
    Work("predict-32-b32", 32, 32, 100, 4),
    Work("predict-32-b64", 32, 64, 100, 4),
    Work("predict-224-b8", 224, 8, 100, 2),
    Work("predict-224-b32", 224, 32, 50, 1),
    Work("predict-224-b64", 224, 64, 50, 1),
)

#: Passes of a short run, in which the handshake weighs more.
SHORT = 20

OTHERS = ("convert", "kl", "finetune", "workers", "audit", "audit-beside-load")


def folded(network: nn.Module) -> nn.Module:
    """Return a copy with every BatchNorm folded into the convolution before it, channels_last."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")):
            pair = getattr(module, conv, None), getattr(module, norm, None)
            if isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(pair[0], pair[1]))
                setattr(module, norm, nn.Identity())
    return network.to(memory_format=torch.channels_last)


def interleaved(rounds: int, **timed: Callable[[], object]) -> dict[str, float]:
    """Return the median seconds of each, measured in turns after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for round in range(-1, rounds):
        for name, run in timed.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            if round >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def predict(work: Work, network: nn.Module, threads: int, rounds: int) -> dict[str, Any]:
    bnn = convert(network, type=work.estimator)  # type: ignore[arg-type]
    images = torch.randn(work.images, 3, work.size, work.size)
    rows = torch.arange(work.images)
    torch.set_num_threads(threads)
    shake_hands(bnn, images, 0)  # compiles
    start = time.perf_counter()
    engine = shake_hands(bnn, images, 0)
    build = time.perf_counter() - start
    limit = folded(network)
    fills = [torch.empty(-(-sum(p.numel() for p in network.parameters()) // threads)) for _ in range(threads)]
    noise = PhiloxNoise(0)
    numbers = range(work.measured)

    def library() -> None:
        for _ in numbers:
            bnn(images)

    def deterministic(part: Tensor) -> None:
        with torch.no_grad():
            limit(part)

    def limited_by_hardware() -> None:
        with limited(1), ThreadPoolExecutor(threads) as pool:
            size = min(engine.chunk, -(-work.images // threads)) if work.images > 1 else 1
            parts = list(images.contiguous(memory_format=torch.channels_last).split(size))
            list(pool.map(deterministic, [part for _ in numbers for part in parts]))

    def fill() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for number in numbers:
                list(pool.map(lambda out: noise.draw(out, None, out, 0, number, Scratch()), fills))  # noqa: B023

    with torch.no_grad():
        found = interleaved(
            rounds,
            library=library,
            ours=lambda: engine.run(numbers, images, rows),
            network=limited_by_hardware,
            fill=fill,
        )
    scale = work.passes / work.measured
    library_s, ours_s, network_s, fill_s = (scale * found[name] for name in ("library", "ours", "network", "fill"))
    return {
        "work": work.name, "library": library_s, "ours": ours_s, "limit": network_s + fill_s, "build": build,
        "passes": work.passes, "measured": work.measured,
    }  # fmt: skip


def conversion(network: nn.Module, rounds: int) -> dict[str, Any]:
    given = Conversion()
    parameters = {name: getattr(given, name) for name in Conversion.__dataclass_fields__}
    found = interleaved(
        rounds, library=lambda: dnn_to_bnn(copy.deepcopy(network), parameters), ours=lambda: convert(network)
    )
    return {"work": "convert", **found, "limit": None}


def divergence(network: nn.Module, rounds: int) -> list[dict[str, Any]]:
    """The KL term where sigma is known, where it is not, and with its gradient; against bayesian-torch's call."""
    bnn = convert(network)
    sigma = fixed_sigma(bnn)

    def with_gradient(term: Callable[[nn.Module], Any]) -> None:
        bnn.zero_grad(set_to_none=True)
        term(bnn).backward()

    with torch.no_grad():
        known = interleaved(rounds, library=lambda: get_kl_loss(bnn), ours=lambda: kl(bnn, sigma=sigma))
        cold = interleaved(rounds, library=lambda: get_kl_loss(bnn), ours=lambda: kl(bnn))
    gradient = interleaved(rounds, library=lambda: with_gradient(get_kl_loss), ours=lambda: with_gradient(kl))
    works = {"kl": known, "kl-cold": cold, "kl-gradient": gradient}
    return [{"work": work, **found, "limit": None} for work, found in works.items()]


def finetuning(network: nn.Module, rounds: int) -> dict[str, Any]:
    """Steps of Adam at batch 1, 224x224; the limit is a step of the deterministic network."""
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        target = network(images) + 1
    twin, deterministic, bnn = convert(network).eval(), copy.deepcopy(network).eval(), convert(network).eval()
    error = nn.functional.mse_loss
    fused_steps(bnn, images, target, data_term=error, kl_weight=1e-3, seed=0)  # compiles
    start = time.perf_counter()
    fused = fused_steps(bnn, images, target, data_term=error, kl_weight=1e-3, seed=0)
    build = time.perf_counter() - start

    def plain(model: nn.Module, term: Callable[[], Any]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            (error(model(images), target) + term()).backward()
            optimizer.step()

        return step

    def ours() -> None:
        fused.forward(images, target)
        fused.update(1e-4)

    found = interleaved(
        rounds,
        library=plain(twin, lambda: 1e-3 * get_kl_loss(twin)),
        ours=ours,
        limit=plain(deterministic, lambda: 0.0),
    )
    return {"work": "finetune", **{name: STEPS * value for name, value in found.items()}, "build": build}


def together(seconds: float, processes: int, workers: int) -> float:
    """Return the passes a second, 224x224 batch 1, of some of the processes among which xdist shares out the cores."""
    command = [sys.executable, "-m", "benchmarks.sampling", "--passes-for", str(seconds)]
    environment = {**os.environ, "PYTEST_XDIST_WORKER_COUNT": str(workers)}
    running = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(processes)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()  # it is ready
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in running)


def passes_for(seconds: float) -> None:
    """Draw passes for some seconds, once told to, and print how many a second."""
    images = torch.randn(1, 3, 224, 224)
    engine = shake_hands(convert(torchvision.models.resnet18().eval()), images, 0)
    engine.run(range(4), images, torch.arange(1))
    print("ready", flush=True)
    sys.stdin.readline()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        engine.run(range(done, done + 8), images, torch.arange(1))
        done += 8
    print(done / (time.perf_counter() - start))


def audit(rounds: int) -> dict[str, Any]:
    """The whole default audit, with the engine and with the model's own forward, as commands."""

    def run(sampler: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            code = f"from pytest_bnn.cli import main; main(['audit', '--sampler', '{sampler}', '-o', 'audit.html'])"
            subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)  # noqa: S603
            assert Path(folder, "audit.html").exists()

    found = interleaved(rounds, library=lambda: run("own"), ours=lambda: run("auto"))
    return {"work": "audit", **found, "limit": None}


def audits_by_cores(rounds: int) -> str:
    """Say how long the default audit takes on all cores, on one, and on all of which another process keeps one busy."""

    def run(prepare: str = "pass") -> None:
        with tempfile.TemporaryDirectory() as folder:
            code = f"{prepare}; from pytest_bnn.cli import main; main(['audit', '-q'])"
            subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)  # noqa: S603

    def beside_load() -> None:
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            run()
        finally:
            busy.kill()
            busy.wait()

    one = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    found = interleaved(rounds, idle=run, one=lambda: run(one), beside=beside_load)
    idle, alone, beside = (found[name] for name in ("idle", "one", "beside"))
    return (
        f"the default audit: {idle:.1f} s on {len(os.sched_getaffinity(0))} idle cores, {alone:.1f} s on one "
        f"({alone / idle:.2f} times), {beside:.1f} s beside one busy core ({beside / idle:.2f} times)"
    )


def peak_memory() -> dict[str, float]:
    """Return resident peaks over that of the loaded model, in copies of its weights, at 224x224 and batch 1.

    ``own`` is that of the model's own passes; ``handshake``, ``four`` and ``hundred`` passes are the engine's.
    """
    network = torchvision.models.resnet18().eval()
    bnn = convert(network)
    images = torch.randn(1, 3, 224, 224)
    small = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    shake_hands(convert(small), torch.randn(1, 3, 2, 2), 0)  # loads numba and scipy
    give_memory_back()
    before = _peak_kib_of(lambda: None)

    def own() -> None:
        with torch.no_grad():
            for _ in range(2):
                bnn(images)

    found = {"own": _peak_kib_of(own)}
    engines: list[Engine] = []
    found["handshake"] = _peak_kib_of(lambda: engines.append(shake_hands(bnn, images, 0)))
    for name, passes in (("four", 4), ("hundred", 100)):
        found[name] = _peak_kib_of(lambda passes=passes: engines[0].run(range(passes), images, torch.arange(1)))  # type: ignore[misc]
    weights = sum(4 * p.numel() for p in network.parameters()) / 1024
    return {name: (peak - before) / weights for name, peak in found.items()}


def _peak_kib_of(run: Callable[[], object]) -> float:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far; Linux only
    run()
    return _peak_kib()


def _peak_kib() -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return float(line.split()[1])


def show(rows: list[dict[str, Any]], old: dict[str, dict[str, Any]]) -> None:
    print(
        f"{'work':<18}{'library':>10}{'ours':>10}{'limit':>10}{'library/ours':>14}{'with build':>12}"
        f"{f'{SHORT} passes':>12}{'ours/limit':>12}"
    )
    for row in rows:
        cells = [
            f"{row['work']:<18}",
            *(f"{row[k]:>8.3g} s" if row[k] else f"{'-':>10}" for k in ("library", "ours", "limit")),
            f"{row['library'] / row['ours']:>14.2f}",
        ]
        for part in (1.0, SHORT / row["passes"] if "passes" in row else 0.0):
            told = "build" in row and part > 0
            cells.append(f"{_ratio(row, part):>12.2f}" if told else f"{'-':>12}")
        cells.append(f"{row['ours'] / row['limit']:>12.2f}" if row["limit"] else f"{'-':>12}")
        if row["work"] in old:
            before = old[row["work"]]
            cells.append(f"   library/ours was {before['library'] / before['ours']:.2f}, ours {before['ours']:.3g} s")
        print("".join(cells))
    print(
        "In seconds for all passes (100; 50 of 224-b32 and 224-b64) or steps (40); each round measures a few of them."
    )
    print(f"With build: the handshake is included; so in the column of {SHORT} passes.")


def _ratio(row: dict[str, Any], part: float) -> float:
    """Return library/ours for a part of the passes, the handshake included."""
    return float(part * row["library"] / (part * row["ours"] + row["build"]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="threads of ours and the limit (default: 2)")
    names = [*(work.name for work in WORKS), *OTHERS]
    parser.add_argument("--works", default=",".join(names), help="which, by name, of " + ", ".join(names))
    parser.add_argument("--json", type=Path, help="write the medians here")
    parser.add_argument("--compare", type=Path, help="what changed since this file was written")
    parser.add_argument(
        "--memory", action="store_true", help="only print the peak memory, in copies of the weights, as JSON"
    )
    parser.add_argument("--passes-for", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if given.memory:
        print(json.dumps(peak_memory()))
        return
    if given.passes_for:
        passes_for(given.passes_for)
        return
    network = torchvision.models.resnet18().eval()
    chosen = given.works.split(",")
    rows = [predict(work, network, given.threads, given.rounds) for work in WORKS if work.name in chosen]
    if "convert" in chosen:
        rows.append(conversion(network, given.rounds))
    if "kl" in chosen:
        rows += divergence(network, given.rounds)
    if "finetune" in chosen:
        rows.append(finetuning(network, given.rounds))
    if "audit" in chosen:
        rows.append(audit(max(1, given.rounds // 4)))
    if "audit-beside-load" in chosen:
        print(audits_by_cores(max(1, given.rounds // 4)))
    old = {row["work"]: row for row in json.loads(given.compare.read_text())["rows"]} if given.compare else {}
    show(rows, old)
    if "workers" in chosen:
        rates = [[together(4, *who) for who in ((1, 1), (1, 2), (2, 2))] for _ in range(3)]
        alone, one, two = (statistics.median(rate) for rate in zip(*rates, strict=True))
        print(
            f"passes a second, 224x224: one process {alone:.1f}, one of two workers {one:.1f}, both at once {two:.1f}"
        )
    command = [sys.executable, "-m", "benchmarks.sampling", "--memory"]
    memory = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603
    engine = max(memory["handshake"], memory["hundred"])
    print(
        "peak memory over the loaded model's, in copies of its weights: its own passes {own:.1f}, the engine's "
        "handshake {handshake:.1f}, 4 passes {four:.1f}, 100 passes {hundred:.1f};".format(**memory),
        f"so the engine takes {engine - memory['own']:.1f} over the model's own",
    )
    if given.json:
        given.json.write_text(json.dumps({"rows": rows, "memory": memory}, indent=1) + "\n")


if __name__ == "__main__":
    main()
