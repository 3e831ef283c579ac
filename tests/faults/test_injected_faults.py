"""Every fault of the catalogue that a check claims to see, injected into a healthy network: found, named, no more.

The rows are those of `tests.faults.injectors`, and `python -m benchmarks.catalogue` takes each to each network, by all
checks. Here the small networks are judged by all checks, ResNet18 by those that a row names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from benchmarks import catalogue
from pytest_bnn.checks import registry
from pytest_bnn.conversion import convert
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.faults.injectors import FAULTS
from tests.faults.injectors.examining import Outcome, examine, judge
from tests.faults.injectors.patient import ESTIMATORS, Fault, Given, Patient, healthy_loss, patient

LATER = pytest.mark.nightly("each row on the other network, or by the other estimator, runs in every push")
LARGE = pytest.mark.nightly("seconds each; every push has each row in the small networks, and in ResNet18 each check")
#: Each network, and each estimator, is in both tiers.
WHOLE = [(network, estimator) for network in ("residual", "plain") for estimator in ESTIMATORS]
TURNS = (("residual", "Reparameterization"), ("plain", "Flipout"))


@pytest.fixture(params=[pytest.param(one, id="-".join(one), marks=() if one in TURNS else LATER) for one in WHOLE])
def whole(request: pytest.FixtureRequest, trained: Mapping[str, nn.Module]) -> Patient:
    network, estimator = request.param
    return patient(network, estimator, trained)


@pytest.mark.parametrize(
    ("whole", "fault"),
    [
        pytest.param(one, fault, id=f"{'-'.join(one)}-{fault.id}", marks=() if one == TURNS[place % 2] else LATER)
        for one in WHOLE
        for place, fault in enumerate(FAULTS)
    ],
    indirect=["whole"],
)
def test_fault_is_found_and_named(fault: Fault, whole: Patient) -> None:
    """Found, so that it cannot pass; named, so that it can be mended; nothing else accused, so that it is believed."""
    outcome = examine(fault, whole)
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert set(outcome.found) == set(fault.named)


def test_healthy_patient_passes_everything(whole: Patient) -> None:
    """The control of every row: what the injectors break was whole, by the library's hand and by ours."""
    for model in (whole.converted(), convert(whole.teacher, type=whole.estimator)):  # type: ignore[arg-type]
        found = {id: one for id, one in judge(whole, {"model": model}).items() if not _of_data(one)}
        warned = {id for id, evidence in found.items() if evidence.verdict is Verdict.WARN}
        assert warned == ({"estimator.flipout"} if whole.estimator == "Flipout" else set())
        not_passed = {id for id, evidence in found.items() if evidence.verdict is not Verdict.PASS} - warned
        assert not_passed == (set() if warned else {"estimator.flipout"}), found


def _of_data(evidence: Evidence) -> bool:
    """Say whether a claim is about data, of which these few images decide nothing: it warns, or does not apply."""
    if not registry.load(evidence.id).declaration.of_data:
        return False
    assert evidence.verdict in (Verdict.PASS, Verdict.WARN, Verdict.NOT_APPLICABLE), evidence.explain()
    return True


#: Silent or NaN: on ResNet18 these take as many passes as all other rows together. One estimator each, and without
#: the two checks that draw them; the command has them all.
DEAR = {"A7": "Flipout", "A9": "Reparameterization", "B8": "Flipout", "B11": "Reparameterization"}
MANY_PASSES = {"noise.varies", "noise.spread"}

RESNET18 = [
    (fault, estimator) for fault in FAULTS for estimator in ESTIMATORS if DEAR.get(fault.id, estimator) == estimator
]


def _checks(fault: Fault) -> set[str]:
    return set(fault.named) - (MANY_PASSES if fault.id in DEAR else set())


#: In every push, by turns under one estimator or the other: what is cheap of the rows, and shows every kind.
KINDS = {"A1", "A2-extractor", "A5", "A22", "B2", "B9-new-head", "B11", "B12-dropout", "B12-train-only", "B15"}


def _in_push() -> dict[str, str]:
    """Return the estimator of each row in every push: those of `KINDS`, and the first that claims another check."""
    kinds: dict[str, str] = {}
    claimed = {check for fault in FAULTS if fault.id in KINDS for check in _checks(fault)}
    for place, fault in enumerate(FAULTS):
        if fault.id in KINDS or _checks(fault) - claimed:
            kinds[fault.id] = DEAR.get(fault.id, ESTIMATORS[place % 2])
            claimed |= _checks(fault)
    return kinds


IN_PUSH = _in_push()


