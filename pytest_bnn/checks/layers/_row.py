"""One layer in the claim of ``layers.replaced``, and what to do about each kind of problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape

REMEDY = (
    "convert it with pytest_bnn.convert(model), which names what it cannot convert before it touches anything, or "
    "accept it with a reason: --allow 'PATTERN=REASON', in Python allow={pattern: reason}"
)

MISSING = (
    "give the teacher that the model was converted from; a layer that was left out or made deterministic on purpose "
    "is excused with --allow 'PATTERN=REASON', in Python allow={pattern: reason}"
)
IDLE = (
    "look for what still refers to the layer from before the conversion: a list, a dictionary, a bound method or a "
    "function that was kept beside the modules; or remove the layer"
)
FUNCTIONAL = (
    "make it a layer of its own before the conversion, such as nn.Linear, so that it becomes Bayesian; for a weight "
    "left deterministic on purpose say so with a reason: --allow 'PATTERN=REASON', in Python "
    "allow={pattern: reason}, with the "
    "name of the module or of the tensor as the pattern"
)
UNDRAWN = (
    "call the layer where its mu is used, or multiply with a weight that is drawn as the layer draws it: mu alone has "
    "no noise, and sigma learns nothing from there"
)
RECURRENT = (
    "no conversion here makes such a layer Bayesian: build it by hand of the library's layers, or say why it stays "
    "deterministic: --allow 'PATTERN=REASON', in Python allow={pattern: reason}"
)
TIED = (
    "share one Parameter again, so that both are trained as one; where they are two on purpose, say so with a reason: "
    "--allow 'PATTERN=REASON', in Python allow={pattern: reason}"
)
UNTIED = "convert with pytest_bnn.convert(), which keeps shared modules shared and refuses tensors that it cannot share"


def remedies(problems: Sequence[Row]) -> list[str]:
    """Return what to do about some layers, each thing once, with the first of its layers in the place of a pattern."""
    first: dict[str, Row] = {}
    for row in problems:
        first.setdefault(row.remedy, row)
    return [
        remedy.replace("PATTERN=REASON", f"{escape(row.path or row.names[0])}=REASON").replace(
            "allow={pattern: reason}", f'allow={{"{escape(row.path or row.names[0])}": "REASON"}}'
        )
        if row.path or row.names
        else remedy
        for remedy, row in first.items()
    ]


@dataclass(slots=True)
class Row:
    """A layer: its path in the teacher, or in the model where it has none there, and its place in the model.

    ``names`` are those of its tensors, where it is in the claim for these alone; ``choice`` says that the problem may
    be meant.
    """

    path: str
    kind: str
    weights: int
    problem: str = ""
    remedy: str = ""
    reason: str = ""
    place: str | None = None
    names: tuple[str, ...] = ()
    choice: bool = False

    def fail(self, problem: str, remedy: str) -> None:
        """Note a problem, where there is none yet."""
        if not self.problem or self.choice:
            self.problem, self.remedy, self.choice = problem, remedy, False

    def warn(self, problem: str, remedy: str) -> None:
        """Note what may be meant, where there is no problem yet."""
        if not self.problem:
            self.problem, self.remedy, self.choice = problem, remedy, True

    def matches(self, pattern: str) -> bool:
        """Return whether a pattern, as in fnmatch, is that of its path, its place or one of its tensors."""
        paths = (self.path, self.path if self.place is None else self.place, *self.names)
        return any(fnmatchcase(path, pattern) for path in paths)
