"""Whether what a row of the catalogue claims holds for one network: found, named, and nothing else accused."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from pytest_bnn.audit.run import Thresholds
from pytest_bnn.checks import registry
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.subject import Subject
from tests.around import plain
from tests.faults.injectors.patient import BATCHES, Fault, Given, Patient, healthy_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the checks said of one row in one network; ``wrong`` tells which claims do not hold, and is empty if all do.

    ``besides`` has the checks outside of the row's that accuse it too; ``open`` those of them that the row allows.
    """

    row: str
    network: str
    estimator: str
    found: tuple[str, ...]
    besides: tuple[str, ...]
    open: tuple[str, ...]
    wrong: tuple[str, ...]
    seconds: float


def judge(patient: Patient, given: Given, only: Collection[str] = ()) -> dict[str, Evidence]:
    """Run the checks on a model, all unless some are named."""
    subject = Subject(
        given["model"],
        teacher=patient.teacher,
        images=patient.images,
        labels=patient.labels,
        loss=given.get("loss", healthy_loss),
        name=patient.network,
    )
    thresholds = Thresholds(num_batches=BATCHES)
    return {id: measured(id, subject, thresholds) for id in registry.built_in() if not only or id in only}


def measured(id: str, subject: Subject, thresholds: Thresholds) -> Evidence:
    """Run one check with what thresholds settle of its options, and with the whole of their error rates."""
    check = registry.load(id)
    budget = {"budget": thresholds.budget} if check.declaration.sampled else {}
    evidence: Evidence = check.measure(subject, **thresholds.options_of(check.declaration), **budget)
    return evidence


def accuses(evidence: Evidence) -> bool:
    """Say whether a check says more of a model than it says of a healthy one."""
    # A24: each of the library's Flipout convolutions is warned of.
    if evidence.id == "estimator.flipout" and evidence.verdict is Verdict.WARN:
        return False
    # A few images decide nothing about predictions, which is a warning.
    if evidence.verdict is Verdict.WARN and registry.load(evidence.id).declaration.of_data:
        return False
    return evidence.verdict not in (Verdict.PASS, Verdict.NOT_APPLICABLE)


def examine(fault: Fault, patient: Patient, *, only: Collection[str] = ()) -> Outcome:
    """Inject a fault into a patient and compare what the checks say with what the row claims.

    What an injector draws (new layers, traced noise) is the same in every run. Of the row's claims those about checks
    in ``only`` are tested, where some are named.
    """
    begin = time.perf_counter()
    found: dict[str, Evidence] = {}
    refused: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        try:
            found = judge(patient, fault.inject(patient), only)
        except PytestBnnError as error:  # a check takes the broken model for wrong input
            refused = [f"{type(error).__name__}: {error}"]
    claimed = dict.fromkeys(fault.fails, Verdict.FAIL) | dict.fromkeys(fault.warns, Verdict.WARN)
    claimed = {id: verdict for id, verdict in claimed.items() if id in found}
    accusing = [id for id, evidence in found.items() if id not in claimed and accuses(evidence)]
    return Outcome(
        row=fault.id,
        network=patient.network,
        estimator=patient.estimator,
        found=tuple(id for id, verdict in claimed.items() if found[id].verdict is verdict),
        besides=tuple(id for id in accusing if id not in fault.open),
        open=tuple(id for id in accusing if id in fault.open),
        wrong=(*refused, *_wrong(fault, patient, found, claimed)),
        seconds=time.perf_counter() - begin,
    )


def unharmed(patient: Patient) -> Outcome:
    """Examine the network that the injectors break: the control of every row, in which nothing may be accused."""
    healthy = Fault(id="healthy", description="nothing is broken", inject=lambda p: {"model": p.converted()})
    return examine(healthy, patient)


def _wrong(fault: Fault, patient: Patient, found: Mapping[str, Evidence], claimed: Mapping[str, Verdict]) -> list[str]:
    counts = patient.counts()
    said = {id: evidence.explain(offenders=max(5, counts["layers"])) for id, evidence in found.items()}
    wrong = []
    for id, verdict in claimed.items():
        words = {**fault.fails, **fault.warns}[id]
        expected = [patient.paths.get(word, word.format(**counts)) for word in words]
        missing = [word for word in expected if plain(word) not in plain(said[id])]
        if found[id].verdict is not verdict:
            wrong.append(f"{id} has to {verdict}: {said[id]}")
        elif missing:
            wrong.append(f"{id} does not say {', '.join(map(repr, missing))}: {said[id]}")
    for id, evidence in found.items():
        if evidence.verdict is Verdict.ERROR or (id not in claimed and id not in fault.open and accuses(evidence)):
            wrong.append(f"{id} accuses besides: {said[id]}")
    return wrong
