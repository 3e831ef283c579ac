"""A claim that lacks what was not given says which argument it is: it is not one that does not apply."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn import convert
from pytest_bnn.audit.run import audit_model
from pytest_bnn.records.evidence import Verdict

_NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()


def _images() -> Tensor:
    return torch.randn(24, 1, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("id", "missing"),
    [
        ("uncertainty.ood", ("ood",)),
        ("calibration.temperature", ("labels",)),
        ("calibration.classes", ("labels",)),
        ("uncertainty.errors", ("labels",)),
        ("scores.against_teacher", ("teacher",)),
        ("kl.loss", ("loss",)),
        ("loss.data", ("loss",)),
        ("slices.temperature", ("slices",)),
        ("estimator.flipout", ()),
    ],
)
def test_what_was_not_given_is_named(id: str, missing: tuple[str, ...]) -> None:
    [found] = audit_model(convert(_NETWORK), data=_images(), task="classification", checks=[id]).checks
    assert found.verdict is Verdict.NOT_APPLICABLE, found.headline
    assert found.missing == missing, found.headline


@pytest.mark.parametrize(("id", "missing"), [("noise.varies", ("images",)), ("uncertainty.ood", ("images",))])
def test_without_data(id: str, missing: tuple[str, ...]) -> None:
    [found] = audit_model(convert(_NETWORK), checks=[id]).checks
    assert set(missing) <= set(found.missing), (found.missing, found.headline)


def test_inputs_that_nothing_can_make_harder_here() -> None:
    rows = torch.randn(24, 12, generator=torch.Generator().manual_seed(0))
    found = audit_model(
        convert(_NETWORK), data=(rows, torch.arange(24) % 4), task="classification", checks=["uncertainty.shift"]
    ).checks[0]
    assert found.missing == ("shifts",), found.headline
