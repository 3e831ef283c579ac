"""Claims about data of which only the first examples were taken: those of a stream, which may be sorted."""

from __future__ import annotations

from pytest_bnn.checks.finding import Finding, of_the_first
from pytest_bnn.subject import Subject

#: What to give in place of a stream.
_LENGTH = "give {} a Dataset with a length, of which a random subset is taken, or a loader that shuffles one"
_WHOLE = "; or take all of the stream: --images with at least as many as it has (max_images= in Python)"


def on_its_own(subject: Subject, finding: Finding) -> Finding:
    """Say of a finding on the subject's own examples whether they are the first ones of a stream that goes on."""
    return of_the_first(finding, "a stream (--data)", _LENGTH.format("--data") + _WHOLE) if subject.cut else finding


def on_evaluated(subject: Subject, finding: Finding) -> Finding:
    """Say the same of a finding on the examples for claims about predictions."""
    judged = subject.evaluated
    if judged is subject or not judged.cut:
        return on_its_own(subject, finding) if judged is subject else finding
    fix = _LENGTH.format("--evaluation") + ("" if subject.large else _WHOLE)
    return of_the_first(finding, "a stream (--evaluation)", fix)


def on_others(subject: Subject, finding: Finding, option: str, sets: list[Subject]) -> Finding:
    """Say the same of a finding on the subject's own examples and on others.

    Args:
        subject: Whose examples they are.
        finding: On all of them.
        option: What gave the others.
        sets: The subject on these.
    """
    if any(other.cut for other in sets):
        return of_the_first(finding, f"a stream ({option})", _LENGTH.format(option))
    return on_its_own(subject, finding)


def on_first_ones(subject: Subject, finding: Finding) -> Finding:
    """Say the same of a finding on any of the subject's examples."""
    return on_its_own(subject, finding) if subject.cut else on_evaluated(subject, finding)
