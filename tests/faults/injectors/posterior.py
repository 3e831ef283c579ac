"""What the library's layers get wrong: rows A1 to A13 of the catalogue, each with what injects it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from bayesian_torch.utils.util import MOPED
from torch import Tensor, nn
from torch.nn import functional

from tests.faults.injectors.patient import BATCHES, Fault, Given, Patient, kl, loss_with, posterior_of, zeros


def several_passes(patient: Patient) -> Given:
    """Average the loss over two passes before one backward, as the library's own examples do."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        passes = torch.stack([functional.cross_entropy(model(images), labels) for _ in range(2)])
        return passes.mean() + kl(model) / BATCHES

    return {"model": patient.converted(), "loss": loss}


def feature_extractor(patient: Patient) -> Given:
    from torchvision.models.feature_extraction import create_feature_extractor

    return {"model": create_feature_extractor(patient.converted(), {patient.path("head"): "logits"}).eval()}


def traced(patient: Patient) -> Given:
    return {"model": torch.fx.symbolic_trace(patient.converted()).eval()}


def shared_memory(patient: Patient) -> Given:
    """Initialize by `utils.MOPED()`, which takes a checkpoint."""
    model = patient.converted()
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "teacher.pt"
        torch.save(patient.teacher.state_dict(), checkpoint)
        MOPED(model, patient.teacher, checkpoint, 0.1)
    return {"model": model}


def broken_prior(patient: Patient) -> Given:
    model = patient.converted()
    patient.part(model, "stem").prior_weight_sigma.fill_(float("nan"))
    return {"model": model}


def zero_weights(patient: Patient) -> Given:
    with torch.no_grad():
        weight = patient.part(patient.teacher, "stem").weight
        weight.view(-1)[: zeros(weight.numel())] = 0
    return {"model": patient.converted()}


def huge_weight(patient: Patient) -> Given:
    with torch.no_grad():
        patient.part(patient.teacher, "block.conv1").weight[0, 0, 0, 0] = 900
    return {"model": patient.converted()}


def half_precision(patient: Patient) -> Given:
    model = patient.converted()
    with torch.no_grad():
        patient.part(model, "block.conv2").rho_kernel.fill_(-18)
    return {"model": model.half(), "loss": None}


def narrow(patient: Patient) -> Given:
    model = patient.converted()
    with torch.no_grad():
        for rho in posterior_of(model, "rho_"):
            rho.fill_(-20)
    return {"model": model}


def unconverted(patient: Patient) -> Given:
    return {"model": deepcopy(patient.teacher), "loss": loss_with(lambda model: get_kl_loss(model) or 0)}


NOTHING_BAYESIAN = {
    "layers.replaced": ("no Bayesian layer", "stem", "still nn.Conv2d"),
    "noise.varies": ("no Bayesian layer",),
    "noise.source": ("no Bayesian layer",),
    "noise.spread": ("all but collapsed",),
    "kl.present": ("no KL term", "no Bayesian layer"),
    "kl.loss": ("no Bayesian layer",),
}

POSTERIOR = (
    Fault(
        id="A1",
        description="two forward passes before one backward: noise lies in a shared buffer",
        inject=several_passes,
        fails={"gradient.samples": ("with 2 forward passes", "stem", "head", "one backward pass for each")},
    ),
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
        id="A5",
        description="utils.MOPED() aliases the storage of teacher, mu and prior",
        inject=shared_memory,
        fails={"memory.separate": ("shares memory with the teacher's", "stem", "prior_weight_mu", "clone")},
    ),
    Fault(
        id="A6",
        description="a weight that is exactly 0 gets a dead sigma under MOPED",
        inject=zero_weights,
        warns={"kl.present": ("dead", "stem", "{zeros} of {stem:,}", "exactly 0")},
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
)
