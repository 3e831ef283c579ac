"""What a Bayesian layer is: mu, sigma, prior, KL, its noise, and the network at its posterior mean.

The only module, with `conversion`, that knows bayesian-torch. Checks see layers through `BayesianLayer` and
`PosteriorTensor` alone, so that another library of Bayesian layers is one adapter here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from bayesian_torch import layers as library
from bayesian_torch.layers.base_variational_layer import BaseVariationalLayer_
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.network.isolation import raised_in, replaced

ESTIMATORS = ("Reparameterization", "Flipout")

#: Kinds of the library's layers that are one functional call with a drawn weight and bias.
_STOCK = frozenset(["Linear", *(f"Conv{t}{n}d" for t in ("", "Transpose") for n in (1, 2, 3))])

#: Attributes of a bayesian-torch layer, for its weight (named kernel in convolutions) and its bias.
_ATTRIBUTES = (
    ("weight", "mu_kernel", "rho_kernel", "eps_kernel", "prior_weight_mu", "prior_weight_sigma"),
    ("weight", "mu_weight", "rho_weight", "eps_weight", "prior_weight_mu", "prior_weight_sigma"),
    ("bias", "mu_bias", "rho_bias", "eps_bias", "prior_bias_mu", "prior_bias_sigma"),
)


@dataclass(frozen=True, slots=True, eq=False)
class PosteriorTensor:
    """The mean-field Gaussian posterior N(mu, sigma^2), sigma = log(1 + exp(rho)), of one weight or bias tensor.

    Its properties read the layer's attributes at the time of the call.
    """

    path: str
    role: Literal["weight", "bias"]
    module: nn.Module
    mu_name: str
    rho_name: str
    eps_name: str
    prior_mu_name: str
    prior_sigma_name: str

    @property
    def name(self) -> str:
        """The tensor's name for people: ``layer1.0.conv1.weight``."""
        return f"{self.path}.{self.role}" if self.path else self.role

    @property
    def mu(self) -> Tensor:
        """The posterior mean, a parameter."""
        return self._get(self.mu_name)

    @property
    def rho(self) -> Tensor:
        """The parameter behind sigma."""
        return self._get(self.rho_name)

    @property
    def sigma(self) -> Tensor:
        """The posterior standard deviation exactly as the layer computes it, in the layer's dtype, detached."""
        return sigma_into(torch.empty_like(self.rho.detach()), self.rho.detach())

    @property
    def prior_mu(self) -> Tensor:
        """The prior mean."""
        return self._get(self.prior_mu_name)

    @property
    def prior_sigma(self) -> Tensor:
        """The prior standard deviation (bayesian-torch calls it prior variance, docs/faults.md A10)."""
        return self._get(self.prior_sigma_name)

    def flat_prior(self) -> tuple[Tensor, Tensor]:
        """Give prior mean and sigma detached, flat and contiguous: one number each where all are equal."""
        priors = [prior.detach() for prior in (self.prior_mu, self.prior_sigma)]
        if all(bool((prior == prior.flatten()[0]).all()) for prior in priors):
            mean, sigma = (prior.flatten()[:1].clone() for prior in priors)
        else:
            mean, sigma = (prior.expand(self.mu.shape).flatten() for prior in priors)
        return mean, sigma

    @property
    def count(self) -> int:
        """How many weights the tensor has."""
        return self.mu.numel()

    def kl_sum(self) -> float:
        """Give KL(posterior || prior), summed over the tensor, in nats, by the closed form in float64.

        Source: the KL divergence of two Gaussians, as in Kingma and Welling 2014, appendix B.
        """
        mu, rho, prior_mu, prior_sigma = self._double()
        sigma = nn.functional.softplus(rho)
        kl = torch.log(prior_sigma / sigma) + (sigma**2 + (mu - prior_mu) ** 2) / (2 * prior_sigma**2) - 0.5
        return float(kl.sum())

    def kl_gradient(self) -> tuple[Tensor, Tensor]:
        """Give the gradient of `kl_sum` to mu and to rho, in float64."""
        mu, rho, prior_mu, prior_sigma = self._double()
        sigma = nn.functional.softplus(rho)
        to_mu = (mu - prior_mu) / prior_sigma**2
        to_rho = (sigma / prior_sigma**2 - 1 / sigma) * torch.sigmoid(rho)
        return to_mu, to_rho

    def _double(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mu, rho, prior_mu, prior_sigma = (
            t.detach().double() for t in (self.mu, self.rho, self.prior_mu, self.prior_sigma)
        )
        return mu, rho, prior_mu, prior_sigma

    def _get(self, name: str) -> Tensor:
        value = getattr(self.module, name)
        assert isinstance(value, Tensor)
        return value


def sigma_into(out: Tensor, rho: Tensor) -> Tensor:
    """Write the standard deviation of ``rho``, as the layers compute it, into a tensor of its shape; give that."""
    return out.copy_(rho).exp_().log1p_()


@dataclass(frozen=True, slots=True, eq=False)
class BayesianLayer:
    """A layer with a posterior: ``kind`` is what it was (``Conv2d``), ``estimator`` how it draws."""

    path: str
    module: nn.Module
    kind: str
    estimator: str
    tensors: tuple[PosteriorTensor, ...]

    @property
    def weights(self) -> int:
        """How many weights have a posterior here."""
        return sum(tensor.count for tensor in self.tensors)

    @property
    def noise(self) -> list[Tensor]:
        """The buffers that its noise is drawn into."""
        found = [getattr(self.module, tensor.eps_name, None) for tensor in self.tensors]
        return [eps for eps in found if isinstance(eps, Tensor)]

    @property
    def is_stock(self) -> bool:
        """Whether it is the library's own convolution or linear layer with its own forward, which gives the output."""
        module: Any = self.module
        return (
            self.estimator in ESTIMATORS
            and self.kind in _STOCK
            and type(module) is getattr(library, self.kind + self.estimator)
            and "forward" not in vars(module)
            and bool(module.dnn_to_bnn_flag)
            and not module.quant_prepare
        )

    def kl(self) -> Tensor:
        """Give the KL term as the layer itself computes it, with its graph."""
        kl = self.module.kl_loss()  # type: ignore[operator]
        assert isinstance(kl, Tensor)
        return kl


def bayesian_layers(model: nn.Module) -> tuple[BayesianLayer, ...]:
    """Give the layers of a model that own a posterior, in the order of ``named_modules``, each once."""
    found = []
    for path, module in model.named_modules():
        tensors = tuple(_tensors(path, module))
        if tensors:
            name = type(module).__name__
            estimator = next((e for e in ESTIMATORS if name.endswith(e)), "own")
            kind = name.removesuffix(estimator) or name
            found.append(BayesianLayer(path, module, kind, estimator, tensors))
    return tuple(found)


def _tensors(path: str, module: nn.Module) -> Iterator[PosteriorTensor]:
    if not isinstance(module, BaseVariationalLayer_):
        return
    for role, mu, rho, *rest in _ATTRIBUTES:
        if isinstance(getattr(module, mu, None), Tensor) and isinstance(getattr(module, rho, None), Tensor):
            yield PosteriorTensor(path, role, module, mu, rho, *rest)  # type: ignore[arg-type]


def is_bayesian(module: nn.Module) -> bool:
    """Say whether a module is a layer of the library, composites such as its LSTM included."""
    return isinstance(module, BaseVariationalLayer_)


def orphaned_posteriors(model: nn.Module) -> tuple[str, ...]:
    """Give the paths that still own mu and rho although no Bayesian layer is left there.

    That is what ``torch.fx`` and ``create_feature_extractor`` make of a Bayesian network: the parameters
    survive, the layers and with them fresh noise and KL do not.
    """
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    layers = {layer.path for layer in bayesian_layers(model)}
    found = []
    for _, mu, rho, *_ in _ATTRIBUTES:
        for name in sorted(names):
            path, _, leaf = name.rpartition(".")
            if leaf == rho and path not in layers and (f"{path}.{mu}" if path else mu) in names:
                found.append(path)
    return tuple(dict.fromkeys(found))


class KlError(Exception):
    """A layer's own ``kl_loss()`` raised: what, and in which layer; the cause is chained."""


def kl(model: nn.Module) -> Tensor | None:
    """Give the model's KL term as bayesian-torch's ``get_kl_loss`` computes it; None where nothing is Bayesian.

    Raises:
        KlError: A layer's own ``kl_loss()`` raised.
    """
    try:
        value = get_kl_loss(model)
    except Exception as error:
        raise KlError(f"{type(error).__name__}: {error}, in {raised_in(model, error) or 'the model itself'}") from error
    assert value is None or isinstance(value, Tensor)
    return value


def counted_twice(model: nn.Module) -> tuple[str, ...]:
    """Give the paths of layers whose KL ``get_kl_loss`` adds again for a layer around them (docs/faults.md, A12)."""
    outer = [path for path, module in model.named_modules() if hasattr(module, "kl_loss")]
    return tuple(p for p in outer if any(p.startswith(f"{o}.") or (o == "" and p) for o in outer))


@contextmanager
def zero_sigma(model: nn.Module, *, save: Collection[str] = ()) -> Iterator[None]:
    """Run the model at its posterior mean: every rho at minus infinity, so every sigma is exactly 0.

    The layers at the paths in ``save`` keep theirs.
    """
    with replaced(
        (t.module._parameters, t.rho_name, nn.Parameter(torch.full_like(t.rho, -torch.inf), requires_grad=False))
        for layer in bayesian_layers(model)
        if layer.path not in save
        for t in layer.tensors
    ):
        yield


@contextmanager
def shifted_prior(model: nn.Module, by: float) -> Iterator[None]:
    """Move every prior mean by a constant: the data term of a loss cannot notice, its KL term must."""
    with replaced(
        (t.module._buffers, t.prior_mu_name, t.prior_mu + by) for layer in bayesian_layers(model) for t in layer.tensors
    ):
        yield


class _Noise(TorchFunctionMode):
    """Sees every draw into a layer's noise buffer, and makes it zero when asked to."""

    def __init__(self, model: nn.Module, *, silent: bool) -> None:
        super().__init__()
        self.silent = silent
        self.paths_by_pointer: dict[int, str] = {}
        for layer in bayesian_layers(model):
            for eps in layer.noise:
                if eps.numel():
                    self.paths_by_pointer[eps.data_ptr()] = layer.path
        self.drawn: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is Tensor.normal_:
            path = self.paths_by_pointer.get(args[0].data_ptr())
            if path is not None:
                self.drawn.add(path)
                if self.silent:
                    with torch.no_grad():
                        args[0].zero_()
        return result


@contextmanager
def zero_noise(model: nn.Module) -> Iterator[None]:
    """Let every draw of a Bayesian layer come out as zeros, with sigma and its graph intact.

    Unlike `zero_sigma`, rho still has a gradient: the loss's data term contributes exactly nothing to it.
    """
    with _Noise(model, silent=True):
        yield


@contextmanager
def watched_noise(model: nn.Module) -> Iterator[set[str]]:
    """Collect the paths of the layers that draw noise inside."""
    with _Noise(model, silent=False) as noise:
        yield noise.drawn
