"""The plots of power curves, drawn from given points: what the points say is where it has to be."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scipy.stats import beta

from benchmarks.curves import THEMES, Curve, Mark, Point, draw, dump, load, table, write_plots
from benchmarks.power import CURVES, main

DOCS = Path(__file__).parents[2] / "docs" / "explanation"
POINTS = DOCS / "power" / "points.json"
HOSTILE = '<script>&"\x07'


def made(*failed: int, check: str = "noise.varies", marks: tuple[Mark, ...] = ()) -> Curve:
    """20 models at effects of 0, .1, .2 and so on; the ones that are not found are undecided."""
    points = (Point(effect=i / 10, failed=f, undecided=20 - f, trials=20) for i, f in enumerate(failed))
    return Curve(check=check, unit="what it is (%)", points=tuple(points), marks=marks)


def parsed(curve: Curve, theme: str = "light") -> ElementTree.Element:
    return ElementTree.fromstring(draw(curve, theme))  # our own


def of(drawn: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    """The elements of a class, without the legend's, which have no title."""
    return [part for part in drawn.iter() if part.get("class") == kind]


def dots(drawn: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    return [(float(d.attrib["cx"]), float(d.attrib["cy"])) for d in of(drawn, f"dot {kind}") if len(d)]


def test_each_point_is_drawn_where_its_numbers_say() -> None:
    """Larger effects lie further right, larger shares higher up, and both lines share their axes."""
    drawn = parsed(made(0, 3, 10, 17, 20))
    found, undecided = dots(drawn, "found"), dots(drawn, "undecided")
    assert len(found) == len(undecided) == 5
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(found))
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(undecided))
    assert found[2] == undecided[2]
    bottom, top = found[0][1], found[-1][1]
    assert found[1][1] == pytest.approx(bottom + 3 / 20 * (top - bottom), abs=0.02)
    for kind, places in (("found", found), ("undecided", undecided)):
        line = next(p for p in of(drawn, f"line {kind}") if p.get("points"))
        assert line.attrib["points"].split() == [f"{x:g},{y:g}" for x, y in places]


def test_bars_are_the_interval_of_clopper_and_pearson() -> None:
    """By the quantiles of the beta distribution, in which Clopper and Pearson's interval can be written."""
    drawn = parsed(made(0, 3, 20))
    (_, bottom), (_, at), (_, top) = dots(drawn, "found")
    bar = of(drawn, "bar found")[1].attrib["d"]
    low, high = (float(beta.ppf(q, 3 + i, 18 - i)) for i, q in enumerate((0.025, 0.975)))
    lower, upper = (float(value) for value in re.findall(r" ([\d.]+)V([\d.]+)", bar)[0])
    assert lower == pytest.approx(bottom + low * (top - bottom), abs=0.02)
    assert upper == pytest.approx(bottom + high * (top - bottom), abs=0.02)
    assert upper < at < lower


def test_marks_stand_at_their_effects() -> None:
    marks = (Mark(effect=0.1, words="target"), Mark(effect=0.2, words="stated"))
    drawn = parsed(made(0, 3, 20, marks=marks))
    assert [float(line.attrib["x1"]) for line in of(drawn, "mark")] == [x for x, _ in dots(drawn, "found")[1:]]
    assert {"target", "stated"} <= {part.text for part in drawn.iter()}


def test_text_is_escaped() -> None:
    """Whatever it is, the file stays XML, with no element that the text brought along."""
    drawn = parsed(made(0, 20, check=HOSTILE, marks=(Mark(effect=0.0, words=HOSTILE),)))
    assert sum(part.text == HOSTILE.replace("\x07", "\N{REPLACEMENT CHARACTER}") for part in drawn.iter()) == 2
    assert not [part for part in drawn.iter() if "script" in part.tag]


def test_one_point_is_a_plot_too() -> None:
    assert len(dots(parsed(made(20)), "found")) == 1


def test_counts_must_fit() -> None:
    with pytest.raises(ValueError, match="15 failed and 6 undecided of 20 trials"):
        Point(effect=0.1, failed=15, undecided=6, trials=20)


def test_from_a_file_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written is read again, and the same points give the same bytes."""
    monkeypatch.setattr("benchmarks.power.curve", lambda *_: pytest.fail("measured"))
    given = (made(0, 3, 20), made(0, 20, check="noise.spread"))
    file = tmp_path / "points.json"
    file.write_text(dump(given), encoding="utf-8")
    assert load(file) == given
    for folder in ("one", "two"):
        assert main(["--from", str(file), "--svg", str(tmp_path / folder)]) == 0
    assert table(given) in capsys.readouterr().out
    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [path.name for path in one] == [
        f"noise-{w}-{t}.svg" for w in ("spread", "varies") for t in ("dark", "light")
    ]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_one_curve_is_measured_and_the_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the benchmark; a curve that it does not know any more goes."""
    monkeypatch.setattr("benchmarks.power.curve", lambda name, trials: made(trials, 20, check=name))
    file = tmp_path / "points.json"
    kept = made(0, 7, 20, check="noise.varies")
    file.write_text(dump((kept, made(0, 1, check="noise.spread"), made(1, check="gone"))), encoding="utf-8")
    given = ["--trials", "3", "--curve", "noise.spread", "--curve", "noise.source", "--json", str(file)]
    assert main(given) == 0
    assert load(file) == (made(3, 20, check="noise.source"), made(3, 20, check="noise.spread"), kept)


@pytest.mark.parametrize("text", ["{}", '[{"check": "noise.varies"}]', '[{"check": "a", "unit": "b", "points": []}]'])
def test_another_file_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "points.json").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["--from", str(tmp_path / "points.json")])
    assert "write it with --json" in capsys.readouterr().err


def test_the_documentation_shows_the_points_beside_it(tmp_path: Path) -> None:
    """Every curve there is, with both plots of it on the page, as they are drawn today, and its rows of the table."""
    curves, page = load(POINTS), (DOCS / "budgets.md").read_text(encoding="utf-8")
    assert [(c.check, c.case, [p.effect for p in c.points]) for c in curves] == [
        (e.check, e.case, list(e.effects)) for e in CURVES.values()
    ]
    assert table(curves) in page
    drawn = write_plots(curves, tmp_path)
    assert len(drawn) == len(curves) * len(THEMES)
    for path in drawn:
        assert page.count(f"image:: power/{path.name}\n      :alt: Power of ") == 1
        assert path.read_bytes() == (DOCS / "power" / path.name).read_bytes(), "python -m benchmarks.power --from ..."
