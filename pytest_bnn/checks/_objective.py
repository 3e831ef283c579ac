"""The training loss as checks take it: on one batch, from a seed, with gradients that must be finite."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_bnn.checks.check import Finding, LossError, accused
from pytest_bnn.data.loss import BATCH
from pytest_bnn.errors import InputError
from pytest_bnn.libraries import posterior
from pytest_bnn.libraries.posterior import PosteriorTensor
from pytest_bnn.network.calling import forward
from pytest_bnn.network.isolation import seed_everything
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.subject import Subject

#: What to do about a loss that has a value and no gradient.
FINITE_DERIVATIVE = (
    "look for what has a finite value and no finite derivative: a square root or a norm at 0, a logarithm of 0 that a "
    "mask hides"
)


def loss_of(subject: Subject) -> Tensor:
    """Evaluate the training loss on one batch, from the subject's seed.

    Raises:
        InputError: The loss raised, or returned no scalar tensor.
        LossError: It is NaN or infinite.
    """
    assert subject.loss is not None
    seed_everything(subject.seed)
    name = getattr(subject.loss, "__name__", type(subject.loss).__name__)
    try:
        value = subject.loss(subject.model, subject.loss_batch())
    except Exception as error:
        # A model that cannot run, or has no KL, is the model's failure and not the loss's.
        forward(subject.model, subject.require_images()[:BATCH])
        posterior.kl(subject.model)
        raise InputError(
            f"the loss {name}(model, (images, labels)) raised {type(error).__name__}: {error}",
            fix="give a function that takes the model and one batch (images, labels)"
            + (", and data with labels" if subject.labels is None else ""),
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the loss {name} returned {shape}", fix="return one scalar tensor, before backward()")
    if not bool(torch.isfinite(value)):
        raise LossError(f"the training loss ({name}) is {float(value.detach())}")
    return value.reshape(())


def is_finite(gradient: Tensor | None) -> bool:
    """Say whether a gradient, if there is one, has neither NaN nor infinity."""
    return gradient is None or bool(torch.isfinite(gradient).all())


def endless(found: list[PosteriorTensor], tensors: int, *, of: str, remedy: str) -> Finding:
    """Give the finding that some gradients ``of`` a loss are not finite."""
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"the loss's gradient to {of} is NaN or infinite in {len(found)} of {tensors} tensors, "
        f"{found[0].name} first: one step loses them",
        layers=tuple(
            accused(t, f"{t.role}: the gradient is NaN or infinite; the smallest sigma is {float(t.sigma.min()):.2g}")
            for t in found
        ),
        remedy=remedy,
    )
