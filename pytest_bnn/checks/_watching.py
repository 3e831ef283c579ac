"""What is watched and moved while a loss is evaluated: the model's outputs, backward passes of the loss's own, mu."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.errors import InputError
from pytest_bnn.libraries.cut import Key, key_of
from pytest_bnn.libraries.draws import in_backward
from pytest_bnn.libraries.posterior import PosteriorTensor
from pytest_bnn.network.tree import mapped


@dataclass(slots=True, eq=False)
class OutputCall:
    """One call of the model inside a loss: what it got and gave; the gradients come to ``output``, a tree."""

    inputs: tuple[Any, dict[str, Any]]
    output: Any


class Backwards(TorchFunctionMode):
    """Notes which tensors a loss itself runs backward from, and whether it keeps their graph."""

    def __init__(self) -> None:
        super().__init__()
        self.of: list[Tensor] = []
        self.kept = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            self.of.append(args[0])
            self.kept = self.kept or bool((kwargs or {}).get("retain_graph"))
        return func(*args, **(kwargs or {}))


def keeping(model: nn.Module, calls: list[OutputCall], replaced: Callable[[Any], Any] | None = None) -> Any:
    """Return a hook that collects calls, and lets their outputs keep the gradients that come to them.

    Args:
        model: Whose calls count; no copy's.
        calls: Where they go.
        replaced: Gives what the caller gets in place of an output; the output itself when None.
    """

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if module is not model:  # a copy that was made inside, with its hooks
            return output

        def kept(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.requires_grad:
                return leaf
            leaf = leaf.view_as(leaf)
            leaf.retain_grad()
            return leaf

        output = mapped(output if replaced is None else replaced(output), kept)
        if not in_backward():
            calls.append(OutputCall((args, kwargs), output))
        return output

    return keep


class Moved(Mapping[Key, Tensor]):
    """How far each mu was moved: float64, made anew whenever it is read.

    Args:
        ways: The mu of each tensor before and after.
    """

    def __init__(self, ways: Mapping[Key, tuple[Tensor, Tensor]]) -> None:
        self._ways = ways

    def __getitem__(self, key: Key) -> Tensor:
        before, after = self._ways[key]
        return after.double() - before.double()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._ways)

    def __len__(self) -> int:
        return len(self._ways)


@contextmanager
def moved_mu(tensors: Sequence[PosteriorTensor], by: float) -> Iterator[Moved]:
    """Move every mu by random numbers for a while, and say how far it came."""
    generator = torch.Generator().manual_seed(1)
    before = {key_of(tensor): tensor.mu.detach() for tensor in tensors}
    parameters = {id(tensor.mu_parameter): tensor for tensor in tensors}
    stayed: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for tensor in parameters.values():
                parameter, step = tensor.mu_parameter, _step(tensor)
                offset = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                size = step if step.shape == parameter.shape else step.mean()
                stayed.append((parameter, parameter.data))
                # In other memory, so that where it was needs no copy; and through .data: a backward pass that waits
                # outside must not take it for changed.
                parameter.data = parameter.data + (by * size * offset.to(parameter.device)).to(parameter)
        yield Moved({key_of(tensor): (before[key_of(tensor)], tensor.mu.detach()) for tensor in tensors})
    finally:
        for parameter, data in stayed:
            parameter.data = data


def _step(tensor: PosteriorTensor) -> Tensor:
    """Return how far a mu moves: as far as its noise moves it, or far enough to be seen beside it."""
    mu = tensor.mu.detach().double()
    return tensor.sigma.double().clamp_min(1e-2 * float(mu.square().mean().sqrt()) or 1e-2)


def run_backward(value: Tensor, own: Backwards, parameters: list[nn.Parameter]) -> None:
    """Bring the loss's gradients to the parameters, if the loss has not done so itself."""
    if not value.requires_grad:
        return
    if own.of or any(parameter.grad is not None for parameter in parameters):
        # What the loss returns may be a part of its own that it has not run backward from.
        if own.kept or any(value is tensor or value.grad_fn is tensor.grad_fn for tensor in own.of):
            return
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        try:
            more = torch.autograd.grad(value, wanted, allow_unused=True)
        except RuntimeError:  # its graph is gone: it was run backward from in parts
            return
        for parameter, gradient in zip(wanted, more, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return
    try:
        value.backward()
    except RuntimeError as error:
        raise InputError(
            f"the loss has no gradient that can be taken ({str(error).splitlines()[0]})",
            fix="return a loss that backward() can run from, or run backward() in it",
        ) from error
