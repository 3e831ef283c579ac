"""One fault is one accusation: what another failure explains, by evidence; and what nothing proves stays apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.audit.causes import explained
from pytest_bnn.audit.run import audit_model
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import kl as kl_of
from pytest_bnn.records.evidence import Evidence, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.records.recorder import Recorder, recording


def teacher() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def images() -> Tensor:
    return torch.randn(24, 6, generator=torch.Generator().manual_seed(1))


class Around(nn.Module):
    """The converted network with something around it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = convert(teacher(), moped_delta=0.05), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "raises":
            raise ValueError("no")
        if self.kind == "reseeds":
            torch.manual_seed(0)
        out: Tensor = self.net(x)
        return out / 0 * 0 if self.kind == "divides by 0" else out


def faulty(kind: str) -> nn.Module:
    net = convert(teacher(), moped_delta=0.05)
    parts: list[Any] = [layer for layer in net.children() if hasattr(layer, "rho_weight")]
    with torch.no_grad():
        if kind == "NaN in rho":
            for layer in parts:
                layer.rho_weight.fill_(torch.nan)
        elif kind == "NaN in one mu":
            parts[1].mu_weight[0, 0] = torch.nan
        elif kind == "sigma 0":
            for layer in parts:
                layer.rho_weight.fill_(-200)
                layer.rho_bias.fill_(-200)
        elif kind == "deterministic":
            return teacher()
        else:
            return Around(kind)
    return net


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    divergence = kl_of(model)
    assert divergence is not None
    total: Tensor = model(batch[0]).square().mean() + divergence / 10
    return total


ROOT = {
    "NaN in rho": {"kl.present"},
    "NaN in one mu": {"kl.present"},
    "sigma 0": {"kl.present"},
    "deterministic": {"layers.replaced"},
    "raises": {"mean.equals_teacher"},
    # Draws that repeat are a fact of their own, and so is a loss of NaN: a loss need not take the outputs.
    "reseeds": {"noise.source", "noise.posterior"},
    "divides by 0": {"noise.source", "kl.loss", "mean.equals_teacher"},
}
CHECKS = [
    "layers.replaced",
    "mean.equals_teacher",
    "noise.source",
    "noise.varies",
    "noise.spread",
    "noise.posterior",
    "kl.present",
    "kl.loss",
    "gradient.samples",
    "loss.data",
    "teacher.agreement",
]


@pytest.mark.parametrize("kind", ROOT)
def test_one_fault_is_one_accusation(kind: str) -> None:
    """Several checks fail, each of them for the same reason: they say which one names it, and the recorder knows."""
    with recording(Recorder()) as recorder:
        run = audit_model(faulty(kind), teacher=teacher(), data=images(), loss=loss, checks=CHECKS, stage="converted")
    failed = [check for check in run.checks if check.verdict is Verdict.FAIL]
    assert {check.id for check in failed if not check.explained_by} == ROOT[kind]
    assert {check.explained_by for check in failed} - {""} <= ROOT[kind]
    assert len(failed) > len(ROOT[kind])
    assert recorder.checks == list(run.checks)
    explained_one = next(check for check in failed if check.explained_by)
    assert f"  cause:    {explained_one.explained_by} fails too, and explains this" in explained_one.explain()
    assert run.verdict is Verdict.FAIL


def test_without_the_root_the_first_stands_for_it() -> None:
    """What --checks leaves out cannot be named as the cause."""
    run = audit_model(
        faulty("NaN in rho"), teacher=teacher(), data=images(), checks=["noise.source", "noise.varies", "noise.spread"]
    )
    assert [check.explained_by for check in run.checks] == ["", "noise.source", "noise.source"]


def evidence(id: str, verdict: Verdict = Verdict.FAIL, layers: str = "", **measured: float) -> Evidence:
    """A failure with such measurements; underscores stand for spaces."""
    return Evidence(
        id=id,
        subject="net",
        stage="unknown",
        verdict=verdict,
        claim="c",
        headline="h",
        measurements=tuple(Measurement(name=name.replace("_", " "), value=value) for name, value in measured.items()),
        layers=tuple(LayerFinding(path=path, kind="Linear", ok=False, finding="f") for path in layers.split()),
    )


ZERO = Threshold(quantity="lowest spread of an image", observed=0.0, relation=">", allowed=1e-4)

APART = {
    "NaN in other layers": [
        evidence("kl.present", layers="a", tensors_with_NaN_or_infinity=1),
        evidence("noise.varies", layers="b", tensors_with_NaN_or_infinity=1),
    ],
    "outputs of NaN without a layer": [
        evidence("kl.present", layers="a", tensors_with_NaN_or_infinity=1),
        evidence("noise.varies", tensors_with_NaN_or_infinity=0),
    ],
    "a root that passes": [
        evidence("layers.replaced", Verdict.PASS, Bayesian_layers=0),
        evidence("kl.present", Bayesian_layers=0),
    ],
    "some layers are deterministic": [
        evidence("layers.replaced", Bayesian_layers=1),
        replace(evidence("noise.varies", highest_spread=0.0), threshold=ZERO),
    ],
    "one image that does not vary": [
        replace(evidence("noise.source"), threshold=replace(ZERO, observed=0.0)),
        replace(evidence("noise.varies", highest_spread=0.3), threshold=ZERO),
    ],
    "a finite difference at a layer with NaN": [
        evidence("kl.present", layers="a", tensors_with_NaN_or_infinity=1),
        replace(
            evidence("mean.equals_teacher", layers="a"),
            threshold=Threshold(quantity="d", observed=0.5, relation="<=", allowed=1e-6),
        ),
    ],
    "other subjects": [
        evidence("kl.present", Bayesian_layers=0),
        replace(evidence("kl.loss", Bayesian_layers=0), subject="other"),
    ],
    "subjects of one name": [
        evidence("kl.present", Bayesian_layers=0),
        replace(evidence("kl.loss", Bayesian_layers=0), key="other"),
    ],
    "a warning": [
        evidence("kl.present", Bayesian_layers=0),
        evidence("kl.loss", Verdict.WARN, Bayesian_layers=0),
    ],
}


@pytest.mark.parametrize("kind", APART)
def test_what_is_not_proven_stays_apart(kind: str) -> None:
    """A wrong cause is worse than two accusations."""
    assert explained(APART[kind]) == APART[kind]


def test_a_check_that_knows_its_cause_is_believed() -> None:
    """What a check says of itself is kept, and it is nobody's root then: causes have one step."""
    told = replace(evidence("kl.present", Bayesian_layers=0), explained_by="company.rule")
    other = evidence("kl.loss", Bayesian_layers=0)
    assert explained([told, other]) == [told, other]
