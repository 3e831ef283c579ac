"""How numbers, verdicts and untrusted text read, in HTML and Markdown alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from pytest_bnn.records.codec import Scalar
from pytest_bnn.records.codec import clean as clean
from pytest_bnn.records.evidence import SEVERITY, Threshold, Verdict

SYMBOLS: Final[Mapping[Verdict, str]] = {
    Verdict.PASS: "✓",
    Verdict.WARN: "!",
    Verdict.FAIL: "✕",
    Verdict.ERROR: "‼",
    Verdict.INCONCLUSIVE: "?",
    Verdict.NOT_APPLICABLE: "\N{EN DASH}",
}
RELATIONS: Final[Mapping[str, str]] = {"==": "=", "<=": "≤", ">=": "≥", "<": "<", ">": ">"}

_NO_BREAK: Final = "\u00a0"
_SUPERSCRIPT: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def word(verdict: Verdict) -> str:
    """Name a verdict: ``not_applicable`` is "not applicable"."""
    return verdict.value.replace("_", " ")


def superscript(number: int) -> str:
    """Write an integer as an exponent: -7 is "⁻⁷"."""
    return str(number).translate(_SUPERSCRIPT)


def number(value: float, digits: int = 4) -> str:
    """Write a number for people: 11,173,962, 0.0312, 3.1×10⁻⁷, NaN, ∞."""
    if isinstance(value, int):
        return f"{value:,}".replace("-", "\N{MINUS SIGN}")
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "\N{MINUS SIGN}∞"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 <= power < 7:
        text = f"{value:,.{max(0, digits - 1 - power)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}\N{MULTIPLICATION SIGN}10{superscript(power)}"
    return text.replace("-", "\N{MINUS SIGN}")


def scalar(value: Scalar, unit: str = "") -> str:
    """Write any value of a record, with its unit."""
    if value is None:
        text = "none"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    else:
        text = value if isinstance(value, str) else number(value)
    return f"{text}{_NO_BREAK}{unit}" if unit else text


def percent(share: float | None) -> str:
    """Write a probability as a percentage: 0.9731 is "97.3 %"."""
    if share is None:
        return "\N{EN DASH}"
    if not math.isfinite(share):
        return number(share)
    if 0 < share < 0.0005:
        return f"<0.1{_NO_BREAK}%"
    return f"{100 * share:.1f}{_NO_BREAK}%".replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float) -> str:
    """Write a 5-95 % interval of probabilities: "91.0–99.8 %"."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{percent(low)} to {percent(high)}"
    return f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}{_NO_BREAK}%"


def seconds(value: float) -> str:
    """Write a duration in seconds, never as a long decimal."""
    if not math.isfinite(value):
        return f"{number(value)} s"
    return "<0.01 s" if 0 <= value < 0.01 else f"{value:,.2f} s" if value < 10 else f"{value:,.0f} s"


def allowed(threshold: Threshold) -> str:
    """Write what a threshold allows, with relation and unit: "≤ 3×10⁻⁵", or a band: "0.001 to 1"."""
    if threshold.other_end is not None and isinstance(threshold.allowed, int | float):
        low, high = sorted((float(threshold.allowed), threshold.other_end))
        return f"{number(low)} to {scalar(high, threshold.unit)}"
    return f"{RELATIONS[threshold.relation]}{_NO_BREAK}{scalar(threshold.allowed, threshold.unit)}"


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: "1 claim", "1,204 claims"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def sentence(counts: Mapping[Verdict, int]) -> str:
    """Say in words how a run fared, from the number of claims with each verdict."""
    judged = sum(count for verdict, count in counts.items() if verdict is not Verdict.NOT_APPLICABLE)
    if not judged:
        return "No claim applies to these subjects" if any(counts.values()) else "No claim was checked"
    failed, broken = counts.get(Verdict.FAIL, 0), counts.get(Verdict.ERROR, 0)
    undecided, warned = counts.get(Verdict.INCONCLUSIVE, 0), counts.get(Verdict.WARN, 0)
    troubles = [
        phrase
        for count, phrase in (
            (failed, "failed"),
            (broken, "could not be checked"),
            (undecided, "is undecided" if undecided == 1 else "are undecided"),
        )
        if count
        for phrase in (f"{count:,} {phrase}",)
    ]
    if troubles:
        count, _, phrase = troubles[0].partition(" ")
        rest = "".join(f", {trouble}" for trouble in troubles[1:])
        return f"{count} of {plural(judged, 'claim')} {phrase}{rest}"
    hold = "The one claim holds" if judged == 1 else f"All {judged:,} claims hold"
    return hold + (f", {warned:,} with a warning" if warned else "")


def in_severity_order(counts: Mapping[Verdict, int]) -> list[tuple[Verdict, int]]:
    """Return the verdicts that occur, worst first, with their counts."""
    return [(verdict, counts[verdict]) for verdict in SEVERITY if counts.get(verdict)]
