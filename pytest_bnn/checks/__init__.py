"""What is asserted: one check a file, each with ``measure_*`` -> Evidence and ``assert_*``.

Knows no pytest. Inside pytest, what runs here reaches the report through `pytest_bnn.records.recorder`.
A check's id is the place of its file: ``kl/loss.py`` is ``kl.loss``. `pytest_bnn.checks.registry` lists them.
"""

from __future__ import annotations

from typing import Any

from pytest_bnn.checks import registry

#: ``measure_kl_loss`` and ``assert_kl_loss`` for each check of ours, to its id. For type checkers there is a stub,
#: which ``python -m pytest_bnn.checks.stubs`` writes.
NAMES = {f"{what}_{id.replace('.', '_')}": id for what in ("assert", "measure") for id in registry.files()}

__all__ = [*NAMES]


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check = registry.load(NAMES[name])
    value = check.measure if name.startswith("measure_") else check.assert_
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
