"""What a loss reaches beside the model under audit, such as a teacher: left as it was, and watched."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from pytest_bnn.network.graph import leaves_behind


class _Gradients(TorchFunctionMode):
    """Keeps the ``.grad`` that tensors had before a backward pass comes to them."""

    def __init__(self, own: set[int]) -> None:
        super().__init__()
        self.own = own
        self.before: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.made: dict[int, Tensor] = {}

    def keep(self, tensor: Tensor) -> None:
        if (
            id(tensor) not in self.made
            and id(tensor) not in self.own
            and id(tensor) not in self.before
            and tensor.is_leaf
        ):
            self.before[id(tensor)] = tensor, None if tensor.grad is None else tensor.grad.detach().clone()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            for leaf in leaves_behind(args[0]).values():
                self.keep(leaf)
        elif func is Tensor.requires_grad_:
            self.made[id(args[0])] = args[0]  # a leaf of whoever asks for its gradient now
        return func(*args, **(kwargs or {}))

    def put_back(self) -> None:
        for tensor, gradient in self.before.values():
            tensor.grad = gradient


@contextmanager
def foreign_left_alone(model: nn.Module) -> Iterator[dict[int, nn.Module]]:
    """Leave what is no part of a model as it was: buffers of modules that run inside, gradients of all tensors.

    Yields the modules, by ``id``, that ran in train mode and whose buffers changed; filled at the end.
    """
    own = {id(module) for module in model.modules()}
    before: dict[int, tuple[nn.Module, dict[str, Tensor]]] = {}
    changed: dict[int, nn.Module] = {}
    gradients = _Gradients({id(parameter) for parameter in model.parameters()})

    def enter(module: nn.Module, _inputs: Any) -> None:
        if id(module) not in own and id(module) not in before:
            kept = {n: b.detach().clone() for n, b in module._buffers.items() if b is not None and not b.is_meta}
            before[id(module)] = module, kept
            for parameter in module._parameters.values():
                if parameter is not None:
                    gradients.keep(parameter)

    handle = register_module_forward_pre_hook(enter)
    try:
        with gradients, warnings.catch_warnings():
            # A compiled module fires the hook twice, which changes nothing here.
            warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks")
            yield changed
    finally:
        handle.remove()
        gradients.put_back()
        for key, (module, kept) in before.items():
            for name, value in kept.items():
                buffer = module._buffers.get(name)
                if buffer is not None and buffer.shape == value.shape and not torch.equal(buffer, value):
                    if module.training:
                        changed[key] = module
                    with torch.no_grad():
                        buffer.copy_(value)
