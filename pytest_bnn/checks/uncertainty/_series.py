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
    """The same examples at growing amounts of something.

    Attributes:
        name: Of what grows.
        rows: The numbers of the examples in the subject's own.
        steps: The subject on these examples, as they were first; or on more than these, where ``part`` is given.
        part: Which examples of the steps are judged; all when None.
    """

    name: str
    rows: Tensor
    steps: tuple[Subject, ...]
    part: Tensor | None = None

    def predicted(self, passes: int) -> tuple[Predicted, ...]:
        """Return what is predicted at each step."""
        found = tuple(predicted(step, passes) for step in self.steps)
        part = self.part
        return found if part is None else tuple(part_of(one, part) for one in found)


def series_of(subject: Subject, examples: int) -> list[Series]:
    """Return the series that were given, or those that are made of images; each example once.

    Raises:
        NotHereError: There are none.
        InputError: They do not hold the same number of examples.
    """
    images = subject.require_images()
    kept = repeats(images).first[:examples]
    if subject.shifted:
        return [_given(subject, name, steps, kept) for name, steps in subject.shifted.items()]
    if not are_images(images) or not isinstance(images, Tensor):
        raise NotHereError(
            "the inputs are no images [N, C, H, W], so that nothing can make them harder here: give the same examples "
            "at growing amounts of a shift, --shifts MODULE:FACTORY (shifts= in Python)",
            ("shifts",),
        )
    start = subject.on(images[kept])
    made = dict(corruptions(images[kept], subject.seed))
    if subject.task.kind == "dense":
        del made["rotation"]  # what is said of a place would have to turn with it
    return [
        Series(name=name, rows=kept, steps=(start, *(subject.on(step) for step in steps)))
        for name, steps in made.items()
    ]


def _given(subject: Subject, name: str, steps: list[Subject], kept: Tensor) -> Series:
    with naming("--shifts"):
        counts = [rows_of(subject.require_images()), *(rows_of(step.require_images()) for step in steps)]
    if len(set(counts)) > 1:
        raise InputError(
            f"--shifts: the steps of {name} hold {', '.join(map(str, counts[1:]))} examples, and the data {counts[0]}",
            fix="give the same examples in each, in the same order",
        )
    return Series(name=name, rows=kept, steps=(subject, *steps), part=kept)
