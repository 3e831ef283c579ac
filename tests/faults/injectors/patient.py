"""Who gets the faults of the catalogue: three healthy networks, converted by the library alone; and what a fault is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.example.images import digits
from pytest_bnn.example.weights import load_teacher
from tests.faults.injectors.networks import sure_of

#: What an injector gives: the broken ``model``, and the ``loss`` where it is not `healthy_loss`.
Given = dict[str, Any]

BATCHES = 10
ESTIMATORS = ("Reparameterization", "Flipout")

#: What `dnn_to_bnn` gets.
PARAMETERS = {
    "prior_mu": 0.0,
    "prior_sigma": 1.0,
    "posterior_mu_init": 0.0,
    "posterior_rho_init": -3.0,
    "moped_enable": True,
    "moped_delta": 0.1,
}

#: Where ResNet18 has what the small networks call by these names. It has no Dropout: `Patient.with_dropout` adds one.
RESNET18_PATHS = {
    "stem": "conv1",
    "block": "layer1.0",
    "block.conv1": "layer1.0.conv1",
    "block.conv2": "layer1.0.conv2",
    "pool": "avgpool",
    "pool.0": "avgpool.0",
    "drop": "avgpool.1",
    "head": "fc",
}


def bare(model: nn.Module, estimator: str, *, delta: float = 0.1, moped: bool = True) -> nn.Module:
    """Convert a copy by the library's own hand, with nothing of ours around it."""
    converted = deepcopy(model)
    parameters = {**PARAMETERS, "type": estimator, "moped_enable": moped, "moped_delta": delta}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dnn_to_bnn(converted, parameters)
    return converted


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A trained network of one's own to break, and the library's bare conversion.

    ``paths`` says where it has what the small networks call stem, block.conv1, block.conv2 and head.
    """

    network: str
    teacher: Any
    estimator: str
    images: Tensor
    labels: Tensor
    paths: Mapping[str, str] = field(default_factory=dict)

    def converted(self, **options: Any) -> Any:
        return bare(self.teacher, self.estimator, **options)

    def path(self, name: str) -> str:
        return self.paths.get(name, name)

    def part(self, model: nn.Module, name: str) -> Any:
        return model.get_submodule(self.path(name))

    def put(self, model: nn.Module, name: str, module: nn.Module) -> None:
        model.set_submodule(self.path(name), module)

    def with_dropout(self) -> Patient:
        """Put a Dropout before the head of a network that has none; in eval mode it is the same network."""
        if not any(isinstance(module, nn.Dropout) for module in self.teacher.modules()):
            pool = self.part(self.teacher, "pool")
            self.put(self.teacher, "pool", nn.Sequential(pool, nn.Dropout(0.3)).eval())
        return self

    def counts(self) -> dict[str, int]:
        """Return the numbers that explanations name."""
        layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in self.teacher.modules())
        stem, second = (self.part(self.teacher, name).weight.numel() for name in ("stem", "block.conv2"))
        return {"layers": layers, "others": layers - 1, "stem": stem, "second": second, "zeros": zeros(stem)}


def zeros(weights: int) -> int:
    """Count the weights that A6 sets to 0: enough for `kl.present` to warn, from a thousandth on."""
    return -(-weights // 1000)


def patient(name: str, estimator: str, networks: Mapping[str, nn.Module]) -> Patient:
    """Return a patient with a copy of a network: ``residual`` or ``plain`` of these, or the embedded ``resnet18``."""
    if name == "resnet18":
        images, labels = digits("held_out", 2)
        teacher, paths = load_teacher("digits").model, RESNET18_PATHS
    else:
        images, labels = sure_of(networks)
        teacher, paths = deepcopy(networks[name]), {}
    return Patient(network=name, teacher=teacher, estimator=estimator, images=images, labels=labels, paths=paths)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row: what breaks the network, and who has to find it.

    The checks in ``fails`` must fail (``warns``: warn) with the words that a reader needs; every other check must
    pass, save those in ``open``, whose outcome the fault leaves to chance or to taste. A word that is the name of a
    part stands for its path in the network at hand, and ``{layers}`` for one of `Patient.counts`.
    """

    id: str
    description: str
    inject: Callable[[Patient], Given]
    fails: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    open: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        return (*self.fails, *self.warns)


def loss_with(term: Callable[[nn.Module], Any]) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        total: Tensor = functional.cross_entropy(model(images), labels) + term(model)
        return total

    return loss


def kl(model: nn.Module) -> Tensor:
    total: Tensor = get_kl_loss(model)
    return total


healthy_loss = loss_with(lambda model: kl(model) / BATCHES)


def posterior_of(model: nn.Module, name: str) -> list[nn.Parameter]:
    return [p for n, p in model.named_parameters() if n.rpartition(".")[2].startswith(name)]
