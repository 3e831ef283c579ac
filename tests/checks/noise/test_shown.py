"""What the noise's checks show beside their verdicts: the image that tells, and what each layer makes of the noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.audit.description import describe
from pytest_bnn.checks.layers.replaced import replaced
from pytest_bnn.checks.noise.spread import contributions, measure_noise_spread
from pytest_bnn.checks.noise.varies import _Bounds, measure_noise_varies
from pytest_bnn.conversion import convert
from pytest_bnn.records.evidence import Acceptance, Evidence, Verdict
from pytest_bnn.records.run import LayerRow
from pytest_bnn.subject import Subject


def network(depth: int = 3) -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(depth)]
    converted = convert(nn.Sequential(*layers).eval(), moped_delta=0.2)
    assert isinstance(converted, nn.Sequential)
    return converted


def examples(count: int = 12) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


def bounds(spread: list[float], low: list[float], high: list[float]) -> _Bounds:
    return _Bounds(torch.tensor([spread]), torch.tensor(low), torch.tensor(high), floor=0.1, passes=2)


@pytest.mark.parametrize(
    ("low", "high", "telling", "verdict"),
    [
        # The image with the lowest bound is not the one with the lowest spread.
        ([0.3, 0.2, 0.15], [9.0, 9.0, 9.0], 1, Verdict.PASS),
        # What is surely silent tells, however low another one seems.
        ([0.0, 0.0, 0.2], [0.05, 9.0, 9.0], 0, Verdict.FAIL),
        ([0.0, 0.2, 0.0], [9.0, 9.0, 9.0], 2, Verdict.INCONCLUSIVE),
    ],
)
def test_the_image_that_tells(low: list[float], high: list[float], telling: int, verdict: Verdict) -> None:
    found = bounds([0.6, 0.4, 0.5], low, high)
    images = torch.arange(3)
    assert found.verdict(images) is verdict
    assert found.telling(images) == telling


def test_the_gauge_of_noise_varies_shows_the_lowest_spread_there_is() -> None:
    found = measure_noise_varies(network(), images=examples(40))
    assert found.verdict is Verdict.PASS
    assert found.threshold is not None
    assert found.threshold.observed == found["lowest spread"]
    [image] = [one.note for one in found.measurements if one.name == "lowest spread"]
    assert found.threshold.quantity == f"lowest spread, of {image}"
    assert found.certainty is not None
    assert image in found.certainty.statistic


def test_the_band_of_the_spread_has_two_ends() -> None:
    found = measure_noise_spread(network(), images=examples())
    assert found.threshold is not None
    assert {found.threshold.allowed, found.threshold.other_end} == {1e-3, 1.0}


def rows(subject: Subject, *evidence: Evidence) -> dict[str, LayerRow]:
    return {row.path: row for row in describe(subject, evidence=evidence).layers}


def test_the_rows_of_layers_have_the_noise_that_was_measured_and_draw_none() -> None:
    subject = Subject(network(), images=examples())
    assert all(row.noise is None for row in rows(subject).values()), "nothing measured it"
    assert not subject.bank.drawn
    found = measure_noise_spread(subject)
    shares = {layer.path: float(layer.finding.split(", ")[1].split(" %")[0]) / 100 for layer in found.layers}
    drawn = subject.bank.drawn
    noise = {path: row.noise for path, row in rows(subject).items()}
    assert subject.bank.drawn == drawn
    assert noise == pytest.approx(shares, rel=1e-2)
    assert sum(value or 0.0 for value in noise.values()) == pytest.approx(1)
    assert contributions(subject) == noise


def test_of_layers_that_were_measured_together_none_has_noise_of_its_own() -> None:
    subject = Subject(network(40), images=examples(4))
    measure_noise_spread(subject)
    found = rows(subject)
    assert len(found) == 40
    assert contributions(subject)
    alone = [path for path in contributions(subject) if " to " not in path]
    assert {path for path, row in found.items() if row.noise is not None} == set(alone)


def test_accepted_layers_have_their_reason_in_the_rows() -> None:
    model = network()
    model.append(nn.Linear(6, 2)).append(nn.LSTM(2, 2)).append(nn.Linear(2, 2))
    accepted = (
        Acceptance(path="3", reason="latency budget", weights=14),
        Acceptance(path="4", reason="recurrent", weights=48),
        Acceptance(path="nowhere", reason="of the teacher", weights=1),
    )
    evidence = Evidence(
        id=replaced.id, subject="m", stage="converted", verdict=Verdict.PASS, claim="", headline="", accepted=accepted
    )
    found = rows(Subject(model, images=None), evidence)
    assert {path: row.accepted for path, row in found.items() if not row.bayesian} == {
        "3": "latency budget", "4": "recurrent", "5": "",
    }  # fmt: skip
    assert found["4"].weights == 48
    other = Evidence(
        id="another.check", subject="m", stage="converted", verdict=Verdict.PASS, claim="", headline="",
        accepted=accepted,
    )  # fmt: skip
    assert not any(row.accepted for row in rows(Subject(model, images=None), other).values())
