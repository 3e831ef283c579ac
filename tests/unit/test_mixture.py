"""The mixture of passes against numpy, scipy and scikit-learn on all passes at once."""

from __future__ import annotations

import itertools

import numpy
import pytest
import scipy.stats
import torch
from sklearn.metrics import brier_score_loss

from pytest_bnn.sampling import mixture
from pytest_bnn.sampling.mixture import Mixing, Mixture
from tests.checks.predicting import generator


def mixed(log_shares: torch.Tensor) -> Mixture:
    mixing = Mixing()
    for one in log_shares:
        mixing.take(one)
    return mixing.result()


@pytest.fixture(params=[10**6, 5], ids=["at once", "in blocks"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setattr(mixture, "_BLOCK", request.param)
    return (3 * torch.randn(6, 9, 4, generator=generator()).double()).log_softmax(2)


def test_numpy_and_scipy_say_the_same(passes: torch.Tensor) -> None:
    found, shares = mixed(passes), passes.exp().numpy()
    mean = shares.mean(0)
    numpy.testing.assert_allclose(found.log_shares.exp(), mean, rtol=1e-12)
    numpy.testing.assert_allclose(found.entropy, scipy.stats.entropy(mean, axis=1), rtol=1e-12)
    expected = scipy.stats.entropy(shares, axis=2).mean(0)
    numpy.testing.assert_allclose(found.expected_entropy, expected, rtol=1e-12)
    numpy.testing.assert_allclose(found.mutual_information, scipy.stats.entropy(mean, axis=1) - expected, atol=1e-12)
    numpy.testing.assert_allclose(found.variance, shares.var(0, ddof=1).sum(1), rtol=1e-9)
    assert found.passes == 6


def test_one_pass_has_no_variance_and_the_plain_score(passes: torch.Tensor) -> None:
    found, labels = mixed(passes[:1]), torch.arange(9) % 4
    assert found.variance.tolist() == [0.0] * 9
    plain = ((passes[0].exp() - torch.nn.functional.one_hot(labels, 4)) ** 2).sum(1)
    numpy.testing.assert_allclose(found.brier(labels), plain, rtol=1e-12)
    both = brier_score_loss(labels == 1, passes[0, :, 1].exp())
    two = mixed(torch.stack([1 - passes[0, :, 1].exp(), passes[0, :, 1].exp()], 1)[None].log())
    assert float(two.brier((labels == 1).long()).mean()) == pytest.approx(2 * both, rel=1e-9)


def test_the_score_of_few_passes_is_on_average_that_of_infinitely_many() -> None:
    """Of two equally likely passes: the mean over all sequences of three is the score of their exact mean."""
    two = torch.tensor([[[0.9, 0.08, 0.02]], [[0.2, 0.3, 0.5]]]).double()
    label = torch.tensor([1])
    found = [float(mixed(two[list(some)].log()).brier(label)) for some in itertools.product((0, 1), repeat=3)]
    exact = float(((two.mean(0)[0] - torch.tensor([0.0, 1.0, 0.0])) ** 2).sum())
    assert sum(found) / 8 == pytest.approx(exact, rel=1e-12)
    plain = [float(((two[list(some)].mean(0)[0] - torch.tensor([0.0, 1, 0])) ** 2).sum()) for some in
             itertools.product((0, 1), repeat=3)]  # fmt: skip
    assert sum(plain) / 8 > exact + 0.05


def test_what_is_too_small_for_a_float_stays(passes: torch.Tensor) -> None:
    """A probability of exp(-2000), or of 0, has its log; no entropy is NaN."""
    found = mixed(torch.tensor([[[0.0, -2000.0, -torch.inf]]] * 3))
    assert found.log_shares[0].tolist() == pytest.approx([0.0, -2000.0, -float("inf")])
    assert found.entropy.tolist() == pytest.approx([0.0], abs=1e-15)
    assert found.mutual_information.tolist() == pytest.approx([0.0], abs=1e-15)


def test_large_ones_are_kept_in_single_precision(passes: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mixed(passes)
    monkeypatch.setattr(mixture, "SMALL", 1)
    small = mixed(passes)
    assert (whole.log_shares.dtype, small.log_shares.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(small.log_shares.double(), whole.log_shares, rtol=1e-5, atol=1e-6)
