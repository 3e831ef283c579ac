"""Models that were trained, briefly and long, inside of wrappers and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from tests.cases.case import Input, case
from tests.cases.networks import Reader, bare, elbo, held_out, momentum, reader, seeded, tuned


def _trained(model: nn.Module, **given: Any) -> Input:
    return Input(model=model, **{"teacher": reader(), "data": held_out, "loss": elbo, **given})


@case("long training", push=True)
def twenty_epochs_of_fine_tuning() -> Input:
    return _trained(tuned(bare(reader(), moped_delta=0.1), steps=440, rate=1e-3))


@case("long training")
def five_epochs_at_a_high_rate() -> Input:
    return _trained(tuned(bare(reader(), moped_delta=0.1), steps=110, rate=1e-2))


@case("long training")
def fine_tuning_by_momentum() -> Input:
    return _trained(tuned(bare(reader()), steps=220, rate=1e-2, optimizer=momentum))


# A few of its images are so close that 128 passes leave them open: the remedy, more passes, is true.
@case("long training", verdicts={"teacher.agreement": "pass or inconclusive"})
def twenty_five_epochs_at_a_high_rate() -> Input:
    return _trained(tuned(bare(reader(), moped_delta=0.1), steps=550, rate=1e-2))


@case(
    "trained from scratch",
    verdicts={"mean.equals_teacher": "fail or not_applicable", "teacher.agreement": "pass or fail or not_applicable"},
    says={"mean.equals_teacher": "--stage"},
    push=True,
)
def teacher_only_for_comparison() -> Input:
    """Whatever is said of weights that are no teacher's, the way out has to be named."""
    return _trained(tuned(bare(seeded(Reader, 1), moped_enable=False), steps=440, rate=5e-3))


def _wrapped(wrap: Any) -> Input:
    model = wrap(tuned(bare(reader()), steps=60, rate=5e-4))
    return _trained(model.eval())


@case("wrappers", push=True)
def fine_tuned_and_in_data_parallel() -> Input:
    return _wrapped(nn.DataParallel)


@case("wrappers")
def average_of_the_weights() -> Input:
    """The exponential moving average that is deployed in place of the last weights."""
    model = bare(reader())
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    tuned(model, steps=60, rate=5e-4, after_step=average.update_parameters)
    return _trained(average.eval())


class Scaled(nn.Module):
    """A class around a network, which does a little more."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Any:
        return self.inner(images) / 1.5


@case("wrappers")
def class_around_the_network() -> Input:
    model = Scaled(tuned(bare(reader()), steps=60, rate=5e-4)).eval()
    return _trained(model)


@case("wrappers")
def two_wrappers() -> Input:
    return _wrapped(lambda model: nn.DataParallel(Scaled(model)))


@case("wrappers")
def compiled() -> Input:
    """By a backend that runs the graph as it is."""
    return _wrapped(lambda model: torch.compile(model, backend="eager"))
