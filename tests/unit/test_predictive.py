"""The predictive distribution, merged from blocks of passes, against numpy and scipy on all passes at once."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

import pytest_bnn
from pytest_bnn import predictive
from pytest_bnn.conversion import convert
from pytest_bnn.errors import InputError
from pytest_bnn.options import Settings, using
from pytest_bnn.predictive import Predictive
from pytest_bnn.sampling import PassBank

FLOATS = ("mean", "variance", "probabilities", "predictive_entropy", "expected_entropy", "mutual_information")


def model() -> nn.Module:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), moped_delta=0.5)


def images(count: int = 9) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sampler", ["own", "engine"])
@pytest.mark.parametrize("block", [1, 7, 16])
def test_numpy_says_the_same_of_all_passes_at_once(sampler: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictive, "_BLOCK_PASSES", block)
    found = pytest_bnn.predict(model(), images(), passes=40, seed=3, bins=8, sampler=sampler)
    outputs = PassBank(model(), images(), 3, sampler=sampler).first(40).double().numpy()
    shares = scipy.special.softmax(outputs, axis=2)
    numpy.testing.assert_allclose(found.mean, outputs.mean(0), rtol=1e-9)
    numpy.testing.assert_allclose(found.variance, outputs.var(0, ddof=1), rtol=1e-9)
    numpy.testing.assert_allclose(found.probabilities, shares.mean(0), rtol=1e-9)
    total, expected = scipy.stats.entropy(shares.mean(0), axis=1), scipy.stats.entropy(shares, axis=2).mean(0)
    numpy.testing.assert_allclose(found.predictive_entropy, total, rtol=1e-9)
    numpy.testing.assert_allclose(found.expected_entropy, expected, rtol=1e-9)
    numpy.testing.assert_allclose(found.mutual_information, total - expected, rtol=1e-6)
    for image in range(9):
        assert found.votes[image].tolist() == numpy.bincount(outputs[:, image].argmax(1), minlength=4).tolist()
        histogram, _ = numpy.histogram(shares[:, image].max(1), bins=8, range=(0, 1))
        assert found.confidence[image].tolist() == histogram.tolist()
    assert found.passes == 40
    assert found.sampler.startswith(sampler)


def test_memory_does_not_grow_with_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more passes are asked for at a time than a block holds, whatever is wanted altogether."""
    asked = []
    draw = PassBank.draw

    def watched(bank: PassBank, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        asked.append(stop - start)
        return draw(bank, start, stop, rows)

    monkeypatch.setattr(PassBank, "draw", watched)
    monkeypatch.setattr(predictive, "_BLOCK_NUMBERS", 3 * 9 * 4)
    pytest_bnn.predict(model(), images(), passes=50)
    assert sum(asked) == 50
    assert max(asked) == 3


def test_progress_is_told_and_may_stop_it() -> None:
    said: list[tuple[int, int]] = []
    pytest_bnn.predict(model(), images(), passes=37, progress=lambda done, passes: said.append((done, passes)))
    assert [done for done, _ in said] == sorted({done for done, _ in said})
    assert said[-1] == (37, 37)

    def stop(done: int, passes: int) -> None:
        raise KeyboardInterrupt

    bnn = model()
    before = {name: tensor.clone() for name, tensor in bnn.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        pytest_bnn.predict(bnn, images(), progress=stop)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bnn.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_deterministic_network_is_sure_of_itself() -> None:
    found = pytest_bnn.predict(nn.Linear(3, 4), images(), passes=5)
    assert not found.variance.any()
    assert float(found.mutual_information.max()) < 1e-12
    assert (found.votes.max(1).values == 5).all()


def test_the_setting_in_force_chooses_the_sampler() -> None:
    with using(Settings(sampler="own")):
        assert pytest_bnn.predict(model(), images(), passes=2).sampler == "own forward (chosen)"


def nan_images() -> Tensor:
    bad = images()
    bad[2, 1] = float("nan")
    return bad


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"passes": 0}, ValueError, "at least 1, not 0 and 20"),
        ({"bins": 0}, ValueError, "at least 1, not 100 and 0"),
        ({"images": None}, TypeError, "images must be a tensor"),
        ({"images": nan_images()}, InputError, "the first is number 2"),
        ({"images": torch.zeros(2, 5)}, InputError, r"does not accept images of shape \[2, 5\]"),
        ({"model": nn.Sequential(model(), nn.Unflatten(1, (2, 2)))}, InputError, r"shape \[9, 2, 2\].*logits"),
    ],
)
def test_bad_input_is_named(given: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"model": model(), "images": images(), **given}
    with pytest.raises(error, match=message):
        pytest_bnn.predict(**arguments)


def test_the_record_names_all_it_holds() -> None:
    found = pytest_bnn.predict(model(), images(), passes=3)
    assert isinstance(found, Predictive)
    assert all(getattr(found, name).dtype is torch.float64 for name in FLOATS)
