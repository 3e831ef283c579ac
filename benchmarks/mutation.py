"""Which check kills which mutant: ``python -m benchmarks.mutation``.

Every mutant (`benchmarks.mutants`) of two small networks that read digits, with BatchNorm and a residual and without,
under both estimators, goes through every check of the audit. Printed: mutants found, for each attribute and mutation
and for each check; the score; and every survivor with the reason. ``--resnet18`` takes one mutant of each kind instead,
of four layers of the embedded ResNet18; ``--score`` leaves a mutant at the first check that kills it.
"""

from __future__ import annotations

import argparse
import copy
import enum
import json
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.mutants import EXPECTED, Fate, Mutant, mutants
from benchmarks.mutators import FACTORS
from pytest_bnn.audit.run import CHECK_IDS, Thresholds
from pytest_bnn.conversion import Estimator, convert
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.example.images import digits
from pytest_bnn.example.weights import load_teacher
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.subject import Subject
from tests.faults.injectors.examining import measured
from tests.faults.injectors.networks import sure_of, train

BATCHES = 10
IMAGES = 6
ESTIMATORS: tuple[Estimator, ...] = ("Reparameterization", "Flipout")
RESNET18_LAYERS = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "fc")

#: A check that raised instead of giving a verdict, because it took the mutant for wrong input.
REFUSED = "refused"

#: Power and error rate that a mutant has to be visible at; noise.posterior states its effects at these.
POWER, ERROR_RATE = 0.999, 1e-6

BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"


