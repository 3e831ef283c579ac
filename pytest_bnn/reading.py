"""Readers of settings: what a text on a command line, in the environment or in an ini file means."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from ``least`` on; ValueError where a text is none."""

    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError
        return value

    read.__doc__ = f"a whole number from {least}"
    return read


def share(text: str) -> float:
    """a number above 0, up to 1"""  # noqa: D403
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


def part(text: str) -> float:
    """a number from 0 to 1"""  # noqa: D403
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def count_or_all(text: str) -> int | str:
    """a whole number from 1, or all"""  # noqa: D403
    return text if text == "all" else whole(1)(text)


def error_rate(text: str) -> float:
    """a number between 0 and 0.5"""  # noqa: D403
    value = float(text)
    if not 0 < value < 0.5:
        raise ValueError
    return value


def positive(text: str) -> float:
    """a number above 0"""  # noqa: D403
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError
    return value


def choice(*words: str) -> Callable[[str], str]:
    """Return a reader of one of some words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    read.__doc__ = " or ".join(words)
    return read


def device(text: str) -> str:
    """auto, cpu, cuda, cuda:N or mps"""
    kind, colon, number = text.partition(":")
    if text not in ("", "auto", "cpu", "cuda", "mps") and not (kind == "cuda" and colon and number.isdecimal()):
        raise ValueError
    return text


class DrawnSeed(int):
    """A seed that was drawn, not chosen: it is shown, so that the run can be repeated."""


def seed(text: str) -> int:
    """a whole number from 0, or random"""  # noqa: D403
    return DrawnSeed(secrets.randbelow(2**31)) if text == "random" else whole(0)(text)


def band(text: str) -> str:
    """two numbers LOW:HIGH with 0 < LOW < HIGH"""  # noqa: D403
    low, high = (float(part) for part in text.split(":"))
    if not 0 < low < high < math.inf:
        raise ValueError
    return text


def some_text(text: str) -> str:
    """a text that is not empty"""  # noqa: D403  completes "give ..."
    if not text.strip():
        raise ValueError
    return text
