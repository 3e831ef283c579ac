"""What the cases share: digits of 8 x 8 in one channel, a network that reads them, bare conversion, honest training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, TypeVar

import torch
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

Network = TypeVar("Network", bound=nn.Module)

BATCH = 64
TRAINING = 1400
#: Batches of an epoch: the KL term's weight is 1 over it.
BATCHES = 22

PARAMETERS = {
    "prior_mu": 0.0,
    "prior_sigma": 1.0,
    "posterior_mu_init": 0.0,
    "posterior_rho_init": -3.0,
    "type": "Reparameterization",
    "moped_enable": True,
    "moped_delta": 0.05,
}


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(5))
    return torch.tensor(found.images, dtype=torch.float32)[order, None] / 8 - 1, torch.tensor(found.target)[order]


def training_set() -> tuple[Tensor, Tensor]:
    images, labels = _digits()
    return images[:TRAINING], labels[:TRAINING]


def held_out(count: int = 96) -> tuple[Tensor, Tensor]:
    images, labels = _digits()
    return images[TRAINING : TRAINING + count].clone(), labels[TRAINING : TRAINING + count].clone()


class Reader(nn.Module):
    """Three layers that read a digit; `features` are what the last one sees."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=bias)
        self.second = nn.Linear(64, 64, bias=bias)
        self.head = nn.Linear(64, 10, bias=bias)

    def features(self, images: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(images.flatten(1)))))

    def forward(self, images: Tensor) -> Any:
        return self.head(self.features(images))


def _batches(epochs: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(TRAINING, generator=generator).split(BATCH)


@cache
def _reader(*, bias: bool) -> Reader:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = Reader(bias=bias)
    images, labels = training_set()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for rows in _batches(20, 0):
        optimizer.zero_grad()
        functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network.eval()


def reader(kind: type[nn.Module] = Reader, *, bias: bool = True) -> nn.Module:
    """Return a trained network, as an instance of a subclass of `Reader` with another forward where one is given."""
    network = copy.deepcopy(_reader(bias=bias))
    object.__setattr__(network, "__class__", kind)
    return network


def bare(network: Network, **changed: Any) -> Network:
    """Convert a copy by the library alone."""
    converted = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dnn_to_bnn(converted, {**PARAMETERS, **changed})
    return converted


def seeded(make: Callable[[], Network], seed: int = 0) -> Network:
    """Build a network with random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def elbo(model: nn.Module, batch: Any, *, weight: float = 1 / BATCHES) -> Tensor:
    images, labels = batch
    value: Tensor = functional.cross_entropy(model(images), labels) + weight * get_kl_loss(model)
    return value


def with_kl(term: Callable[[Any, Any], Tensor], weight: float = 1 / 30) -> Callable[[nn.Module, Any], Tensor]:
    """Make a training loss of a data term ``term(model, batch)``."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        value: Tensor = term(model, batch) + weight * get_kl_loss(model)
        return value

    return loss


def tuned(
    model: nn.Module,
    *,
    steps: int,
    rate: float,
    loss: Callable[[nn.Module, Any], Tensor] = elbo,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    after_step: Callable[[nn.Module], object] = lambda model: None,
) -> nn.Module:
    """Train a Bayesian reader of digits in place, honestly, and leave no gradients behind."""
    images, labels = training_set()
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stepper = optimizer(wanted, lr=rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model.train()
        for number, rows in enumerate(_batches(1 + steps // BATCHES, 3)):
            if number == steps:
                break
            stepper.zero_grad()
            loss(model, (images[rows], labels[rows])).backward()
            stepper.step()
            after_step(model)
    stepper.zero_grad()
    return model.eval()


momentum = partial(torch.optim.SGD, momentum=0.9)
