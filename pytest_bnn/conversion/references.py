"""What refers to a layer from outside of the module tree: a copy takes some of it along; the rest is an obstacle."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

#: How deep lists, dicts and partials are followed.
_DEPTH = 3


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A layer's ``forward`` that something keeps: the Bayesian layer's must take its place."""

    kept: MethodType
    layer: nn.Module


def references(model: nn.Module, planned: dict[int, str]) -> Iterator[Method | str]:
    """Yield the references to layers that are no child modules: methods to re-point, and obstacles in words.

    Lists, tuples, sets, dicts and plain attributes need nothing: a deep copy that already holds the Bayesian layers
    refers to those. Functions are not copied, and parameters are, so both would keep the old layer in use.
    """
    weights = {
        id(parameter): f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if id(module) in planned
        for name, parameter in module.named_parameters()
    }
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase):  # refused, and torch keeps its weights twice
            continue
        for name, value in module.__dict__.items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            place = f"{path}.{name}" if path else name
            for found in _found(value, planned, weights, _DEPTH):
                yield f"{place} keeps {found}" if isinstance(found, str) else found


def shared_tensors(model: nn.Module, planned: dict[int, str]) -> Iterator[str]:
    """Yield the tensors that layers share with other modules, in words."""
    owners: defaultdict[int, dict[int, str]] = defaultdict(dict)
    inside = {id(part) for m in model.modules() if id(m) in planned for part in m.modules()}
    for path, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            owners[id(tensor)][id(module)] = f"{path}.{name}" if path else name
    for places in owners.values():
        if len(places) > 1 and any(owner in inside for owner in places):
            yield (
                f"one tensor is shared by {' and '.join(places.values())}: Bayesian layers draw each for itself, "
                "so the weights would differ in every forward"
            )


def _found(value: Any, planned: dict[int, str], weights: dict[int, str], depth: int) -> Iterator[Method | str]:
    if isinstance(value, MethodType):
        layer = value.__self__
        if id(layer) not in planned:
            return
        assert isinstance(layer, nn.Module)
        name = value.__func__.__name__
        if value.__func__ is getattr(nn.Module, name, None):
            return
        if value.__func__ is type(layer).forward and not isinstance(layer, nn.MultiheadAttention):
            yield Method(value, layer)
        else:
            yield f"the method {name} of {_place(planned[id(layer)])}, which its Bayesian form has not"
    elif isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        for held in (*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            if id(held) in planned:
                yield f"a function that refers to {_place(planned[id(held)])}, which would stay deterministic"
    elif isinstance(value, weakref.ReferenceType):
        if id(value()) in planned:
            yield f"a weak reference to {_place(planned[id(value())])}, which would stay deterministic"
    elif isinstance(value, Tensor):
        if id(value) in weights:
            yield f"a second reference to {weights[id(value)]}, which would stay deterministic"
    elif depth:
        for item in _items(value):
            yield from _found(item, planned, weights, depth - 1)


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _place(path: str) -> str:
    return path or "the model itself"
