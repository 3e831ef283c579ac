"""The pictures of the page about a photograph are what was measured, and what was measured is what the page says."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.photograph import DELTAS, Figures, Seen, Width, draw_prediction, load, main

PICTURES = Path(__file__).parents[2] / "docs" / "start" / "pictures"


def test_pictures_are_drawn_from_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the byte: nobody draws them by hand."""
    main(["--svg", str(tmp_path), "--from", str(PICTURES / "photograph.json")])
    assert len(capsys.readouterr().out.splitlines()) == 4
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (PICTURES / path.name).read_bytes(), "python -m benchmarks.photograph --svg ..."


def test_the_page_says_what_was_measured() -> None:
    """Its sentences about widths, as inequalities."""
    figures = load(PICTURES / "photograph.json")
    digits, photograph = figures.seen
    assert (digits.mean.index(max(digits.mean)), photograph.mean.index(max(photograph.mean))) == (7, 7)
    assert tuple(width.delta for width in figures.widths) == DELTAS
    narrow, *_, wide = figures.widths
    assert 40 < sum(narrow.photograph) / sum(narrow.digits) < 60
    assert narrow.right == 1
    assert wide.right < 0.2
    assert sum(wide.photograph) < sum(wide.digits)


def test_bars_are_as_high_as_the_probabilities() -> None:
    """A class with probability 1 reaches 120 units, which is the height of the chart."""
    one = (1.0, *[0.0] * 9)
    seen = Seen(words="a < b", grey=(0.0,) * 64, mean=one, low=one, high=one)
    width = Width(delta=0.1, right=1.0, digits=(0.0, 0.0), photograph=(0.0, 0.0))
    root = ElementTree.fromstring(draw_prediction(Figures(seen=(seen,), widths=(width,)), "light"))
    svg = "{http://www.w3.org/2000/svg}"
    heights = [float(group.findall(f"{svg}rect")[0].attrib["height"]) for group in root.findall(f"{svg}g")]
    assert heights == [120.0, *[0.0] * 9]
    assert "a < b" in [element.text for element in root.findall(f"{svg}text")]
