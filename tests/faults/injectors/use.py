"""What users do: rows B of the catalogue, each with what injects it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from tests.faults.injectors.patient import BATCHES, Fault, Given, Patient, kl, loss_with, posterior_of
from tests.faults.injectors.posterior import NOTHING_BAYESIAN, unconverted


def with_loss(term: Callable[[nn.Module], Any]) -> Callable[[Patient], Given]:
    return lambda patient: {"model": patient.converted(), "loss": loss_with(term)}


def with_loss_of_head(term: Callable[[nn.Module, nn.Module], Any]) -> Callable[[Patient], Given]:
    """Return an injector of a loss whose term is given the model and its head."""

    def inject(patient: Patient) -> Given:
        return with_loss(lambda model: term(model, patient.part(model, "head")))(patient)

    return inject


def detached_in_layer(patient: Patient) -> Given:
    model = patient.converted()
    head = patient.part(model, "head")
    kind = type(head)
    head.__class__ = type(kind.__name__, (kind,), {"kl_loss": lambda self: kind.kl_loss(self).detach()})
    return {"model": model}


def wrong_in_layer(patient: Patient) -> Given:
    model = patient.converted()
    head = patient.part(model, "head")
    kind = type(head)
    head.__class__ = type(kind.__name__, (kind,), {"kl_loss": lambda self: 3 * kind.kl_loss(self)})
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


def collapsed_layer(patient: Patient) -> Given:
    model = patient.converted()
    with torch.no_grad():
        patient.part(model, "block.conv2").rho_kernel.fill_(-200)
    return {"model": model}


def last_layer_only(patient: Patient) -> Given:
    model = deepcopy(patient.teacher)
    patient.put(model, "head", patient.part(patient.converted(), "head"))
    return {"model": model}


def new_head(patient: Patient) -> Given:
    model = patient.converted()
    patient.put(model, "head", deepcopy(patient.part(patient.teacher, "head")))
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
    model = patient.with_dropout().converted()
    patient.part(model, "drop").train()
    return {"model": model}


def dropout_for_posterior(patient: Patient) -> Given:
    given = unconverted(patient.with_dropout())
    given["model"].train()
    return given


def norm_left_on(patient: Patient) -> Given:
    *_, last = (module for module in patient.teacher.modules() if isinstance(module, nn.Conv2d))
    pool = patient.part(patient.teacher, "pool")
    patient.put(patient.teacher, "pool", nn.Sequential(nn.BatchNorm2d(last.out_channels), pool).eval())
    model = patient.converted()
    patient.part(model, "pool.0").train()
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


USE = (
    Fault(
        id="B2",
        description="no KL term in the loss",
        inject=with_loss(lambda model: 0),
        fails={"kl.loss": ("missing from the loss", "get_kl_loss")},
    ),
    Fault(
        id="B2-detached",
        description="the KL term is a number, not a node of the graph",
        inject=with_loss(lambda model: kl(model).item() / BATCHES),
        fails={"kl.loss": ("detached", "rho", ".item()")},
    ),
    Fault(
        id="B2-partly",
        description="the KL term of one layer only",
        inject=with_loss_of_head(lambda _, head: kl(head) / BATCHES),
        fails={"kl.loss": ("missing for", "stem", "block.conv1", "whole model")},
    ),
    Fault(
        id="B2-negative",
        description="the KL term subtracted, as in the ELBO that is maximized",
        inject=with_loss(lambda model: -kl(model) / BATCHES),
        fails={"kl.loss": ("negative", "minimized")},
    ),
    Fault(
        id="B3",
        description="the KL term is not divided by the number of batches",
        inject=with_loss(kl),
        fails={"kl.loss": ("10 times the expected", "number of batches")},
    ),
    Fault(
        id="B3-uneven",
        description="one layer's KL term counts more than the others'",
        inject=with_loss_of_head(lambda model, head: (kl(model) + kl(head)) / BATCHES),
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
                kl(model) / BATCHES + 0.01 * torch.stack([r.square().sum() for r in posterior_of(model, "rho_")]).sum()
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
        id="B8-layer",
        description="sigma collapsed to exactly 0 in one layer: the outputs vary all the same",
        inject=collapsed_layer,
        fails={
            "kl.present": ("is 0 in {second:,} of {second:,}", "block.conv2"),
            "kl.loss": ("sigma", "block.conv2"),
        },
    ),
    Fault(
        id="B9-last-only",
        description="only the last layer is Bayesian",
        inject=last_layer_only,
        fails={"layers.replaced": ("1 of {layers}", "stem", "block.conv1", "block.conv2", "still nn.Conv2d")},
    ),
    Fault(
        id="B9-new-head",
        description="the head was replaced after the conversion",
        inject=new_head,
        fails={"layers.replaced": ("{others} of {layers}", "head", "still nn.Linear")},
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
        fails={
            "mean.equals_teacher": ("pool.0", "BatchNorm2d", "train mode"),
            "predictions.rows": ("examples meet in", "BatchNorm2d, in train mode", "eval mode"),
        },
        open=("teacher.agreement",),
    ),
    Fault(
        id="B15",
        description="a fine-tuned network that disagrees with its teacher",
        inject=disagreeing,
        fails={"teacher.agreement": ("agrees on 0 of",)},
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
        fails={"kl.present": ("and the closed form is", "head"), "kl.loss": ("another weight", "head")},
    ),
)
