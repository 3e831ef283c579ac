"""How numbers, verdicts and untrusted text read, in HTML and Markdown alike."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

from pytest_bnn.records.codec import Scalar
from pytest_bnn.records.codec import clean as clean
from pytest_bnn.records.evidence import Threshold
from pytest_bnn.report.standing import JUDGED, ORDER, Standing

RELATIONS: Final[Mapping[str, str]] = {"==": "=", "<=": "≤", ">=": "≥", "<": "<", ">": ">"}

#: They begin no sentence with a capital letter.
_PACKAGES: Final = ("bayesian-torch", "pytest", "torch")

_NO_BREAK: Final = "\u00a0"
_SUPERSCRIPT: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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
    """Write a count with its noun: "1 claim", "1,204 claims", "2 passes"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("s") else "s")


def stage(name: str) -> str:
    """Write the stage of a conversion: ``finetuned`` is "fine-tuned"."""
    return {"finetuned": "fine-tuned", "unknown": "stage unknown"}.get(name, name)


def listed(names: Iterable[str]) -> str:
    """Write names one after the other: "a", "a and b", "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def clipped(text: str, most: int) -> str:
    """Cut a text that is too long for its place after a word."""
    if len(text) <= most:
        return text
    head = text[: most - 2]
    return f"{head.rpartition(' ')[0] or head} …"


def capital(text: str) -> str:
    """Begin a sentence with a capital letter, unless it begins with a name as ``kl.loss`` or ``nn.Linear``."""
    if text.startswith(_PACKAGES):
        return text
    first = re.match(r"[a-z][a-z'\u2019-]*(?=[\s,;:!?]|$)", text)
    return text[0].upper() + text[1:] if first else text


def sentence(counts: Mapping[Standing, int], follow: int = 0, expected: int = 0) -> str:
    """Say in words how a run fared.

    Args:
        counts: How many claims about subjects stand how; expected failures are outside of it.
        follow: How many of those that failed follow from another failure.
        expected: How many failures were expected.
    """
    judged = sum(counts.get(standing, 0) for standing in JUDGED)
    unjudged = counts.get(Standing.NOT_JUDGED, 0)
    if not judged:
        if unjudged:
            return f"None of {plural(unjudged, 'claim')} was judged"
        if counts.get(Standing.NOT_APPLICABLE):
            return "No claim applies to these subjects"
        if expected:
            return f"Nothing but {plural(expected, 'failure')} that {'was' if expected == 1 else 'were'} expected"
        return "No claim was checked"
    failed, broken = counts.get(Standing.FAIL, 0), counts.get(Standing.ERROR, 0)
    undecided, warned = counts.get(Standing.INCONCLUSIVE, 0), counts.get(Standing.WARN, 0)
    caused = f" ({follow:,} of them because another did)" if follow else ""
    troubles = [
        f"{count:,} {phrase}"
        for count, phrase in (
            (failed, f"failed{caused}"),
            (broken, "could not be checked"),
            (undecided, "is undecided" if undecided == 1 else "are undecided"),
        )
        if count
    ]
    if troubles:
        count, _, phrase = troubles[0].partition(" ")
        rest = "".join(f", {trouble}" for trouble in troubles[1:])
        more = f"; {unjudged:,} more {'was' if unjudged == 1 else 'were'} not judged" if unjudged else ""
        of = plural(judged, "judged claim" if unjudged else "claim")
        said = f"The one {of.partition(' ')[2]}" if judged == 1 else f"{count} of {of}"
        return f"{said} {phrase}{rest}{more}"
    with_warnings = f", {warned:,} with a warning" if warned else ""
    if unjudged:
        were = "claims was judged, and holds" if judged == 1 else "claims were judged, and hold"
        return f"{judged:,} of {judged + unjudged:,} {were}{with_warnings}"
    return ("The one claim holds" if judged == 1 else f"All {judged:,} claims hold") + with_warnings


def in_severity_order(counts: Mapping[Standing, int]) -> list[tuple[Standing, int]]:
    """Return what occurs, worst first, with the counts."""
    return [(standing, counts[standing]) for standing in ORDER if counts.get(standing)]
