"""Fine-tuning a converted network toward its deterministic teacher, with its trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from pytest_bnn.data.loss import BATCH, Loss
from pytest_bnn.errors import InputError
from pytest_bnn.libraries import posterior
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.network.devices import where
from pytest_bnn.network.float64 import float64_for
from pytest_bnn.network.isolation import preserved_random_state, seed_everything
from pytest_bnn.options import in_force
from pytest_bnn.records.run import TrainingStep
from pytest_bnn.sampling.bank import probabilities
from pytest_bnn.sampling.freed import give_memory_back
from pytest_bnn.sampling.threads import limited

STEPS = 40
LEARNING_RATE = 1e-4
DECAY = 0.9

#: Steps from which the engine's validation pays for itself.
LEAST_STEPS = 10


def distillation_loss(teacher: nn.Module, kl_weight: float) -> Loss:
    """Return the loss that `finetune` minimizes: mean squared error to the teacher's logits + weight * KL.

    The KL term is bayesian-torch's ``get_kl_loss``.
    """

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor | None]) -> Tensor:
        value, kl = _terms(model, batch[0], _target(teacher, batch[0]))
        return value + kl_weight * kl

    return loss


def _terms(model: nn.Module, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits = output_tensor(model(images))
    kl = posterior.kl(model)
    if kl is None:
        raise InputError(
            "the model has no Bayesian layer, so it has no KL term to train with",
            fix="convert it first: convert(model)",
        )
    return nn.functional.mse_loss(logits, target), kl


def _target(teacher: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return output_tensor(teacher(images))


class _Stepper(Protocol):
    """Steps of Adam on ``data term + kl_weight * KL``, in place."""

    network: nn.Module
    name: str

    def forward(self, images: Tensor, target: Tensor) -> tuple[float, float | None]:
        """Return the data term on a batch, and the KL where it is known before the step."""

    def update(self, learning_rate: float) -> tuple[float, float]:
        """Take the step; return the KL before it and the norm of the loss's gradient."""


class _OwnSteps:
    """Steps through the model's own forward."""

    def __init__(self, model: nn.Module, kl_weight: float, reason: str) -> None:
        self.network = model
        self.name = f"own forward ({reason})"
        self._kl_weight = kl_weight
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(self._parameters)

    def forward(self, images: Tensor, target: Tensor) -> tuple[float, float]:
        self._optimizer.zero_grad(set_to_none=True)
        value, kl = _terms(self.network, images, target)
        self._kl = float(kl.detach())
        self._loss = value + self._kl_weight * kl
        return float(value.detach()), self._kl

    def update(self, learning_rate: float) -> tuple[float, float]:
        self._loss.backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in self._parameters if p.grad is not None))
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        return self._kl, norm


