"""Networks that run beside the one under audit, such as a teacher inside a loss: left as they were, and watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def foreign_left_alone(model: nn.Module) -> Iterator[dict[int, nn.Module]]:
    """Give back to every module that runs inside, and is no part of a model, the buffers that it had.

    Yields the modules, by ``id``, that ran in train mode and whose buffers changed; filled at the end.
    """
    own = {id(module) for module in model.modules()}
    before: dict[int, tuple[nn.Module, dict[str, Tensor]]] = {}
    changed: dict[int, nn.Module] = {}

    def enter(module: nn.Module, _inputs: Any) -> None:
        if id(module) not in own and id(module) not in before:
            kept = {n: b.detach().clone() for n, b in module._buffers.items() if b is not None and not b.is_meta}
            before[id(module)] = module, kept

    handle = register_module_forward_pre_hook(enter)
    try:
        yield changed
    finally:
        handle.remove()
        for key, (module, kept) in before.items():
            for name, value in kept.items():
                buffer = module._buffers.get(name)
                if buffer is not None and buffer.shape == value.shape and not torch.equal(buffer, value):
                    if module.training:
                        changed[key] = module
                    with torch.no_grad():
                        buffer.copy_(value)
