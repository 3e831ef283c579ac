"""The history of a model in words, where nothing in it is amiss."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized

from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.libraries.fingerprint import FEW
from pytest_bnn.libraries.history import Trace
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.subject import Subject

_NOTHING_SHOWS = (
    "nothing shows what the model is: {}. Give the teacher that it was converted from (--teacher MODULE:FACTORY), or "
    "say what it is with --stage converted or --stage finetuned (stage= in Python)"
)


def count(things: Sized, name: str) -> str:
    """Return a number with its noun."""
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def share(found: Sequence[Trace], *, of_teacher: bool = False) -> str:
    """Return sigma's share of abs(mu), or of the teacher's, in some tensors; empty where none of them tells."""
    deltas = sorted(d for t in found if not math.isnan(d := t.delta_of_teacher if of_teacher else t.delta))
    if not deltas:
        return ""
    low, high = f"{deltas[0]:.4g}", f"{deltas[-1]:.4g}"
    return low if low == high else f"{low} to {high}"


def told(subject: Subject, found: Sequence[Trace]) -> Finding:
    """Say what a model is in which nothing is amiss; not applicable where nothing shows it."""
    weights = [trace for trace in found if trace.tensor.role == "weight"]
    said = subject.standing.told
    if all(trace.untouched for trace in weights) and not any(trace.print.hidden for trace in weights):
        return _pass(fresh(weights))
    if is_untrained(weights):
        return _pass(
            "untrained: mu and rho of every weight tensor large enough to tell are distributed as the library's "
            "constructor draws them"
        )
    shown = subject.shown
    if shown.stage == "finetuned":
        paired = [trace for trace in weights if trace.weight is not None]
        kept = [trace for trace in weights if trace.untouched]
        moved = sum(trace.moved for trace in paired)
        words = f"fine-tuned: mu of {moved} of {len(paired)} weight tensors has moved from the teacher's, "
        if moved:
            words += "and sigma from where a conversion puts it"
        if kept:
            words += f"; {len(kept)} of {len(weights)} are as a conversion leaves them: frozen, or not loaded"
        return _pass(words)
    if shown.stage == "converted":
        return _pass(f"a conversion of the teacher: {shown.why}")
    if said:
        return _pass(f"nothing tells against the declared stage, {subject.stage}: {_not_at_a_start(weights)}")
    if shown.stage == "unrelated":
        return not_applicable(
            f"the model is no conversion of this teacher, and not at the library's random start: {shown.why}; where it "
            "was trained from scratch, say so with --stage finetuned (stage= in Python)"
        )
    return not_applicable(_NOTHING_SHOWS.format(_not_at_a_start(weights) if subject.teacher is None else shown.why))


def fresh(weights: Sequence[Trace]) -> str:
    """Say that no step was taken, and what shows it."""
    words = f"a fresh conversion, no step of training shows: sigma is {_of_mu(weights)} at every place"
    paired = [trace for trace in weights if trace.weight is not None]
    if not paired:
        return f"{words} of {count(weights, 'weight tensor')}"
    equal = sum(trace.print.equal for trace in paired)
    if equal == len(paired):
        return f"{words}, and mu is the teacher's to the bit in all of {count(paired, 'weight tensor')}"
    return f"{words}, but mu is not the teacher's in {len(paired) - equal} of {count(paired, 'weight tensor')}"


def _of_mu(weights: Sequence[Trace]) -> str:
    by_share = [trace for trace in weights if trace.print.fresh]
    return f"{share(by_share)} times abs(mu)" if by_share else "one value in each tensor"


def is_untrained(weights: Sequence[Trace]) -> bool:
    """Return whether every weight tensor that can tell is at the library's random start."""
    telling = [trace for trace in weights if trace.print.size >= FEW]
    return bool(telling) and all(trace.print.random_start for trace in telling)


def _not_at_a_start(weights: Sequence[Trace]) -> str:
    at_start = sum(trace.untouched or trace.print.random_start for trace in weights)
    words = (
        f"{len(weights) - at_start} of {count(weights, 'weight tensor')} are neither as a conversion leaves them nor"
    )
    return f"{words} at the library's random start, as after a training"


def _pass(headline: str) -> Finding:
    return Finding(verdict=Verdict.PASS, headline=headline)
