"""Layers that are deterministic on purpose are counted, named with their reason, and never vanish into 100 %."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn, randn

from pytest_bnn.audit.run import audit_model
from pytest_bnn.checks.layers._words import percent
from pytest_bnn.checks.layers.replaced import measure_layers_replaced
from pytest_bnn.checks.posterior.start import measure_posterior_start
from pytest_bnn.commands import terminal
from pytest_bnn.conversion import convert
from pytest_bnn.records.evidence import Acceptance, Evidence, Verdict
from pytest_bnn.records.run import AuditRun, LayerRow


def network() -> nn.Sequential:
    """16 + 4 layers' worth of weights: the first layer has 80 % of them."""
    return nn.Sequential(nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 2, bias=False)).eval()


def mixed(*deterministic: int) -> tuple[nn.Sequential, nn.Sequential]:
    """A teacher and its conversion, of which some layers were put back."""
    teacher = network()
    model: Any = convert(teacher)
    assert isinstance(model, nn.Sequential)
    for place in deterministic:
        model[place] = teacher[place]
    return teacher, model


def judged(*deterministic: int, allow: dict[str, str], **given: Any) -> Evidence:
    teacher, model = mixed(*deterministic)
    return measure_layers_replaced(model, teacher=teacher, allow=allow, **given)


def test_most_of_the_weights_accepted() -> None:
    """By hand: 80 of 100 weights are deterministic. That is said first of all, and it passes."""
    evidence = judged(0, allow={"0": "latency budget"})
    assert evidence.verdict is Verdict.PASS
    assert evidence.headline == (
        "1 of 2 convolution and linear layers are Bayesian (20 % of the weights); "
        "accepted as deterministic: `0` ('latency budget'), 80 % of the weights."
    )
    assert evidence.accepted == (Acceptance(path="0", reason="latency budget", weights=80),)
    assert evidence["weights in the claim"] == 20
    assert "`0` is deterministic on purpose: latency budget." in evidence.notes


def test_none_accepted() -> None:
    evidence = judged(allow={})
    assert evidence.headline == "2 of 2 convolution and linear layers are Bayesian (100 % of the weights)."
    assert evidence.accepted == ()


def test_accepted_and_forgotten() -> None:
    """What was accepted does not excuse what was not."""
    deep = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    model: Any = convert(deep)
    model[0], model[2] = deep[0], deep[2]
    evidence = measure_layers_replaced(model, teacher=deep, allow={"0": "speed"})
    assert evidence.verdict is Verdict.FAIL
    assert [one.path for one in evidence.accepted] == ["0"]
    assert [layer.path for layer in evidence.layers if not layer.ok] == ["2"]
    assert evidence.headline.startswith("1 of 3 ")


def test_all_accepted_is_no_bayesian_network() -> None:
    """A reason cannot make a network Bayesian that has no Bayesian layer."""
    evidence = judged(0, 2, allow={"*": "all of it"})
    assert evidence.verdict is Verdict.FAIL
    assert evidence.headline.startswith("0 of 2 convolution and linear layers are Bayesian (0 % of the weights)")
    assert "no Bayesian layer" in evidence.headline


def test_many_accepted_for_one_reason() -> None:
    """Fifty paths are no sentence."""
    teacher = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6))).eval()
    model: Any = convert(teacher)
    for place in range(5):
        model[place] = teacher[place]
    evidence = measure_layers_replaced(model, teacher=teacher, allow={"[0-3]": "slow", "4": "small"})
    assert "accepted as deterministic: `0`, `1`, `2` and 1 more ('slow'); `4` ('small'), 83.3 % of" in evidence.headline


@pytest.mark.parametrize("pattern", ["classifer", "layer9.*", "1.weight.x"])
def test_a_pattern_that_matches_nothing(pattern: str) -> None:
    """Told in the headline; it decides nothing, because the same options may be those of several models."""
    evidence = judged(allow={pattern: "a slip of the pen"})
    assert evidence.verdict is Verdict.PASS
    assert evidence.headline.endswith(f"; --allow {pattern!r} matches nothing in the model.")
    assert f"The pattern {pattern!r} in allow matches nothing in the model." in evidence.notes
    assert evidence.accepted == ()


@pytest.mark.parametrize("pattern", ["2", "2.*", "1"])
def test_a_pattern_that_accepts_nothing(pattern: str) -> None:
    """A layer that is Bayesian, or a module that is there for another check: a note is enough."""
    evidence = judged(allow={pattern: "not needed any more"})
    assert "--allow" not in evidence.headline
    assert f"The pattern {pattern!r} in allow matches no deterministic layer." in evidence.notes


def by_hand(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} % of the weights"


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (100, 100, "100 %"),
        (0, 100, "0 %"),
        (9_999_999, 10_000_000, "more than 99.9 %"),
        (1, 10_000_000, "less than 0.1 %"),
        (998, 1000, "99.8 %"),
        (1, 3, "33.3 %"),
    ],
)
def test_percent(part: int, whole: int, words: str) -> None:
    """Never 100 % of what is not all."""
    assert percent(part, whole) == f"{words} of the weights"
    assert percent(0, 0) == "there are no weights"


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.rnn(x)[0][:, -1])
        return out


def test_the_layer_table_has_the_reasons() -> None:
    """Of layers that it lists anyway, and of those that it would not."""
    teacher, model = mixed(2)
    run = audit_model(model, teacher=teacher, checks=["layers.replaced"], options=allowing("2", "head"))
    assert {row.path: row.accepted for row in run.subjects[0].layers} == {"0": "", "2": "head"}
    own = Recurrent().eval()
    other: Any = Recurrent().eval()
    other.rnn, other.fc = own.rnn, convert(own.fc)
    run = audit_model(
        other, teacher=own, data=randn(4, 5, 3), checks=["layers.replaced"], options=allowing("rnn", "no Bayesian one")
    )
    assert run["layers.replaced"].verdict is Verdict.PASS, run["layers.replaced"].explain()
    (row,) = (row for row in run.subjects[0].layers if row.path == "rnn")
    assert row == LayerRow(
        path="rnn", kind="GRU", shape="", weights=sum(p.numel() for p in own.rnn.parameters()), bayesian=False,
        accepted="no Bayesian one",
    )  # fmt: skip
    assert AuditRun.from_json(run.to_json())["layers.replaced"].accepted == run["layers.replaced"].accepted


def allowing(pattern: str, reason: str) -> dict[str, dict[str, object]]:
    return {"layers.replaced": {"allow": {pattern: reason}}}


def test_the_terminal_says_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    teacher, model = mixed(0)
    run = audit_model(model, teacher=teacher, checks=["layers.replaced"], options=allowing("0", "speed"))
    terminal.show(run, verbose=False)
    assert "accepted: 0 ('speed')" in capsys.readouterr().out


def test_a_start_that_is_meant_is_listed_too() -> None:
    """``allow`` of posterior.start is an acceptance as well."""
    evidence = measure_posterior_start(convert(network()), allow={"0": "trained later"})
    assert evidence.accepted == (Acceptance(path="0", reason="trained later", weights=80),)
