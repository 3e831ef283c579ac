"""The auditor audited, the long run: false alarms on healthy models, power, mutants, and the catalogue of faults.

``python -m benchmarks.audit_the_audit`` takes about an hour on one core; the tests hold a small part of each.
"""

from __future__ import annotations

import argparse

from benchmarks import catalogue, false_alarms, mutation, power


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit_the_audit", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--audits", type=int, default=2000, help="healthy models (default: 2000)")
    parser.add_argument("--trials", type=int, default=40, help="broken models at each effect (default: 40)")
    given = parser.parse_args(arguments)
    print("== false alarms", flush=True)
    accused = false_alarms.main(["--audits", str(given.audits)])
    print("\n== power", flush=True)
    power.main(["--trials", str(given.trials)])
    print("\n== mutants", flush=True)
    mutation.main(["--score"])
    print("\n== catalogue of faults", flush=True)
    return max(accused, catalogue.main([]))


if __name__ == "__main__":
    raise SystemExit(main())
