"""The adapter of bayesian-torch: its layers, subclasses of them, and copies of its code under other names.

Vendored copies, forks and modules that were loaded twice have the library's attributes and not its classes. They count
where a probe shows that they compute as the library does: with every draw 0 a call uses mu, with every draw 1 it uses
mu + sigma.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pytest_bnn.libraries.draws import Draws
from pytest_bnn.libraries.functional import Functional
from pytest_bnn.libraries.gaussian import EXP, SOFTPLUS, PosteriorTensor, SigmaMap
from pytest_bnn.libraries.protocol import CAPABILITIES, BayesianLayer, Convention, Words
from pytest_bnn.network.isolation import replaced, undisturbed

ESTIMATORS = ("Reparameterization", "Flipout")

#: Kinds of the library's layers that are one functional call with a drawn weight and bias.
_STOCK = frozenset(["Linear", *(f"Conv{t}{n}d" for t in ("", "Transpose") for n in (1, 2, 3))])

#: Attributes of a layer, for its weight (named kernel in convolutions) and its bias.
ATTRIBUTES = (
    ("weight", "mu_kernel", "rho_kernel", "eps_kernel", "prior_weight_mu", "prior_weight_sigma"),
    ("weight", "mu_weight", "rho_weight", "eps_weight", "prior_weight_mu", "prior_weight_sigma"),
    ("bias", "mu_bias", "rho_bias", "eps_bias", "prior_bias_mu", "prior_bias_sigma"),
)

#: Standard deviation about their means at which the library's ``init_parameters`` draws every mu and every rho.
RANDOM_START = 0.1

#: Classes of layers of ours whose forward draws exactly as the library's does; `pytest_bnn.conversion.layers` adds its.
STAND_INS: set[type[nn.Module]] = set()

#: What the probe of a copy found: how it computes sigma, or None where it is no such layer.
_PROBED: WeakKeyDictionary[nn.Module, tuple[object, SigmaMap | None]] = WeakKeyDictionary()


def _base() -> type[nn.Module] | None:
    """Return the library's base class where the library is loaded; without it no module can be an instance."""
    loaded = sys.modules.get("bayesian_torch.layers.base_variational_layer")
    return None if loaded is None else loaded.BaseVariationalLayer_


class BayesianTorch:
    """The library of Intel Labs, `bayesian-torch`."""

    name = "bayesian-torch"
    can = CAPABILITIES
    conventions: tuple[Convention, ...] = ("mean per tensor", "sum")
    words = Words(
        library="bayesian-torch",
        kl="get_kl_loss(model)",
        rho="rho",
        convert="convert the network with pytest_bnn.convert() or dnn_to_bnn()",
        wider="convert with a larger moped_delta",
        narrower="convert with a smaller moped_delta",
    )

    def owns(self, module: nn.Module) -> bool:
        """Return whether a module is the library's."""
        base = _base()
        return (base is not None and isinstance(module, base)) or _copy_of(module) is not None

    def layer(self, path: str, module: nn.Module) -> BayesianLayer | None:
        """Return the layer that a module is."""
        tensors = tuple(self._tensors(path, module))
        if not tensors:
            return None
        name = type(module).__name__
        estimator = next((e for e in ESTIMATORS if name.endswith(e)), "own")
        return BayesianLayer(path, module, name.removesuffix(estimator) or name, estimator, tensors, self)

    def _tensors(self, path: str, module: nn.Module) -> Iterator[PosteriorTensor]:
        base = _base()
        how = _of_library(module) if base is not None and isinstance(module, base) else _copy_of(module)
        if how is None:
            return
        for role, mu, rho, *rest in ATTRIBUTES:
            if isinstance(getattr(module, mu, None), Tensor) and isinstance(getattr(module, rho, None), Tensor):
                eps, prior_mu, prior_sigma = rest
                yield PosteriorTensor(path, role, module, mu, rho, eps, prior_mu, prior_sigma, how)  # type: ignore[arg-type]

    def is_stock(self, layer: BayesianLayer) -> bool:
        """Return whether the CPU sampler may stand in for a layer's forward."""
        module: Any = layer.module
        if "forward" in vars(module):
            return False
        if type(module) in STAND_INS:
            return True
        library = sys.modules.get("bayesian_torch.layers")
        return (
            layer.estimator in ESTIMATORS
            and layer.kind in _STOCK
            and type(module) is getattr(library, layer.kind + layer.estimator, None)
            and bool(module.dnn_to_bnn_flag)
            and not module.quant_prepare
        )

    def border(self, layer: BayesianLayer) -> tuple[list[int], str] | None:
        """Return how a layer pads its input before its call."""
        module: Any = layer.module
        return (module.border, module.padding_mode) if type(module) in STAND_INS and hasattr(module, "border") else None

    def layer_kl(self, layer: BayesianLayer) -> Tensor:
        """Return a layer's KL as the library computes it."""
        kl = layer.module.kl_loss()  # type: ignore[operator]
        assert isinstance(kl, Tensor)
        return kl

    def brings_own_kl(self, layer: BayesianLayer) -> bool:
        """Return whether a layer's class has a ``kl_loss`` that is not the library's; a patch of one layer is none."""
        kind = type(layer.module)
        method = getattr(kind, "kl_loss", None)
        if "kl_loss" in vars(layer.module) or method is None or not _is_in_its_module(kind):
            return False
        return str(method.__module__).split(".")[0] not in ("bayesian_torch", "pytest_bnn")

    def kl(self, model: nn.Module) -> Tensor | None:
        """Return a model's KL as the library computes it."""
        if not any(hasattr(module, "kl_loss") for module in model.modules()):
            return None
        if not clashes(model):
            value = importlib.import_module("bayesian_torch.models.dnn_to_bnn").get_kl_loss(model)
            assert value is None or isinstance(value, Tensor)
            return value
        terms = [module.kl_loss() for module in model.modules() if has_kl(module)]  # type: ignore[operator]
        return torch.stack([term.reshape(()) for term in terms]).sum() if terms else None


