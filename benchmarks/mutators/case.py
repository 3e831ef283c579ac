"""What is broken: a healthy network with all that the checks get beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers
from pytest_bnn.subject import Subject

FACTORS = (1.01, 1.1, 2, 10)

#: For what no check may judge: the extremes suffice.
EXTREMES = (FACTORS[0], FACTORS[-1])

#: For the two terms of a loss, which may also be too small.
WEIGHTS = (*FACTORS, 0.1)

#: Batches of an epoch, and the examples in them, that the checks are told.
BATCHES, EXAMPLES = 10, 60

#: The share of abs(mu) that sigma is in a fresh conversion.
MOPED_DELTA = 0.1

Batch = tuple[Tensor, Tensor | None]
Loss = Callable[[nn.Module, Batch], Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    images, labels = batch
    assert labels is not None
    return functional.cross_entropy(model(images), labels)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    total: Tensor = cross_entropy(model, batch) + get_kl_loss(model) / BATCHES
    return total


@dataclass(slots=True, kw_only=True)
class Case:
    """A network, its teacher, its data and its loss, with what is declared; a mutator changes a copy of it in place."""

    name: str
    teacher: nn.Module
    model: nn.Module
    images: Tensor
    labels: Tensor
    loss: Loss = loss
    trained: bool = False
    stage: Literal["auto", "converted", "finetuned"] = "auto"
    factory: Callable[[], nn.Module] | None = None
    #: Options of single checks, beside those that every case has.
    options: dict[str, dict[str, object]] | None = None

    def copy(self) -> Case:
        """Return one whose model may be broken; the teacher and the data are the same."""
        return replace(self, model=copy.deepcopy(self.model))

    def subject(self) -> Subject:
        return Subject(
            self.model,
            teacher=self.teacher,
            images=self.images,
            labels=self.labels,
            loss=self.loss,
            name=self.name,
            stage=self.stage,
            factory=self.factory,
        )


#: Breaks a case.
Apply = Callable[[Case], object]

#: Attribute, mutation, and what brings it about.
Ways = Iterator[tuple[str, str, Apply]]


def tensor_of(case: Case, tensor: PosteriorTensor) -> PosteriorTensor:
    """Return the tensor of the same name in a copy of the model."""
    return next(t for layer in bayesian_layers(case.model) for t in layer.tensors if t.name == tensor.name)


def layer_of(case: Case, layer: BayesianLayer) -> BayesianLayer:
    """Return the layer at the same path in a copy of the model."""
    return next(other for other in bayesian_layers(case.model) if other.path == layer.path)


def override(module: nn.Module, **methods: Any) -> None:
    """Give a module other methods, by a class of its own that keeps the name."""
    kind: Any = type(module)
    module.__class__ = type(kind.__name__, (kind,), methods)


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a place."""
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module


def times(by: float) -> Callable[[Tensor], Tensor]:
    return lambda value: value * by


def first_is_nan(value: Tensor) -> Tensor:
    value.view(-1)[0] = torch.nan
    return value
