"""Noise buffers that no later call writes over: what each pass's gradient would be by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pytest_bnn.libraries.protocol import BayesianLayer


@contextmanager
def own_buffers(layers: tuple[BayesianLayer, ...]) -> Iterator[None]:
    """Let every call of a layer draw into noise buffers of its own, which no later call writes over."""
    buffers = {id(layer.module): [tensor.eps_name for tensor in layer.tensors] for layer in layers}

    def fresh(module: nn.Module, _inputs: Any) -> None:
        for name in buffers[id(module)]:
            buffer = module._buffers.get(name)
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer)

    handles = [layer.module.register_forward_pre_hook(fresh) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
