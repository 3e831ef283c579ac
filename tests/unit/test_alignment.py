"""What a model is, told from its numbers: no step taken, trained, nothing of the teacher's, or not to be told."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pytest_bnn.checks import measure_mean_equals_teacher
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.alignment import MODERATE, align, stage_of, standing_of
from pytest_bnn.libraries.fingerprint import is_one_ratio, relation, score_bound
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.subject import Subject


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype).eval()


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def tensors(model: nn.Module) -> list[PosteriorTensor]:
    return [layer.tensors[0] for layer in bayesian_layers(model)]


def trained(model: nn.Module, steps: int = 30, rate: float = 1e-3, only: str = "") -> nn.Module:
    torch.manual_seed(7)
    optimizer = torch.optim.Adam([p for name, p in model.named_parameters() if only in name], rate)
    x, y = torch.randn(64, 8), torch.randint(4, (64,))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).float(), y).backward()
        optimizer.step()
    return model.eval()


def changed(change: Callable[[Tensor], Tensor], only: int | None = None) -> Callable[[nn.Module], nn.Module]:
    """Change the means of a fresh conversion behind sigma's back."""

    def apply(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for number, tensor in enumerate(tensors(model)):
                if only in (None, number):
                    tensor.mu.copy_(change(tensor.mu))
        return model

    return apply


def of_changed(change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Convert a network after its weights were changed."""
    net = network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(change(parameter))
    return convert(net)


def quantised(value: Tensor) -> Tensor:
    step = value.abs().max() / 127
    return (value / step).round() * step


FRESH: dict[str, Callable[[], nn.Module]] = {
    "as it is": lambda: convert(network()),
    "Flipout": lambda: convert(network(), type="Flipout"),
    "a wide sigma": lambda: convert(network(), moped_delta=3.0),
    "a narrow sigma": lambda: convert(network(), moped_delta=1e-4),
    "scaled weights": lambda: of_changed(lambda w: 0.8 * w),
    "quantised weights": lambda: of_changed(quantised),
    "pruned weights": lambda: of_changed(lambda w: w * (w.abs() > 0.1)),
    "a low-rank update": lambda: of_changed(lambda w: w + 0.1 * w.mean(0, keepdim=True)),
    "another checkpoint": lambda: of_changed(lambda w: w + 0.05 * torch.randn(w.shape)),
    "one mean scaled": lambda: changed(lambda w: 1.01 * w, 1)(convert(network())),
    "one mean rolled": lambda: changed(lambda w: w.roll(1, 0), 1)(convert(network())),
    "sigma alone trained": lambda: trained(convert(network()), only="rho"),
}


@pytest.mark.parametrize("name", FRESH)
def test_without_a_training_step_it_is_a_conversion(name: str) -> None:
    """Whatever the cosine to the teacher is: what was changed on the way is for `mean.equals_teacher` to find."""
    assert stage_of(FRESH[name](), network()) == "converted"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_fingerprint_knows_the_dtype(dtype: torch.dtype) -> None:
    """A conversion in any dtype, and one that was cast afterwards; a trained one in the dtypes that can show it."""
    teacher = network(dtype)
    if dtype is not torch.float16:  # refused: sigma underflows on the way
        assert all(is_one_ratio(t.rho.detach(), t.mu.detach()) for t in tensors(convert(teacher)))
    cast = convert(network()).to(dtype)
    assert all(is_one_ratio(t.rho.detach(), t.mu.detach()) for t in tensors(cast))
    assert stage_of(cast, network()) == stage_of(cast, teacher) == "converted"
    assert stage_of(trained(convert(network())).to(dtype), network()) == "finetuned"


@pytest.mark.parametrize("rate", [1e-5, 1e-4, 1e-3, 1e-2])
def test_three_steps_are_training(rate: float) -> None:
    """Also with a small learning rate: mu is no longer the teacher's, and its ratio to sigma is gone."""
    assert stage_of(trained(convert(network()), 3, rate), network()) == "finetuned"


TRAINED: dict[str, Callable[[], nn.Module]] = {
    "long": lambda: trained(convert(network()), 300, 5e-3),
    "the head alone, and every sigma": lambda: trained(trained(convert(network()), only="rho"), only="4."),
    "the first layer frozen": lambda: trained(trained(convert(network()), only="2."), only="4."),
    "mu alone": lambda: trained(convert(network()), only="mu"),
    "Flipout": lambda: trained(convert(network(), type="Flipout")),
    "one layer never loaded": lambda: _with_a_random_layer(trained(convert(network()))),
    "quantised afterwards": lambda: changed(quantised)(trained(convert(network()))),
}


def _with_a_random_layer(model: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    model.set_submodule("2", convert(network(), moped_enable=False).get_submodule("2"))
    return model


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_is_not_held_to_its_start(name: str) -> None:
    """However far it went, and where parts of it stood still."""
    subject = Subject(TRAINED[name](), teacher=network(), images=images())
    assert subject.stage == "finetuned"
    evidence = measure_mean_equals_teacher(subject)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "--stage converted" in evidence.headline


@pytest.mark.parametrize(
    "make",
    [
        lambda: convert(network(), moped_enable=False),
        lambda: convert(network(), moped_enable=False, posterior_rho_init=-6.0, posterior_mu_init=0.2),
        lambda: convert(network(seed=9)),
        lambda: trained(convert(network(), moped_enable=False), 300, 5e-3),
        lambda: trained(convert(network(seed=9)), 300, 5e-3),
    ],
)
def test_of_what_has_nothing_of_the_teacher_that_is_said(make: Callable[[], nn.Module]) -> None:
    """Random, from another network, or trained from scratch: it fails, and names the way out for the last."""
    torch.manual_seed(11)
    subject = Subject(make(), teacher=network(), images=images())
    assert subject.stage == "unrelated"
    evidence = measure_mean_equals_teacher(subject)
    assert evidence.verdict is Verdict.FAIL
    assert "The teacher's weights are not in this model" in evidence.headline
    assert "--stage finetuned" in evidence.remedy
    told = Subject(make(), teacher=network(), images=images(), stage="finetuned")
    assert measure_mean_equals_teacher(told).verdict is Verdict.NOT_APPLICABLE


@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (4, 4), (5, 6)])
def test_weights_too_few_to_tell_are_no_evidence(shape: tuple[int, int]) -> None:
    """A small layer whose mean went elsewhere may come from anywhere: the user is asked."""
    torch.manual_seed(2)
    teacher = nn.Sequential(nn.Linear(*shape)).eval()
    model = convert(teacher)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    subject = Subject(model, teacher=teacher, images=torch.randn(4, shape[0]))
    assert subject.stage == "unknown"
    evidence = measure_mean_equals_teacher(subject)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "--stage converted" in evidence.headline
    assert "--stage finetuned" in evidence.headline


@pytest.mark.parametrize("layer", [nn.Linear(1, 1), nn.Linear(6, 3), nn.Conv2d(2, 2, 1)], ids=str)
def test_models_of_one_layer(layer: nn.Module) -> None:
    assert stage_of(convert(layer), layer) == "converted"
    assert align(convert(layer), layer).pairs


def test_means_of_zero_tell_nothing_and_break_nothing() -> None:
    """Every mu 0 as in the teacher: equal to the bit. Every mu 0 beside a teacher that is not: nothing to go by."""
    teacher = network()
    for parameter in teacher.parameters():
        nn.init.zeros_(parameter)
    assert stage_of(convert(teacher), teacher) == "converted"
    assert stage_of(changed(torch.zeros_like)(convert(network())), network()) == "unknown"


def test_not_a_number_in_a_fresh_conversion_is_no_training() -> None:
    model = convert(network())
    with torch.no_grad():
        tensors(model)[1].mu[0, 0] = torch.nan
    assert stage_of(model, network()) == "converted"


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.norm.running_mean.add_(0.1)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norm(self.first(x)))
        return out


