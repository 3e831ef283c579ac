"""The table of supported networks is generated: the generator runs, and what it wrote is in the documentation."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

from benchmarks import zoo

ROOT = Path(__file__).parents[2]


def test_one_family_and_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library can do SqueezeNet; so the three rows say the same, and so does the table of them."""
    with warnings.catch_warnings():
        zoo.main(["--json", "--only", "SqueezeNet"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["converter"] for row in rows] == ["dnn_to_bnn", "Reparameterization", "Flipout"]
    assert {(row["layers"], row["of"], row["complete"]) for row in rows} == {(26, 26, True)}

    # What stands around the markers stays; what stood between them goes.
    measured = [zoo.Row(**{name: value for name, value in row.items() if name != "complete"}) for row in rows]
    monkeypatch.setattr(zoo, "measure", lambda families: iter(measured))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- zoo: begin -->\nold\n<!-- zoo: end -->\nafter\n", encoding="utf-8")
    with warnings.catch_warnings():
        zoo.main(["--only", "SqueezeNet", "--write", str(page)])
    text = page.read_text(encoding="utf-8")
    assert re.fullmatch(r"before\n<!-- zoo: begin -->\n\n.*\n\n<!-- zoo: end -->\nafter\n", text, re.S)
    assert "old" not in text
    assert "| SqueezeNet | squeezenet1_1 | 26 of 26 | 26 of 26 | 26 of 26 |" in text


def test_the_documented_table_is_complete() -> None:
    """Every family has its row, and the figure above the table is the table's."""
    text = (ROOT / "docs" / "reference" / "support.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (\w+) \| .* \| (.*?) \| (.*?) \|$", text, re.M)
    whole = re.compile(r"(\d+) of \1")
    families = {family for family, *_ in rows} - {"family"}
    broken = {family for family, _, *ours in rows if family in families and not all(map(whole.fullmatch, ours))}
    found = re.search(r"Fully convertible families, of (\d+): .* (\d+) by\s+`convert\(\)` with both", text)
    assert found is not None
    assert (int(found[1]), int(found[2])) == (len(families), len(families) - len(broken))
    assert len(families) == 17
