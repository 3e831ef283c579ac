"""The same examples, step by step harder: made of images, or given, and what is predicted for them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pytest_bnn.checks._predictions import Predicted, naming, part_of, predicted
from pytest_bnn.checks.finding import NotHereError
from pytest_bnn.data.batch import rows_of
from pytest_bnn.data.corruptions import are_images, corruptions
from pytest_bnn.data.repeats import repeats
from pytest_bnn.errors import InputError
from pytest_bnn.subject import Subject


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Series:
    """Predictions for the same examples at growing amounts of something; those for the examples as they were first."""

    name: str
    rows: Tensor
    steps: tuple[Predicted, ...]


def series_of(subject: Subject, examples: int, passes: int) -> list[Series]:
    """Return the series that were given, or those that are made of images; each example once.

    Raises:
        NotHereError: There are none, or they cannot be predicted.
        InputError: They do not hold the same number of examples.
    """
    images = subject.require_images()
    kept = repeats(images).first[:examples]
    if subject.shifted:
        return [_given(subject, name, steps, kept, passes) for name, steps in subject.shifted.items()]
    if not are_images(images) or not isinstance(images, Tensor):
        raise NotHereError(
            "the inputs are no images [N, C, H, W], so that nothing can make them harder here: give the same examples "
            "at growing amounts of a shift, --shifts MODULE:FACTORY (shifts= in Python)"
        )
    start = subject.on(images[kept])
    made = dict(corruptions(images[kept], subject.seed))
    if subject.task.kind == "dense":
        del made["rotation"]  # what is said of a place would have to turn with it
    return [
        Series(name=name, rows=kept, steps=tuple(predicted(one, passes) for one in (start, *map(subject.on, steps))))
        for name, steps in made.items()
    ]


def _given(subject: Subject, name: str, steps: list[Subject], kept: Tensor, passes: int) -> Series:
    with naming("--shifts"):
        counts = [rows_of(subject.require_images()), *(rows_of(step.require_images()) for step in steps)]
    if len(set(counts)) > 1:
        raise InputError(
            f"--shifts: the steps of {name} hold {', '.join(map(str, counts[1:]))} examples, and the data {counts[0]}",
            fix="give the same examples in each, in the same order",
        )
    with naming("--shifts"):
        found = [part_of(predicted(one, passes), kept) for one in (subject, *steps)]
    return Series(name=name, rows=kept, steps=tuple(found))
