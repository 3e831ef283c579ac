"""What many checkpoints, examples and passes cost, and what 1,000 checkpoints would: ``python -m benchmarks.scale``.

Each series runs in a process of its own, the sizes interleaved where they are repeated; shown are medians. The work is
``passes`` passes over ``examples`` images for each of ``checkpoints``. A check of the benchmark's own draws them, in
audits as `audit_many` makes them, so that it is known what is drawn; the audit of all checks is a line of its own. Of
one checkpoint without one, the examples are labelled ones that are read and judged shard by shard, for a claim that
none of these sizes decides.

- Growth is the time that 4 to 16 times the work adds over that which 1 to 4 times adds: 4 where cost is linear.
- Efficiency is the time of one process over that of two, and over two, for the same work; steady is that of the time
  which 4 to 16 times the work adds, without the start of the processes. ``--ray`` has Ray's own beside it.
- Memory is the peak of the process that audits (by shards, of the largest one, which Ray does not tell), and of the one
  that started all.

It takes about twenty minutes on two idle cores with ``--ray``; ``--quick`` is to see that it runs. ``--json`` keeps all
figures, and ``--from`` plans with figures that were kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.scale_plan import Constants, plan


@dataclass(frozen=True)
class Series:
    """One line of the table.

    The engine is ``processes`` of this machine, ``ray``, or ``all checks`` in one process. Without checkpoints one
    model is judged on labelled examples shard by shard, by as many passes as that takes.
    """

    checkpoints: int = 2
    passes: int = 64
    examples: int = 256
    processes: int = 1
    engine: str = "processes"


PAGE = Path("docs") / "explanation" / "scale.md"
BEGIN, END = "<!-- scale: begin -->", "<!-- scale: end -->"

#: What is multiplied, and by how much.
WORKS = ("checkpoints", "passes", "examples")
TIMES = (1, 4, 16)
QUICK = (1, 2)

#: The least of the works, and that of one model on data that are read by shards.
LEAST = (Series(), Series(checkpoints=0, passes=8, examples=4_000))
LITTLE = (Series(passes=16, examples=16), Series(checkpoints=0, passes=8, examples=1_000))

Works = tuple[Series, Series]


def scaled(base: Series, work: str, by: int) -> Series:
    """Return a series with that many times the work."""
    return replace(base, **{work: getattr(base, work) * by})


def rows(works: Works, times: tuple[int, ...] = TIMES) -> Iterator[tuple[Series, ...]]:
    """Yield what grows: each work of checkpoints at each size, and the examples that are read by shards."""
    whole, sharded = works
    for work in WORKS:
        yield tuple(scaled(whole, work, by) for by in times)
    yield tuple(scaled(sharded, "examples", by) for by in times)


def series(works: Works, *, ray: bool, times: tuple[int, ...] = TIMES) -> Iterator[Series]:
    """Yield what is measured: each size by one process and by two, of this machine and of Ray."""
    sizes = dict.fromkeys(size for same in zip(*rows(works, times), strict=True) for size in same)
    for size in sizes:
        if times == QUICK and size not in works:  # others are shared by processes as these are
            yield size
            continue
        for engine in ("processes", "ray") if ray else ("processes",):
            for processes in (1, 2):
                yield replace(size, engine=engine, processes=processes)
    yield replace(works[0], checkpoints=1, examples=512, engine="all checks")


def measured(one: Series) -> dict[str, float]:
    """Run a series in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        command = [sys.executable, "-m", "benchmarks.scale_run", json.dumps(asdict(one))]
        done = subprocess.run(command, cwd=folder, env=environment, text=True, check=False, capture_output=True)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"{one} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        wanted = one.passes * one.examples * max(1, one.checkpoints)
        if one.engine != "all checks" and found["drawn"] != wanted:
            raise RuntimeError(f"{one} drew {found['drawn']:.0f} passes of an example in place of {wanted}")
        return found


def growth(seconds: dict[Series, float], one: Series, works: Works, times: tuple[int, ...] = TIMES) -> float | None:
    """Return what the last step of a work adds over what the first adds: 4 where each is four times the one before."""
    for row in rows(works, times):
        sizes = [replace(size, engine=one.engine, processes=one.processes) for size in row]
        if one == sizes[-1] and all(size in seconds for size in sizes) and len(times) > 2:
            first, middle, last = (seconds[size] for size in sizes)
            return (last - middle) / (middle - first)
    return None


def efficiency(seconds: dict[Series, float], one: Series, works: Works, times: tuple[int, ...] = TIMES) -> list[str]:
    """Return how well several processes share a work: whole, and without what they take to start."""
    alone = replace(one, processes=1)
    if one.processes == 1 or alone not in seconds:
        return ["", ""]
    whole = seconds[alone] / seconds[one] / one.processes
    for row in rows(works, times):
        *_, before, last = (replace(size, engine=one.engine, processes=one.processes) for size in row)
        if one == last and len(times) > 2:
            added = (seconds[alone] - seconds[replace(before, processes=1)]) / (seconds[one] - seconds[before])
            return [f"{whole:.2f}", f"{added / one.processes:.2f}"]
    return [f"{whole:.2f}", ""]


