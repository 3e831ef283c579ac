"""The adapters of libraries, and what they say of a model together: its Bayesian layers, its KL, what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.libraries.bayesian_torch import ATTRIBUTES, BayesianTorch, clashes, has_kl, inputs_of
from pytest_bnn.libraries.protocol import CAPABILITIES, PROMISES, Adapter, BayesianLayer
from pytest_bnn.libraries.torchbnn import TorchBnn
from pytest_bnn.network.isolation import raised_in, undisturbed
from pytest_bnn.network.naming import called

__all__ = [
    "ADAPTERS",
    "KlError",
    "adapters_of",
    "bayesian_layers",
    "clashes",
    "counted_twice",
    "has_kl",
    "is_bayesian",
    "kl",
    "lacking",
    "nobody_knows",
    "orphaned_posteriors",
    "unknown_layers",
]

#: The adapters, in the order in which they are asked; see docs/how-to/another-library.md.
ADAPTERS: list[Adapter] = [BayesianTorch(), TorchBnn()]

_PAGE = "docs/how-to/another-library.md"

#: Words for a mean and for a width among the names of parameters.
_MEAN = re.compile(r"(^|_)(mu|mean|loc)(_|$|s$)")
_WIDTH = re.compile(r"(^|_)(rho|sigma|std|scale|logvar|log_var|log_sigma|log_std|log_alpha)(_|$|s$)")
#: Whether a module varies by itself, by what its forward is.
_VARIES: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
_NAMED = re.compile(r"bayes|variational|flipout|reparam", re.IGNORECASE)


def bayesian_layers(model: nn.Module) -> tuple[BayesianLayer, ...]:
    """Return the layers of a model that own a posterior, in the order of ``named_modules``, each once."""
    return tuple(layer for path, module in model.named_modules() if (layer := _layer(path, module)) is not None)


def _layer(path: str, module: nn.Module) -> BayesianLayer | None:
    for adapter in ADAPTERS:
        layer = adapter.layer(path, module)
        if layer is not None:
            return layer
    return None


def is_bayesian(module: nn.Module) -> bool:
    """Return whether a module is a layer of a known library, composites such as bayesian-torch's LSTM included."""
    return any(adapter.owns(module) for adapter in ADAPTERS)


