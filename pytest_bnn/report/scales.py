"""Axes for charts: where a value stands, which ticks are round, and how they read. NaN and infinity have no place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from pytest_bnn.report.wording import number, superscript


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values between ``low`` and ``high`` to a position between ``start`` and ``end``, in pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a finite value; values beyond an end stand at that end."""
        if self.log:
            below, above = math.log10(self.low), math.log10(self.high)
            share = (math.log10(value) - below) / (above - below) if value > 0 else 0.0
        else:
            # Halved, because the span between two huge values overflows.
            share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 2)


def finite(values: Iterable[float | None]) -> list[float]:
    """Keep the values that a chart can place."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def logarithmic(values: list[float], span: float = 100.0) -> bool:
    """Return whether positive values spread so far that a linear axis would hide the small ones."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= span


def linear_range(values: list[float], *, zero: bool = False) -> tuple[float, float]:
    """Return ends of a linear axis that enclose the values and are never equal."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if zero or (low > 0 and low < 0.4 * high):
        low = min(0.0, low)
    if high / 2 - low / 2 <= abs(high) * 1e-9:
        pad = abs(high) * 0.05 or 1.0
        low, high = low - pad, high + pad
    limit = 8e307
    return max(-limit, low), min(limit, high)


def rounded_range(values: list[float]) -> tuple[float, float]:
    """Return ends of a linear axis that enclose the values and stand at ticks."""
    low, high = linear_range(values)
    ticks = round_ticks(low, high)
    if len(ticks) < 2:
        return low, high
    step = ticks[1] - ticks[0]
    return min(low, math.floor(low / step + 1e-9) * step), max(high, math.ceil(high / step - 1e-9) * step)


def decades(values: list[float]) -> tuple[float, float]:
    """Return the powers of ten around positive values, at least one decade apart."""
    smallest, largest = (min(values), max(values)) if values else (0.1, 1.0)
    low = max(-307, math.floor(math.log10(smallest)))
    high = min(307, max(low + 1, math.ceil(math.log10(largest))))
    return 10.0 ** min(low, high - 1), 10.0**high


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about ``count`` round numbers within a linear range."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low, high]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    if power == 0:
        return [low, high]
    step = power * next(factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = [(first + index) * step for index in range(3 * count)]
    return [tick for tick in ticks if tick <= high + step * 1e-6]


def decade_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return powers of ten within a logarithmic range, at most ``most`` of them."""
    first, last = round(math.log10(low)), round(math.log10(high))
    stride = max(1, math.ceil((last - first) / (most - 1)))
    return [10.0**power for power in range(first, last + 1, stride)]


def decade_label(value: float) -> str:
    """Write a power of ten as a tick: 0.1, 1, 10, else 10⁻³."""
    power = round(math.log10(value))
    return number(10.0**power) if -2 <= power <= 3 else f"10{superscript(power)}"


def tick_labels(ticks: list[float]) -> tuple[list[str], str]:
    """Write ticks with no more digits than tell them apart, and the power of ten they share ("" for none)."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    shared = 3 * (power // 3) if power >= 5 or power <= -3 else 0
    unit = 10.0**shared
    step = min((abs(b - a) for a, b in pairwise(ticks)), default=largest or 1.0) / unit
    digits = 0 if step <= 0 or not math.isfinite(step) else max(0, min(6, -math.floor(math.log10(step) + 1e-9)))
    if digits < 6 and any(abs(round(tick / unit, digits) - tick / unit) > step * 0.01 for tick in ticks):
        digits += 1
    labels = [f"{round(tick / unit, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
    return labels, f"\N{MULTIPLICATION SIGN}10{superscript(shared)}" if shared else ""
