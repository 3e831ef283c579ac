"""Verdicts by sampling on models whose answer is known: certain where they can be, undecided where they must be."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.audit.run import CHECK_IDS, Thresholds, audit_model
from pytest_bnn.checks import (
    measure_noise_posterior,
    measure_noise_spread,
    measure_noise_varies,
    measure_teacher_agreement,
    registry,
)
from pytest_bnn.checks.noise._pairs import Pairs
from pytest_bnn.conversion import convert
from pytest_bnn.records.evidence import Certainty, Evidence, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import trials_for_share, trials_needed

IMAGES = torch.linspace(-1, 1, 24).reshape(12, 2)


class Noisy(nn.Module):
    """Two outputs with noise of a known size on some images; its scale without noise is that of IMAGES."""

    def __init__(self, size: float, *, silent: int = 0, heavy: bool = False) -> None:
        super().__init__()
        self.size, self.silent, self.heavy = size, silent, heavy

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        if self.heavy:
            noise = noise / torch.randn_like(x)  # Cauchy: no variance exists
        noise[: self.silent] = 0
        return x + self.size * noise


class Certain(nn.Module):
    """Probabilities for two classes, with certainty: the first for all but the last ``against`` images."""

    def __init__(self, against: int = 0) -> None:
        super().__init__()
        self.against = against

    def forward(self, x: Tensor) -> Tensor:
        leading = torch.zeros(len(x), dtype=torch.long)
        leading[len(x) - self.against :] = 1
        return nn.functional.one_hot(leading, 2).float()


def _certainty(evidence: Evidence) -> Certainty:
    assert evidence.certainty is not None, evidence.explain()
    return evidence.certainty


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "Cauchy"])
def test_varies_stops_as_soon_as_it_is_certain(heavy: bool) -> None:
    found = measure_noise_varies(Noisy(0.1, heavy=heavy), images=IMAGES)
    assert found.verdict is Verdict.PASS
    assert found.samples == 2 * trials_needed(Budget().beta)
    assert (_certainty(found).low or 0) > 1e-4


def test_one_silent_image_is_certain_at_alpha_split_over_the_images() -> None:
    """No fewer passes can tell at one in a million; the eleven others are cleared by the first ones."""
    found = measure_noise_varies(Noisy(0.1, silent=1), images=IMAGES)
    assert found.verdict is Verdict.FAIL
    assert "image 0 vary by exactly 0" in found.headline
    needed = 2 * trials_needed(Budget().alpha / len(IMAGES))
    assert needed <= found.samples < needed + 16
    assert _certainty(found).high == 0


def test_more_silent_images_than_are_looked_at_together() -> None:
    found = measure_noise_varies(Noisy(0.1, silent=11), images=IMAGES)
    assert found.verdict is Verdict.FAIL


@pytest.mark.parametrize("measure", [measure_noise_varies, measure_noise_spread])
def test_too_few_passes_are_no_verdict_and_say_how_many(measure: Callable[..., Evidence]) -> None:
    """An odd number has a pass without a partner."""
    found = measure(Noisy(0.1), images=IMAGES, max_passes=7)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.samples == 6
    assert f"{2 * trials_needed(Budget().beta)} decide" in found.remedy


@pytest.mark.parametrize(("size", "words"), [(1e-4, "collapsed"), (5.0, "drowns")])
def test_spread_outside_of_the_band_fails(size: float, words: str) -> None:
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(2, 2)).eval())
    with torch.no_grad():
        for name, rho in model.named_parameters():
            if "rho_" in name:
                rho.fill_(math.log(math.expm1(size)))
    found = measure_noise_spread(model, images=IMAGES)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert words in found.headline
    assert found.threshold is not None
    assert found.threshold.relation == (">=" if size < 1 else "<=")


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "Cauchy"])
def test_spread_inside_of_the_band_passes(heavy: bool) -> None:
    found = measure_noise_spread(Noisy(0.01, heavy=heavy), images=IMAGES)
    assert found.verdict is Verdict.PASS, found.explain()
    certainty = _certainty(found)
    assert certainty.low is not None
    assert certainty.high is not None
    assert 1e-3 <= certainty.low <= float(str(found["spread"])) <= certainty.high <= 1


def test_spread_at_the_end_of_the_band_is_inconclusive() -> None:
    """The median of the pairs is the threshold itself: neither verdict would be honest."""
    scale = float(IMAGES.double().std())
    # Over 24 numbers the root mean square of a pair is the noise's own size within a percent.
    found = measure_noise_spread(Noisy(0.2 * scale), images=IMAGES, band=(0.2 * 0.985, 1))
    assert found.verdict is Verdict.INCONCLUSIVE, found.explain()
    assert "too close to the band's end" in found.remedy
    assert found.samples == 128


def test_spread_far_below_with_too_few_passes() -> None:
    """A network whose noise is gone is not close to the band's end: what lacks is passes."""

    def found(passes: int) -> Evidence:
        return measure_noise_spread(Noisy(1e-9), images=IMAGES, max_passes=passes)

    words, needed = found(32).remedy.split(": allow ")
    assert words == "All of 32 passes lie below the band"
    enough = int(needed.split()[0])
    assert [found(passes).verdict for passes in (32, enough - 2, enough)] == [
        Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE, Verdict.FAIL
    ]  # fmt: skip