def test_statistics_that_were_estimated_anew_are_no_fault() -> None:
    """Noisy weights deserve their own; told to be fresh, the model is held to its claim and the cause is named."""
    teacher = Normed().eval()
    model = convert(teacher)
    model.train()(torch.randn(64, 8))
    model.eval()
    given = {"teacher": teacher, "images": images()}
    evidence = measure_mean_equals_teacher(model, **given)  # type: ignore[arg-type]
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "`norm` first" in evidence.headline
    strict = measure_mean_equals_teacher(model, stage="converted", **given)  # type: ignore[arg-type]
    assert strict.verdict is Verdict.FAIL
    assert "running_mean is not the teacher's" in strict.layers[0].finding


def test_statistics_that_were_lost_are_a_fault() -> None:
    """As a layer is built, while the teacher's were estimated; and so is anything that differs beside them."""
    teacher = Normed().eval()
    lost = convert(teacher)
    lost.norm.reset_running_stats()  # type: ignore[union-attr, operator]
    evidence = measure_mean_equals_teacher(lost, teacher=teacher, images=images())
    assert evidence.verdict is Verdict.FAIL
    assert "of a layer just built" in evidence.layers[0].finding
    both = changed(lambda w: 2 * w, 1)(convert(teacher))
    both.train()(torch.randn(64, 8))
    assert measure_mean_equals_teacher(both.eval(), teacher=teacher, images=images()).verdict is Verdict.FAIL