def table(figures: dict[Series, dict[str, float]], works: Works, times: tuple[int, ...] = TIMES) -> list[str]:
    """Return the lines of the table."""
    seconds = {one: found["seconds"] for one, found in figures.items()}
    head = ["checkpoints", "passes", "examples", "engine", "processes", "s", "growth", "efficiency", "steady",
            "MiB auditing", "MiB of the first"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for one, found in sorted(figures.items(), key=lambda item: not item[0].checkpoints):
        grown = growth(seconds, one, works, times)
        cells = [one.checkpoints or "by shards", one.passes, f"{one.examples:,}", one.engine, one.processes,
                 f"{seconds[one]:.1f}", "" if grown is None else f"{grown:.1f}",
                 *efficiency(seconds, one, works, times),
                 f"{found['worker']:.0f}" if found["worker"] else "", f"{found['own']:.0f}"]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def constants(figures: dict[Series, dict[str, float]], works: Works, times: tuple[int, ...] = TIMES) -> Constants:
    """Return what a plan is made of, from the series of one process."""
    alone = {one: found for one, found in figures.items() if (one.engine, one.processes) == ("processes", 1)}
    base, sharded = works

    def slope(base: Series, work: str, figure: str = "seconds") -> float:
        """Return what one more adds: a pass, an example or a checkpoint."""
        larger, smaller = (scaled(base, work, by) for by in (times[-1], times[-2]))
        rise = alone[larger][figure] - alone[smaller][figure]
        return float(max(0.0, rise) / (getattr(larger, work) - getattr(smaller, work)))

    drawn = slope(base, "passes") / (base.checkpoints * base.examples)
    every = [found for one, found in alone.items() if one.checkpoints]
    whole = [found["seconds"] for one, found in figures.items() if one.engine == "all checks"]
    return Constants(
        start=statistics.median(found["ready"] for found in every),
        first=max(0.0, alone[base]["seconds"] - slope(base, "checkpoints") * base.checkpoints),
        example=slope(base, "examples", "loading"),
        checkpoint=max(0.0, slope(base, "checkpoints") - drawn * base.passes * base.examples),
        drawn=drawn,
        label=max(0.0, slope(sharded, "examples") - drawn * sharded.passes),
        writing=statistics.median(found["writing"] for found in every),
        index=statistics.median(found["index"] for found in every),
        checkpoint_bytes=every[0]["checkpoint bytes"],
        example_bytes=alone[scaled(base, "examples", times[-1])]["example bytes"],
        audit_bytes=every[0]["audit bytes"],
        memory=alone[base]["worker"],
        example_memory=slope(base, "examples", "worker"),
        shard_memory=max(found["worker"] for one, found in alone.items() if not one.checkpoints),
        all_checks=whole[0] if whole else 0.0,
    )


def put(page: str, text: str) -> str:
    """Put a text between the markers of the page."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page has no {BEGIN} with {END} after it")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ray", action="store_true", help="with Ray too, which must be installed")
    parser.add_argument("--quick", action="store_true", help="one and two times the smallest work")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where all figures go")
    parser.add_argument("--write", action="store_true", help=f"put it into {PAGE}, too")
    parser.add_argument("--from", type=Path, dest="kept", help="plan with the constants of figures that were kept")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4, 16, 64], help="of the plan")
    parser.add_argument("--cores", type=int, default=32, help="of a node in the plan")
    parser.add_argument("--drawn", type=float, help="seconds of one pass of one example of a network of your own")
    given = parser.parse_args(arguments)
    if given.kept is not None:
        known, said = Constants(**json.loads(given.kept.read_text(encoding="utf-8"))["constants"]), []
    else:
        works, times = (LITTLE, QUICK) if given.quick else (LEAST, TIMES)
        found: dict[Series, list[dict[str, float]]] = defaultdict(list)
        start = time.perf_counter()
        for _ in range(given.repeats):
            for one in series(works, ray=given.ray, times=times):
                found[one].append(measured(one))
                print(f"{one}: {found[one][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
        figures = {
            one: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for one, runs in found.items()
        }
        said = [
            *table(figures, works, times),
            "",
            f"{os.cpu_count()} cores, {time.perf_counter() - start:.0f} s.",
        ]
        known = constants(figures, works, times)
        if given.json is not None:
            kept = {"constants": asdict(known), "series": [{**asdict(one), **of} for one, of in figures.items()]}
            given.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if given.drawn is not None:
        known = replace(known, drawn=given.drawn)
    if given.quick:
        said.append("Of works this small neither the figures nor the plan say what a large one costs.")
    plans = [
        line
        for by_shards in (True, False)
        for line in (*plan(known, nodes=given.nodes, cores=given.cores, by_shards=by_shards), "")
    ]
    text = "\n".join([*said, "", *known.lines(), "", *plans]).strip()
    print(text)
    if given.write:
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
