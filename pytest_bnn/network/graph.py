"""The graph that autograd keeps behind a tensor: which leaves it was computed from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pytest_bnn.network.tree import tensors


def leaves_behind(value: Any, *, stop: Any = ()) -> dict[int, Tensor]:
    """Return the leaves of the graph (parameters, mostly) from which tensors were computed, by their ``id``.

    Args:
        value: A tensor, or a tree of tensors; a tensor that is itself a leaf with a gradient counts.
        stop: Tensors, or trees of them, at whose graph the walk ends: what lies behind them does not count.
    """
    found: dict[int, Tensor] = {}
    waiting: list[Any] = []
    for tensor in tensors(value):
        if tensor.grad_fn is not None:
            waiting.append(tensor.grad_fn)
        elif tensor.requires_grad:
            found[id(tensor)] = tensor
    ends = tensors(stop)
    seen: set[Any] = {tensor.grad_fn for tensor in ends}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        waiting += [following for following, _ in node.next_functions]
    for tensor in ends:
        found.pop(id(tensor), None)
    return found