class Outcome(enum.StrEnum):
    KILLED = "killed"
    SURVIVED = "survived"
    BELOW_POWER = "below power"
    EQUIVALENT = "equivalent"
    CHOICE = "a choice"
    FALSE_ALARM = "false alarm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A healthy network to mutate, and what the checks get beside it."""

    name: str
    teacher: nn.Module
    model: nn.Module
    images: Tensor
    labels: Tensor

    def subject(self, model: nn.Module) -> Subject:
        return Subject(
            model, teacher=self.teacher, images=self.images, labels=self.labels, loss=loss, name=self.name, stage="auto"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one mutant: each check's verdict, and the checks that failed and name its layer."""

    case: str
    mutant: str
    attribute: str
    mutation: str
    outcome: Outcome
    reason: str
    verdicts: dict[str, str]
    named_by: tuple[str, ...]

    @property
    def kind(self) -> tuple[str, str]:
        return self.attribute, self.mutation


def loss(model: nn.Module, batch: tuple[Tensor, Tensor | None]) -> Tensor:
    images, labels = batch
    assert labels is not None
    total: Tensor = functional.cross_entropy(model(images), labels) + get_kl_loss(model) / BATCHES
    return total


def small_cases(networks: Mapping[str, nn.Module]) -> list[Case]:
    """Return both small networks under both estimators; the prior's mean is not 0, so that scaling it changes it."""
    images, labels = sure_of(networks, IMAGES)
    return [
        Case(
            name=f"{name}, {estimator}",
            teacher=teacher,
            model=convert(teacher, type=estimator, prior_mu=0.1),
            images=images,
            labels=labels,
        )
        for name, teacher in networks.items()
        for estimator in ESTIMATORS
    ]


def resnet18_case() -> Case:
    teacher = load_teacher("digits").model
    images, labels = digits("held_out", 2)
    model = convert(teacher, prior_mu=0.1)
    return Case(name="resnet18, Reparameterization", teacher=teacher, model=model, images=images, labels=labels)


def judge(case: Case, model: nn.Module, order: Iterable[str] = CHECK_IDS) -> Iterator[tuple[str, Evidence | None]]:
    """Run every check of the audit; None where one refuses its input."""
    subject = case.subject(model)
    for id in order:
        try:
            yield id, measured(id, subject, Thresholds(num_batches=BATCHES))
        except PytestBnnError:
            yield id, None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the checks say of the healthy model: what they say of a mutant counts where it differs."""

    verdicts: dict[str, str]
    passes: int
    cheapest_first: tuple[str, ...]

    @classmethod
    def of(cls, case: Case) -> Health:
        found = dict(judge(case, case.model))
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
    model = copy.deepcopy(case.model)
    mutant.apply(model, case.teacher)
    expected = EXPECTED[mutant.kind]
    verdicts: dict[str, str] = {}
    named: list[str] = []
    for id, evidence in judge(case, model, CHECK_IDS if whole else health.cheapest_first):
        verdicts[id] = str(evidence.verdict) if evidence else REFUSED
        if evidence and evidence.verdict is Verdict.FAIL and _names(evidence, mutant.path):
            named.append(id)
        if not whole and verdicts[id] == Verdict.FAIL and (id in named or id in expected.by):
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
    return re.search(rf"(?<![\w.]){re.escape(path)}(?!\w)", evidence.explain(offenders=100)) is not None


def _outcome(mutant: Mutant, verdicts: dict[str, str], named: list[str], health: Health) -> tuple[Outcome, str]:
    expected = EXPECTED[mutant.kind]
    changed = [id for id, verdict in verdicts.items() if verdict != health.verdicts[id]]
    if expected.fate is Fate.EQUIVALENT:
        if any(verdicts[id] not in (Verdict.PASS, Verdict.NOT_APPLICABLE) for id in changed):
            return Outcome.FALSE_ALARM, f"{expected.reason}; accused by {', '.join(changed)}"
        return Outcome.EQUIVALENT, expected.reason
    if expected.fate is Fate.CHOICE:
        return Outcome.CHOICE, expected.reason
    if any(verdicts[id] == Verdict.FAIL and (id in expected.by or id in named) for id in changed):
        return Outcome.KILLED, ""
    factor = next((f for f in FACTORS if mutant.kind == ("draw", f"scaled by {f}")), None)
    if factor is not None and factor < (shown := least_visible(mutant.size * health.passes)):
        return Outcome.BELOW_POWER, f"{health.passes} passes show no factor below {shown:.3g} in {mutant.size} weights"
    return Outcome.SURVIVED, "no check sees it"


def least_visible(draws: int) -> float:
    """Return the least factor of sigma that the chi-square test of a variance shows with `POWER` at `ERROR_RATE`."""
    return float((chi2.isf(ERROR_RATE / 2, draws) / chi2.ppf(1 - POWER, draws)) ** 0.5)


def score(results: Iterable[Result]) -> tuple[int, int]:
    """Return how many were killed, of those that had to be: neither equivalent, nor a choice, nor below power."""
    counts = Counter(result.outcome for result in results)
    return counts[Outcome.KILLED], counts[Outcome.KILLED] + counts[Outcome.SURVIVED]


def sample(cases: list[Case]) -> Iterator[tuple[Case, Mutant]]:
    """Yield one mutant of each kind, going round the cases and the layers."""
    all_of = [(case, mutant) for case in cases for mutant in mutants(case.model)]
    for index, kind in enumerate(EXPECTED):
        of_kind = [pair for pair in all_of if pair[1].kind == kind]
        mine = [pair for pair in of_kind if pair[0] is cases[index % len(cases)]] or of_kind
        yield mine[index // len(cases) % len(mine)]


def table(results: list[Result]) -> str:
    lines = [
        "| attribute | mutation | mutants | outcome | " + " | ".join(f"`{id}`" for id in CHECK_IDS) + " |",
        "|---|---|---|---|" + "---|" * len(CHECK_IDS),
    ]
    for kind in EXPECTED:
        mine = [result for result in results if result.kind == kind]
        if mine:
            outcomes = Counter(result.outcome for result in mine)
            said = ", ".join(
                f"{outcome} {count}" if len(outcomes) > 1 else outcome for outcome, count in outcomes.items()
            )
            cells = [sum(result.verdicts.get(id) == Verdict.FAIL for result in mine) for id in CHECK_IDS]
            row = [*kind, str(len(mine)), said, *(str(cell or "") for cell in cells)]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def summary(results: list[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    killed, of = score(results)
    named = sum(bool(result.named_by) for result in results if result.outcome is Outcome.KILLED)
    cases = "; ".join(dict.fromkeys(result.case for result in results))
    rest = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome if outcome is not Outcome.KILLED)
    share = f"{100 * killed / max(1, of):.1f} %"
    return (
        f"{len(results)} mutants ({cases}): {killed} killed of the {of} that had to be ({share}), {named} "
        f"of them by a check that names the layer. The others: {rest}.{_refusals(results)}"
    )


def _refusals(results: list[Result]) -> str:
    found = Counter((id, result.kind) for result in results for id, v in result.verdicts.items() if v == REFUSED)
    return "".join(
        f"\n`{id}` raised an input error, no verdict, on {count} ({' '.join(kind)})."
        for (id, kind), count in found.items()
    )


def survivors(results: list[Result]) -> str:
    """List what was not killed, kind by kind, with the reason."""
    lines = []
    for outcome in (Outcome.SURVIVED, Outcome.FALSE_ALARM, Outcome.BELOW_POWER, Outcome.EQUIVALENT, Outcome.CHOICE):
        rows: dict[tuple[tuple[str, str], str], list[Result]] = {}
        for result in results:
            if result.outcome is outcome:
                rows.setdefault((result.kind, result.reason), []).append(result)
        lines += [
            f"| {outcome} | {' '.join(kind)} | {len(mine)} | {reason} | {_accusers(mine)} |"
            for (kind, reason), mine in rows.items()
        ]
    return "\n".join(
        ["| outcome | mutant | mutants | why | verdicts other than pass |", "|---|---|---|---|---|", *lines]
    )


def _accusers(results: list[Result]) -> str:
    quiet = (Verdict.PASS, Verdict.NOT_APPLICABLE)
    found = Counter((id, v) for result in results for id, v in result.verdicts.items() if v not in quiet)
    return ", ".join(f"`{id}` {verdict} {count}" for (id, verdict), count in found.items())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print every result as JSON, not the tables in Markdown")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables between the markers in a file")
    parser.add_argument(
        "--score", action="store_true", help="leave a mutant at the first check that kills it, the cheapest first"
    )
    parser.add_argument("--sample", action="store_true", help="one mutant of each kind")
    parser.add_argument("--resnet18", action="store_true", help="one mutant of each kind, of the embedded ResNet18")
    given = parser.parse_args(arguments)
    if given.score and given.markdown:
        parser.error("--score leaves holes in the matrix: --markdown needs every check")
    warnings.simplefilter("ignore")
    cases = [resnet18_case()] if given.resnet18 else small_cases(train())
    begin = time.perf_counter()
    for case in cases:  # what is compiled at its first use would count as dear
        Health.of(case)
    health = {case.name: Health.of(case) for case in cases}
    if given.resnet18:
        pairs = [(case, mutant) for case in cases for mutant in one_of_each(case.model, RESNET18_LAYERS)]
    elif given.sample:
        pairs = list(sample(cases))
    else:
        pairs = [(case, mutant) for case in cases for mutant in mutants(case.model)]
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


def put(page: str, text: str) -> str:
    """Put a text between the markers of a page."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page has no {BEGIN} with {END} after it")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def one_of_each(model: nn.Module, layers: tuple[str, ...]) -> Iterator[Mutant]:
    """Yield one mutant of each kind, going round some layers."""
    found = [mutant for mutant in mutants(model) if mutant.path in layers]
    for index, kind in enumerate(EXPECTED):
        of_kind = [mutant for mutant in found if mutant.kind == kind]
        if of_kind:
            yield of_kind[index % len(of_kind)]


if __name__ == "__main__":
    main()
