"""Every fault of the catalogue in every network under both estimators: ``python -m benchmarks.catalogue``.

Printed for each: the checks that found it, of those that the row names; the checks that accuse the model besides, in
brackets where the row allows it; and whether all that the row claims holds. The exit code is 1 where it does not. The
networks are the two small ones of `tests.faults.injectors.networks` and the embedded ResNet18.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator

from tests.faults.injectors import FAULTS, NETWORKS
from tests.faults.injectors.examining import Outcome, examine, unharmed
from tests.faults.injectors.networks import train
from tests.faults.injectors.patient import ESTIMATORS, Fault, patient

HEADER = "| row | network | estimator | found by | accused besides | verdict | s |\n|---|---|---|---|---|---|---|"


def outcomes(
    faults: tuple[Fault, ...], networks: tuple[str, ...], estimators: tuple[str, ...], *, named: bool = False
) -> Iterator[Outcome]:
    """Examine rows in networks, the healthy network first; ``named``: only by the checks that a row names."""
    small = train() if set(networks) - {"resnet18"} else {}
    for network in networks:
        for estimator in estimators:
            yield unharmed(patient(network, estimator, small))
            for fault in faults:
                yield examine(fault, patient(network, estimator, small), only=fault.named if named else ())


def line(outcome: Outcome) -> str:
    """Return the row of the table."""
    besides = [f"`{id}`" for id in outcome.besides] + [f"(`{id}`)" for id in outcome.open]
    cells = [
        outcome.row,
        outcome.network,
        outcome.estimator,
        " ".join(f"`{id}`" for id in outcome.found),
        " ".join(besides),
        "does not hold" if outcome.wrong else "holds",
        f"{outcome.seconds:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def summary(found: list[Outcome], seconds: float) -> str:
    networks = Counter(outcome.network for outcome in found)
    counts = ", ".join(f"{count} of {network}" for network, count in networks.items())
    wrong = sum(bool(outcome.wrong) for outcome in found)
    return f"{len(found)} cases ({counts}) in {seconds:.0f} s: {len(found) - wrong} hold, {wrong} do not"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.catalogue", description=(__doc__ or "").splitlines()[0])
    ids = [fault.id for fault in FAULTS]
    parser.add_argument("--network", action="append", choices=NETWORKS, help="this network only; may be repeated")
    parser.add_argument("--estimator", action="append", choices=ESTIMATORS, help="this estimator only")
    parser.add_argument("--row", action="append", choices=ids, metavar="ID", help="this row only; may be repeated")
    parser.add_argument("--named", action="store_true", help="run only the checks that a row names")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    faults = tuple(fault for fault in FAULTS if fault.id in (given.row or ids))
    begin, found = time.perf_counter(), []
    print(HEADER, flush=True)
    for outcome in outcomes(
        faults, tuple(given.network or NETWORKS), tuple(given.estimator or ESTIMATORS), named=given.named
    ):
        found.append(outcome)
        print(line(outcome), flush=True)
    for outcome in found:
        for wrong in outcome.wrong:
            print(f"\n{outcome.row}, {outcome.network}, {outcome.estimator}: {wrong}")
    print(f"\n{summary(found, time.perf_counter() - begin)}")
    return int(any(outcome.wrong for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
