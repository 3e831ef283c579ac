"""Claims about labels: on the predictions where memory holds them, else shard by shard, for as long as it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pytest_bnn.checks._first import on_evaluated
from pytest_bnn.checks._knowing import require_known
from pytest_bnn.checks._labelled import Labels, labelled, require_exact, require_model_knows, require_some
from pytest_bnn.checks._looks import Look, shards_of
from pytest_bnn.checks._shards import WHERE
from pytest_bnn.checks._summed import Summed
from pytest_bnn.checks.finding import Finding, NeverHereError, NotHereError, of_the_first
from pytest_bnn.data.large import LargeData, named
from pytest_bnn.errors import InputError
from pytest_bnn.records.evidence import Measurement, Verdict
from pytest_bnn.subject import Subject


def on_labels(
    subject: Subject,
    passes: int,
    judge: Callable[[Labels], Finding],
    *,
    calibrated: bool = True,
    by_group: bool = False,
) -> Finding:
    """Judge a claim about labels.

    Where there are more examples than memory holds, it is judged again and again on a growing number of them, until it
    is certain or they are all there. What is claimed has to hold for any number of labels, whenever one stops.

    Args:
        subject: With labels.
        passes: Of the model.
        judge: Judges the claim on labels.
        calibrated: Whether the claim is about a model that knows the labels.
        by_group: Whether it is about each group of the examples, so that it holds when all of them were seen.

    Raises:
        NotHereError: There are no labels of classes, or nobody knows these better than by chance.
        InputError: The examples cannot be used, or a worker ended.

    The first ones of a stream may be of a few classes only, so that they accuse nobody: it is read to its end, or to
    the limit, before a claim is broken.
    """
    if subject.large is None:
        found = labelled(subject, passes)
        if calibrated:
            require_model_knows(found)
        return on_evaluated(subject, judge(found))
    shards = shards_of(subject, passes, subject.large)
    in_its_order, cut = subject.large.may_be_sorted, False
    finding: Finding | NotHereError | None = None
    for number, look in enumerate(shards.looks(), 1):
        cut = look.cut
        try:
            finding = judge(_usable(look, number, calibrated=calibrated))
        except NotHereError as error:
            finding = error
            if isinstance(error, NeverHereError):
                break
            continue
        if finding.verdict is Verdict.NOT_APPLICABLE:  # whatever the examples are
            break
        waits = by_group and finding.verdict is Verdict.PASS and not look.last and shards.has_more_groups(look)
        undecided = finding.verdict is Verdict.INCONCLUSIVE or (in_its_order and finding.verdict is not Verdict.PASS)
        finding = _told(finding, look, subject.large, enough=not undecided)
        if not undecided and not waits:
            break
    if finding is None:
        raise InputError(
            f"{WHERE} gave examples once, and none when it was read again",
            fix="let its __iter__ begin anew each time that it is called",
        )
    if isinstance(finding, NotHereError):
        raise finding
    if in_its_order and cut:
        fix = (
            f"judge all of it ({WHERE}-images all, max_evaluation='all' in Python), or give a Dataset with a length, "
            "of which a random subset is taken"
        )
        return of_the_first(finding, f"a stream ({WHERE})", fix)
    return finding


def on_few(subject: Subject, finding: Finding) -> Finding:
    """Say of a finding that it is about those examples that memory holds, where there are more; they may be sorted."""
    finding = on_evaluated(subject, finding)
    if subject.large is None or finding.verdict is Verdict.NOT_APPLICABLE:
        return finding
    total = subject.large.total
    note = f"judged on {subject.large.few.rows}{f' of {total}' if total else ''} examples, those that memory holds"
    return replace(finding, notes=(*finding.notes, note))


def _usable(look: Look, number: int, *, calibrated: bool) -> Summed:
    found = Summed(tally=look.tally, no_groups=look.no_groups)
    require_some(found)
    require_exact(found, shares=look.shares)
    its = None if found.its is None else found.its.answers
    found = replace(found, known=require_known(found.own.answers, its, number) == "model")
    if calibrated:
        require_model_knows(found)
    return found


def _told(finding: Finding, look: Look, large: LargeData, *, enough: bool) -> Finding:
    """Say on how many examples it was judged, and which could not be."""
    of = "" if large.total is None else f" of {large.total}"
    no_more = ": no more were needed" if enough and not look.last else ""
    shards = f"{look.shards} shard{'s' if look.shards > 1 else ''} of {large.shard_size}"
    notes = [f"judged on {look.tried}{of} examples, {large.way}, in {shards}{no_more}"]
    more = [Measurement(name="examples", value=look.tried, note=f"{of.strip()}; {shards}".removeprefix("; "))]
    if look.stays_here:
        notes.append(f"this process alone judged them: {look.stays_here}")
    if look.unreadable:
        more.append(Measurement(name="examples that cannot be read", value=len(look.unreadable)))
        notes.append(f"examples that cannot be read were left out: {named(list(look.unreadable))}")
    if look.tally.own.ties:
        more.append(
            Measurement(
                name="examples with two leading classes that rounding may exchange", value=look.tally.own.ties
            )
        )  # fmt: skip
    return replace(finding, measurements=(*finding.measurements, *more), notes=(*finding.notes, *notes))
