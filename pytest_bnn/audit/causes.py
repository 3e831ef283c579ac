"""Failures that another failure of the same subject explains: one fault is one accusation.

A failure is put under another one only where both saw the same thing, and their evidence shows it:

- The model has no Bayesian layer (the measurement `Bayesian layers`, 0): under layers.replaced, else under the first.
- Posteriors hold NaN or infinity (`tensors with NaN or infinity`), or have no finite KL (`tensors without a finite
  KL`), and the faulty layers of the one are among those of the other: under kl.present, else under the first.
- The outputs first differ from the teacher's, by NaN or infinity, at a layer whose posterior holds such: likewise.
- The forward raises the same error (`raised`): under the first.
- The training loss is NaN or infinite (`training loss`): under the first.
- Outputs are NaN or infinite in some passes (the threshold): under the first.
- The outputs of no image vary at all (the threshold, exactly 0): under kl.present where every sigma is 0, else under
  the first.

The first is the first in the order of the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.recorder import amend

#: These name what the others suffer from, and where.
_ROOTS = ("layers.replaced", "kl.present")

#: Whether two failures, the first of which may explain the second, saw the same thing.
_Same = Callable[[Evidence, Evidence], bool]


def explained(checks: Sequence[Evidence]) -> list[Evidence]:
    """Return the evidence of one or more subjects with ``explained_by`` filled in, wherever it is proven."""
    causes = {index: found for index, check in enumerate(checks) if (found := _cause(check, checks))}
    return [replace(check, explained_by=causes[i]) if i in causes else check for i, check in enumerate(checks)]


def explain(checks: Sequence[Evidence]) -> list[Evidence]:
    """Do as `explained`, and amend what was recorded already."""
    found = explained(checks)
    for before, after in zip(checks, found, strict=True):
        if after is not before:
            amend(before, after)
    return found


def _cause(check: Evidence, checks: Sequence[Evidence]) -> str:
    """Return the id of the failure that explains another; empty where nothing shows it."""
    if check.verdict is not Verdict.FAIL or check.explained_by:
        return ""
    failed = [c for c in checks if c.verdict is Verdict.FAIL and (c.subject, c.key) == (check.subject, check.key)]
    failed = [c for c in failed if not c.explained_by]
    failed.sort(key=lambda c: _ROOTS.index(c.id) if c.id in _ROOTS else len(_ROOTS))  # stable: then by place
    for same in _RULES:
        root = next((c for c in failed if same(c, check)), None)
        if root is not None:
            return "" if root is check else root.id
    return ""


def _measured(check: Evidence, name: str) -> object:
    return next((m.value for m in check.measurements if m.name == name), None)


def _at_fault(check: Evidence) -> set[str]:
    return {layer.path for layer in check.layers if not layer.ok}


def _both_measured(name: str, value: object = None) -> _Same:
    """Both measured the same, or this value."""

    def same(root: Evidence, check: Evidence) -> bool:
        found = (_measured(root, name), _measured(check, name))
        return found[0] is not None and found[0] == (found[1] if value is None else value) == found[1]

    return same


def _same_layers(name: str) -> _Same:
    """Both counted such tensors, those of the one in layers that the other names too."""

    def same(root: Evidence, check: Evidence) -> bool:
        counted = all(_measured(one, name) for one in (root, check))
        return counted and bool(_at_fault(check)) and _at_fault(check) <= _at_fault(root)

    return same


def _differs_at_nan(root: Evidence, check: Evidence) -> bool:
    observed = None if check.threshold is None else check.threshold.observed
    nowhere_finite = isinstance(observed, float) and not math.isfinite(observed)
    return (
        check.id == "mean.equals_teacher"
        and nowhere_finite
        and bool(_measured(root, "tensors with NaN or infinity"))
        and bool(_at_fault(check))
        and _at_fault(check) <= _at_fault(root)
    )


def _loss_not_finite(root: Evidence, check: Evidence) -> bool:
    found = (_measured(root, "training loss"), _measured(check, "training loss"))
    return all(isinstance(value, float) and not math.isfinite(value) for value in found)


def _outputs_not_finite(root: Evidence, check: Evidence) -> bool:
    return all(
        one.threshold is not None and one.threshold.quantity == "passes with NaN or infinity" for one in (root, check)
    )


def _silent(check: Evidence) -> bool:
    """Return whether the outputs of no image vary at all."""
    if check.id not in ("noise.source", "noise.varies", "noise.spread") or check.threshold is None:
        return False
    highest = _measured(check, "highest spread")
    return (
        check.threshold.relation in (">", ">=")
        and check.threshold.observed == 0
        and (check.id != "noise.varies" or highest == 0)
    )


def _nothing_varies(root: Evidence, check: Evidence) -> bool:
    return _silent(check) and (_silent(root) or _measured(root, "share of sigma that is 0") == 1)


_RULES: tuple[_Same, ...] = (
    _both_measured("Bayesian layers", 0),
    _same_layers("tensors with NaN or infinity"),
    _same_layers("tensors without a finite KL"),
    _differs_at_nan,
    _both_measured("raised"),
    _loss_not_finite,
    _outputs_not_finite,
    _nothing_varies,
)
