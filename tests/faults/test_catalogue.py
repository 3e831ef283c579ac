"""Every row of faults.md that names a check is injected, under that row's id, and that check accuses it."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

from pytest_bnn.audit.run import CHECK_IDS
from tests.faults.injectors import FAULTS

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "explanation" / "faults.md"

#: Clauses of a row's last cell that claim no verdict.
NO_VERDICT = ("none yet", "report", "not injected", "accepted")

_NAMED = re.compile(r"`(\w+\.\w+)`")


def _rows() -> dict[str, str]:
    found = re.findall(r"^\| ([AB]\d+) \|.*\| ([^|]*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(found) > 40
    return dict(found)


def _claimed(cell: str) -> set[str]:
    clauses = [clause for clause in cell.split(";") if not any(word in clause for word in NO_VERDICT)]
    return {check for clause in clauses for check in _NAMED.findall(clause)}


def _module(path: Path) -> ModuleType:
    name = f"catalogue_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@pytest.fixture(scope="module")
def injected() -> dict[str, set[str]]:
    """The checks that accuse each row somewhere in this folder: rows of `FAULTS`, and tests marked ``fault``."""
    found: dict[str, set[str]] = defaultdict(set)
    for fault in FAULTS:
        found[fault.id.partition("-")[0]] |= set(fault.named)
    for path in sorted(FOLDER.glob("test_*.py")):
        if path.name == Path(__file__).name:
            continue
        if "mark.fault(" not in path.read_text(encoding="utf-8"):
            continue
        for test in vars(_module(path)).values():
            for mark in getattr(test, "pytestmark", ()):
                if mark.name == "fault":
                    found[mark.args[0]] |= {*mark.args[1:]}
    return found


@pytest.mark.parametrize("id", _rows())
def test_what_a_row_claims_is_injected(id: str, injected: dict[str, set[str]]) -> None:
    """A claim in a catalogue that no test backs is a hope."""
    cell = _rows()[id]
    if "not injected" not in cell:
        assert _claimed(cell) <= injected[id], f"{id}: no injector shows {sorted(_claimed(cell) - injected[id])}"


def test_what_is_injected_stands_in_its_row(injected: dict[str, set[str]]) -> None:
    """The other way round, for tests on networks of their own too."""
    rows = _rows()
    marked = {id: checks for id, checks in injected.items() if id in rows}
    assert len(marked) > 25
    missing = {id: checks - set(_NAMED.findall(rows[id])) for id, checks in marked.items()}
    assert {id: checks for id, checks in missing.items() if checks} == {}
    assert {check for checks in injected.values() for check in checks} <= set(CHECK_IDS)


@pytest.mark.parametrize(
    ("cell", "checks"),
    [
        ("`kl.present` warns; another sound prior is reported by `kl.present`, not judged", {"kl.present"}),
        ("reported by `kl.present` and `kl.loss`, not judged", set()),
        ("none yet, save for its effect on `teacher.agreement`", set()),
        ("`noise.varies`, `noise.source`; refused", {"noise.varies", "noise.source"}),
    ],
)
def test_what_a_cell_claims(cell: str, checks: set[str]) -> None:
    """A check that only reports, or has a side effect only, claims no verdict."""
    assert _claimed(cell) == checks
