"""A network's own forward, run for passes without a trace: nothing that it writes to stays written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.libraries.posterior import BayesianLayer, bayesian_layers
from pytest_bnn.network.isolation import undisturbed

#: Packages whose modules do in their forward what their documentation says.
_KNOWN = frozenset({"torch", "torchvision", "bayesian_torch", "pytest_bnn"})


def unwritten(model: nn.Module) -> list[Tensor]:
    """Return the parameters and priors of a model whose forward is known not to write to them; none of any other.

    Known are networks of which `is_known` holds.
    """
    if not is_known(model):
        return []
    priors = {
        (id(tensor.module), name)
        for layer in bayesian_layers(model)
        for tensor in layer.tensors
        for name in (tensor.prior_mu_name, tensor.prior_sigma_name)
    }
    found: list[Tensor] = list(model.parameters())
    written = set()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and (id(module), name) in priors:
                found.append(buffer)
            elif buffer is not None:
                written.add(buffer.untyped_storage().data_ptr())
    return [t for t in found if not is_lazy(t) and t.untyped_storage().data_ptr() not in written]


def unwritten_by_kl(model: nn.Module) -> list[Tensor]:
    """Return what the layers' own ``kl_loss`` is known not to write to: `unwritten`, and the buffers for noise.

    These where the method is the library's in every module that has one.
    """
    found = unwritten(model)
    if found and all(_has_known_kl(module) for module in model.modules()):
        found += [noise for layer in bayesian_layers(model) for noise in layer.noise]
    return found


def _has_known_kl(module: nn.Module) -> bool:
    method = getattr(type(module), "kl_loss", None)
    return "kl_loss" not in vars(module) and (method is None or _origin(method) in _KNOWN)


def unwritten_by_loss(loss: Callable[..., Any], *models: nn.Module | None) -> list[Tensor]:
    """Return the parameters and priors of models that a loss's evaluation, with its gradient, does not write to.

    They are known where the loss is a function of this package, such as `distillation_loss`; of another one, which may
    take steps, the list is empty.
    """
    if _origin(loss) != "pytest_bnn" or not isinstance(loss, FunctionType):
        return []
    return [tensor for model in models if model is not None for tensor in unwritten(model)]


@contextmanager
def undisturbed_passes(model: nn.Module, *, seed: int) -> Iterator[None]:
    """Run passes without gradients inside `undisturbed`, sparing copies where the forward is known (`unwritten`).

    Of such a model only the noise buffers of the layer that is running are copied, and put back after its call.
    """
    spared = unwritten(model)
    layers = bayesian_layers(model) if spared else ()
    spared += [noise for layer in layers for noise in layer.noise]
    with undisturbed(model, seed=seed, unwritten=spared), _kept_noise(layers):
        yield


@contextmanager
def _kept_noise(layers: Sequence[BayesianLayer]) -> Iterator[None]:
    running: list[list[tuple[Tensor, Tensor]]] = []
    handles = []

    def put_back(*_: Any) -> None:
        for noise, before in running.pop():
            noise.data.copy_(before)

    for layer in layers:

        def keep(*_: Any, layer: BayesianLayer = layer) -> None:
            running.append([(noise, noise.detach().clone()) for noise in layer.noise])

        handles += [layer.module.register_forward_pre_hook(keep), layer.module.register_forward_hook(put_back)]
    try:
        yield
    finally:
        while running:
            put_back()
        for handle in handles:
            handle.remove()


def is_known(model: nn.Module) -> bool:
    """Return whether all that a network's forward runs does what its documentation says.

    So do modules of torch, torchvision, bayesian-torch and this package, without hooks, forwards of their own, or
    functions from elsewhere, such as an activation that was given to one.
    """
    return all(_is_known(module) for module in model.modules())


def _is_known(module: nn.Module) -> bool:
    kind = type(module)
    # Generated code comes from no module, and what torch.jit made has no forward of its own.
    origins = {_origin(kind), _origin(getattr(kind, "forward", None))}
    origins |= {_origin(value) for value in vars(module).values() if _is_function(value)}
    hooks = module._forward_hooks or module._forward_pre_hooks
    return origins <= _KNOWN and not hooks and "forward" not in vars(module)


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type | nn.Module | Tensor)


def _origin(value: Any) -> str:
    """Return the package that a class or function comes from."""
    while isinstance(value, partial):
        value = value.func
    return str(getattr(value, "__module__", "")).partition(".")[0]
