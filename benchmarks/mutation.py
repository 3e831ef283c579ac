"""Which check kills which mutant: ``python -m benchmarks.mutation``.

Every mutant (`benchmarks.mutants`) of two small networks that read digits, with BatchNorm and a residual and without,
under both estimators, and of one fine-tuned model of each, goes through every check of the audit. Printed: mutants
found, for each attribute and mutation and for each check; the score; and every survivor with the reason. ``--resnet18``
takes one mutant of each kind instead, of four layers of the embedded ResNet18 and of its loss; ``--score`` leaves a
mutant at the first check that kills it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import chi2

from benchmarks.expected import EXPECTED, Expectation, Fate
from benchmarks.matrix import JUDGES, REFUSED, Outcome, Result, put, summary, survivors, table
from benchmarks.mutants import Mutant, mutants
from benchmarks.mutators.case import BATCHES, FACTORS, Case
from benchmarks.mutators.cases import resnet18_case, small_cases
from pytest_bnn.audit.run import Thresholds
from pytest_bnn.checks import registry
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.subject import Subject
from tests.faults.injectors.networks import train

RESNET18_LAYERS = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "fc")

#: Power and error rate that a mutant has to be visible at; noise.posterior states its effects at these.
POWER, ERROR_RATE = 0.999, 1e-6


def judge(case: Case, order: Iterable[str] = JUDGES) -> Iterator[tuple[str, Evidence | None]]:
    """Run every check of the audit; None where one refuses its input."""
    subject = case.subject()
    for id in order:
        try:
            yield id, _measured(id, subject, (case.options or {}).get(id, {}))
        except PytestBnnError:
            yield id, None


def _measured(id: str, subject: Subject, given: dict[str, object]) -> Evidence:
    """Run one check with what is declared, and with the whole of the error rates."""
    check, thresholds = registry.load(id), Thresholds(num_batches=BATCHES)
    options: dict[str, Any] = {**thresholds.options_of(check.declaration), **given}
    budget = {"budget": thresholds.budget} if check.declaration.sampled else {}
    evidence: Evidence = check.measure(subject, **options, **budget)
    return evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the checks say of the healthy model: what they say of a mutant counts where it differs."""

    verdicts: dict[str, str]
    passes: int
    cheapest_first: tuple[str, ...]

    @classmethod
    def of(cls, case: Case) -> Health:
        found = dict(judge(case))
        verdicts = {id: str(evidence.verdict) if evidence else REFUSED for id, evidence in found.items()}
        noise = found["noise.posterior"]
        seconds = {id: evidence.seconds if evidence else 0.0 for id, evidence in found.items()}
        return cls(
            verdicts=verdicts,
            passes=noise.samples if noise else 0,
            cheapest_first=tuple(sorted(seconds, key=seconds.__getitem__)),
        )

    @property
    def sick(self) -> dict[str, str]:
        """Verdicts that accuse the healthy model: there must be none."""
        good = (Verdict.PASS, Verdict.WARN, Verdict.NOT_APPLICABLE)
        return {id: verdict for id, verdict in self.verdicts.items() if verdict not in good}


def examine(case: Case, health: Health, mutant: Mutant, *, whole: bool = True) -> Result:
    """Apply a mutant to a copy and run the checks: all, or the cheapest first until one kills it."""
    broken = case.copy()
    mutant.apply(broken)
    expected = EXPECTED[mutant.kind]
    verdicts: dict[str, str] = {}
    named: list[str] = []
    for id, evidence in judge(broken, JUDGES if whole else health.cheapest_first):
        verdicts[id] = str(evidence.verdict) if evidence else REFUSED
        if evidence and evidence.verdict is Verdict.FAIL and _names(evidence, mutant.path):
            named.append(id)
        if not whole and _kills(id, verdicts[id], named, expected):
            break
    outcome, reason = _outcome(mutant, verdicts, named, health)
    return Result(
        case=case.name,
        mutant=mutant.name,
        attribute=mutant.attribute,
        mutation=mutant.mutation,
        outcome=outcome,
        reason=reason,
        verdicts=verdicts,
        named_by=tuple(named),
    )


def _names(evidence: Evidence, path: str) -> bool:
    if not path:
        return False
    return re.search(rf"(?<![\w.]){re.escape(path)}(?!\w)", evidence.explain(offenders=100)) is not None


def _kills(id: str, verdict: str, named: list[str], expected: Expectation) -> bool:
    if verdict == Verdict.WARN:
        return id in expected.warns
    return verdict == Verdict.FAIL and (id in expected.by or id in named)


