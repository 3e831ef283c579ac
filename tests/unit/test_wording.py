"""Findings are sentences, name modules as code, and say what this user can do."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from pytest_bnn import audit_model, check, measure_layers_replaced, measure_noise_spread
from pytest_bnn.checks import registry
from pytest_bnn.checks.check import Finding
from pytest_bnn.checks.judging import _of_layer, _sentence
from pytest_bnn.conversion import convert
from pytest_bnn.options import in_force, using
from pytest_bnn.records.evidence import LayerFinding, Verdict
from pytest_bnn.subject import Subject


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("the noise is large", "The noise is large."),
        ("mu, rho and sigma", "Mu, rho and sigma."),
        ("the teacher's outputs", "The teacher's outputs."),
        ("`fc` is still nn.Linear", "`fc` is still nn.Linear."),
        ("nn.Linear is there", "nn.Linear is there."),
        ("kl_loss() raised", "kl_loss() raised."),
        ("2 of 2 layers", "2 of 2 layers."),
        ("is it there?", "Is it there?"),
        ("--allow 'x' matches nothing", "--allow 'x' matches nothing."),
        ("", ""),
    ],
)
def test_a_sentence(said: str, written: str) -> None:
    """A capital letter where a word begins it, and never in a name; a full stop."""
    assert _sentence(said) == written


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("is still nn.Linear", "It is still nn.Linear."),
        ("never drew noise", "It never drew noise."),
        ("its weight: rho is NaN in 1 of 6 places", "Its weight: rho is NaN in 1 of 6 places."),
        ("`weight`: its noise is constant", "`weight`: its noise is constant."),
        ("issues no gradient", "Issues no gradient."),
    ],
)
def test_a_finding_about_a_layer(said: str, written: str) -> None:
    """What only says what the layer does is said of "it"."""
    assert _of_layer(said) == written


def test_others_words_are_left_as_they_are() -> None:
    """The author of a check chose them."""
    layer = LayerFinding(path="", kind="Linear", ok=False, finding="is what it is")
    with registry.kept():

        @check(id="mine.words", claim="c")
        def words(subject: Subject) -> Finding:
            return Finding(
                verdict=Verdict.PASS, headline="as i say it", remedy="do it", notes=("one more",), layers=(layer,)
            )

        found = words.measure(nn.Linear(1, 1))
    assert (found.headline, found.remedy, found.notes) == ("as i say it", "do it", ("one more",))
    assert found.layers == (layer,)


#: A sentence: it begins with a capital letter, a name in code, an option or a number, and ends in a stop.
READ_ALOUD = re.compile(r"([A-Z`0-9]|--[a-z]|[a-z]+[._(]|bayesian-torch|pytest|torch).*[.!?]", re.DOTALL)


def networks() -> dict[str, nn.Module]:
    """The same network, sound and with faults of several kinds, each with something to say of its layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    made = {name: convert(teacher) for name in ("sound", "broken", "forgotten", "silent", "shared")}
    made["broken"].get_parameter("0.rho_weight").data[0, 0] = math.nan
    made["forgotten"][2] = teacher[2]  # type: ignore[operator]
    made["silent"].get_parameter("0.rho_weight").data.fill_(-40)
    made["shared"][2].prior_weight_mu = made["shared"][2].mu_weight.data  # type: ignore[index]
    return {"teacher": teacher, **made}


@pytest.mark.parametrize(
    ("name", "labels"),
    [("sound", "known"), ("broken", "known"), ("forgotten", "few"), ("silent", "random"), ("shared", "few")],
)
def test_all_that_an_audit_says_can_be_read_aloud(name: str, labels: str) -> None:
    """Headlines, remedies, notes and what is found about layers are sentences, whatever the verdicts."""
    made = networks()
    teacher = made["teacher"]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(9 if labels == "few" else 64, 6, generator=generator)
    known = teacher(images).argmax(1)
    truth = torch.randint(0, 3, (len(images),), generator=generator) if labels == "random" else known
    with using(replace(in_force(), samples=32)):
        run = audit_model(
            made[name],
            teacher=teacher,
            data=(images, truth),
            loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
            ood={"far": 9 * torch.randn(24, 6, generator=generator)},
            slices=lambda number: "even" if number % 2 == 0 else "odd",
        )
    said = [
        (check.id, text)
        for check in run.checks
        for text in (check.headline, check.remedy, *check.notes, *(layer.finding for layer in check.layers))
        if text
    ]
    assert len(said) > len(run.checks)
    assert [found for found in said if not READ_ALOUD.fullmatch(found[1])] == []


def test_a_layer_that_was_forgotten() -> None:
    """Its name, what it is, and the two things that can be done about it, ready to be copied."""
    teacher = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model = convert(teacher)
    model[2] = teacher[2]  # type: ignore[operator]
    found = measure_layers_replaced(model, teacher=teacher)
    assert found.headline == (
        "1 of 2 convolution and linear layers are Bayesian (61.5 % of the weights); layer `2` is still nn.Linear."
    )
    assert found.remedy.startswith("Convert it with pytest_bnn.convert(model)")
    assert '--allow \'2=REASON\', in Python allow={"2": "REASON"}' in found.remedy


def test_noise_that_is_too_wide() -> None:
    """What was found against what is allowed, and where most of it comes from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    images = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    found = measure_noise_spread(convert(teacher, moped_delta=5.0), images=images)
    assert found.verdict is Verdict.FAIL
    times = float(str(found["spread"]))
    assert found.headline.startswith(f"The noise is {times:.3g} times the signal (at most 1 is allowed, ")
    assert ". Largest source: layer `" in found.headline
    assert found.remedy.startswith("Convert with a smaller moped_delta, or train sigma down, first in `")