def unknown_layers(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Return path and kind of each module that looks like a Bayesian layer and that no adapter knows.

    It owns a pair of parameters of one shape that are named as a mean and a width, or computes with noise in eval mode
    and owns several tensors of one shape, or is called Bayesian. It has a forward of its own: what `torch.fx` leaves of
    a layer has none. Of nested ones the outermost is given.
    """
    found: list[tuple[str, str]] = []
    known: list[str] = [layer.path for layer in bayesian_layers(model)]
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") or outer == "" for outer, _ in found)
        if inside or path in known or is_bayesian(module) or not _has_forward(module):
            continue
        holds_known = any(path == "" or layer.startswith(f"{path}.") for layer in known)
        if (
            _has_pair(module)
            or _varies_by_itself(module)
            or (_NAMED.search(_kind(module)) and _owns_parameters(module) and not holds_known)
        ):
            found.append((path, _kind(module)))
    return tuple(found)


def _has_forward(module: nn.Module) -> bool:
    if isinstance(module, torch.fx.GraphModule):  # what torch.fx made of a network
        return False
    return isinstance(module, torch.jit.ScriptModule) or type(module).forward is not nn.Module.forward


def _kind(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return f"{module.original_name}, in TorchScript"
    return type(module).__name__


def _owns_parameters(module: nn.Module) -> bool:
    """Return whether a module computes with parameters that are no other layer's: its own, or its samplers'."""
    return any(True for _ in module.parameters(recurse=False))


def _has_pair(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    means = [value.shape for name, value in own.items() if _MEAN.search(name) and not _WIDTH.search(name)]
    # A mean may be called anything; but a norm has a scale and a shift of one shape, too.
    matrices = [v.shape for name, v in own.items() if v.ndim > 1 and not _WIDTH.search(name)]
    return any(
        value.shape in means or (value.shape in matrices and "scale" not in name)
        for name, value in own.items()
        if _WIDTH.search(name)
    )


def _varies_by_itself(module: nn.Module) -> bool:
    """Return whether a module that owns several tensors of one shape computes with noise, whatever their names are."""
    own = [p for p in module.parameters(recurse=False) if p.ndim >= 2 and not is_lazy(p) and p.is_floating_point()]
    pairs = [p for p in own if sum(p.shape == other.shape for other in own) > 1]
    if not pairs or type(module).__module__.startswith("torch."):
        return False
    key = id(type(module).forward)
    known = _VARIES.get(module)
    if known is None or known[0] != key:
        _VARIES[module] = known = (key, _two_calls_differ(module, pairs[0]))
    return known[1]


def _two_calls_differ(module: nn.Module, weight: Tensor) -> bool:
    try:
        with undisturbed(module, seed=0), torch.no_grad():
            images = inputs_of(module, weight)
            one, other = module(images), module(images)
            return isinstance(one, Tensor) and one.shape == other.shape and not torch.equal(one, other)
    except Exception:  # it does not take such inputs
        return False


def lacking(model: nn.Module, capability: str) -> str:
    """Say what a model's layers lack of a capability, and how to give it; empty where all layers that are known do.

    Beside known layers those that nobody knows are no matter of a capability: a claim may be about each layer, or about
    all of them (see `nobody_knows`). Where no layer is known, they lack each capability.

    Args:
        model: Any network; one without Bayesian layers lacks nothing.
        capability: One of `pytest_bnn.libraries.protocol.CAPABILITIES`.

    Raises:
        ValueError: There is no such capability.
    """
    if capability not in CAPABILITIES:
        raise ValueError(f"there is no capability {capability!r}; there are {', '.join(sorted(CAPABILITIES))}")
    layers = bayesian_layers(model)
    for layer in layers:
        if capability not in layer.adapter.can:
            return (
                f"the claim needs the capability {capability!r} ({PROMISES[capability]}), which the adapter of "
                f"{layer.adapter.name} does not give for {called(layer.path)} ({layer.kind}): add it to "
                f"the adapter's can, where that is so; see {_PAGE}"
            )
    return "" if layers else nobody_knows(model)


def nobody_knows(model: nn.Module) -> str:
    """Name the layers that look Bayesian and that no adapter knows, and what to do about it; empty without any."""
    unknown = unknown_layers(model)
    if not unknown:
        return ""
    path, kind = unknown[0]
    more = f" and {len(unknown) - 1} more modules" if len(unknown) > 1 else ""
    verb = "are layers" if len(unknown) > 1 else "is a layer"
    fix = (
        "audit the Python model that it was made from" if "TorchScript" in kind else f"an adapter tells it: see {_PAGE}"
    )
    return (
        f"{called(path)} ({kind}){more} {verb} of a library that nobody knows yet: where the mean, the "
        f"width and the noise of a weight are is unknown here; {fix}"
    )


def orphaned_posteriors(model: nn.Module) -> tuple[str, ...]:
    """Return the paths that still own mu and rho although no Bayesian layer is left there.

    That is what ``torch.fx`` and ``create_feature_extractor`` make of a Bayesian network: the parameters
    survive, the layers and with them fresh noise and KL do not.
    """
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    layers = {layer.path for layer in bayesian_layers(model)}
    found = []
    for _, mu, rho, *_ in ATTRIBUTES:
        for name in sorted(names):
            path, _, leaf = name.rpartition(".")
            if leaf == rho and path not in layers and (f"{path}.{mu}" if path else mu) in names:
                found.append(path)
    return tuple(dict.fromkeys(found))


class KlError(Exception):
    """A layer's own ``kl_loss()`` raised: what, and in which layer; the cause is chained."""


def adapters_of(model: nn.Module) -> tuple[Adapter, ...]:
    """Return the adapters whose layers are in a model, each once."""
    found = {id(layer.adapter): layer.adapter for layer in bayesian_layers(model)}
    return tuple(found.values())


def kl(model: nn.Module) -> Tensor | None:
    """Return the model's KL term as its library computes it; None where nothing is Bayesian.

    For bayesian-torch that is what ``get_kl_loss`` gives, also where the model has no layer with a posterior.

    Raises:
        KlError: A layer's own ``kl_loss()`` raised.
    """
    try:
        terms = [term for adapter in _asked(model) if (term := adapter.kl(model)) is not None]
    except Exception as error:
        raise KlError(f"{type(error).__name__}: {error}, in {called(raised_in(model, error))}") from error
    return torch.stack([term.reshape(()) for term in terms]).sum() if len(terms) > 1 else next(iter(terms), None)


def _asked(model: nn.Module) -> Iterator[Adapter]:
    yield from adapters_of(model) or ADAPTERS[:1]


def counted_twice(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of layers whose KL ``get_kl_loss`` adds again for a layer around them (faults.md, A12)."""
    outer = [path for path, module in model.named_modules() if hasattr(module, "kl_loss")]
    return tuple(p for p in outer if any(p.startswith(f"{o}.") or (o == "" and p) for o in outer))
