"""Every fault of the catalogue that a check claims to see, injected into a healthy network: found, named, no more.

One row breaks one thing. The checks in ``fails`` must fail (``warns``: warn) with the words that a reader needs;
every other check must pass, save those in ``open``, whose outcome the fault leaves to chance or to taste.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.conversion import convert
from pytest_bnn.evidence import Evidence, Verdict
from pytest_bnn.images import digits
from pytest_bnn.weights import load_teacher

Given = dict[str, Any]
Bare = Callable[..., nn.Module]
Audit = Callable[..., dict[str, Evidence]]

BATCHES = 10


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A trained network of one's own to break, and the library's bare conversion.

    ``paths`` says where another network has what the small ones call stem, block.conv1, block.conv2 and head.
    """

    teacher: Any
    estimator: str
    bare: Bare
    paths: Mapping[str, str] = field(default_factory=dict)

    def converted(self, **options: Any) -> Any:
        return self.bare(self.teacher, self.estimator, **options)

    def part(self, model: nn.Module, name: str) -> Any:
        return model.get_submodule(self.paths.get(name, name))


@dataclass(frozen=True, kw_only=True)
class Fault:
    id: str
    description: str
    inject: Callable[[Patient], Given]
    fails: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    open: tuple[str, ...] = ()


def loss_with(term: Callable[[nn.Module], Any]) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        total: Tensor = functional.cross_entropy(model(images), labels) + term(model)
        return total

    return loss


def _kl(model: nn.Module) -> Tensor:
    kl: Tensor = get_kl_loss(model)
    return kl


healthy_loss = loss_with(lambda model: _kl(model) / BATCHES)


def posterior_of(model: nn.Module, name: str) -> list[nn.Parameter]:
    return [p for n, p in model.named_parameters() if n.rpartition(".")[2].startswith(name)]


# --- What the library does ---------------------------------------------------------------------------------------


def feature_extractor(patient: Patient) -> Given:
    from torchvision.models.feature_extraction import create_feature_extractor

    return {"model": create_feature_extractor(patient.converted(), {"head": "logits"}).eval()}


def traced(patient: Patient) -> Given:
    return {"model": torch.fx.symbolic_trace(patient.converted()).eval()}


def broken_prior(patient: Patient) -> Given:
    model = patient.converted()
    patient.part(model, "stem").prior_weight_sigma.fill_(float("nan"))
    return {"model": model}


def zero_weights(patient: Patient) -> Given:
    with torch.no_grad():
        patient.teacher.stem.weight[0, 0, 0, 0] = 0
    return {"model": patient.converted()}


def huge_weight(patient: Patient) -> Given:
    with torch.no_grad():
        patient.part(patient.teacher, "block.conv1").weight[0, 0, 0, 0] = 900
    return {"model": patient.converted()}


def half_precision(patient: Patient) -> Given:
    model = patient.converted()
    with torch.no_grad():
        model.block.conv2.rho_kernel.fill_(-18)
    return {"model": model.half(), "loss": None}


def narrow(patient: Patient) -> Given:
    model = patient.converted()
    with torch.no_grad():
        for rho in posterior_of(model, "rho_"):
            rho.fill_(-20)
    return {"model": model}


def unconverted(patient: Patient) -> Given:
    return {"model": deepcopy(patient.teacher), "loss": loss_with(lambda model: get_kl_loss(model) or 0)}


def weight_norm(patient: Patient) -> Given:
    nn.utils.parametrizations.weight_norm(patient.part(patient.teacher, "head"))
    return {"model": patient.converted()}


class LowRank(nn.Linear):
    """A Linear with LoRA's two small ones beside it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_a = nn.Linear(inputs, 2, bias=False)
        self.lora_b = nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + 0.01 * self.lora_b(self.lora_a(x))
        return out


def low_rank(patient: Patient) -> Given:
    head = LowRank(patient.teacher.head.in_features, patient.teacher.head.out_features)
    head.load_state_dict(patient.teacher.head.state_dict(), strict=False)
    patient.teacher.head = head
    return {"model": patient.converted()}


class ScaledConv2d(nn.Conv2d):
    """A user's subclass, which the library selects by its name and then does not know."""


