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
from pytest_bnn.conversion import convert
from pytest_bnn.errors import InputError
from pytest_bnn.options import Settings, using
from pytest_bnn.sampling import predictive
from pytest_bnn.sampling.bank import PassBank
from pytest_bnn.sampling.predictive import Predictive

FLOATS = ("mean", "variance", "probabilities", "predictive_entropy", "expected_entropy", "mutual_information")


def model(*tail: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), *tail).eval(), moped_delta=0.5)


def images(count: int = 9) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def scripted(outputs: Tensor, monkeypatch: pytest.MonkeyPatch, block: int = 7, **options: Any) -> Predictive:
    """Return what predict() says of passes that a test makes up."""
    monkeypatch.setattr(PassBank, "draw", lambda self, start, stop: outputs[start:stop])
    monkeypatch.setattr(predictive._Running, "block", lambda self: block)
    return pytest_bnn.predict(nn.Identity(), torch.zeros(outputs.shape[1], 1), passes=len(outputs), **options)


def agree_with_numpy(found: Predictive, outputs: numpy.ndarray, shares: numpy.ndarray, bins: int) -> None:
    """Compare with all passes at once, by code that is not ours."""
    numpy.testing.assert_allclose(found.mean, outputs.mean(0), rtol=1e-12, atol=1e-14)
    numpy.testing.assert_allclose(found.variance, outputs.var(0, ddof=1), rtol=1e-11)
    numpy.testing.assert_allclose(found.probabilities, shares.mean(0), rtol=1e-12)
    total, expected = scipy.stats.entropy(shares.mean(0), axis=1), scipy.stats.entropy(shares, axis=2).mean(0)
    numpy.testing.assert_allclose(found.predictive_entropy, total, rtol=1e-12)
    numpy.testing.assert_allclose(found.expected_entropy, expected, rtol=1e-12)
    numpy.testing.assert_allclose(found.mutual_information, total - expected, atol=1e-14)
    for image in range(outputs.shape[1]):
        votes = numpy.bincount(outputs[:, image].argmax(1), minlength=outputs.shape[2])
        assert found.votes[image].tolist() == votes.tolist()
        histogram, _ = numpy.histogram(shares[:, image].max(1), bins=bins, range=(0, 1))
        assert found.confidence[image].tolist() == histogram.tolist()


