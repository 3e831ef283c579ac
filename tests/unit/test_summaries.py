"""Summaries of passes against the same statistic of all passes at once, whatever blocks they come in."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pytest_bnn
from pytest_bnn import checks
from pytest_bnn.audit.description import describe
from pytest_bnn.checks.noise._pairs import Finite, Pairs, first_pairs
from pytest_bnn.checks.teacher import _medians
from pytest_bnn.checks.teacher._items import FIRST_PASSES, Claim
from pytest_bnn.checks.teacher._medians import Numbers
from pytest_bnn.conversion import convert
from pytest_bnn.options import Settings, using
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.sampling import bank
from pytest_bnn.stats.betting import LeadingClassTest
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import median_bounds
from pytest_bnn.subject import Subject

BUDGET = Budget(alpha=1e-6, beta=1e-3)
CUTS: list[list[int]] = [[], [1], [1, 2, 3], [4, 9], [2, 4, 6, 8, 10]]


def passes_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(11, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def masked() -> Tensor:
    found = passes_of(5, 4)
    found[:, :, 2] = -torch.inf
    found[:, 3, 1] = 7.0
    return found


OUTPUTS = {
    "classes": passes_of(5, 4),
    "one number": passes_of(5),
    "a column": passes_of(5, 1),
    "places": passes_of(3, 2, 4, 4),
    "bfloat16": passes_of(5, 4, dtype=torch.bfloat16),
    "float64, small": passes_of(5, 4, dtype=torch.float64) * 1e-12,
    "masked": masked(),
    "a silent image": torch.cat([passes_of(4, 4), torch.ones(11, 1, 4)], 1),
}


def taken(passes: Tensor, cuts: list[int], parts: tuple[slice, ...] = ()) -> Pairs:
    found = Pairs(parts)
    for block in passes.tensor_split(cuts):
        if len(block):
            found.take(block.clone())
    return found


def numpys_spreads(passes: Tensor, scale: Any) -> Any:
    """Root mean square over outputs of the difference of two passes by the square root of 2, relative to a scale."""
    values = passes.double().reshape(len(passes), passes.shape[1], -1).numpy()
    one, other = values[0:-1:2], values[1::2]
    with numpy.errstate(invalid="ignore"):
        gaps = numpy.where(one == other, 0.0, one - other) / numpy.asarray(scale)
    return numpy.sqrt((gaps**2).mean(2) / 2)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("kind", OUTPUTS)
def test_pairs_of_blocks_are_numpys_of_all(kind: str, cuts: list[int]) -> None:
    """Spreads, which numbers vary and the first pass; eleven passes leave one without a partner."""
    passes = OUTPUTS[kind]
    found = taken(passes, cuts)
    numpy.testing.assert_allclose(found.spreads(0.7), numpys_spreads(passes, 0.7), rtol=1e-12)
    values = passes.double().numpy()
    live = (values != values[0]).any(0)
    rows = live.reshape(len(live), -1)
    live[~rows.any(1)] = live.any(0)
    assert numpy.array_equal(found.live.numpy(), live)
    assert torch.equal(found.first, passes[0])
    assert found.passes == 11


@pytest.mark.parametrize("cuts", CUTS)
def test_parts_have_scales_of_their_own(cuts: list[int]) -> None:
    """Numbers whose units differ by many powers of ten, all together and some of them alone."""
    units = torch.tensor([1.0, 1e6, 1e-6, 1e-6])
    passes = passes_of(5, 4).double() * units
    found = taken(passes, cuts, (slice(0, 1), slice(1, 2), slice(2, 4)))
    numpy.testing.assert_allclose(found.spreads(units.double()), numpys_spreads(passes, units.numpy()), rtol=1e-6)
    one = torch.tensor([1])
    numpy.testing.assert_allclose(found.spreads(2e6, one), numpys_spreads(passes[:, :, 1:2], 2e6), rtol=1e-12)
    two = torch.tensor([2, 3])
    wanted = numpys_spreads(passes[:, :, 2:], units[2:].numpy())
    numpy.testing.assert_allclose(found.spreads(units[2:].double(), two), wanted, rtol=1e-6)


def test_large_outputs_are_compared_some_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = taken(OUTPUTS["places"], []).spreads(1.0)
    monkeypatch.setattr("pytest_bnn.checks.noise._pairs._AT_A_TIME", 1)
    assert torch.equal(taken(OUTPUTS["places"], [3]).spreads(1.0), whole)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(
    ("spoil", "bad"),
    [
        (lambda p: None, 0),
        (lambda p: p[4, 0].fill_(torch.nan), 1),
        (lambda p: p[::9, 2, 1].fill_(torch.inf), 2),
        (lambda p: p[:, :, 2].fill_(-torch.inf), 0),
        (lambda p: (p[:, :, 2].fill_(-torch.inf), p[3, 1, 2].fill_(0)), 10),
        (lambda p: (p[:, :, 2].fill_(-torch.inf), p[7, 1, 0].fill_(torch.nan)), 1),
        (lambda p: p[:, 1].fill_(-torch.inf), 11),
        (lambda p: (p[:, :, 2].fill_(-torch.inf), p[5, 1].fill_(-torch.inf)), 11),
    ],
    ids=["sound", "NaN", "infinity", "a mask", "no mask in one pass", "NaN beside a mask", "a row", "a row once"],
)
def test_passes_that_are_not_finite_are_counted(spoil: Callable[[Tensor], Any], bad: int, cuts: list[int]) -> None:
    """A mask is minus infinity at the same places in every pass, beside finite numbers: known after the last block.

    Oracle, by numpy over all passes at once.
    """
    passes = passes_of(5, 4)
    spoil(passes)
    values = passes.numpy()
    mask = numpy.isneginf(values).all(0) & numpy.isfinite(values).any(2).all(0)[:, None]
    assert (~numpy.isfinite(values) & ~mask).any((1, 2)).sum() == bad
    found = Finite()
    for block in passes.tensor_split(cuts):
        if len(block):
            found.take(block)
    assert found.bad == bad


# The medians of a regression.


def once_more(passes: Tensor) -> Callable[[int, Tensor], Iterator[Tensor]]:
    def blocks(stop: int, rows: Tensor) -> Iterator[Tensor]:
        for block in torch.split(passes[:stop], 5):
            yield block[:, rows]

    return blocks


@given(
    st.integers(0, 2**31), st.sampled_from([1, 2, 31, 32, 47, 64, 128]), st.floats(0, 2), st.sampled_from([0.3, 3.0]),
    st.booleans(),
)  # fmt: skip
def test_counts_decide_as_order_statistics_of_all_passes_do(
    seed: int, count: int, shift: float, width: float, held: bool
) -> None:
    """Oracle: the bounds of the median and the median itself, of the stored passes; with ties at the border, too."""
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    allowed = torch.tensor([0.5, 1.0], dtype=torch.float64)
    far = shift * torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    passes = expected + far + width * torch.randn(count, 6, 2, generator=generator, dtype=torch.float64)
    passes[::3] = expected + allowed
    claim = Claim(1.0, False, Budget(alpha=1e-2, beta=1e-1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_medians, "_HELD", 10**9 if held else 0)
        patch.setattr(_medians, "_AT_A_TIME", 1 if seed % 2 else 10**6)
        items = Numbers(claim, expected, allowed, 2, once_more(passes))
        for block in torch.split(passes, 7):
            items.take(block, torch.arange(6))
        assert (items.held is not None) is held
        median = items.median
    gaps = (passes - expected) / allowed
    low, high = median_bounds(gaps, 1e-1 / (2 * 2 * 12))
    assert torch.equal(items.leading, ((low >= -1) & (high <= 1)).all(1))
    low, high = median_bounds(gaps, 1e-2 / (2 * 2 * 12))
    assert torch.equal(items.overtaken, ((low > 1) | (high < -1)).any(1))
    assert torch.equal(median, passes.median(0).values)
    assert torch.equal(items.agreeing, (gaps.median(0).values.abs() <= 1).all(1))
    single = float((gaps[:FIRST_PASSES].abs() <= 1).all(2).double().mean())
    assert items.single_share == pytest.approx(single, rel=1e-12)


# Whole checks.


class Two(nn.Module):
    """A regression of three numbers beside scores of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.numbers, self.logits = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.body(x))
        return {"numbers": self.numbers(h) * torch.tensor([1.0, 1e4, 1e-4]), "logits": self.logits(h)}