def raises_midway(patient: Patient) -> Given:
    patient.part(patient.teacher, "block.conv2").__class__ = ScaledConv2d
    model = deepcopy(patient.teacher)
    parameters = {
        "prior_mu": 0.0,
        "prior_sigma": 1.0,
        "posterior_mu_init": 0.0,
        "posterior_rho_init": -3.0,
        "type": patient.estimator,
        "moped_enable": True,
        "moped_delta": 0.1,
    }
    with pytest.raises(AttributeError, match="ScaledConv2d"):
        dnn_to_bnn(model, parameters)
    return {"model": model}


class Conv2d(nn.Module):
    """A user's own layer that shares nothing but the name, and the attributes that the library reads."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = like.weight, like.bias
        self.in_channels, self.out_channels, self.kernel_size = like.in_channels, like.out_channels, like.kernel_size
        self.stride, self.padding, self.dilation, self.groups = like.stride, like.padding, like.dilation, like.groups

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, padding="same")


def namesake(patient: Patient) -> Given:
    patient.teacher.block.conv1 = Conv2d(patient.teacher.block.conv1)
    return {"model": patient.converted()}


def used_twice(patient: Patient) -> Given:
    patient.teacher.block.conv2 = patient.teacher.block.conv1
    return {"model": patient.converted()}


def tied(patient: Patient) -> Given:
    first, second = (patient.part(patient.teacher, name) for name in ("block.conv1", "block.conv2"))
    second.weight = first.weight
    return {"model": patient.converted()}


def second_reference(patient: Patient) -> Given:
    kind = type(patient.teacher.block)

    def forward(self: Any, x: Tensor) -> Tensor:
        first, second = self.order
        out: Tensor = functional.relu(self.norm1(first(x)))
        out = self.norm2(second(out))
        return functional.relu(out + x if self.residual else out)

    block = patient.teacher.block
    block.__class__ = type("ListedBlock", (kind,), {"forward": forward})
    block.order = [block.conv1, block.conv2]
    return {"model": patient.converted()}


def circular(patient: Patient) -> Given:
    patient.part(patient.teacher, "block.conv2").padding_mode = "circular"
    return {"model": patient.converted()}


def lost_hook(patient: Patient) -> Given:
    patient.teacher.block.conv1.register_forward_hook(lambda module, inputs, output: output + 1)
    return {"model": patient.converted()}


def without_moped(patient: Patient) -> Given:
    return {"model": patient.converted(moped=False)}


def deterministic_checkpoint(patient: Patient) -> Given:
    model = patient.converted(moped=False)
    model.load_state_dict(patient.teacher.state_dict(), strict=False)
    return {"model": model}


# --- What users do -----------------------------------------------------------------------------------------------


def with_loss(term: Callable[[nn.Module], Any]) -> Callable[[Patient], Given]:
    return lambda patient: {"model": patient.converted(), "loss": loss_with(term)}


def detached_in_layer(patient: Patient) -> Given:
    model = patient.converted()
    kind = type(model.head)
    model.head.__class__ = type(kind.__name__, (kind,), {"kl_loss": lambda self: kind.kl_loss(self).detach()})
    return {"model": model}


def wrong_in_layer(patient: Patient) -> Given:
    model = patient.converted()
    kind = type(model.head)
    model.head.__class__ = type(kind.__name__, (kind,), {"kl_loss": lambda self: 3 * kind.kl_loss(self)})
    return {"model": model}


def frozen_rho(patient: Patient) -> Given:
    model = patient.converted()
    for rho in posterior_of(model, "rho_"):
        rho.requires_grad_(False)
    return {"model": model}


def collapsed(patient: Patient) -> Given:
    model = patient.converted()
    with torch.no_grad():
        for rho in posterior_of(model, "rho_"):
            rho.fill_(-200)
    return {"model": model}


def last_layer_only(patient: Patient) -> Given:
    model = deepcopy(patient.teacher)
    model.head = patient.converted().head
    return {"model": model}


def new_head(patient: Patient) -> Given:
    model = patient.converted()
    model.set_submodule(patient.paths.get("head", "head"), deepcopy(patient.part(patient.teacher, "head")))
    return {"model": model}


def seeded_forward(patient: Patient) -> Given:
    model = patient.converted()
    kind = type(model)

    def forward(self: nn.Module, x: Tensor) -> Any:
        torch.manual_seed(0)
        return kind.forward(self, x)

    model.__class__ = type("Seeded", (kind,), {"forward": forward})
    return {"model": model}


def dropout_left_on(patient: Patient) -> Given:
    model = patient.converted()
    model.drop.train()
    return {"model": model}


def dropout_for_posterior(patient: Patient) -> Given:
    return {**unconverted(patient), "model": deepcopy(patient.teacher).train()}


def norm_left_on(patient: Patient) -> Given:
    patient.teacher.pool = nn.Sequential(nn.BatchNorm2d(8), patient.teacher.pool).eval()
    model = patient.converted()
    model.pool[0].train()
    return {"model": model}


def disagreeing(patient: Patient) -> Given:
    model = patient.converted()
    head = patient.part(model, "head")
    with torch.no_grad():
        for parameter in (head.mu_weight, head.mu_bias, head.rho_weight, head.rho_bias):
            parameter.copy_(parameter.roll(1, 0))
        for mu in posterior_of(model, "mu_"):
            mu.mul_(1.001)
    return {"model": model}


NOTHING_BAYESIAN = {
    "layers.replaced": ("no Bayesian layer", "stem", "still a deterministic Conv2d"),
    "noise.varies": ("no Bayesian layer",),
    "noise.source": ("no Bayesian layer",),
    "noise.spread": ("all but collapsed",),
    "kl.present": ("no KL term", "no Bayesian layer"),
    "kl.loss": ("no Bayesian layer",),
}

FAULTS = (
    Fault(
        id="A2-extractor",
        description="create_feature_extractor bakes one draw of the noise in",
        inject=feature_extractor,
        fails={
            "layers.replaced": ("no Bayesian layer", "create_feature_extractor", "stem"),
            "noise.source": ("torch.fx",),
            "kl.present": ("no Bayesian layer", "a traced model kept"),
            "kl.loss": ("no Bayesian layer",),
        },
        # One baked draw is not the teacher; Flipout's signs are still drawn.
        open=("mean.equals_teacher", "noise.varies", "noise.spread", "teacher.agreement"),
    ),
    Fault(
        id="A2-fx",
        description="torch.fx bakes one draw of the noise in",
        inject=traced,
        fails={
            "layers.replaced": ("no Bayesian layer", "torch.fx", "stem"),
            "noise.source": ("torch.fx",),
            "kl.present": ("no Bayesian layer", "a traced model kept"),
            "kl.loss": ("no Bayesian layer",),
        },
        open=("mean.equals_teacher", "noise.varies", "noise.spread", "teacher.agreement"),
    ),
    Fault(
        id="A3-garbage",
        description="prior buffers are not persistent: garbage after to_empty",
        inject=broken_prior,
        fails={"kl.present": ("prior sigma", "stem"), "kl.loss": ("prior sigma", "stem")},
    ),
    Fault(
        id="A6",
        description="a weight that is exactly 0 gets a dead sigma under MOPED",
        inject=zero_weights,
        warns={"kl.present": ("dead", "stem", "1 of 216", "exactly 0")},
    ),
    Fault(
        id="A7",
        description="delta * abs(w) above 88.7 overflows to an infinite rho",
        inject=huge_weight,
        fails={
            "noise.varies": ("NaN or infinite", "block.conv1", "rho", "moped_delta"),
            "noise.spread": ("NaN or infinite", "block.conv1", "rho"),
            "noise.source": ("NaN or infinite",),
            "kl.present": ("block.conv1", "sigma is NaN or infinite", "moped_delta"),
            "kl.loss": ("block.conv1",),
            "teacher.agreement": ("NaN or infinite",),
        },
    ),
    Fault(
        id="A8",
        description="half precision underflows a sigma that float32 could hold",
        inject=half_precision,
        fails={"kl.present": ("block.conv2", "sigma is 0", "half precision")},
        open=("kl.loss", "teacher.agreement"),
    ),
    Fault(
        id="A9",
        description="a sigma so small that the outputs differ by rounding only",
        inject=narrow,
        fails={
            "noise.varies": ("collapsed",),
            "noise.source": ("collapsed",),
            "noise.spread": ("all but collapsed", "alone it makes the outputs vary by"),
        },
        warns={"kl.present": ("dead", "stem")},
    ),
    Fault(
        id="A13",
        description="nothing was converted, and get_kl_loss gives None",
        inject=unconverted,
        fails=NOTHING_BAYESIAN,
    ),
    Fault(
        id="A15-weight-norm",
        description="a parametrized layer owns a child module and is skipped",
        inject=weight_norm,
        fails={"layers.replaced": ("head", "parametrizations", "skips")},
    ),
    Fault(
        id="A15-lora",
        description="a layer with LoRA's children is skipped, the children are not",
        inject=low_rank,
        fails={"layers.replaced": ("head", "lora_a", "skips")},
    ),
    Fault(
        id="A16-midway",
        description="a subclass raises midway and leaves the model half converted",
        inject=raises_midway,
        fails={"layers.replaced": ("2 of 4", "block.conv2", "head", "still a deterministic")},
    ),
    Fault(
        id="A16-namesake",
        description="a user's own class that is merely named Conv2d is replaced",
        inject=namesake,
        fails={"mean.equals_teacher": ("block.conv1", "not torch's")},
        # The user's layer is not the one that these weights were trained in.
        open=("teacher.agreement",),
    ),
    Fault(
        id="A17-twice",
        description="a module used at two places becomes two",
        inject=used_twice,
        fails={"layers.replaced": ("block.conv1", "block.conv2", "one module", "two in the model")},
        open=("teacher.agreement",),
    ),
    Fault(
        id="A17-tied",
        description="a weight shared by two layers is untied",
        inject=tied,
        fails={"layers.replaced": ("block.conv1", "block.conv2", "shares its weight", "no longer")},
        open=("teacher.agreement",),
    ),
    Fault(
        id="A17-reference",
        description="a reference outside _modules keeps the old layers in use",
        inject=second_reference,
        fails={"layers.replaced": ("block.conv1", "block.conv2", "never called")},
    ),
    Fault(
        id="A18",
        description="padding_mode is lost",
        inject=circular,
        fails={"mean.equals_teacher": ("block.conv2", "padding mode")},
        open=("teacher.agreement",),
    ),
    Fault(
        id="A21-hook",
        description="forward hooks are lost",
        inject=lost_hook,
        fails={"mean.equals_teacher": ("block.conv1",)},
        open=("teacher.agreement",),
    ),
    Fault(
        id="A22",
        description="MOPED off discards the trained weights",
        inject=without_moped,
        fails={"mean.equals_teacher": ("teacher's weights are not in this model", "moped_enable", "stem", "cosine")},
        open=("teacher.agreement",),
    ),
    Fault(
        id="A26",
        description="a deterministic state_dict loaded with strict=False leaves random weights",
        inject=deterministic_checkpoint,
        fails={"mean.equals_teacher": ("teacher's weights are not in this model", "strict=True")},
        open=("teacher.agreement",),
    ),
    Fault(
        id="B2",
        description="no KL term in the loss",
        inject=with_loss(lambda model: 0),
        fails={"kl.loss": ("missing from the loss", "get_kl_loss")},
    ),
    Fault(
        id="B2-detached",
        description="the KL term is a number, not a node of the graph",
        inject=with_loss(lambda model: _kl(model).item() / BATCHES),
        fails={"kl.loss": ("detached", "rho", ".item()")},
    ),
    Fault(
        id="B2-partly",
        description="the KL term of one layer only",
        inject=with_loss(lambda model: _kl(model.get_submodule("head")) / BATCHES),
        fails={"kl.loss": ("missing for", "stem", "block.conv1", "whole model")},
    ),
    Fault(
        id="B2-negative",
        description="the KL term subtracted, as in the ELBO that is maximized",
        inject=with_loss(lambda model: -_kl(model) / BATCHES),
        fails={"kl.loss": ("negative", "minimized")},
    ),
    Fault(
        id="B3",
        description="the KL term is not divided by the number of batches",
        inject=with_loss(_kl),
        fails={"kl.loss": ("10 times the expected", "number of batches")},
    ),
    Fault(
        id="B3-uneven",
        description="one layer's KL term counts more than the others'",
        inject=with_loss(lambda model: (_kl(model) + _kl(model.get_submodule("head"))) / BATCHES),
        fails={"kl.loss": ("another weight", "head")},
    ),
    Fault(
        id="B6",
        description="rho is frozen",
        inject=frozen_rho,
        fails={"kl.present": ("rho is frozen", "stem", "requires_grad"), "kl.loss": ("rho is frozen", "stem")},
    ),
    Fault(
        id="B7",
        description="weight decay on rho, as a term of the loss",
        inject=with_loss(
            lambda model: (
                _kl(model) / BATCHES + 0.01 * torch.stack([r.square().sum() for r in posterior_of(model, "rho_")]).sum()
            )
        ),
        fails={"kl.loss": ("pulls on rho", "weight decay", "stem")},
    ),
    Fault(
        id="B8",
        description="sigma collapsed to exactly 0",
        inject=collapsed,
        fails={
            "noise.varies": ("exactly 0", "collapsed"),
            "noise.spread": ("vary by 0 of their scale", "all but collapsed"),
            "noise.source": ("collapsed",),
            "kl.present": ("inf", "sigma is 0", "stem"),
            "kl.loss": ("sigma", "stem"),
        },
    ),
    Fault(
        id="B9-last-only",
        description="only the last layer is Bayesian",
        inject=last_layer_only,
        fails={"layers.replaced": ("1 of 4", "stem", "block.conv1", "block.conv2", "still a deterministic Conv2d")},
    ),
    Fault(
        id="B9-new-head",
        description="the head was replaced after the conversion",
        inject=new_head,
        fails={"layers.replaced": ("3 of 4", "head", "still a deterministic Linear")},
    ),
    Fault(
        id="B11",
        description="the seed is reset inside forward",
        inject=seeded_forward,
        fails={
            "noise.varies": ("exactly 0", "seeds"),
            "noise.spread": ("vary by 0 of their scale",),
            "noise.source": ("seeds", "forward"),
            "noise.posterior": ("correlate", "no seed inside forward"),
        },
    ),
    Fault(
        id="B12-dropout",
        description="dropout left in train mode adds noise that is not the posterior's",
        inject=dropout_left_on,
        fails={"noise.source": ("drop", "Dropout", "every sigma at 0"), "mean.equals_teacher": ("drop", "train mode")},
        open=("teacher.agreement",),
    ),
    Fault(
        id="B12-train-only",
        description="all noise is dropout's, and gone in eval mode",
        inject=dropout_for_posterior,
        fails={**NOTHING_BAYESIAN, "noise.source": ("no Bayesian layer", "in train mode", "drop", "Dropout")},
    ),
    Fault(
        id="B12-batchnorm",
        description="BatchNorm left in train mode: outputs depend on the batch",
        inject=norm_left_on,
        fails={"mean.equals_teacher": ("pool.0", "BatchNorm2d", "train mode")},
        open=("teacher.agreement",),
    ),
    Fault(
        id="B15",
        description="a fine-tuned network that disagrees with its teacher",
        inject=disagreeing,
        fails={"teacher.agreement": ("agrees on 0 of", "fine-tune toward the teacher")},
        # The stage is found by mu against the weights: one rolled layer does not hide that it was fine-tuned.
        open=("mean.equals_teacher",),
    ),
    Fault(
        id="KL-detached",
        description="one layer's KL term is cut off from mu and rho",
        inject=detached_in_layer,
        fails={"kl.present": ("no gradient reaches", "head"), "kl.loss": ("missing for 2 of", "head")},
    ),
    Fault(
        id="KL-wrong",
        description="one layer's KL term is not the divergence",
        inject=wrong_in_layer,
        fails={"kl.present": ("neither", "head", "closed form"), "kl.loss": ("another weight", "head")},
    ),
)


@pytest.fixture
def patient(teacher: nn.Module, estimator: str, bare: Bare) -> Patient:
    return Patient(teacher=teacher, estimator=estimator, bare=bare)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_fault_is_found_and_named(fault: Fault, patient: Patient, batch: tuple[Tensor, Tensor], audit: Audit) -> None:
    """Found, so that it cannot pass; named, so that it can be mended; nothing else accused, so that it is believed."""
    images, labels = batch
    found = audit(
        **{
            "teacher": patient.teacher,
            "images": images,
            "labels": labels,
            "loss": healthy_loss,
            "num_batches": BATCHES,
            **fault.inject(patient),
        }
    )
    verdicts = {id: evidence.verdict for id, evidence in found.items()}
    assert Verdict.ERROR not in verdicts.values(), [e.explain() for e in found.values() if e.verdict is Verdict.ERROR]
    expected = dict.fromkeys(fault.fails, Verdict.FAIL) | dict.fromkeys(fault.warns, Verdict.WARN)
    assert {id: verdicts[id] for id in expected} == expected
    for id, words in {**fault.fails, **fault.warns}.items():
        missing = [word for word in words if word not in found[id].explain()]
        assert not missing, found[id].explain()
    accused = [e.explain() for id, e in found.items() if id not in expected and id not in fault.open and _accuses(e)]
    assert not accused, "\n".join(accused)


def _accuses(evidence: Evidence) -> bool:
    return evidence.verdict not in (Verdict.PASS, Verdict.NOT_APPLICABLE)


def test_healthy_patient_passes_everything(patient: Patient, batch: tuple[Tensor, Tensor], audit: Audit) -> None:
    """The control of every row: what the injectors break was whole, by the library's hand and by ours."""
    images, labels = batch
    for model in (patient.converted(), convert(patient.teacher, type=patient.estimator)):  # type: ignore[arg-type]
        found = audit(
            model, teacher=patient.teacher, images=images, labels=labels, loss=healthy_loss, num_batches=BATCHES
        )
        assert [e.explain() for e in found.values() if e.verdict is not Verdict.PASS] == []


