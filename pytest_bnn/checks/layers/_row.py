"""One layer in the claim of ``layers.replaced``, and what to do about each kind of problem."""

from __future__ import annotations

from dataclasses import dataclass

REMEDY = (
    "convert with pytest_bnn.convert(), which names what it cannot convert before it touches anything; "
    "for a layer left deterministic on purpose say so with a reason: --allow 'PATTERN=REASON' or "
    "allow={pattern: reason}"
)

MISSING = (
    "give the teacher that the model was converted from; a layer that was left out or made deterministic on purpose "
    "is excused with --allow 'PATTERN=REASON' or allow={pattern: reason}"
)
IDLE = (
    "look for what still refers to the layer from before the conversion: a list, a dictionary, a bound method or a "
    "function that was kept beside the modules; or remove the layer"
)
UNTIED = "convert with pytest_bnn.convert(), which keeps shared modules shared and refuses tensors that it cannot share"


@dataclass(slots=True)
class Row:
    """A layer: its path in the teacher, or in the model where it has none there, and its place in the model."""

    path: str
    kind: str
    weights: int
    problem: str = ""
    remedy: str = ""
    reason: str = ""
    place: str | None = None

    def fail(self, problem: str, remedy: str) -> None:
        """Note a problem, where there is none yet."""
        if not self.problem:
            self.problem, self.remedy = problem, remedy
