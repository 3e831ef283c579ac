"""The cut: every weight that a Bayesian layer draws is detached where its functional call uses it.

What such a network computes is unchanged. A loss of it has only that gradient to mu and rho which does not come through
the drawn weights, the KL term's; and the gradient to the detached weights is the data's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from pytest_bnn.libraries.capture import LayerCall, capture
from pytest_bnn.libraries.draws import in_backward
from pytest_bnn.libraries.gaussian import PosteriorTensor
from pytest_bnn.libraries.protocol import BayesianLayer, tensors_of
from pytest_bnn.libraries.registry import bayesian_layers
from pytest_bnn.network.graph import leaves_behind
from pytest_bnn.network.tree import tensors

#: A posterior tensor by its layer's path and its role.
Key: TypeAlias = tuple[str, str]


def key_of(tensor: PosteriorTensor) -> Key:
    """Return the key of a tensor in what an evaluation of a loss gives."""
    return tensor.path, tensor.role


@dataclass(slots=True, eq=False)
class Operands:
    """The calls of Bayesian layers with the weights that they used, whose ``.grad`` a backward pass fills.

    Attributes:
        calls: One for each call of a layer.
        reached: Of the outputs of the model and of each module that is called by itself: the parameters that they
            depend on beside the detached weights, by ``id``. Nothing where the weights are not cut.
        to_rho: Tensors from whose rho a drawn weight was computed in the graph, before it was cut.
        unseen: Paths of layers that use their posterior by other means than a functional call that can be seen.
    """

    calls: list[LayerCall] = field(default_factory=list)
    reached: set[int] = field(default_factory=set)
    to_rho: set[Key] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)

    def not_cut(self, layers: tuple[BayesianLayer, ...]) -> tuple[str, ...]:
        """Return the paths of the layers from which something still comes through what they draw."""
        drawn = {t.path for t in tensors_of(layers) if id(t.rho_parameter) in self.reached}
        return tuple(layer.path for layer in layers if layer.path in self.unseen | drawn)

    def undrawn(self, layers: tuple[BayesianLayer, ...]) -> tuple[PosteriorTensor, ...]:
        """Return the tensors whose mu is used as it is, without noise, outside of their layer's own call."""
        closed = set(self.not_cut(layers))
        return tuple(t for t in tensors_of(layers) if id(t.mu_parameter) in self.reached and t.path not in closed)


@contextmanager
def watched_operands(model: nn.Module) -> Iterator[Operands]:
    """Let the weights that each call of a Bayesian layer uses keep the gradient that comes to them."""
    with capture(model, operand=_kept) as calls:
        yield Operands(calls)


@contextmanager
def cut_operands(
    model: nn.Module, moved: Mapping[Key, Tensor] | None = None, pushed: Mapping[Key, Tensor] | None = None
) -> Iterator[Operands]:
    """Detach the weights that each call of a Bayesian layer uses; they keep the gradient that comes to them.

    Args:
        model: What runs. Hooks are registered on it; use it within `isolation.undisturbed`.
        moved: How far each tensor's mu was moved, which is taken off where it is used: the model's outputs stay the
            same up to rounding, and the loss tells what else depends on mu.
        pushed: What is added to the drawn weights of some tensors, whatever they were drawn from.
    """

    def detached(layer: BayesianLayer, used: Tensor) -> Tensor:
        value = used.detach()
        behind = leaves_behind(used) if used.requires_grad else {}
        found.to_rho |= {key_of(tensor) for tensor in layer.tensors if id(tensor.rho_parameter) in behind}
        if moved:
            for tensor in layer.tensors:
                of_mu = tensor.mu.shape == used.shape and id(tensor.mu_parameter) in behind
                if of_mu and key_of(tensor) in moved:
                    value = value - moved[key_of(tensor)].to(value)
        for tensor in layer.tensors if pushed else ():
            if tensor.mu.shape == used.shape and pushed and key_of(tensor) in pushed:
                value = value + pushed[key_of(tensor)].to(value)
        return value.requires_grad_() if value.is_floating_point() else value

    layers = bayesian_layers(model)
    found = Operands()
    with capture(model, operand=detached) as calls:
        found.calls = calls
        _look_at_outputs(model, layers, found)
        yield found


def _kept(_layer: BayesianLayer, used: Tensor) -> Tensor:
    if not used.requires_grad:
        return used
    used = used.view_as(used)
    used.retain_grad()
    return used


def _look_at_outputs(model: nn.Module, layers: tuple[BayesianLayer, ...], found: Operands) -> None:
    """Note what the outputs of each layer, and of each outermost call, depend on beside the detached weights."""
    own = {
        id(layer.module): (layer, {id(p) for t in layer.tensors for p in (t.mu_parameter, t.rho_parameter)})
        for layer in layers
    }
    inputs: list[Any] = []
    # A layer's own parts, such as a parametrization, also compute what its KL is made of.
    parts = {id(part) for layer in layers for part in layer.module.modules()} - own.keys()
    watched = {id(module): module for module in model.modules() if id(module) not in parts}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if id(module) in watched:  # no copy that was made inside, with its hooks
            inputs.append((args, kwargs))

    def leave(module: nn.Module, _args: Any, output: Any) -> None:
        if id(module) not in watched:
            return
        given = inputs.pop() if inputs else ()
        if in_backward():
            return
        # A scalar beside the output is a KL term's, which layers may return.
        values = [tensor for tensor in tensors(output) if tensor.ndim]
        layer, parameters = own.get(id(module), (None, set()))
        if layer is not None and parameters & leaves_behind(values, stop=given).keys():
            found.unseen.add(layer.path)
        if not inputs:
            found.reached |= leaves_behind(values).keys()

    for module in watched.values():
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, always_call=True)
