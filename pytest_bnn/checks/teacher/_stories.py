"""What agreement and its lack look like, in words: lost classes, exchanged ones, other units, several outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytest_bnn.checks.finding import Finding
from pytest_bnn.checks.teacher._classes import ClassCount, exchanged, images_needed
from pytest_bnn.checks.teacher._distances import relation
from pytest_bnn.checks.teacher._items import Claim, Votes
from pytest_bnn.checks.teacher._medians import Numbers
from pytest_bnn.records.evidence import Certainty, Measurement, Verdict
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Story:
    """A verdict, what is added to the headline, and what to do, empty where there is nothing special."""

    verdict: Verdict
    headline: str = ""
    remedy: str = ""


def story_of(subject: Subject, items: Votes | Numbers, found: Verdict, counts: list[ClassCount], unit: str) -> Story:
    """Say what the disagreement is, where it shows."""
    if isinstance(items, Numbers):
        return _of_numbers(items, found)
    order = exchanged(items) if found is Verdict.FAIL else ""
    if order:
        return Story(
            found,
            f"; {order}",
            "give the model and its teacher the same order of classes: look at how the labels of the fine-tuning were "
            "encoded, and at what the head puts where",
        )
    lost = [count for count in counts if count.lost]
    if not lost or (found is Verdict.FAIL and len(lost) == len(counts)):
        return Story(found)
    worst = min(lost, key=lambda count: (count.agreeing / count.images, -count.images))
    most = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    over = "images" if unit == "images" else "images in which it has places"
    return Story(
        Verdict.FAIL,
        f"; {_name(subject, worst.index)} is lost{most}: the mean prediction says it on {worst.agreeing} of the "
        f"{worst.images} {over} on which the teacher does, and certainly something else on {worst.against}",
        "look for that class in the data of the fine-tuning (is it there, is it labelled so, is it ignored?) and at "
        "the row of the head that scores it",
    )


def _of_numbers(items: Numbers, found: Verdict) -> Story:
    if found is not Verdict.FAIL:
        return Story(found)
    words, opposite = relation(items)
    if not words:
        return Story(
            found, "",
            "convert with a smaller moped_delta, or fine-tune toward the teacher; look at the images that disagree",
        )  # fmt: skip
    if opposite:
        return Story(
            found, f"; {words}: they go the other way",
            "look for a sign that was exchanged, in the targets of the fine-tuning or in the head",
        )  # fmt: skip
    return Story(
        found, f"; {words}",
        "compare in the same units: the model follows its teacher, and targets that were standardised, or scaled, for "
        "the one and not for the other put them apart; undo that scaling in the one or in the other",
    )  # fmt: skip


def _name(subject: Subject, index: int) -> str:
    names = subject.class_names
    return f"class {index} ({names[index]})" if index < len(names) else f"class {index}"


def of_classes(subject: Subject, counts: list[ClassCount], claim: Claim) -> tuple[Measurement, ...]:
    """Return the class with the least agreement, and how many classes have enough images to be judged."""
    if not counts:
        return ()
    rate, level = 1 - claim.min_agreement, claim.of_classes / len(counts)
    enough = images_needed(rate, level)
    judged = [count for count in counts if count.images >= enough]
    least = min(judged or counts, key=lambda count: count.agreeing / count.images)
    return (
        Measurement(
            name="classes judged one by one", value=len(judged),
            note=f"of {len(counts)}; the others have fewer than the {enough} images that it takes",
        ),
        Measurement(
            name="least agreement of a class", value=least.agreeing / least.images,
            note=f"{_name(subject, least.index)}, {least.images} images",
        ),
    )  # fmt: skip


#: From the worst on.
_ORDER = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.WARN, Verdict.PASS, Verdict.NOT_APPLICABLE)


def together(found: list[tuple[Task, Finding]], claim: Claim) -> Finding:
    """Put the findings about several outputs together: the worst one speaks, and the others are measurements."""
    task, worst = min(found, key=lambda pair: _ORDER.index(pair[1].verdict))
    others = [
        Measurement(name=f"output {other.field}", value=str(finding.verdict), note=finding.headline)
        for other, finding in found
        if other is not task
    ]
    certainty = worst.certainty
    return replace(
        worst,
        headline=f"output {task.field}: {worst.headline}",
        measurements=(*worst.measurements, *others),
        certainty=None
        if certainty is None
        else Certainty(
            alpha=claim.budget.alpha, beta=claim.budget.beta, statistic=certainty.statistic,
            low=certainty.low, high=certainty.high,
        ),
    )  # fmt: skip