def start_of(module: nn.Module) -> tuple[float, float] | None:
    """Return the means about which a layer's constructor drew mu and rho, as the layer keeps them; None without."""
    found = []
    for name in ("posterior_mu_init", "posterior_rho_init"):
        value = getattr(module, name, None)
        value = value[0] if isinstance(value, tuple) and len(value) == 1 else value  # some layers keep a tuple of one
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        found.append(float(value))
    return found[0], found[1]


def _is_in_its_module(kind: type) -> bool:
    """Return whether a class stands in a module, or in a function there; one made on the fly patches one layer."""
    outermost = kind.__qualname__.partition(".")[0]
    return "<locals>" in kind.__qualname__ or hasattr(sys.modules.get(kind.__module__), outermost)


def has_kl(module: nn.Module) -> bool:
    """Return whether a module has a method ``kl_loss()`` that needs no argument."""
    method = getattr(module, "kl_loss", None)
    if method is None or isinstance(method, nn.Module) or not callable(method):
        return False
    try:
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


def clashes(model: nn.Module) -> tuple[str, ...]:
    """Return the paths whose ``kl_loss`` is no method without arguments, so that ``get_kl_loss`` cannot call it."""
    return tuple(p for p, module in model.named_modules() if hasattr(module, "kl_loss") and not has_kl(module))


def _of_library(module: nn.Module) -> SigmaMap:
    """Say how a layer of the library computes sigma: a subclass with a forward of its own may do it in another way."""
    if str(type(module).forward.__module__).split(".")[0] in ("bayesian_torch", "pytest_bnn"):
        return SOFTPLUS
    return _copy_of(module) or SOFTPLUS


def _copy_of(module: nn.Module) -> SigmaMap | None:
    """Say how a copy of the library's layers computes sigma; None for what is none, or what the probe does not show."""
    if isinstance(module, torch.jit.ScriptModule) or not any(name.startswith("mu_") for name in module._parameters):
        return None
    if type(module).forward is nn.Module.forward:  # a container, which has no forward of its own
        return None
    pairs = [(mu, rho) for _, mu, rho, *_ in ATTRIBUTES if isinstance(getattr(module, mu, None), Tensor)]
    pairs = [(mu, rho) for mu, rho in pairs if isinstance(getattr(module, rho, None), Tensor)]
    if not any("bias" not in mu for mu, _ in pairs):
        return None
    # Only a change of what the probe reads makes it run again: it takes some passes of the layer.
    key = (type(module), module.__dict__.get("forward"))
    known = _PROBED.get(module)
    if known is None or known[0] != key:
        _PROBED[module] = known = (key, _probed(module, pairs))
    return known[1]


def _probed(module: nn.Module, pairs: list[tuple[str, str]]) -> SigmaMap | None:
    try:
        with undisturbed(module, seed=0), torch.no_grad():
            images, mu = inputs_of(module, getattr(module, pairs[0][0])), getattr(module, pairs[0][0])
            # At a width of one the two ways of computing sigma differ, whatever the layer's own is.
            with replaced((module._parameters, r, torch.full_like(getattr(module, r), 0.5)) for _, r in pairs):
                (zero, *_), (again, *_), (one, *others) = (_weights(module, images, value) for value in (0, 0, 1))
                wide = torch.full_like(zero, 0.5)
                at_mu = torch.equal(zero, again) and torch.equal(zero, mu)
                moved = others[-1] if others else one - zero
                for how in (SOFTPLUS, EXP):
                    if at_mu and torch.allclose(moved, how.of(wide), rtol=1e-4, atol=1e-5):
                        return how
    except Exception:  # it does not take such images, or works in another way
        return None
    return None


def _weights(module: nn.Module, images: Tensor, value: float) -> list[Tensor]:
    calls = Functional()
    with Draws(value), calls:
        module(images)
    return [call.weight.detach().clone() for call in calls.seen]


def inputs_of(module: nn.Module, mu: Tensor) -> Tensor:
    """Return inputs that a layer with such weights takes: a linear one, or a convolution."""
    if mu.ndim == 2:
        return torch.ones(2, mu.shape[1], dtype=mu.dtype, device=mu.device)
    groups = int(getattr(module, "groups", 1))
    channels = mu.shape[0] if "Transpose" in type(module).__name__ else mu.shape[1] * groups
    wide = 2 + 4 * max(mu.shape[2:])
    return torch.ones(2, channels, *[wide] * (mu.ndim - 2), dtype=mu.dtype, device=mu.device)
