"""How ``layers.replaced`` says what it counted: Bayesian layers, and those that were accepted as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from pytest_bnn.checks.layers._row import TIED, Row
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import Acceptance
from pytest_bnn.subject import Subject

#: Names that are listed for one reason.
_NAMES = 3


def counted(good: Sequence[Row], rows: Sequence[Row]) -> str:
    """Say how many layers are Bayesian, of all that multiply: ``53 of 54 ... are Bayesian (99.8 % of the weights)``."""
    what = "layers with weight matrices" if any(row.names for row in rows) else "convolution and linear layers"
    return f"{len(good)} of {len(rows)} {what} are Bayesian ({percent(weights_of(good), weights_of(rows))})"


def weights_of(rows: Sequence[Row]) -> int:
    """Count the weights of some layers."""
    return sum(row.weights for row in rows)


def percent(part: int, whole: int) -> str:
    """Say how many of all weights some are; 100 % only where it is all of them, and 0 % only where it is none."""
    if not whole:
        return "there are no weights"
    share = 100 * part / whole
    if part and share < 0.1:
        words = "less than 0.1"
    elif part < whole and share > 99.9:
        words = "more than 99.9"
    else:
        words = f"{share:.1f}".removesuffix(".0")
    return f"{words} % of the weights"


def accepted_in_words(accepted: Sequence[Acceptance], all_weights: int) -> str:
    """Say what was accepted, with its reasons and its share of the weights; empty where nothing was."""
    parts = []
    for tied in (False, True):
        reasons: dict[str, list[str]] = defaultdict(list)
        some = [one for one in accepted if (one.weights == 0) is tied]
        for one in some:
            reasons[one.reason].append(called(one.path))
        if not reasons:
            continue
        listed = "; ".join(f"{_some(names)} ({reason!r})" for reason, names in reasons.items())
        share = "" if tied else f", {percent(sum(one.weights for one in some), all_weights)}"
        parts.append(f"accepted as {'no longer shared' if tied else 'deterministic'}: {listed}{share}")
    return "; ".join(parts)


def acceptances(rows: Sequence[Row], shared: Mapping[str, str]) -> tuple[Acceptance, ...]:
    """Return what was accepted: layers that are deterministic, and those that are shared no more (of no weights)."""
    found = [
        Acceptance(path=row.path if row.place is None else row.place, reason=row.reason, weights=row.weights)
        for row in rows
        if row.reason
    ]
    return (*found, *(Acceptance(path=path, reason=reason) for path, reason in shared.items()))


def unmatched(subject: Subject, allow: Mapping[str, str], used: set[str]) -> tuple[list[str], list[str]]:
    """Return the patterns that accepted nothing: those that match no module or tensor at all, and the others.

    The first are mistakes, or meant for another model that is audited with the same options; so they are told, and
    decide nothing.
    """
    idle = [pattern for pattern in allow if pattern not in used]
    names: set[str] = set()
    for network in (subject.model, subject.teacher):
        if isinstance(network, nn.Module):
            names |= {name for name, _ in network.named_modules(remove_duplicate=False)}
            names |= {name for name, _ in network.named_parameters(remove_duplicate=False)}
    nowhere = [pattern for pattern in idle if not any(fnmatchcase(name, pattern) for name in names)]
    return nowhere, [pattern for pattern in idle if pattern not in nowhere]


def named_problem(row: Row) -> str:
    """Say what is wrong with a layer: ``layer `7` is still nn.Linear``."""
    if row.names:
        return f"`{row.names[0]}` multiplies what comes from the input, and has no posterior"
    return f"layer {called(row.path)} {row.problem}" if row.path else f"the model itself {row.problem}"


def excuse(rows: Sequence[Row], allow: Mapping[str, str], excusable: Sequence[str]) -> tuple[set[str], dict[str, str]]:
    """Accept what the patterns name; return the patterns that named something, and the layers shared no more."""
    used, shared = set(), {}
    for row in rows:
        pattern = next((p for p in allow if row.matches(p)), None)
        if pattern is None or not row.problem or row.remedy not in excusable:
            continue
        used.add(pattern)
        if row.remedy == TIED:
            shared[row.path] = allow[pattern]
        else:
            row.reason = allow[pattern]
        row.problem = ""
    return used, shared


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {rest} more" if rest > 0 else "")
