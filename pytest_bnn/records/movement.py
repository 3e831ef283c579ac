"""Whether a failure that was known has moved: its number beyond its old certainty, or other layers at fault."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

from pytest_bnn.records.codec import show
from pytest_bnn.records.evidence import Certainty, Evidence, Threshold

Direction: TypeAlias = Literal["worse", "same", "better"]

#: Where no interval says how certain a float is: its last digits depend on the machine and the number of threads.
_RELATIVE: Final = 0.01


def moved(before: Evidence, now: Evidence) -> tuple[Direction, tuple[str, ...]]:
    """Say which way a claim moved between two audits in which its verdict was the same, and what shows it.

    A change inside the interval of before is none. Where one bound alone is known, the other is taken to be as far from
    the observed value, and the bound of now has to be beyond it.
    """
    number = _of_number(before, now)
    added, removed = _of_layers(before, now)
    if number == "worse" or added:
        words = () if not added else (f"At fault now and not before: {', '.join(added)}.",)
        return "worse", (*words, *(_numbers(before, now) if number == "worse" else ()))
    if number == "better" or removed:
        return "better", _numbers(before, now) if number == "better" else (
            f"At fault before and not now: {', '.join(removed)}.",
        )
    return "same", ()


def _numbers(before: Evidence, now: Evidence) -> tuple[str, ...]:
    assert before.threshold is not None
    assert now.threshold is not None
    was = before.certainty
    interval = "" if was is None else f", {_interval(was)}"
    return (f"Before it was {show(before.threshold.observed)}{interval} ({now.threshold.quantity}).",)


def _interval(certainty: Certainty) -> str:
    low, high = certainty.low, certainty.high
    if low is None:
        return f"at most {show(high)}"
    return f"at least {show(low)}" if high is None else f"in [{show(low)}, {show(high)}]"


def _of_number(before: Evidence, now: Evidence) -> Direction:
    old, new = before.threshold, now.threshold
    if old is None or new is None or (old.quantity, old.relation) != (new.quantity, new.relation):
        return "same"
    was, is_ = _badness(old), _badness(new)
    if was is None or is_ is None:
        return "same"
    if before.certainty is None and now.certainty is None:
        if (before.samples or now.samples) and before.seed != now.seed:
            return "same"
        return _exact(was, is_, old.observed, new.observed)
    if before.certainty is None or old.relation == "==":
        return "same"
    return _beyond(
        _flipped(before.certainty, old), was, None if now.certainty is None else _flipped(now.certainty, old), is_
    )


def _badness(threshold: Threshold) -> float | None:
    """Return a number that is larger the worse the observed value is; None where there is none."""
    observed, allowed = threshold.observed, threshold.allowed
    if isinstance(observed, bool) or not isinstance(observed, int | float) or math.isnan(observed):
        return None
    if threshold.relation != "==":
        return observed if threshold.relation in ("<=", "<") else -observed
    if isinstance(allowed, bool) or not isinstance(allowed, int | float) or math.isnan(allowed):
        return None
    return abs(observed - allowed)


def _exact(was: float, is_: float, *observed: object) -> Direction:
    if was == is_:
        return "same"
    as_they_are = all(isinstance(one, int) for one in observed) or math.isinf(was) or math.isinf(is_)
    if not as_they_are and abs(is_ - was) <= _RELATIVE * max(abs(is_), abs(was)):
        return "same"
    return "worse" if is_ > was else "better"


def _flipped(certainty: Certainty, threshold: Threshold) -> tuple[float | None, float | None]:
    """Return the bounds of the badness."""
    low, high = certainty.low, certainty.high
    if threshold.relation in ("<=", "<"):
        return low, high
    return None if high is None else -high, None if low is None else -low


def _beyond(
    old: tuple[float | None, float | None], was: float, new: tuple[float | None, float | None] | None, is_: float
) -> Direction:
    low, high = old
    if (low is None and high is None) or (low is not None and low > was) or (high is not None and high < was):
        return "same"  # the interval is that of another statistic
    if high is not None and low is not None:
        return "worse" if is_ > high else "better" if is_ < low else "same"
    if low is not None:
        if is_ < low:
            return "better"
        near = new[0] if new is not None else None
        return "worse" if near is not None and near > was + (was - low) else "same"
    assert high is not None
    if is_ > high:
        return "worse"
    near = new[1] if new is not None else None
    return "better" if near is not None and near < was - (high - was) else "same"


def _of_layers(before: Evidence, now: Evidence) -> tuple[list[str], list[str]]:
    """Return the layers that are at fault now alone, and those that were so before alone; for exact claims."""
    if before.certainty is not None or now.certainty is not None:
        return [], []
    old = {layer.path for layer in before.layers if not layer.ok}
    new = {layer.path for layer in now.layers if not layer.ok}
    if not old or not new:
        return [], []
    if _wrapped(old, new) or _wrapped(new, old):
        return [], []
    added = [path for path in new if path not in old]
    return sorted(added), [] if added else sorted(old - new)


def _wrapped(inner: set[str], outer: set[str]) -> bool:
    """Return whether all paths of the one are those of the other behind one prefix, as in a wrapper's ``module.``."""
    shortest, longest = min(inner, key=len), min(outer, key=len)
    prefix = longest.removesuffix(shortest)
    return {prefix + path for path in inner} == outer
