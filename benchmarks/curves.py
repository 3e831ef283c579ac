"""Power curves as records, as rows of a table and as a plot: the same curve gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from pytest_bnn.report.scales import Scale, linear_range, round_ticks, tick_labels
from pytest_bnn.report.svg import chart, element, text, titled
from pytest_bnn.report.wording import clean, number

#: Of the bars.
CONFIDENCE = 0.95

#: Of the page that a plot stands on: its background, text, quiet text, rules, and the two lines.
THEMES: Mapping[str, tuple[str, str, str, str, str, str]] = MappingProxyType(
    {
        "light": ("#ffffff", "#1a1e23", "#59616b", "#dfe2e6", "#2f62ad", "#b4540a"),
        "dark": ("#131416", "#e7eaee", "#a2acb7", "#2b323b", "#7aaaf0", "#ffb066"),
    }
)

_WIDTH, _HEIGHT = 352.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 338.0, 76.0, 212.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Of ``trials`` models that are broken by ``effect``, how many failed and how many stayed undecided."""

    effect: float
    failed: int
    undecided: int
    trials: int

    def __post_init__(self) -> None:
        if not (min(self.failed, self.undecided) >= 0 < self.trials >= self.failed + self.undecided):
            raise ValueError(f"{self.failed} failed and {self.undecided} undecided of {self.trials} trials")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An effect that means something to the check, such as its threshold."""

    effect: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How often ``check`` finds a fault, by its size. ``case`` tells several curves of a check apart.

    ``unit`` says in words, for the axis, what a hundredth of an effect is.
    """

    check: str
    unit: str
    points: tuple[Point, ...]
    case: str = ""
    marks: tuple[Mark, ...] = ()

    @property
    def stem(self) -> str:
        """The name of its files."""
        return re.sub(r"\W+", "-", f"{self.check} {self.case}").strip("-")


def dump(curves: Sequence[Curve]) -> str:
    """Write curves as JSON."""
    return msgspec.json.format(msgspec.json.encode(curves), indent=1).decode() + "\n"


def load(path: Path) -> tuple[Curve, ...]:
    """Read what `dump` wrote; ValueError says what is wrong."""
    try:
        curves = msgspec.json.decode(path.read_bytes(), type=tuple[Curve, ...])
    except (OSError, msgspec.MsgspecError) as wrong:
        raise ValueError(f"{path} holds no power curves: {wrong}; write it with --json") from None
    if not all(curve.points for curve in curves):
        raise ValueError(f"{path} has a curve without points; write it with --json")
    return curves


def table(curves: Iterable[Curve]) -> str:
    """Return a Markdown table with a row a point."""
    rows = ["| check | effect | found | undecided |", "|---|---|---|---|"]
    for curve in curves:
        name = f"`{curve.check}`" + (f", {curve.case}" if curve.case else "")
        for point in curve.points:
            found, undecided = (100 * count / point.trials for count in (point.failed, point.undecided))
            rows.append(f"| {name} | {point.effect:g} | {found:.0f} % | {undecided:.0f} % |")
    return "\n".join(rows)


