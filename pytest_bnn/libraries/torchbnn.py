"""The adapter of torchbnn: BayesLinear and BayesConv2d, sigma = exp(log_sigma), the KL of its BKLLoss."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.libraries.gaussian import EXP, PosteriorTensor, kl_of_normals
from pytest_bnn.libraries.protocol import CAPABILITIES, BayesianLayer, Convention, Words

_KINDS = {"BayesLinear": "Linear", "BayesConv2d": "Conv2d"}

#: Attributes that a layer has, in the library as in a copy of it.
_OWN = ("weight_mu", "weight_log_sigma", "prior_mu", "prior_sigma", "prior_log_sigma")


class TorchBnn:
    """The library of Harry Kim, `torchbnn`; recognised by its classes' names and attributes, so copies count too."""

    name = "torchbnn"
    can = CAPABILITIES
    conventions: tuple[Convention, ...] = ("mean over all weights", "sum")
    words = Words(
        library="torchbnn",
        kl="torchbnn.BKLLoss(reduction='mean', last_layer_only=False)(model)",
        rho="log_sigma",
        convert="build the network of torchbnn's BayesLinear and BayesConv2d",
        wider="start from a larger prior_sigma",
        narrower="start from a smaller prior_sigma",
    )

    def owns(self, module: nn.Module) -> bool:
        """Return whether a module is the library's."""
        kind = next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _KINDS), None)
        return kind is not None and all(hasattr(module, name) for name in _OWN)

    def layer(self, path: str, module: nn.Module) -> BayesianLayer | None:
        """Return the layer that a module is."""
        if not self.owns(module):
            return None
        name = next(kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _KINDS)
        return BayesianLayer(path, module, _KINDS[name], "Reparameterization", tuple(_tensors(path, module)), self)

    def is_stock(self, layer: BayesianLayer) -> bool:
        """Return whether the CPU sampler may stand in for a layer's forward."""
        return False

    def border(self, layer: BayesianLayer) -> tuple[list[int], str] | None:
        """Return how a layer pads its input before its call."""
        return None

    def layer_kl(self, layer: BayesianLayer) -> Tensor:
        """Return a layer's KL as the library computes it."""
        library: Any = sys.modules.get("torchbnn.functional")
        terms = []
        for tensor in layer.tensors:
            log_prior = getattr(layer.module, tensor.prior_sigma_name)
            if library is not None:
                terms.append(library._kl_loss(tensor.mu, tensor.rho, tensor.prior_mu, log_prior))
            else:
                terms.append(kl_of_normals(tensor.mu, tensor.rho.exp(), tensor.prior_mu, tensor.prior_sigma).sum())
        return torch.stack(terms).sum()

    def brings_own_kl(self, layer: BayesianLayer) -> bool:
        """Return whether a layer's class computes another KL: none does, it is computed for the model."""
        return False

    def kl(self, model: nn.Module) -> Tensor | None:
        """Return a model's KL as the library computes it."""
        found = (self.layer(path, module) for path, module in model.named_modules())
        layers = [layer for layer in found if layer is not None]
        if not layers:
            return None
        return torch.stack([self.layer_kl(layer) for layer in layers]).sum() / sum(layer.weights for layer in layers)


def _tensors(path: str, module: nn.Module) -> Iterator[PosteriorTensor]:
    prior = ("prior_mu", "prior_log_sigma")
    yield PosteriorTensor(
        path, "weight", module, "weight_mu", "weight_log_sigma", "weight_eps", *prior, EXP, prior_is_log=True
    )
    if isinstance(getattr(module, "bias_mu", None), Tensor):
        yield PosteriorTensor(
            path, "bias", module, "bias_mu", "bias_log_sigma", "bias_eps", *prior, EXP, prior_is_log=True
        )