def test_a_setting_is_named_only_where_the_weights_are_the_teachers() -> None:
    teacher = nn.Sequential(nn.Conv1d(8, 4, 3, padding=1), nn.Flatten()).eval()
    x = torch.randn(5, 8, 6)
    setting = convert(teacher)
    setting.get_submodule("0").stride = 1  # type: ignore[assignment]
    setting.get_submodule("0").dilation = 2  # type: ignore[assignment]
    setting.get_submodule("0").padding = 2  # type: ignore[assignment]
    found = measure_mean_equals_teacher(setting, teacher=teacher, images=x)
    assert found.verdict is Verdict.FAIL
    assert "its weights are the teacher's" in found.layers[0].finding
    assert "lost a setting" in found.remedy
    coarse = copy.deepcopy(teacher)
    with torch.no_grad():
        coarse.get_parameter("0.weight").copy_(quantised(coarse.get_parameter("0.weight")))
    other = measure_mean_equals_teacher(convert(coarse), teacher=teacher, images=x)
    assert other.verdict is Verdict.FAIL
    assert "lost a setting" not in other.remedy
    assert "give the teacher that was converted" in other.remedy


def test_the_bound_is_that_of_independent_directions() -> None:
    """Cosines of independent Gaussian vectors: scipy's exact correlation test is the oracle for the scores."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(400, 2, 30, generator=generator, dtype=torch.float64)
    cosines = torch.cosine_similarity(pairs[:, 0], pairs[:, 1])
    largest, pooled = relation(cosines[:1], torch.tensor([30.0], dtype=torch.float64))
    assert largest == pytest.approx(pooled)
    beta = stats.beta.sf((1 + float(cosines[0])) / 2, 14.5, 14.5)  # (1 + r) / 2 is Beta((n - 1) / 2, (n - 1) / 2)
    assert stats.norm.sf(largest) == pytest.approx(beta)
    scores = [relation(c.reshape(1), torch.tensor([30.0], dtype=torch.float64))[0] for c in cosines]
    assert stats.kstest(scores, "norm").pvalue > 1e-3
    assert score_bound(5, 1e-3) == pytest.approx(stats.norm.isf(2e-4))


def test_why_is_told() -> None:
    teacher = network()
    assert "to the bit" in standing_of(align(convert(teacher), teacher)).why
    assert "3 of 3" in standing_of(align(trained(convert(teacher)), teacher)).why
    assert "no posterior tensor" in standing_of(align(copy.deepcopy(teacher), teacher)).why
    assert 0 < MODERATE < 1