def made(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 6, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "two outputs":
            return Two().eval(), {"images": x}
        if kind == "dense":
            network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
            return network.eval(), {"images": torch.randn(6, 1, 5, 5, generator=generator), "task": "dense"}
        outputs = {"classification": 4, "binary": 1, "regression": 3, "shares": 4}[kind]
        end = [nn.Softmax(1)] if kind == "shares" else []
        network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs), *end).eval()
    return network, {"images": x, "task": "classification" if kind == "shares" else kind}


def story(evidence: Evidence) -> tuple[object, ...]:
    """What must not change at all: verdict, words, how many passes."""
    return (
        evidence.verdict,
        evidence.headline,
        evidence.remedy,
        evidence.samples,
        [m.name for m in evidence.measurements],
    )


def numbers_of(evidence: Evidence) -> list[float]:
    bounds = [] if evidence.certainty is None else [evidence.certainty.low or 0.0, evidence.certainty.high or 0.0]
    return [m.value for m in evidence.measurements if isinstance(m.value, float)] + bounds


IDS = ("noise_source", "noise_varies", "noise_spread", "teacher_agreement")


KINDS = ("classification", "binary", "dense", "regression", "shares", "two outputs")
LATER = pytest.mark.nightly("each kind runs in every push, with narrow or with wide noise")


