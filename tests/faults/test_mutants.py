"""Generated mutants, one of each kind: killed by the check that claims it, or on the list with the reason why not."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import nn

from benchmarks.expected import EXPECTED, Fate
from benchmarks.matrix import BEGIN, END, JUDGES, Outcome, Result, put, score, table
from benchmarks.mutants import Mutant, mutants
from benchmarks.mutation import ERROR_RATE, POWER, Health, examine, least_visible, sample
from benchmarks.mutators.case import Case
from benchmarks.mutators.cases import small_cases
from pytest_bnn.libraries.posterior import bayesian_layers

Kind = tuple[str, str]

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "mutants.md"

ALLOWED = {
    Fate.KILLED: {Outcome.KILLED, Outcome.BELOW_POWER},
    Fate.EQUIVALENT: {Outcome.EQUIVALENT},
    Fate.CHOICE: {Outcome.CHOICE},
}


@pytest.fixture(scope="module")
def cases(trained: Mapping[str, nn.Module]) -> list[Case]:
    return small_cases(trained)


@pytest.fixture(scope="module")
def health(cases: list[Case]) -> dict[str, Health]:
    return {case.name: Health.of(case) for case in cases}


@pytest.fixture(scope="module")
def chosen(cases: list[Case]) -> dict[Kind, tuple[Case, Mutant]]:
    return {mutant.kind: (case, mutant) for case, mutant in sample(cases)}


def test_healthy_models_are_accused_of_nothing(health: dict[str, Health]) -> None:
    """Or every kill would be worth nothing."""
    assert [(name, state.sick) for name, state in health.items() if state.sick] == []


#: One of each attribute; of those that the audit learned to read later, the cheapest to break.
EVERY_PUSH = {
    *(kind for kind in EXPECTED if kind[0] in ("mu", "sigma", "draw", "KL", "path") and "scaled" not in kind[1]),
    *((attribute, "scaled by 1.01") for attribute in ("mu", "sigma", "draw", "KL", "prior mean", "prior sigma")),
    *((attribute, "NaN") for attribute in ("prior mean", "prior sigma")),
    ("prior mean", "aliased with mu"),
    ("draw in train mode", "detached"),
    ("forward", "without gradient"),
    ("kernel", "another one after it"),
    ("data term", "at the mean"),
    ("data term", "scaled by 0.1"),
    ("KL weight", "summed, by batches"),
    ("running variance", "at the constructor's start"),
    ("trained", "never loaded"),
}
LATER = pytest.mark.nightly(
    "a hundred kinds of mutants; every push has each attribute of a layer, and some of the loss"
)
KINDS = [pytest.param(kind, marks=() if kind in EVERY_PUSH else LATER, id=" ".join(kind)) for kind in EXPECTED]


@pytest.mark.parametrize("kind", KINDS)
def test_mutant(kind: Kind, chosen: dict[Kind, tuple[Case, Mutant]], health: dict[str, Health]) -> None:
    """What has to be found is found, by the check that claims it or one that names the layer; what is well is not."""
    case, mutant = chosen[kind]
    result = examine(case, health[case.name], mutant)
    expected = EXPECTED[kind]
    survives = {Outcome.SURVIVED} if expected.reason and expected.fate is Fate.KILLED else set()
    assert result.outcome in ALLOWED[expected.fate] | survives, result
    assert "error" not in result.verdicts.values(), result
    if result.outcome is not Outcome.KILLED:
        assert result.reason, result


def _state(case: Case) -> list[object]:
    """Return what of a case a mutant may change: numbers, flags, classes, and what is beside the model."""
    found: list[object] = [case.loss, case.stage, case.options]
    found += [(name, value.numpy().tobytes()) for name, value in case.model.state_dict().items()]
    found += [(name, parameter.requires_grad) for name, parameter in case.model.named_parameters()]
    found += [(path, type(module)) for path, module in case.model.named_modules()]
    for layer in bayesian_layers(case.model):
        for tensor in layer.tensors:
            found += [tensor.prior_mu.detach().numpy().tobytes(), tensor.prior_sigma.detach().numpy().tobytes()]
    return found


def test_choices_change_the_model(cases: list[Case]) -> None:
    """A mutant that changes nothing would survive for nothing; where something has to change, it does."""
    for case in (cases[0], cases[-2]):
        before = _state(case)
        for mutant in mutants(case):
            if EXPECTED[mutant.kind].fate is Fate.CHOICE:
                broken = case.copy()
                mutant.apply(broken)
                assert _state(broken) != before, mutant.name
        assert _state(case) == before


def test_draws_are_what_the_mutant_says(cases: list[Case]) -> None:
    """The noise really used: scaled by its factor, kept, another layer's."""
    images = cases[0].images[:2]

    def drawn(mutation: str) -> list[dict[str, torch.Tensor]]:
        found = []
        for mutant in mutants(cases[0]):
            if (mutant.path, mutant.kind) == ("block.conv2", ("draw", mutation)):
                broken = cases[0].copy()
                mutant.apply(broken)
                model = broken.model
                torch.manual_seed(0)
                for _ in range(2):
                    model(images)
                    layers = {layer.path: layer.module for layer in bayesian_layers(model)}
                    found.append(
                        {
                            path: layer.get_buffer("eps_kernel").clone()
                            for path, layer in layers.items()
                            if path != "head"
                        }
                    )
        return found

    wide, _ = drawn("scaled by 10")
    assert 9 < float(wide["block.conv2"].std()) < 11
    assert 0.8 < float(wide["block.conv1"].std()) < 1.2
    first, second = drawn("frozen")
    assert torch.equal(first["block.conv2"], second["block.conv2"])
    assert not torch.equal(first["block.conv1"], second["block.conv1"])
    for noise in drawn("aliased"):
        assert torch.equal(noise["block.conv1"], noise["block.conv2"])