#: What is injected into the embedded ResNet18 too: at least one row of every check, and every way to break a model.
RESNET18 = (
    "A2-fx", "A3-garbage", "A7", "A13", "A15-weight-norm", "A16-midway", "A17-tied", "A18", "A22", "B2", "B2-detached",
    "B8", "B9-new-head", "B11", "B15",
)  # fmt: skip

PATHS = {"stem": "conv1", "block.conv1": "layer1.0.conv1", "block.conv2": "layer1.0.conv2", "head": "fc"}


@pytest.mark.parametrize("index", range(len(RESNET18)), ids=lambda index: RESNET18[index])
def test_fault_in_resnet18_is_found_and_named(index: int, bare: Bare, audit: Audit) -> None:
    """The network of the project's own case; from row to row the estimators take turns. Counts in words are the small
    networks'."""
    fault = next(fault for fault in FAULTS if fault.id == RESNET18[index])
    teacher = deepcopy(load_teacher("digits").model)
    images, labels = digits("held_out", 2)
    patient = Patient(teacher=teacher, estimator=("Reparameterization", "Flipout")[index % 2], bare=bare, paths=PATHS)
    given = {"teacher": teacher, "images": images, "labels": labels, "loss": healthy_loss, "num_batches": BATCHES}
    found = audit(**{**given, **fault.inject(patient)}, only=tuple(fault.fails))
    for id, words in fault.fails.items():
        assert found[id].verdict is Verdict.FAIL, found[id].explain()
        expected = [PATHS.get(word, word) for word in words if not any(c.isdigit() for c in word) or word in PATHS]
        said = found[id].explain(offenders=50)
        assert not [word for word in expected if word not in said], said


def test_rows_for_resnet18_cover_every_check_that_rows_claim() -> None:
    """And both estimators, or a check could be blind there."""
    rows = [next(fault for fault in FAULTS if fault.id == id) for id in RESNET18]
    assert {check for row in rows for check in row.fails} == {check for fault in FAULTS for check in fault.fails}


def test_rows_are_distinct() -> None:
    """Two rows of one id would hide each other in the output of a failed run."""
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
