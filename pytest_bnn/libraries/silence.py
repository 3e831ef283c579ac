"""A network without its posterior's noise: at its mean, or with every draw 0 and sigma's graph intact; and proof of it.

A claim about a silenced network holds only where nothing is left of its noise: `unproven_silence` looks at the model
at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.libraries.draws import Draws, within
from pytest_bnn.libraries.gaussian import PosteriorTensor, slot
from pytest_bnn.libraries.registry import bayesian_layers, nobody_knows
from pytest_bnn.network.isolation import replaced, seed_everything
from pytest_bnn.network.naming import called


class _Fixed(nn.Module):
    """Stands in for a parametrization, and gives one tensor."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Tensor:
        return self.value


def _collapsed(tensor: PosteriorTensor) -> tuple[dict[str, Any], str, Any] | None:
    """Say what to put where, so that a tensor's sigma is 0; None where rho is computed at a place unknown."""
    place = slot(tensor.module, tensor.rho_name)
    if place is None or place[0] is tensor.module.__dict__:
        return None
    value: Any = nn.Parameter(torch.full_like(tensor.rho.detach(), -torch.inf), requires_grad=False)
    parametrized = tensor.module._modules.get("parametrizations")
    if parametrized is not None and place[0] is parametrized._modules:
        value = _Fixed(value.data)
    return (*place, value)


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Let torch.distributions take a scale of 0."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


@contextmanager
def zero_sigma(model: nn.Module, *, save: Collection[str] = ()) -> Iterator[None]:
    """Run the model at its posterior mean: every rho at minus infinity, so every sigma is exactly 0.

    The layers at the paths in ``save`` keep theirs.
    """
    layers = [layer for layer in bayesian_layers(model) if layer.path not in save]
    entries = {(layer.path, t.role): _collapsed(t) for layer in layers for t in layer.tensors}
    computed = [layer.module for layer in layers if any(entries[layer.path, t.role] is None for t in layer.tensors)]
    with replaced(entry for entry in entries.values() if entry is not None), _unvalidated(), ExitStack() as stack:
        if computed:  # where sigma cannot be put to 0 its noise can
            stack.enter_context(within(computed, Draws(0.0)))
        yield


@contextmanager
def shifted_prior(model: nn.Module, by: float) -> Iterator[None]:
    """Move every prior mean by a constant: the data term of a loss cannot notice, its KL term must."""
    places = [
        (slot(t.module, t.prior_mu_name), getattr(t.module, t.prior_mu_name) + by)
        for layer in bayesian_layers(model)
        for t in layer.tensors
    ]
    # A layer's weight and bias may share one prior.
    moved = {(id(place[0]), place[1]): (*place, value) for place, value in places if place is not None}
    with replaced(moved.values()):
        yield


@contextmanager
def _drawing(model: nn.Module, value: float | None) -> Iterator[Draws]:
    """See every draw inside a Bayesian layer, and every one into a noise buffer of such a layer, wherever it runs."""
    layers = bayesian_layers(model)
    paths = {id(layer.module): layer.path for layer in layers}
    buffers = {eps.data_ptr(): layer.path for layer in layers for eps in layer.noise if eps.numel() and not eps.is_meta}
    running: list[str] = []
    mode = Draws(value, where=lambda: running[-1])
    within_these = within(
        [layer.module for layer in layers],
        mode,
        enter=lambda module: running.append(paths[id(module)]),
        leave=lambda *_: running.__delitem__(-1),
    )
    with within_these, _Buffers(buffers, value, mode.drawn):
        yield mode


class _Buffers(Draws):
    """Sees draws into some buffers, for layers whose forward is called past their hooks."""

    def __init__(self, paths: dict[int, str], value: float | None, drawn: set[str]) -> None:
        super().__init__(value, into=frozenset(paths))
        self._paths, self._drawn = paths, drawn

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.seen
        result = super().__torch_function__(func, types, args, kwargs)
        if self.seen > before:
            self._drawn.add(self._paths[result.data_ptr()])
        return result


@contextmanager
def zero_noise(model: nn.Module) -> Iterator[Draws]:
    """Let every draw inside a Bayesian layer come out as zeros, whatever call makes it; sigma keeps its graph.

    Unlike `zero_sigma`, rho still has a gradient: the loss's data term contributes exactly nothing to it.
    """
    with _drawing(model, 0.0) as mode:
        yield mode


@contextmanager
def watched_noise(model: nn.Module) -> Iterator[set[str]]:
    """Collect the paths of the layers that draw noise inside."""
    with _drawing(model, None) as mode:
        yield mode.drawn


def unproven_silence(model: nn.Module, run: Callable[[], Tensor], *, seed: int) -> str:
    """Say why a model's noise is not proven to be silenced; empty where it is. Use it within `isolation.undisturbed`.

    Two passes in silence, from different seeds, must be equal, and equal to the pass at the posterior mean. Where they
    are not, the model's noise may be elsewhere: then each layer's own calls must be so, on the inputs that they get.

    Args:
        model: What is silenced.
        run: Runs the model on a few rows and gives its output.
        seed: The seed of the passes.
    """
    seed_everything(seed)
    with zero_noise(model):
        one = run()
        seed_everything(seed + 1)
        other = run()
    with zero_sigma(model):
        seed_everything(seed)
        mean = run()
    if same(one, other) and same(one, mean):
        return ""
    if unknown := nobody_knows(model):
        return unknown
    return _unproven_layers(model, run, seed)


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs are equal up to ten roundings of their largest value; NaN equals NaN."""
    if one.shape != other.shape:
        return False
    if torch.equal(one, other) or not one.is_floating_point():
        return torch.equal(one, other)
    largest = float(other.abs().nan_to_num(0.0).max()) if other.numel() else 0.0
    allowed = 100 * torch.finfo(one.dtype).eps * largest
    return torch.allclose(one, other, rtol=0.0, atol=allowed, equal_nan=True)


def _unproven_layers(model: nn.Module, run: Callable[[], Tensor], seed: int) -> str:
    inputs: dict[int, tuple[Any, Any]] = {}
    layers = bayesian_layers(model)
    handles = [
        layer.module.register_forward_pre_hook(
            lambda module, args, kwargs: inputs.setdefault(id(module), (args, kwargs)) and None, with_kwargs=True
        )
        for layer in layers
    ]
    try:
        with zero_noise(model):
            run()
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        where = f"{called(layer.path)} ({type(layer.module).__name__})"
        if id(layer.module) not in inputs:
            return f"with every draw of its layers silenced, the model's outputs still vary, and {where} is not called"
        args, kwargs = inputs[id(layer.module)]
        outputs = []
        drawn: set[str] = set()
        ways: tuple[Callable[[nn.Module], AbstractContextManager[object]], ...] = (zero_noise, zero_noise, zero_sigma)
        with torch.no_grad():
            for number, silenced in enumerate(ways):
                seed_everything(seed + number)
                with silenced(layer.module) as mode:
                    outputs.append(_first(layer.module(*args, **kwargs)))
                drawn |= mode.drawn if isinstance(mode, Draws) else set()
        if not same(outputs[0], outputs[1]):
            return f"the noise of {where} cannot be silenced: it comes from no draw of torch's normal generators"
        if not same(outputs[0], outputs[2]):
            return f"with its draws silenced, {where} does not compute with mu: its noise reaches it in another way"
        if not drawn and any(bool(tensor.sigma.any()) for tensor in layer.tensors):
            return f"the noise of {where} is not drawn in its own forward, so it cannot be silenced there"
    return ""


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0] if isinstance(output, tuple | list) else next(iter(output.values()))
    return output