@pytest.mark.parametrize(
    ("kind", "delta"),
    [
        pytest.param(kind, delta, marks=[] if (place % 2 == 0) is (delta < 0.1) else LATER)
        for place, kind in enumerate(KINDS)
        for delta in (0.05, 0.5)
    ],
)
def test_verdicts_do_not_depend_on_blocks(kind: str, delta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All passes kept and drawn at once, as they once were, against one at a time and none kept; they stop alike."""
    teacher, given_ = made(kind)
    model = convert(teacher, moped_delta=delta)
    found = []
    for size in (2**30, 0):
        monkeypatch.setattr(bank, "KEPT", size)
        monkeypatch.setattr(bank, "BLOCK", size)
        monkeypatch.setattr(_medians, "_HELD", size)
        with using(Settings(sampler="own")):
            subject = Subject(model, teacher=teacher, **given_)
            found.append([getattr(checks, f"measure_{id}")(subject) for id in IDS])
        assert (subject.bank.kept_bytes == 0) is (size == 0)
    for once, again_ in zip(*found, strict=True):
        assert story(again_) == story(once)
        assert numbers_of(again_) == pytest.approx(numbers_of(once), rel=1e-6, abs=1e-9)
        assert once.verdict is not Verdict.ERROR


def test_agreement_stops_where_stored_passes_say_so() -> None:
    """Oracle: the test of leading classes over a stack of passes; 32 of all images, then eight of the open ones."""
    teacher, given_ = made("classification")
    with torch.no_grad():
        teacher[2].weight.mul_(8.0)  # type: ignore[index]
    model, x = convert(teacher, moped_delta=0.1), given_["images"]
    with using(Settings(sampler="own")):
        passes = bank.PassBank(model, x, 0).draw(0, 128)
        found = checks.measure_teacher_agreement(
            model, teacher=teacher, **given_, seed=0, budget=BUDGET, min_agreement=0.7
        )
    with torch.no_grad():
        leaders = teacher(x).argmax(1)
    test, claim, drawn, rows = LeadingClassTest(leaders, 4), Claim(0.7, False, BUDGET), 0, torch.arange(40)
    while True:
        step = 32 if not drawn else 8
        for outputs in passes[drawn : drawn + step]:
            test.update(torch.softmax(outputs[rows], 1), rows)
        drawn += step
        leading, overtaken = test.leading(claim.of_passes.beta), test.overtaken(claim.of_decisions)
        decided = claim.passes(int(leading.sum()), 40) or claim.fails(int(overtaken.sum()), 40)
        rows = (~(leading | overtaken)).nonzero().flatten()
        if decided or drawn == 128 or not len(rows):
            break
    assert 32 < drawn < 128, "it stopped at once, or never: nothing was compared"
    assert found.samples == drawn
    assert found["decided for the teacher"] == int(leading.sum())
    assert found["decided against the teacher"] == int(overtaken.sum())


@pytest.mark.parametrize(("delta", "bias"), [(0.1, 0.0), (0.8, 0.0), (0.3, 2.0)])
def test_a_regression_stops_where_stored_passes_say_so(delta: float, bias: float) -> None:
    """Oracle: bounds of the medians of a stack of passes, at 32, 64 and 128 of them."""
    teacher, given_ = made("regression")
    model, x = convert(teacher, moped_delta=delta), given_["images"]
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name == "2.mu_bias").add_(bias)
        expected = teacher(x).double()
    with using(Settings(sampler="own")):
        passes = bank.PassBank(model, x, 0).draw(0, 128).double()
        found = checks.measure_teacher_agreement(
            model, teacher=teacher, **given_, stage="converted", seed=0, budget=BUDGET
        )
    allowed, claim = 0.5 * expected.std(0), Claim(0.95, False, BUDGET)
    for drawn in (32, 64, 128):
        gaps = (passes[:drawn] - expected) / allowed
        low, high = median_bounds(gaps, BUDGET.beta / (3 * 2 * 120))
        leading = ((low >= -1) & (high <= 1)).all(1)
        low, high = median_bounds(gaps, BUDGET.alpha / (3 * 2 * 120))
        overtaken = ((low > 1) | (high < -1)).any(1)
        if claim.passes(int(leading.sum()), 40) or claim.fails(int(overtaken.sum()), 40):
            break
    assert found.samples == drawn
    assert found["decided for the teacher"] == int(leading.sum())
    assert found["decided against the teacher"] == int(overtaken.sum())
    worst = (gaps.median(0).values.abs()).max()
    assert abs(float(str(found["largest distance"]))) == pytest.approx(float(worst), rel=1e-6)


# Memory.


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations made and that are still alive, and the most of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: set[int] = set()
        self.bytes: int = 0
        self.most: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if id(storage) not in self.known:
                self.known.add(id(storage))
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.gone, id(storage), storage.nbytes())
        self.most = max(self.most, self.bytes)
        return found

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def peak(run: Callable[[], object]) -> int:
    with Alive() as alive:
        run()
    return int(alive.most)


def test_the_peak_is_that_of_the_tensors_that_are_alive() -> None:
    """Views and what is written in place count once; what is gone counts no more."""

    def run() -> Tensor:
        one = torch.zeros(1000)
        one.add_(1.0)
        half = one[:500]
        del one
        two = half.double()
        del half
        return two * 2

    assert peak(run) == 8000, "4000 bytes and 4000 of a copy; then 4000 and 4000"


class Tied(nn.Module):
    """Two classes lead alike on every image, so that no number of passes decides which is ahead."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, classes, bias=False)
        with torch.no_grad():
            self.layer.weight[:2] = 3.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        (300, 20),
        pytest.param(10_000, 100, marks=pytest.mark.nightly("the small size takes the same code, a block at a time")),
    ],
)
def test_memory_does_not_grow_with_passes(rows: int, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the passes, of which eight are kept and two are drawn at a time, with the same peak of tensors alive.

    What may grow is one number an image for each pair of passes: the spreads, of which bounds of a median are made.
    """
    a_pass, few, many = 4 * rows * classes, 24, 96
    monkeypatch.setattr(bank, "KEPT", 8 * a_pass)
    monkeypatch.setattr(bank, "BLOCK", 2 * a_pass)
    monkeypatch.setattr(_medians, "_HELD", 8 * a_pass)
    monkeypatch.setattr(_medians, "_AT_A_TIME", 8 * rows * classes)
    monkeypatch.setattr("pytest_bnn.sampling.predictive._BLOCK_NUMBERS", 2 * rows * classes)
    teacher = Tied(classes).eval()
    model, x = convert(teacher, moped_delta=0.3), torch.rand(rows, 4) + 0.5
    expected = torch.zeros(rows, classes, dtype=torch.float64)

    def subject() -> Subject:
        return Subject(model, teacher=teacher, images=x, task="classification", stage="converted")

    def regression(passes: int) -> Tensor:
        own = bank.PassBank(model, x, 0)
        items = Numbers(
            Claim(1.0, False, BUDGET),
            expected,
            torch.ones(classes).double(),
            3,
            lambda stop, at: own.blocks(0, stop, at),
        )
        for block in own.blocks(0, passes):
            items.take(block, torch.arange(rows))
        return items.median

    def described(passes: int) -> object:
        shown = subject()
        for _ in shown.bank.blocks(0, passes):
            pass
        return describe(shown)

    def agreement(passes: int) -> None:
        found = checks.measure_teacher_agreement(subject(), max_passes=passes, min_agreement=1.0)
        assert f"below what {passes} passes can decide on {rows} of {rows}" in found.headline

    runs: dict[str, Callable[[int], object]] = {
        "predict": lambda passes: pytest_bnn.predict(model, x, passes=passes),
        "pairs": lambda passes: first_pairs(subject(), passes).spreads(1.0),
        "agreement": agreement,
        "medians of a regression": regression,
        "description": described,
    }
    with using(Settings(sampler="own", threads=1)):
        for name, run in runs.items():
            run(2 if name != "agreement" else few)  # what torch sets up once
            one, other = peak(lambda run=run: run(few)), peak(lambda run=run: run(many))  # type: ignore[misc]
            grown = other - one - 8 * rows * (many - few)
            assert grown < 0.02 * one, f"{name}: {one} and then {other} bytes"
            assert one > 2 * a_pass, f"{name}: no pass was seen"