@pytest.mark.parametrize("sampler", ["own", "engine"])
@pytest.mark.parametrize("block", [1, 7, 40])
def test_numpy_says_the_same_of_all_passes_at_once(sampler: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pass k is that of every bank, whatever is drawn at a time."""
    monkeypatch.setattr(predictive._Running, "block", lambda self: block)
    found = pytest_bnn.predict(model(), images(), passes=40, seed=3, bins=8, sampler=sampler)
    outputs = PassBank(model(), images(), 3, sampler=sampler).draw(0, 40).double().numpy()
    agree_with_numpy(found, outputs, scipy.special.softmax(outputs, axis=2), 8)
    assert (found.passes, found.seed) == (40, 3)
    assert found.sampler.startswith(sampler)


def test_the_size_of_a_block_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows the images and the threads of a machine; far from zero, where sums of squares would lose all."""
    generator = torch.Generator().manual_seed(2)
    outputs = 1e6 + torch.randn(50, 5, 3, generator=generator, dtype=torch.float64)
    one, *others = (scripted(outputs, monkeypatch, block) for block in (1, 2, 7, 49, 50))
    agree_with_numpy(one, outputs.numpy(), scipy.special.softmax(outputs.numpy(), axis=2), 20)
    for other in others:
        assert torch.equal(one.votes, other.votes)
        assert torch.equal(one.confidence, other.confidence)
        for name in FLOATS:
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("first", [0, 3, 11])
def test_one_pass_that_is_no_distribution_makes_all_of_them_logits(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of one block may add up to 1 by chance: read block by block, some would be softmaxed and some not."""
    outputs = torch.eye(3, dtype=torch.float64)[torch.arange(60) % 3].reshape(12, 5, 3)
    outputs[first, 4] += 0.5
    found = scripted(outputs, monkeypatch, 3)
    agree_with_numpy(found, outputs.numpy(), scipy.special.softmax(outputs.numpy(), axis=2), 20)


def test_probabilities_stay_as_they_are() -> None:
    """A network that ends in softmax must not look twice as unsure (FAULTS B14)."""
    found = pytest_bnn.predict(model(nn.Softmax(1)).double(), images(), passes=20, bins=5)
    outputs = PassBank(model(nn.Softmax(1)).double(), images().double(), 0).draw(0, 20).numpy()
    agree_with_numpy(found, outputs, outputs, 5)


def test_the_edges_of_bins_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.3 * 10 rounds to 3, and yet 0.3 is below the edge that numpy puts there; 1 is in the last bin."""
    leads = torch.cat([torch.arange(1, 11) / 10, torch.tensor([0.3, 0.6, 0.7, 1.0])]).double()
    outputs = torch.stack([leads, 1 - leads], 1)[:, None]
    agree_with_numpy(scripted(outputs, monkeypatch, bins=10), outputs.numpy(), outputs.numpy(), 10)
    over = scripted(torch.tensor([[[1.00001, 0.0]]]), monkeypatch, bins=4)
    assert over.confidence.tolist() == [[0, 0, 0, 1]], "a softmax in float32 can add up to more than 1"


def test_memory_does_not_grow_with_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more numbers are asked for at a time than a block holds, whatever is wanted altogether."""
    asked: list[int] = []
    draw = PassBank.draw

    def watched(bank: PassBank, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        asked.append(stop - start)
        return draw(bank, start, stop, rows)

    monkeypatch.setattr(PassBank, "draw", watched)
    with using(Settings(threads=2)):
        pytest_bnn.predict(model(), images(), passes=50)
        assert asked == [16, 16, 16, 2], "whole rounds of both threads"
        asked.clear()
        monkeypatch.setattr(predictive, "_BLOCK_NUMBERS", 3 * 9 * 4)
        pytest_bnn.predict(model(), images(), passes=50)
    assert asked[0] == 1, "how many classes there are is not known yet, and there may be a thousand"
    assert sum(asked) == 50
    assert max(asked) == 3


def test_progress_is_told_and_may_stop_it() -> None:
    """It is called between blocks, as the caller's own code: with the threads that torch had."""
    said: list[tuple[int, int]] = []
    threads = []

    def note(done: int, passes: int) -> None:
        said.append((done, passes))
        threads.append(torch.get_num_threads())

    before = torch.get_num_threads()
    with using(Settings(threads=before + 1)):
        pytest_bnn.predict(model(), images(), passes=37, progress=note)
    done = [number for number, _ in said]
    assert len(done) > 1
    assert done == sorted(set(done))
    assert said[-1] == (37, 37)
    assert {of for _, of in said} == {37}
    assert set(threads) == {before}

    def stop(done: int, passes: int) -> None:
        said.append((done, passes))
        raise KeyboardInterrupt

    said.clear()
    with pytest.raises(KeyboardInterrupt):
        pytest_bnn.predict(model(), images(), progress=stop)
    assert len(said) == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_deterministic_network_is_sure_of_itself(dtype: torch.dtype) -> None:
    """Exactly: rounding must not look like a little uncertainty."""
    network, inputs = nn.Linear(3, 10).to(dtype), images()
    found = pytest_bnn.predict(network, inputs, passes=37)
    assert not found.variance.any()
    assert not found.mutual_information.any()
    assert (found.votes.max(1).values == 37).all()
    assert (found.confidence.max(1).values == 37).all()
    with torch.no_grad():
        assert torch.equal(found.mean, network(inputs.to(dtype)).double())


def test_mutual_information_is_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be; the difference of two rounded entropies can, where a network is nearly sure of its weights."""
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(1, 500, 10, generator=generator, dtype=torch.float64)
    noise = torch.randn(20, 500, 10, generator=generator, dtype=torch.float64)
    found = scripted(scores + 1e-9 * noise, monkeypatch)
    assert float((found.predictive_entropy - found.expected_entropy).min()) < 0, "nothing would be shown"
    assert float(found.mutual_information.min()) == 0


def test_a_single_pass_has_no_variance() -> None:
    """As numpy and torch have it: 0 would say that the network is sure."""
    found = pytest_bnn.predict(model(), images(), passes=1)
    assert found.variance.isnan().all()
    assert found.mean.isfinite().all()


def test_the_setting_in_force_chooses_the_sampler() -> None:
    with using(Settings(sampler="own")):
        assert pytest_bnn.predict(model(), images(), passes=2).sampler == "own forward (chosen)"


def test_both_samplers_are_named_where_it_changed_on_the_way() -> None:
    """The record says what drew all of its passes, and not only the last ones."""
    bnn = model()

    def hook(done: int, passes: int) -> None:
        if not bnn.get_submodule("1")._forward_hooks:
            bnn.get_submodule("1").register_forward_hook(lambda *_: None)

    found = pytest_bnn.predict(bnn, images(), passes=40, progress=hook).sampler
    assert found.startswith("engine (")
    assert found.endswith(", then own forward (1 (ReLU) has a forward hook)")


class Lost(nn.Module):
    """One image of one pass is no number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x.index_fill(0, torch.tensor(3), self.value)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True)


def nan_images() -> Tensor:
    bad = images()
    bad[2, 1] = float("nan")
    return bad


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"passes": 0}, ValueError, "passes must be a whole number from 1, not 0"),
        ({"passes": 2.5}, ValueError, "passes must be a whole number from 1, not 2.5"),
        ({"bins": 0}, ValueError, "bins must be a whole number from 1, not 0"),
        ({"seed": -1}, ValueError, "seed must be a whole number from 0"),
        ({"sampler": "fast"}, ValueError, "sampler must be 'auto', 'own', 'engine' or 'native', not 'fast'"),
        ({"images": None}, TypeError, "images must be a tensor"),
        ({"model": "resnet18"}, TypeError, "model must be a torch.nn.Module"),
        ({"images": images(0)}, InputError, r"shape \[0, 3\]. Give a batch"),
        ({"images": nan_images()}, InputError, "the first is number 2"),
        ({"images": torch.zeros(2, 5)}, InputError, r"does not accept images of shape \[2, 5\]"),
        ({"tail": [nn.Unflatten(1, (2, 2))]}, InputError, r"9 images have the shape \[9, 2, 2\].*Wrap the model"),
        ({"tail": [nn.Linear(4, 1)]}, InputError, r"shape \[9, 1\], not .* two or more classes.*single logit z"),
        ({"tail": [Mean()]}, InputError, r"a tensor of shape \[1, 4\].*belong to no single example. Wrap the model"),
        ({"tail": [Lost(float("nan"))]}, InputError, "pass 0 the outputs for image 3 are NaN or infinite"),
        ({"tail": [Lost(float("inf"))]}, InputError, "pass 0 the outputs for image 3 are NaN or infinite"),
        ({"model": nn.Linear(3, 4), "sampler": "engine"}, InputError, "the sampling engine cannot be used"),
    ],
)
def test_bad_input_is_named(given: dict[str, Any], error: type[Exception], message: str) -> None:
    """A vote of NaN goes to the first class, and one logit is sure of its only class: neither may pass unseen."""
    arguments = {"model": model(*given.get("tail", ())), "images": images(), **given}
    arguments.pop("tail", None)
    with pytest.raises(error, match=message):
        pytest_bnn.predict(**arguments)


def test_a_later_pass_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own number, not that in its block."""
    outputs = torch.zeros(20, 4, 3)
    outputs[17, 2, 1] = float("inf")
    with pytest.raises(InputError, match="in pass 17 the outputs for image 2"):
        scripted(outputs, monkeypatch)


def test_the_record_holds_numbers_of_one_kind() -> None:
    found = pytest_bnn.predict(model(), images(), passes=3)
    assert isinstance(found, Predictive)
    assert all(getattr(found, name).dtype is torch.float64 for name in FLOATS)
    assert {found.votes.dtype, found.confidence.dtype} == {torch.int64}