def test_mutants_that_are_right_in_a_forward_pass_are_broken(cases: list[Case]) -> None:
    """No output shows them, so what they break in training is shown here."""
    case = cases[0]
    assert case.name == "residual, Reparameterization"

    def broken(attribute: str, mutation: str) -> tuple[Any, nn.Module]:
        found = {m.kind: m for m in mutants(case) if m.path == "block.conv1"}
        copied = replace(case.copy(), teacher=copy.deepcopy(case.teacher))
        found[attribute, mutation].apply(copied)
        return copied.model, copied.teacher

    def gradients(model: Any) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the data term's gradient to rho, and what it has to be: that to mu, times eps, times dsigma/drho."""
        layer = model.block.conv1
        noise = []
        layer.register_forward_hook(lambda *_: noise.append(layer.eps_kernel.clone()))
        torch.nn.functional.cross_entropy(model(case.images), case.labels).backward()
        return layer.rho_kernel.grad, layer.mu_kernel.grad * noise[0] * layer.rho_kernel.detach().sigmoid()

    found, exact = gradients(copy.deepcopy(case.model))
    assert found is not None
    torch.testing.assert_close(found, exact)
    found, exact = gradients(broken("draw", "buffer shared")[0])
    assert found is not None
    assert float((found - exact).norm() / exact.norm()) > 0.1
    assert gradients(broken("draw", "detached")[0])[0] is None

    model = broken("draw in train mode", "detached")[0]
    assert gradients(model)[0] is not None
    model.zero_grad()
    assert gradients(model.train())[0] is None

    model, teacher = broken("mu", "aliased with the teacher")
    with torch.no_grad():
        model.block.conv1.mu_kernel.add_(1)
    assert not torch.equal(
        teacher.get_parameter("block.conv1.weight"), case.teacher.get_parameter("block.conv1.weight")
    )
    model, _ = broken("prior mean", "aliased with mu")
    before = float(get_kl_loss(model).detach())
    with torch.no_grad():
        model.block.conv1.mu_kernel.add_(100)
    assert float(get_kl_loss(model).detach()) == before


@pytest.mark.parametrize("draws", [80, 4000])
def test_least_visible_factor(draws: int) -> None:
    """By simulation: a chi-square test with level `ERROR_RATE` finds it with `POWER`, and a smaller one less often."""
    from scipy.stats import chi2

    factor = least_visible(draws)
    mean_squares = numpy.random.default_rng(0).chisquare(draws, 40_000)
    limit = chi2.isf(ERROR_RATE / 2, draws)
    found = float((factor**2 * mean_squares > limit).mean())
    assert abs(found - POWER) < 5 * (POWER * (1 - POWER) / 40_000) ** 0.5
    assert float(((1 + (factor - 1) * 0.8) ** 2 * mean_squares > limit).mean()) < POWER


def _result(outcome: Outcome, **verdicts: str) -> Result:
    return Result(
        case="a", mutant="m", attribute="mu", mutation="NaN", outcome=outcome, reason="", verdicts=verdicts, named_by=()
    )


def test_score_leaves_out_what_need_not_be_found() -> None:
    """Two killed, one survived; the others do not count."""
    outcomes = [
        Outcome.KILLED,
        Outcome.KILLED,
        Outcome.SURVIVED,
        Outcome.CHOICE,
        Outcome.EQUIVALENT,
        Outcome.BELOW_POWER,
    ]
    assert score(_result(outcome) for outcome in outcomes) == (2, 3)


def test_the_table_counts_failures() -> None:
    results = [_result(Outcome.KILLED, **{JUDGES[0]: verdict}) for verdict in ("fail", "pass", "fail")]
    (row,) = table(results).splitlines()[2:]
    assert [cell.strip() for cell in row.split("|")][1:6] == ["mu", "NaN", "3", "killed", "2"]


def test_the_documented_matrix_has_every_kind_and_every_check() -> None:
    """What was added since is in it: rows and columns, not figures, which the command gives."""
    text = PAGE.read_text(encoding="utf-8")
    matrix = text.partition(BEGIN)[2].partition(END)[0]
    (header,) = re.findall(r"^\| attribute \| mutation \| mutants \| outcome \| (.*) \|$", matrix, re.M)
    assert header.replace("`", "").split(" | ") == list(JUDGES)
    rows = re.findall(r"^\| ([^|`]*) \| ([^|]*) \| \d+ \| [^|]* \|", matrix, re.M)
    assert [kind for kind in rows if kind in EXPECTED] == list(EXPECTED)


def test_a_page_without_markers_is_left_alone() -> None:
    """Or the table would go nowhere, and nobody would notice."""
    assert put(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\n\nnew\n\n{END}\nb"
    with pytest.raises(SystemExit, match="no <!--"):
        put("a page", "new")
