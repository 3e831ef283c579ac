"""A check says what drew its passes, and finds the same, whichever check of the subject was judged before it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pytest_bnn
from pytest_bnn.checks import registry
from pytest_bnn.options import Settings, using
from pytest_bnn.records.evidence import Evidence
from pytest_bnn.sampling import bank
from pytest_bnn.subject import Subject

SAMPLED = ("noise.varies", "noise.spread", "teacher.agreement", "calibration.temperature", "calibration.classes",
           "scores.against_teacher", "uncertainty.errors")  # fmt: skip
REGRESSION = ("noise.varies", "regression.coverage", "regression.scores")
FAILS = "own forward (its passes raised MemoryError: no room for this pass)"


class Failing:
    """An engine that fails in every fifth pass, and with it in every block that has one."""

    warning = ""

    def __init__(self, engine: Any) -> None:
        self.engine, self.noise = engine, engine.noise

    def run(self, passes: range, images: Tensor, rows: Tensor, *, noisy: Collection[str] | None = None) -> Tensor:
        if any(index % 5 == 3 for index in passes):
            raise MemoryError("no room for this pass")
        found: Tensor = self.engine.run(passes, images, rows, noisy=noisy)
        return found


@pytest.fixture(params=["engine", "failing", "own"])
def drawn_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sequence[str]]:
    """Let passes be drawn in a way; give the beginnings of the words for it."""
    shake = bank._shake_hands
    if request.param == "failing":
        monkeypatch.setattr(bank, "_shake_hands", lambda *given: Failing(shake(*given)))
    with using(Settings(sampler="own" if request.param == "own" else "auto", samples=24, threads=1)):
        yield {"engine": ["engine ("], "failing": ["engine (", FAILS], "own": ["own forward (chosen)"]}[request.param]


def network(outputs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, outputs)).eval()


def subject(checks: Sequence[str]) -> Subject:
    teacher = network(3 if checks is SAMPLED else 1)
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    outputs = teacher(inputs).detach()
    labels = outputs.argmax(1) if checks is SAMPLED else outputs
    model = pytest_bnn.convert(teacher, moped_delta=0.3)
    # Without a teacher the outputs of a pass are the example by which the task is found.
    return Subject(model, images=inputs, labels=labels, teacher=teacher if checks is SAMPLED else None)


def judged(of: Subject, checks: Sequence[str]) -> dict[str, Evidence]:
    found = {id: registry.load(id).judge(of, {}, None, severity="error") for id in checks}
    return {id: replace(evidence, seconds=0.0) for id, evidence in found.items()}


@pytest.mark.parametrize("checks", [SAMPLED, REGRESSION], ids=["classes", "numbers"])
def test_the_order_of_checks_changes_nothing(drawn_by: Sequence[str], checks: Sequence[str]) -> None:
    in_order = judged(subject(checks), checks)
    assert judged(subject(checks), checks[::-1]) == in_order
    alone = {id: judged(subject(checks), [id])[id] for id in checks}
    assert alone == in_order
    for evidence in in_order.values():
        if evidence.samples:
            named = evidence.sampler.split(", then ")
            assert len(named) == len(drawn_by)
            assert all(any(one.startswith(words) for one in named) for words in drawn_by)


def test_where_the_engine_fails_the_own_forward_draws_that_pass_alone(drawn_by: Sequence[str]) -> None:
    """Whoever asks for which passes first, pass k is the same."""
    judging = subject(SAMPLED)
    whole = judging.bank.draw(0, 12)
    for start, stop in ((0, 2), (2, 7), (7, 12)):
        assert torch.equal(subject(SAMPLED).bank.draw(start, stop), whole[start:stop])
    own = bank.PassBank(judging.model, judging.require_images(), judging.seed, sampler="own").draw(0, 12)
    same = [bool(torch.equal(one, other)) for one, other in zip(whole, own, strict=True)]
    fails = [index % 5 == 3 for index in range(12)]
    assert same == {1: [drawn_by[0].startswith("own")] * 12, 2: fails}[len(drawn_by)]