def finetune(
    model: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    *,
    steps: int = STEPS,
    batch: int = BATCH,
    learning_rate: float = LEARNING_RATE,
    decay: float = DECAY,
    kl_weight: float | None = None,
    seed: int = 0,
    class_names: Sequence[str] = (),
    progress: Callable[[TrainingStep], object] | None = None,
) -> tuple[TrainingStep, ...]:
    """Train a converted network in place toward its teacher's logits, with BatchNorm in eval mode.

    Adam with an exponentially decaying learning rate, on `distillation_loss`. The loss need not fall: every
    step draws fresh noise, and the posterior widens toward the prior. The modes of both networks and the
    global random state are restored.

    Args:
        model: The converted network; it is trained.
        teacher: The deterministic network.
        images: Training images ``[N, ...]``, batched in a random order; they go where the model is.
        steps: How many optimizer steps.
        batch: How many images a step takes.
        learning_rate: Adam's learning rate at the first step.
        decay: Factor on the learning rate after every step.
        kl_weight: Factor on the library's KL term; None means 1 / number of batches in ``images``.
        seed: The seed of the order of images and of the noise.
        class_names: The names of the classes, for the trajectory's top-1 class.
        progress: Called with every step as it is done.

    Returns:
        The trajectory, one record a step. Its top-1 class is that of the first image of the set in a pass
        of its own after the step.

    Raises:
        InputError: Nothing in the model is Bayesian, or the loss became NaN or infinite.
        ValueError: A number is out of range.
    """
    if steps < 1 or batch < 1 or not learning_rate > 0 or not 0 < decay <= 1:
        raise ValueError("steps and batch must be at least 1, learning_rate above 0, decay in (0, 1]")
    if kl_weight is None:
        kl_weight = 1 / number_of_batches(len(images), batch)
    trajectory, device = [], where(model) or images.device
    images = images.to(device)
    with limited(), float64_for(device), _modes_of(model, teacher), preserved_random_state():
        seed_everything(seed)
        model.eval()
        teacher.eval()
        stepper = _stepper(model, teacher, images, steps=steps, kl_weight=kl_weight, seed=seed)
        order = _batches(len(images), batch)
        for step in range(1, steps + 1):
            rate = learning_rate * decay ** (step - 1)
            chosen = images[next(order)]
            data_term, known = stepper.forward(chosen, _target(teacher, chosen))
            _require_finite(model, step, data_term, known)
            kl, norm = stepper.update(rate)
            _require_finite(model, step, data_term, kl)
            top1, percent = _top1(stepper.network, images[:1], class_names)
            record = TrainingStep(
                step=step,
                loss=data_term + kl_weight * kl,
                data_term=data_term,
                kl=kl,
                gradient_norm=norm,
                learning_rate=rate,
                top1=top1,
                percent=percent,
                trainer=stepper.name,
            )
            trajectory.append(record)
            if progress is not None:
                progress(record)
        for parameter in model.parameters():
            parameter.grad = None
    del stepper
    give_memory_back()
    return tuple(trajectory)


def _stepper(
    model: nn.Module, teacher: nn.Module, images: Tensor, *, steps: int, kl_weight: float, seed: int
) -> _Stepper:
    choice = in_force().sampler
    if choice == "own":
        return _OwnSteps(model, kl_weight, "chosen")
    if choice == "native":
        return _OwnSteps(model, kl_weight, "the native sampler draws passes, and trains nothing")
    if choice == "auto" and steps < LEAST_STEPS:
        return _OwnSteps(model, kl_weight, f"fewer than {LEAST_STEPS} steps")
    from pytest_bnn.sampling.engine.plan import Unsupported
    from pytest_bnn.training.engine import fused_steps

    try:
        few = images[:2]
        return fused_steps(
            model, few, _target(teacher, few), data_term=nn.functional.mse_loss, kl_weight=kl_weight, seed=seed
        )
    except Exception as error:  # what the model itself raises, its own forward will raise again
        if choice == "engine":
            raise InputError(f"the engine cannot train this model: {error}", fix="leave the sampler at auto") from error
        reason = str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
        return _OwnSteps(model, kl_weight, reason)


def _require_finite(model: nn.Module, step: int, data_term: float, kl: float | None) -> None:
    if math.isfinite(data_term) and (kl is None or math.isfinite(kl)):
        return
    if kl is None:
        term = posterior.kl(model)
        kl = math.nan if term is None else float(term)
    raise InputError(
        f"the loss is {data_term + kl} at step {step} (data term {data_term}, KL {kl})",
        fix="check the images for NaN and convert with a smaller moped_delta",
    )


def number_of_batches(images: int, batch: int = BATCH) -> int:
    """Return how many batches make one pass over a training set."""
    return max(1, -(-images // batch))


def batch_size(images: Tensor) -> int:
    """Return the batch that `finetune` takes of the bundled images: 32 digits, or 8 crops of 224x224."""
    return BATCH if images[0].numel() < 3 * 64 * 64 else BATCH // 4


def _top1(model: nn.Module, image: Tensor, class_names: Sequence[str]) -> tuple[str, float]:
    with torch.no_grad():
        share, index = probabilities(output_tensor(model(image)))[0].flatten().max(dim=0)
    name = class_names[int(index)] if int(index) < len(class_names) else f"class {int(index)}"
    return name, 100 * float(share)


def _batches(images: int, batch: int) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(images).split(batch)


@contextmanager
def _modes_of(*models: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