def test_attribution_names_the_layer_that_makes_the_spread() -> None:
    """One layer has a hundred times the sigma of the other, and the evidence puts it first."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).eval()
    model = convert(network, moped_delta=0.001)
    with torch.no_grad():
        model.get_parameter("2.rho_weight").fill_(3.0)
    found = measure_noise_spread(model, images=IMAGES)
    assert found.verdict is Verdict.FAIL
    assert found.layers[0].path == "2"
    assert [layer.path for layer in found.layers if not layer.ok] == ["2"]
    assert "Largest source: layer `2` (Linear), " in found.headline


def test_attribution_groups_the_layers_of_deep_networks() -> None:
    """Two passes a layer would cost hundreds of passes: neighbours share them, and say so."""
    torch.manual_seed(0)
    model = convert(nn.Sequential(*[nn.Linear(2, 2) for _ in range(40)]).eval())
    found = measure_noise_spread(model, images=IMAGES, band=(1e-9, 1e9))
    assert sorted(layer.path for layer in found.layers)[:2] == ["0 to 1", "10 to 11"]
    assert {layer.kind for layer in found.layers} == {"2 layers"}


@pytest.mark.parametrize("band", [(0.0, 1.0), (1.0, 0.5), (0.1,), (float("nan"), 1.0)])
def test_a_band_that_is_none_is_refused(band: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="band"):
        measure_noise_spread(Noisy(0.1), images=IMAGES, band=band)


@pytest.mark.parametrize(
    ("images", "against", "verdict"),
    [(200, 0, Verdict.PASS), (100, 0, Verdict.INCONCLUSIVE), (200, 60, Verdict.FAIL)],
)
def test_agreement_of_a_population(images: int, against: int, verdict: Verdict) -> None:
    """All of 100 images agree, and still they carry no claim of .95: it says how many would."""
    found = measure_teacher_agreement(
        Certain(against), teacher=Certain(), images=torch.arange(2.0 * images).reshape(-1, 2), population=True
    )
    assert found.verdict is verdict, found.explain()
    assert _certainty(found).low == found.threshold.observed if found.threshold else False
    if verdict is Verdict.INCONCLUSIVE:
        assert f"Give {trials_for_share(0.95, 1.0, Budget().beta / 2)} images" in found.remedy
        assert found.samples == 32  # no number of passes would help


def test_the_same_images_pass_as_a_set() -> None:
    found = measure_teacher_agreement(Certain(5), teacher=Certain(), images=torch.zeros(100, 2))
    assert found.verdict is Verdict.PASS, found.explain()
    assert measure_teacher_agreement(Certain(6), teacher=Certain(), images=torch.zeros(100, 2)).verdict is Verdict.FAIL


@pytest.mark.parametrize(("agreeing", "verdict"), [(55, Verdict.PASS), (54, Verdict.FAIL)])
def test_exactly_the_required_share_is_enough(agreeing: int, verdict: Verdict) -> None:
    """The product .55 times 100 is above 55 in floating point."""
    found = measure_teacher_agreement(
        Certain(100 - agreeing), teacher=Certain(), images=torch.zeros(100, 2), min_agreement=0.55
    )
    assert found.verdict is verdict, found.explain()
    assert found["needed"] == 55


def test_the_whole_of_a_population_cannot_be_claimed() -> None:
    with pytest.raises(ValueError, match="below 1"):
        measure_teacher_agreement(Certain(), images=IMAGES, teacher=Certain(), min_agreement=1, population=True)


def test_an_audit_splits_its_budget_over_the_checks_that_sample() -> None:
    """Exact checks use up nothing; what is left out does not either."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        network.get_parameter("2.weight").mul_(20)  # sure of most images: agreement can be judged
    thresholds = Thresholds(budget=Budget(alpha=1e-4, beta=1e-2))
    run = audit_model(convert(network), teacher=network, data=IMAGES, task="classification", thresholds=thresholds)
    shares = [check.certainty for check in run.checks if check.certainty is not None]
    assert len(shares) == 5
    # What needs groups has no share, since none are given; claims about labels, for example, have shares and use none.
    declared = [registry.load(id).declaration for id in CHECK_IDS]
    sampling = sum(one.sampled and "slices" not in one.needs for one in declared)
    assert sampling < sum(one.sampled for one in declared)
    assert sampling > 5
    assert sum(share.alpha for share in shares) == pytest.approx(1e-4 * 5 / sampling)
    assert sum(share.beta for share in shares) == pytest.approx(1e-2 * 5 / sampling)
    assert {check.id for check in run.checks if check.certainty is None} >= {"layers.replaced", "kl.present"}
    (alone,) = audit_model(convert(network), data=IMAGES, checks=["noise.varies"], thresholds=thresholds).checks
    assert _certainty(alone).alpha == 1e-4