def write_plots(curves: Iterable[Curve], folder: Path) -> list[Path]:
    """Write ``STEM-light.svg`` and ``STEM-dark.svg`` for each curve; give the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for curve in curves:
        for theme in THEMES:
            path = folder / f"{curve.stem}-{theme}.svg"
            path.write_text(draw(curve, theme) + "\n", encoding="utf-8")
            written.append(path)
    return written


def draw(curve: Curve, theme: str) -> str:
    """Return the plot of a curve as an SVG that stands for itself: effect against the two shares, with intervals."""
    points = sorted(curve.points, key=lambda point: point.effect)
    effects = [100 * effect for effect in (*(p.effect for p in points), *(m.effect for m in curve.marks))]
    low, high = linear_range(effects, zero=True)
    x, y = Scale(low, high, _LEFT + 8, _RIGHT - 8), Scale(0.0, 100.0, _BOTTOM, _TOP)
    parts = [element("style", _style(theme)), element("rect", width=_WIDTH, height=_HEIGHT, class_="page")]
    parts.append(text(clean(curve.check), 6, 17, class_="name"))
    parts.append(text(clean(curve.case), _RIGHT, 17, text_anchor="end", class_="quiet"))
    parts += _legend()
    ticks = round_ticks(low, high, 5)
    for tick in (0.0, 25.0, 50.0, 75.0, 100.0):
        parts.append(element("line", x1=_LEFT, x2=_RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(text(f"{tick:g}", _LEFT - 6, y(tick) + 4, text_anchor="end", class_="quiet"))
    for tick, label in zip(ticks, tick_labels(ticks)[0], strict=True):
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=_BOTTOM, y2=_BOTTOM + 4, class_="grid"))
        parts.append(text(label, x(tick), _BOTTOM + 18, text_anchor="middle", class_="quiet"))
    parts.append(text(clean(curve.unit), (_LEFT + _RIGHT) / 2, _HEIGHT - 10, text_anchor="middle", class_="quiet"))
    marks = sorted(curve.marks, key=lambda mark: mark.effect)
    for mark in marks:
        parts += _mark(mark, x, to_the_right=mark is marks[-1])
    # What matters most is drawn last, on top.
    parts += _line(points, "undecided", lambda point: point.undecided, x, y)
    parts += _line(points, "found", lambda point: point.failed, x, y)
    return chart(
        *parts,
        title=clean(f"Power of {curve.check}{f', {curve.case}' if curve.case else ''}"),
        description=clean(f"Share of broken models found, against: {curve.unit}. " + "; ".join(map(_told, points))),
        width=_WIDTH,
        height=_HEIGHT,
        kind="power",
        xmlns="http://www.w3.org/2000/svg",
    )


def _line(points: Sequence[Point], kind: str, count: Callable[[Point], int], x: Scale, y: Scale) -> list[str]:
    from scipy.stats import binomtest

    bars, dots, path = [], [], []
    for point in points:
        interval = binomtest(count(point), point.trials).proportion_ci(CONFIDENCE, method="exact")
        low, high = 100 * float(interval.low), 100 * float(interval.high)
        across, up = x(100 * point.effect), y(100 * count(point) / point.trials)
        bar = f"M{across - 3:g} {y(low):g}h6M{across:g} {y(low):g}V{y(high):g}M{across - 3:g} {y(high):g}h6"
        bars.append(element("path", d=bar, class_=f"bar {kind}"))
        said = f"effect {number(point.effect)}: {count(point)} of {point.trials} {kind}, {low:.1f} to {high:.1f} %"
        dots.append(titled("circle", said, cx=across, cy=up, r=3.5, class_=f"dot {kind}"))
        path.append(f"{across:g},{up:g}")
    return [*bars, element("polyline", points=" ".join(path), class_=f"line {kind}"), *dots]


def _legend() -> list[str]:
    parts = [text("share of the models (%)", 6, 36, class_="quiet")]
    for kind, left in (("found", 172.0), ("undecided", 250.0)):
        parts.append(element("line", x1=left, x2=left + 22, y1=32, y2=32, class_=f"line {kind}"))
        parts.append(element("circle", cx=left + 11, cy=32, r=3.5, class_=f"dot {kind}"))
        parts.append(text(kind, left + 28, 36))
    return parts


def _mark(mark: Mark, x: Scale, *, to_the_right: bool) -> list[str]:
    across, words = x(100 * mark.effect), clean(mark.words)
    wide = 6.6 * len(words)
    right = across + wide < _WIDTH if to_the_right else across < wide
    anchor, start = ("start", across - 4) if right else ("end", across + 4)
    return [
        element("line", x1=across, x2=across, y1=_TOP - 10, y2=_BOTTOM, class_="mark"),
        text(words, start, _TOP - 15, text_anchor=anchor, class_="quiet"),
    ]


def _told(point: Point) -> str:
    found, undecided = (100 * count / point.trials for count in (point.failed, point.undecided))
    return f"effect {number(point.effect)}: {found:.0f} % found, {undecided:.0f} % undecided"


def _style(theme: str) -> str:
    page, ink, quiet, rule, found, undecided = THEMES[theme]
    return (
        'text{font:12.5px system-ui,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif;'
        f"fill:{ink}}}.name{{font-weight:600;font-size:13.5px}}.quiet{{fill:{quiet}}}.page{{fill:{page}}}"
        f".grid{{stroke:{rule}}}.mark{{stroke:{quiet};stroke-dasharray:2 3}}"
        ".line{fill:none;stroke-width:2;stroke-linejoin:round}.bar{fill:none;stroke-width:1.25}"
        f".found{{stroke:{found}}}.dot.found{{fill:{found}}}"
        f".undecided{{stroke:{undecided}}}.line.undecided{{stroke-dasharray:5 4}}"
        f".dot.undecided{{fill:{page};stroke-width:1.75}}"
    )
