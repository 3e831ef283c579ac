"""The plan for many checkpoints: what a reader computes by hand from the same constants."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.scale import (
    LEAST,
    PAGE,
    QUICK,
    Series,
    constants,
    efficiency,
    growth,
    main,
    put,
    rows,
    scaled,
    series,
    table,
)
from benchmarks.scale_plan import Constants, plan, planned

KNOWN = Constants(
    start=3.0, first=2.0, example=1e-4, checkpoint=0.5, drawn=2e-5, label=4e-4, writing=0.02, index=0.001,
    checkpoint_bytes=1e5, example_bytes=12e3, audit_bytes=7e4, memory=1024.0, example_memory=0.02048,
    shard_memory=2048.0,
)  # fmt: skip


def test_one_node() -> None:
    """32 processes take 32 rounds of 100.5 s each, and load 5 s; nothing else is near."""
    found = planned(KNOWN, 1, 32)
    one = 0.5 + 2e-5 * 100 * 50_000
    assert found.parts == pytest.approx({"start": 5, "data": 5, "audits": 32 * one, "writing": 20, "index": 1})
    assert found.seconds == pytest.approx(5 + 5 + 32 * one + 1)
    assert found.core_hours == pytest.approx((32 * 10 + 1000 * (one + 0.021)) / 3600)
    assert found.gigabytes == pytest.approx(0.6 + 0.1)
    assert found.gib_a_node == pytest.approx(32 * (1 + 1))
    assert found.bottleneck == "audits"


@pytest.mark.parametrize(
    ("known", "nodes", "bottleneck"),
    [
        (replace(KNOWN, drawn=1e-7), 32, "writing"),
        (replace(KNOWN, drawn=1e-7, writing=1e-4, example_bytes=3e6), 32, "data"),
        (replace(KNOWN, drawn=1e-7, writing=1e-4, start=60.0), 32, "start"),
        (replace(KNOWN, drawn=1e-7, writing=1e-4, index=0.1), 32, "index"),
        (KNOWN, 32, "audits"),
    ],
)
def test_what_becomes_the_bottleneck(known: Constants, nodes: int, bottleneck: str) -> None:
    assert planned(known, nodes, 32).bottleneck == bottleneck
    assert bottleneck in plan(known, nodes=[nodes], cores=32)[-1]


def test_by_shards() -> None:
    """Nothing is loaded beforehand, each example costs more, and memory is that of a shard."""
    found = planned(KNOWN, 1, 32, by_shards=True)
    one = 0.5 + (2e-5 * 100 + 4e-4) * 50_000
    assert found.parts == pytest.approx({"start": 5, "data": 0.7, "audits": 32 * one, "writing": 20, "index": 1})
    assert found.gib_a_node == pytest.approx(32 * 2)
    assert replace(found, parts={}, core_hours=0, gib_a_node=0) == replace(
        planned(KNOWN, 1, 32), parts={}, core_hours=0, gib_a_node=0
    )


def test_no_more_processes_than_checkpoints() -> None:
    """A checkpoint is one task: with as many processes as checkpoints, more nodes change nothing."""
    assert planned(KNOWN, 1000, 32) == replace(planned(KNOWN, 32, 32), nodes=1000)
    hours = [planned(KNOWN, nodes, 32).seconds for nodes in (1, 2, 4, 8, 16, 32)]
    assert hours == sorted(hours, reverse=True)


BASE, SHARDED = LEAST


def figures() -> dict[Series, dict[str, float]]:
    """Return what would be measured where cost is linear and two processes share all but their start."""
    found = {}
    for one in series(LEAST, ray=True):
        each = one.checkpoints * 0.5 if one.checkpoints else 2e-4 * one.examples
        work = each + max(1, one.checkpoints) * 1e-3 * one.passes * one.examples
        seconds = 3.0 + work if one.processes == 1 else 7.0 + work / 2
        found[one] = {
            "seconds": seconds, "ready": 3.0, "loading": 0.1 + 2e-3 * one.examples, "writing": 0.02, "index": 1e-3,
            "own": 500.0, "worker": 400 + 0.5 * one.examples if one.checkpoints else 700.0,
            "checkpoint bytes": 1e5, "example bytes": 12e3,
            "audit bytes": 7e4,
        }  # fmt: skip
    return found


def test_constants_are_those_that_made_the_figures() -> None:
    known = constants(figures(), LEAST)
    assert known.drawn == pytest.approx(1e-3)
    assert known.label == pytest.approx(2e-4)
    assert known.shard_memory == 700
    assert known.checkpoint == pytest.approx(0.5)
    assert known.first == pytest.approx(3.0)
    assert known.example == pytest.approx(2e-3)
    assert known.example_memory == pytest.approx(0.5)
    assert known.memory == pytest.approx(400 + 0.5 * BASE.examples)


def test_linear_cost_and_full_efficiency_are_seen_through_the_start() -> None:
    """What the processes take to start is in the one efficiency, and not in the other."""
    found = figures()
    seconds = {one: of["seconds"] for one, of in found.items()}
    for *_, most in rows(LEAST):
        assert growth(seconds, most, LEAST) == pytest.approx(4.0)
        whole, steady = efficiency(seconds, replace(most, processes=2), LEAST)
        assert steady == "1.00"
        assert float(whole) < 1
    seconds[scaled(BASE, "passes", 16)] *= 2
    grown = growth(seconds, scaled(BASE, "passes", 16), LEAST)
    assert grown is not None
    assert grown > 6
    lines = table(found, LEAST)
    assert len(lines) == 2 + len(found)
    assert len({line.count("|") for line in lines}) == 1


def test_each_work_at_each_size() -> None:
    """By one process and two, here and on Ray; none twice."""
    found = list(series(LEAST, ray=True))
    assert len(found) == len(set(found)) == 10 * 2 * 2 + 1
    assert math.prod((found[-1].checkpoints, found[-1].processes)) == 1
    assert len(list(series(LEAST, ray=False))) == 10 * 2 + 1
    assert len(list(series(LEAST, ray=True, times=QUICK))) == 8 + 4 + 1


def test_a_plan_from_figures_that_were_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For other nodes, and with the seconds of another network."""
    kept = tmp_path / "figures.json"
    kept.write_text(json.dumps({"constants": asdict(KNOWN), "series": []}), encoding="utf-8")
    assert main(["--from", str(kept), "--nodes", "2", "--cores", "8", "--drawn", "1e-3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    known = replace(KNOWN, drawn=1e-3)
    wanted = [*plan(known, nodes=[2], cores=8, by_shards=True), "", *plan(known, nodes=[2], cores=8)]
    assert lines[-len(wanted) :] == wanted
    assert any(line.startswith("| `drawn` | 0.001 |") for line in lines)


def test_the_page_has_a_place_for_it() -> None:
    page = (Path(__file__).parents[2] / PAGE).read_text(encoding="utf-8")
    written = put(page, "| a | b |")
    assert "<!-- scale: begin -->\n\n| a | b |\n\n<!-- scale: end -->" in written
    assert put(written, "| a | b |") == written
    with pytest.raises(SystemExit, match="the page has no <!-- scale: begin -->"):
        put("", "")
