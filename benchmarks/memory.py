"""How much memory the checks of an audit of a converted ResNet18 take: ``python -m benchmarks.memory``.

In copies of the deterministic weights (45 MB), over what was resident before the check: at its peak, and what it keeps
for the checks after it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.resident import forget_peak, kib
from pytest_bnn import Conversion, audit_model, distillation_loss
from pytest_bnn.audit import run
from pytest_bnn.checks.check import Check
from pytest_bnn.conversion import convert_with
from pytest_bnn.example.images import digits, suitable
from pytest_bnn.example.weights import load_teacher
from pytest_bnn.options import Settings, using
from pytest_bnn.sampling.freed import give_memory_back


def per_check(checks: list[str] | None, threads: int) -> list[dict[str, Any]]:
    """Audit a fresh conversion of the bundled digits' teacher; return peak, rest and seconds of each check."""
    rows: list[dict[str, Any]] = []
    judge: Callable[..., Any] = Check.judge
    auditing: Any = run
    describe: Callable[..., Any] = auditing.describe

    def measured(what: str, work: Callable[[], Any]) -> Any:
        give_memory_back()
        forget_peak()
        before, start = kib("VmRSS"), time.perf_counter()
        found = work()
        seconds, peak = time.perf_counter() - start, kib("VmHWM")
        give_memory_back()
        figures = {"peak": (peak - before) / weights, "kept": (kib("VmRSS") - before) / weights}
        rows.append({"check": what, **figures, "seconds": seconds})
        return found

    def judged(check: Check, *given: Any, **named: Any) -> Any:
        return measured(check.id, lambda: judge(check, *given, **named))

    def described(*given: Any, **named: Any) -> Any:
        return measured("describe", lambda: describe(*given, **named))

    with using(Settings(threads=threads)):
        teacher = load_teacher("digits")
        weights = sum(4 * p.numel() for p in teacher.model.parameters()) / 1024
        model = convert_with(teacher.model, Conversion())
        Check.judge = judged  # type: ignore[assignment,method-assign]
        auditing.describe = described
        try:
            audit_model(
                model,
                teacher=teacher.model,
                data=suitable(teacher.images, "held_out"),
                evaluation=digits("hard"),
                loss=distillation_loss(teacher.model, 1 / 16),
                options={"kl.loss": {"num_batches": 16}},
                checks=checks,
            )
        finally:
            Check.judge = judge  # type: ignore[method-assign]
            auditing.describe = describe
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--checks", help="ids, separated by commas (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the audit (default: 2)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    rows = per_check(given.checks.split(",") if given.checks else None, given.threads)
    print(f"{'in copies of the weights':<32}{'peak':>8}{'kept':>8}{'seconds':>10}")
    for row in rows:
        print(f"{row['check']:<32}{row['peak']:>8.1f}{row['kept']:>8.1f}{row['seconds']:>10.1f}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