def test_a_budget_of_ones_own() -> None:
    """A stricter budget draws more passes; noise.posterior compares its smallest p-value with it."""
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2)).eval())
    strict = measure_noise_varies(model, images=IMAGES, budget=Budget(alpha=1e-9, beta=1e-9))
    assert strict.samples == 2 * trials_needed(1e-9)
    found = measure_noise_posterior(model, images=IMAGES, budget=Budget(alpha=1e-3, beta=1e-2))
    assert found.threshold is not None
    assert found.threshold.allowed == 1e-3


class Regression(nn.Module):
    """One number an image, without a dimension of its own, as regressions often give it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out.squeeze(-1)


def test_a_single_number_for_each_image_is_judged() -> None:
    """Whether it has a dimension of its own or not; the agreement of classes is no claim about it."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).eval()
    model = convert(body)
    with_one = audit_model(model, teacher=body, data=IMAGES)
    without = audit_model(Regression(model).eval(), teacher=Regression(body).eval(), data=IMAGES)
    assert with_one.verdict is Verdict.PASS, with_one.checks
    for check in without.checks:
        assert check.verdict is with_one[check.id].verdict, check.explain()
    assert without["teacher.agreement"].verdict is Verdict.NOT_APPLICABLE
    assert without["noise.varies"]["median spread"] == pytest.approx(with_one["noise.varies"]["median spread"])


def test_spread_that_is_no_number_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither above nor below any floor, and the passes have an end."""
    monkeypatch.setattr(
        Pairs, "spreads", lambda pairs, _scale: torch.full((pairs.passes // 2, len(pairs.first)), math.nan)
    )
    found = measure_noise_varies(Noisy(0.1), images=IMAGES, max_passes=64)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.samples == 64


class Breaking(nn.Module):
    """Gives what another model does for so many passes, then NaN."""

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.calls = model, iter(range(passes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return torch.full_like(out, math.nan) if next(self.calls, None) is None else out


class Tossing(nn.Module):
    """One of two classes by the toss of a coin."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.randint(2, (len(x),)), 2).float()


def test_nan_in_a_late_pass_is_found() -> None:
    """Where a verdict takes more passes than the first ones: on noise at the threshold, and on even votes."""
    at_the_floor = 0.01 * float(IMAGES.double().std()) / math.sqrt(math.log(2))
    varies = measure_noise_varies(Breaking(Noisy(at_the_floor), 60), images=IMAGES, min_spread=0.01, max_passes=1000)
    assert varies.verdict is Verdict.FAIL, varies.explain()
    assert varies.samples >= 60
    agreement = measure_teacher_agreement(Breaking(Tossing(), 60), teacher=Certain(), images=IMAGES, max_passes=1000)
    assert agreement.verdict is Verdict.FAIL, agreement.explain()
    assert agreement.samples >= 60
    for found in (varies, agreement):
        assert found.headline.startswith("Outputs are NaN or infinite in "), found.explain()