def _outcome(mutant: Mutant, verdicts: dict[str, str], named: list[str], health: Health) -> tuple[Outcome, str]:
    expected = EXPECTED[mutant.kind]
    changed = [id for id, verdict in verdicts.items() if verdict != health.verdicts[id]]
    if expected.fate is Fate.EQUIVALENT:
        if any(verdicts[id] not in (Verdict.PASS, Verdict.NOT_APPLICABLE) for id in changed):
            return Outcome.FALSE_ALARM, f"{expected.reason}; accused by {', '.join(changed)}"
        return Outcome.EQUIVALENT, expected.reason
    if expected.fate is Fate.CHOICE:
        return Outcome.CHOICE, expected.reason
    if any(_kills(id, verdicts[id], named, expected) for id in changed):
        return Outcome.KILLED, ""
    factor = next((f for f in FACTORS if mutant.kind == ("draw", f"scaled by {f}")), None)
    if factor is not None and factor < (shown := least_visible(mutant.size * health.passes)):
        return Outcome.BELOW_POWER, f"{health.passes} passes show no factor below {shown:.3g} in {mutant.size} weights"
    if mutant.shortfall:
        return Outcome.BELOW_POWER, mutant.shortfall
    return Outcome.SURVIVED, expected.reason or "no check sees it"


def least_visible(draws: int) -> float:
    """Return the least factor of sigma that the chi-square test of a variance shows with `POWER` at `ERROR_RATE`."""
    return float((chi2.isf(ERROR_RATE / 2, draws) / chi2.ppf(1 - POWER, draws)) ** 0.5)


def sample(cases: list[Case]) -> Iterator[tuple[Case, Mutant]]:
    """Return one mutant of each kind, going round the cases and the layers."""
    all_of = [(case, mutant) for case in cases for mutant in mutants(case)]
    for index, kind in enumerate(EXPECTED):
        of_kind = [pair for pair in all_of if pair[1].kind == kind]
        mine = [pair for pair in of_kind if pair[0] is cases[index % len(cases)]] or of_kind
        yield mine[index // len(cases) % len(mine)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print every result as JSON, not the tables in Markdown")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables between the markers in a file")
    parser.add_argument(
        "--score", action="store_true", help="leave a mutant at the first check that kills it, the cheapest first"
    )
    parser.add_argument("--sample", action="store_true", help="one mutant of each kind")
    parser.add_argument("--resnet18", action="store_true", help="one mutant of each kind, of the embedded ResNet18")
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose attribute and mutation contain a text")
    given = parser.parse_args(arguments)
    if given.markdown and (given.score or given.only):
        parser.error("--score and --only leave holes in the matrix: --markdown needs every check and every mutant")
    warnings.simplefilter("ignore")
    cases = [resnet18_case()] if given.resnet18 else small_cases(train())
    begin = time.perf_counter()
    for case in cases:  # what is compiled at its first use would count as dear
        Health.of(case)
    health = {case.name: Health.of(case) for case in cases}
    if given.resnet18:
        pairs = [(case, mutant) for case in cases for mutant in one_of_each(case, RESNET18_LAYERS)]
    elif given.sample:
        pairs = list(sample(cases))
    else:
        pairs = [(case, mutant) for case in cases for mutant in mutants(case)]
    pairs = [(case, mutant) for case, mutant in pairs if given.only in " ".join(mutant.kind)]
    results = []
    for case, mutant in pairs:
        results.append(examine(case, health[case.name], mutant, whole=not given.score))
        if sys.stderr.isatty() or given.resnet18:
            print(f"{case.name}: {mutant.name}: {results[-1].outcome}", file=sys.stderr, flush=True)
    sick = {name: state.sick for name, state in health.items() if state.sick}
    print(f"{time.perf_counter() - begin:.0f} s; healthy models accused: {sick or 'none'}", file=sys.stderr)
    if given.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    if given.score:  # the matrix would have holes
        print(summary(results))
        return
    text = f"{summary(results)}\n\n{table(results)}\n\n{survivors(results)}"
    print(text)
    if given.markdown:
        given.markdown.write_text(put(given.markdown.read_text(encoding="utf-8"), text), encoding="utf-8")


def one_of_each(case: Case, layers: tuple[str, ...]) -> Iterator[Mutant]:
    """Return one mutant of each kind, going round some layers; those of the loss, and of the model as a whole, too."""
    found = [mutant for mutant in mutants(case) if mutant.path in (*layers, "")]
    for index, kind in enumerate(EXPECTED):
        of_kind = [mutant for mutant in found if mutant.kind == kind]
        if of_kind:
            yield of_kind[index % len(of_kind)]


if __name__ == "__main__":
    main()
