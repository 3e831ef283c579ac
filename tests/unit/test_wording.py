"""Findings are sentences, name modules as code, and say what this user can do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_bnn import check, measure_layers_replaced, measure_noise_spread
from pytest_bnn.checks import registry
from pytest_bnn.checks.check import Finding
from pytest_bnn.checks.judging import _sentence
from pytest_bnn.conversion import convert
from pytest_bnn.records.evidence import Verdict
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


def test_others_words_are_left_as_they_are() -> None:
    """The author of a check chose them."""
    with registry.kept():

        @check(id="mine.words", claim="c")
        def words(subject: Subject) -> Finding:
            return Finding(verdict=Verdict.PASS, headline="as i say it", remedy="do it")

        found = words.measure(nn.Linear(1, 1))
    assert (found.headline, found.remedy) == ("as i say it", "do it")


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
