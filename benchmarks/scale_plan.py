"""A plan for many checkpoints on a cluster, from constants that ``python -m benchmarks.scale`` measures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

#: What is planned.
CHECKPOINTS, EXAMPLES, PASSES = 1_000, 50_000, 100
#: Bytes a second that the storage gives to all nodes together: an assumption.
STORAGE = 1e9

_SAID = {
    "start": "s until a new process can audit: Python, torch and this package are imported",
    "first": "s that the first audit of a process takes longer than the next, for what is imported and compiled then",
    "example": "s to load an example and take its digest, in each process",
    "checkpoint": "s for a checkpoint, whatever is drawn: its state, two cheap checks, its JSON",
    "drawn": "s for one pass of one example, on one core",
    "label": "s for a labelled example that is read and judged by shards, beside its passes, on one core",
    "writing": "s for the report and JSON of a checkpoint, in the process that started all",
    "index": "s for a row of the index, there too",
    "checkpoint_bytes": "bytes of a checkpoint",
    "example_bytes": "bytes of an example",
    "audit_bytes": "bytes of an audit, its report and its JSON",
    "memory": "MiB of a process that audits few examples",
    "example_memory": "MiB that each example adds to it",
    "shard_memory": "MiB of a process that judges shards, whatever the number of examples",
    "all_checks": "s for an audit of all checks on 512 images, on one core",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What was measured, in seconds, bytes and MiB; see `_SAID`."""

    start: float
    first: float
    example: float
    checkpoint: float
    drawn: float
    label: float
    writing: float
    index: float
    checkpoint_bytes: float
    example_bytes: float
    audit_bytes: float
    memory: float
    example_memory: float
    shard_memory: float
    all_checks: float = 0.0

    def lines(self) -> list[str]:
        """Return the rows of a table: each with its meaning."""
        rows = [f"| `{name}` | {value:.3g} | {_SAID[name]} |" for name, value in asdict(self).items()]
        return ["| constant | value | what |", "|---|---|---|", *rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a series would take on some nodes.

    ``parts`` are the seconds that each thing would take if all else took none; ``seconds`` is the whole, for which the
    process that started all writes while the others work.
    """

    nodes: int
    cores: int
    parts: dict[str, float]
    core_hours: float
    gigabytes: float
    gib_a_node: float

    @property
    def seconds(self) -> float:
        """The whole: who audits starts, loads and draws; meanwhile one process writes, and the index comes last."""
        auditing = self.parts["start"] + self.parts["data"] + self.parts["audits"]
        return max(auditing, self.parts["writing"]) + self.parts["index"]

    @property
    def bottleneck(self) -> str:
        """What takes most."""
        return max(self.parts, key=lambda name: self.parts[name])


def planned(
    known: Constants,
    nodes: int,
    cores: int,
    *,
    checkpoints: int = CHECKPOINTS,
    examples: int = EXAMPLES,
    passes: int = PASSES,
    storage: float = STORAGE,
    by_shards: bool = False,
) -> Planned:
    """Return what a series takes on nodes of some cores, one process a core and no more processes than checkpoints.

    Each process loads all examples, or reads them anew by shards for each checkpoint; a node reads them from the
    storage once, and its other processes from its cache.

    Args:
        known: What was measured, on a core like those of the nodes.
        nodes: How many there are.
        cores: Of each.
        checkpoints: How many are audited; each is one task.
        examples: How many images each is audited on.
        passes: How many passes over them.
        storage: Bytes a second that all nodes together read.
        by_shards: Whether labelled examples are judged shard by shard, in place of all in memory.
    """
    workers = min(nodes * cores, checkpoints)
    one = known.checkpoint + (known.drawn * passes + (known.label if by_shards else 0.0)) * examples
    used = math.ceil(workers / cores)
    bytes_read = used * examples * known.example_bytes + checkpoints * known.checkpoint_bytes
    process = known.shard_memory if by_shards else known.memory + known.example_memory * examples
    memory = math.ceil(workers / used) * process / 1024
    loading = 0.0 if by_shards else known.example * examples
    parts = {
        "start": known.start + known.first,
        "data": max(loading, bytes_read / storage),
        "audits": math.ceil(checkpoints / workers) * one,
        "writing": checkpoints * known.writing,
        "index": checkpoints * known.index,
    }
    busy = workers * (parts["start"] + parts["data"]) + checkpoints * (one + known.writing + known.index)
    return Planned(
        nodes=nodes, cores=cores, parts=parts, core_hours=busy / 3600, gigabytes=bytes_read / 1e9, gib_a_node=memory
    )


def plan(known: Constants, *, nodes: Iterable[int], cores: int, by_shards: bool = False) -> list[str]:
    """Return the plan as the lines of a table, a row for each number of nodes."""
    head = ["nodes", "processes", "hours", "core hours", "GiB a node", "GB read", "start s",
            "data s", "audits s", "writing s", "index s", "bottleneck"]  # fmt: skip
    lines = [
        f"{CHECKPOINTS:,} checkpoints x {EXAMPLES:,} examples x {PASSES} passes on nodes of {cores} cores, "
        f"storage of {STORAGE / 1e9:.0f} GB/s, " + ("read by shards" if by_shards else "all in memory of each process"),
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for count in nodes:
        found = planned(known, count, cores, by_shards=by_shards)
        parts = [f"{seconds:,.1f}" for seconds in found.parts.values()]
        cells = [f"{count}", f"{min(count * cores, CHECKPOINTS):,}", f"{found.seconds / 3600:.2f}",
                 f"{found.core_hours:,.1f}", f"{found.gib_a_node:,.0f}", f"{found.gigabytes:,.1f}", *parts,
                 found.bottleneck]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines
