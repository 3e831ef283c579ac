"""What too few labels leave open, in words: the interval that they allow, and how many more would decide a claim."""

from __future__ import annotations

import math


def more_labels(count: int, reach: float, wanted: float) -> int | None:
    """Return how many labels would decide, where ``count`` reach so far and ``wanted`` would do; None for no number."""
    return None if wanted <= 0 else max(count + 1, round(count * (reach / wanted) ** 2))


def give_labels(needed: int | None, more: str = "") -> str:
    """Say how many labels would decide a claim, and how they are given.

    Args:
        needed: About how many would; None where no number can be told.
        more: What else would do, behind the number of labels; empty for nothing.
    """
    if needed is None:
        return f"give more labels{more}, with --evaluation MODULE:FACTORY"
    return (
        f"give about {needed} labels like these{more}, which would decide the claim, with --evaluation MODULE:FACTORY"
    )


def between(low: float, high: float) -> str:
    """Say in which interval a positive number lies, of which an end may be 0 or infinite."""
    if low > 0 and math.isfinite(high):
        return f"between {low:.3g} and {high:.3g}"
    return f"at least {low:.3g}" if low > 0 else f"at most {high:.3g}" if math.isfinite(high) else "of any size"
