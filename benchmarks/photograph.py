"""The pictures of the page "From a photograph to its uncertainty": what a ResNet18 says of a digit and of a temple.

``python -m benchmarks.photograph --svg FOLDER`` converts the embedded ResNet18 at several widths, draws passes, and
writes what they say as ``photograph.json`` and as plots for light and for dark pages; ``--from FILE`` draws without a
pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.curves import THEMES
from pytest_bnn.report.svg import chart, element, text

DELTAS = (0.1, 0.3, 0.5, 0.7, 1.0)
PASSES = 50
DIGITS = 32

_SIZE, _SQUARE = 8, 12.0
_WIDTH, _HEIGHT = 640.0, 196.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One picture as the network sees it: 8x8 grey values in [0, 1], and its probabilities, class by class."""

    words: str
    grey: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """At one ``moped_delta``: the share of digits that are right; entropies in nats, in a pass and between passes."""

    delta: float
    right: float
    digits: tuple[float, float]
    photograph: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All that the plots show."""

    seen: tuple[Seen, ...]
    widths: tuple[Width, ...]


def measure() -> Figures:
    """Draw the passes: some seconds for each width."""
    import torch

    import pytest_bnn

    teacher = pytest_bnn.load_teacher("digits").model
    digits, labels = pytest_bnn.digits("held_out", DIGITS)
    rows = torch.cat([pytest_bnn.digits_batch(pytest_bnn.photograph("china.jpg")), digits])
    widths = []
    for delta in DELTAS:
        found = pytest_bnn.predict(pytest_bnn.convert(teacher, moped_delta=delta), rows, passes=PASSES)
        within, between = found.expected_entropy, found.mutual_information
        widths.append(
            Width(
                delta=delta,
                right=round(float((found.probabilities[1:].argmax(1) == labels).double().mean()), 4),
                digits=(round(float(within[1:].mean()), 4), round(float(between[1:].mean()), 4)),
                photograph=(round(float(within[0]), 4), round(float(between[0]), 4)),
            )
        )
    bank = pytest_bnn.PassBank(pytest_bnn.convert(teacher, moped_delta=DELTAS[0]), rows[:2], 0)
    shares = pytest_bnn.probabilities(torch.cat([*bank.blocks(0, PASSES)])).double()
    ends = shares.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
    seen = []
    for index, words in ((1, f"a held-out digit, labelled {int(labels[0])}"), (0, "the photograph of a temple")):
        grey = (torch.nn.functional.adaptive_avg_pool2d(rows[index, :1], _SIZE)[0] + 1) / 2
        seen.append(
            Seen(
                words=words,
                grey=tuple(round(float(value), 3) for value in grey.flatten().clamp(0, 1)),
                mean=tuple(round(float(value), 4) for value in shares.mean(0)[index]),
                low=tuple(round(float(value), 4) for value in ends[0, index]),
                high=tuple(round(float(value), 4) for value in ends[1, index]),
            )
        )
    return Figures(seen=tuple(seen), widths=tuple(widths))


def draw_prediction(figures: Figures, theme: str) -> str:
    """Return a plot of both pictures as squares, with the mean and the range of each class beside them."""
    page, ink, quiet, rule, first, second = THEMES[theme]
    parts = [element("rect", width=_WIDTH, height=_HEIGHT, fill=page)]
    for place, seen in enumerate(figures.seen):
        left = 8 + place * _WIDTH / 2
        parts.append(text(seen.words, left, 20, fill=ink, font_size=13))
        for index, value in enumerate(seen.grey):
            level = f"#{round(value * 255):02x}" + 2 * f"{round(value * 255):02x}"
            x, y = left + index % _SIZE * _SQUARE, 36 + index // _SIZE * _SQUARE
            parts.append(element("rect", x=x, y=y, width=_SQUARE, height=_SQUARE, fill=level))
        start, bottom, high = left + 116, 156.0, 120.0
        parts.append(element("line", x1=start, x2=start + 184, y1=bottom, y2=bottom, stroke=rule))
        for number, (mean, low, top) in enumerate(zip(seen.mean, seen.low, seen.high, strict=True)):
            x = start + 3 + number * 18
            told = f"{number}: mean {mean:.1%}, single passes {low:.1%} to {top:.1%}"
            bar = element("rect", x=x, y=bottom - mean * high, width=12, height=mean * high, fill=first)
            across, ends = x + 6, (bottom - low * high, bottom - top * high)
            line = element("line", x1=across, x2=across, y1=ends[0], y2=ends[1], stroke=second, stroke_width=2)
            parts.append(element("g", element("title", told), bar, line))
            parts.append(text(str(number), x + 6, bottom + 16, fill=quiet, font_size=12, text_anchor="middle"))
    parts.append(text("class, and its probability: mean and range of passes", 124, 188, fill=quiet, font_size=12))
    told = "; ".join(
        f"{seen.words}: {max(seen.mean):.0%} for {seen.mean.index(max(seen.mean))}" for seen in figures.seen
    )
    return _chart("What the network sees, and what it says", told, parts)


def draw_widths(figures: Figures, theme: str) -> str:
    """Return a plot of the entropies of digits and photograph, in two parts, at each width, with the accuracy below."""
    page, ink, quiet, rule, first, second = THEMES[theme]
    bottom, high, step = 132.0, 92.0, 108.0
    parts = [element("rect", width=_WIDTH, height=_HEIGHT, fill=page)]
    for index, (colour, words) in enumerate(((first, "in each pass"), (second, "between passes"))):
        parts.append(element("rect", x=8 + index * 120, y=11, width=10, height=10, fill=colour))
        parts.append(text(words, 24 + index * 120, 20, fill=ink, font_size=13))
    parts.append(text("entropy in nats: left bar a digit, right bar the photograph", 286, 20, fill=quiet, font_size=12))
    parts.append(element("line", x1=8, x2=_WIDTH - 8, y1=bottom, y2=bottom, stroke=rule))
    for place, width in enumerate(figures.widths):
        left = 60 + place * step
        for bar, (within, between) in enumerate((width.digits, width.photograph)):
            x = left + bar * 40
            scale = high / 2
            parts.append(element("rect", x=x, y=bottom - within * scale, width=30, height=within * scale, fill=first))
            top = bottom - (within + between) * scale
            parts.append(element("rect", x=x, y=top, width=30, height=between * scale, fill=second))
            told = f"{within + between:.2f}"
            parts.append(text(told, x + 15, top - 4, fill=ink, font_size=11, text_anchor="middle"))
        parts.append(text(f"delta {width.delta:g}", left + 35, 150, fill=ink, font_size=13, text_anchor="middle"))
        told = f"{width.right:.0%} right"
        parts.append(text(told, left + 35, 170, fill=quiet, font_size=12, text_anchor="middle"))
    described = "; ".join(
        f"delta {width.delta:g}: digits {sum(width.digits):.2f} nats, photograph {sum(width.photograph):.2f}, "
        f"{width.right:.0%} right"
        for width in figures.widths
    )
    return _chart("Entropy of digits and photograph, and accuracy, by moped_delta", described, parts)


def write_plots(figures: Figures, folder: Path) -> list[Path]:
    """Write both plots for light and for dark pages."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in (("prediction", draw_prediction), ("widths", draw_widths)):
        for theme in THEMES:
            path = folder / f"{name}-{theme}.svg"
            path.write_text(draw(figures, theme) + "\n", encoding="utf-8")
            written.append(path)
    return written


def load(path: Path) -> Figures:
    """Read what was measured."""
    return msgspec.json.decode(path.read_bytes(), type=Figures)


def _chart(title: str, description: str, parts: Sequence[str]) -> str:
    font = element("style", 'text{font-family:system-ui,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif}')
    return chart(
        *(font, *parts),
        title=title,
        description=description,
        width=_WIDTH,
        height=_HEIGHT,
        kind="plot",
        xmlns="http://www.w3.org/2000/svg",
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure or read, and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photograph", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--svg", type=Path, required=True, help="the folder of the plots and of photograph.json")
    parser.add_argument("--from", dest="file", type=Path, help="draw what this file holds, without a pass")
    given = parser.parse_args(arguments)
    figures = load(given.file) if given.file else measure()
    for path in write_plots(figures, given.svg):
        print(path)
    record = msgspec.json.format(msgspec.json.encode(figures), indent=1).decode()
    (given.svg / "photograph.json").write_text(record + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