@pytest.mark.parametrize(
    ("fault", "estimator"),
    [
        pytest.param(fault, name, id=f"{fault.id}-{name}", marks=() if IN_PUSH.get(fault.id) == name else LARGE)
        for fault, name in RESNET18
    ],
)
def test_fault_in_resnet18_is_found_and_named(fault: Fault, estimator: str) -> None:
    """The network of the project's own case."""
    outcome = examine(fault, patient("resnet18", estimator, {}), only=_checks(fault))
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert set(outcome.found) == _checks(fault)


def test_rows_in_resnet18_cover_every_check_that_rows_claim() -> None:
    """Or a check could be blind there; in every push, too."""
    claimed = {check for fault in FAULTS for check in fault.named}
    assert {check for fault, _ in RESNET18 for check in _checks(fault)} == claimed
    assert {check for fault in FAULTS if fault.id in IN_PUSH for check in _checks(fault)} == claimed
    assert {fault.id for fault in FAULTS} >= KINDS
    assert set(IN_PUSH.values()) == set(ESTIMATORS)


def test_rows_are_distinct() -> None:
    """Two rows of one id would hide each other in the output of a failed run."""
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)


# --- Whoever examines the rows is examined too -------------------------------------------------------------------


def _row(id: str, **changes: Any) -> Fault:
    return replace(next(fault for fault in FAULTS if fault.id == id), **changes)


def teacher_that_fails(patient: Patient) -> Given:
    patient.put(patient.teacher, "pool", nn.Identity())
    return {"model": patient.converted()}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (_row("B2", fails={"kl.loss": ("no such word",)}), "kl.loss does not say 'no such word'"),
        (_row("B2", warns={"kl.present": ()}), "kl.present has to warn"),
        (_row("B2", inject=lambda p: {"model": p.converted(), "loss": healthy_loss}), "kl.loss has to fail"),
        (_row("B6", fails={"kl.loss": ()}), "kl.present accuses besides"),
        (_row("B2", inject=teacher_that_fails), "InputError: the teacher Network does not accept images"),
    ],
    ids=["words", "verdict", "not injected", "besides", "refused"],
)
def test_a_row_that_claims_too_much_does_not_hold(fault: Fault, says: str, trained: Mapping[str, nn.Module]) -> None:
    wrong = examine(fault, patient("plain", "Reparameterization", trained)).wrong
    assert len(wrong) == 1
    assert says in wrong[0]


def test_a_row_may_leave_a_check_open(trained: Mapping[str, nn.Module]) -> None:
    """Then it is shown, and not counted against the row."""
    row = _row("B6", fails={"kl.loss": ()}, open=("kl.present",))
    outcome = examine(row, patient("plain", "Reparameterization", trained))
    assert (outcome.wrong, outcome.besides, outcome.open) == ((), (), ("kl.present",))


def test_resnet18_is_the_same_with_the_dropout_that_a_row_takes() -> None:
    """It has none of its own; in eval mode one more changes nothing, and it is where the paths say."""
    one, other = (patient("resnet18", "Reparameterization", {}) for _ in range(2))
    other.with_dropout()
    assert isinstance(other.part(other.teacher, "drop"), nn.Dropout)
    assert one.teacher(one.images).equal(other.teacher(one.images))


def test_the_command_shows_every_claim_and_says_by_its_exit_code_whether_they_hold(
    trained: Mapping[str, nn.Module], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "train", lambda: trained)
    only = ["--network", "plain", "--estimator", "Flipout", "--row", "B2", "--named"]
    assert catalogue.main(only) == 0
    printed = capsys.readouterr().out
    assert "| healthy | plain | Flipout |  |  | holds |" in printed
    assert "| B2 | plain | Flipout | `kl.loss` |  | holds |" in printed
    assert "2 cases (2 of plain)" in printed
    assert "2 hold, 0 do not" in printed
    monkeypatch.setattr(catalogue, "FAULTS", (_row("B2", fails={"kl.loss": ("no such word",)}),))
    assert catalogue.main(only) == 1
    printed = capsys.readouterr().out
    assert "| does not hold |" in printed
    assert "B2, plain, Flipout: kl.loss does not say 'no such word'" in printed


def test_the_table_tells_what_is_accused_besides_from_what_a_row_leaves_open() -> None:
    outcome = Outcome(
        row="X", network="plain", estimator="Flipout", found=("a", "b"), besides=("c",), open=("d",), wrong=("w",),
        seconds=1.25,
    )  # fmt: skip
    assert catalogue.line(outcome) == "| X | plain | Flipout | `a` `b` | `c` (`d`) | does not hold | 1.2 |"
