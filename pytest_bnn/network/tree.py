"""Trees of tensors, as data sets and networks hold them: lists, tuples, dictionaries, records, nested at will.

One small walk instead of torch's own, which is not public and does not know ``UserDict`` (as tokenizers give it) or
dataclasses.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Visit = Callable[[Any], Any]
Stop = Callable[[Any], bool]


def mapped(tree: Any, visit: Visit, stop: Stop | None = None) -> Any:
    """Rebuild a tree of the same types with ``visit`` applied to every leaf; the tree itself stays as it is.

    Args:
        tree: What is rebuilt.
        visit: Gives what takes the place of a leaf.
        stop: Says of a node that it is one leaf; none is when None.
    """
    if not is_inner(tree) or (stop is not None and stop(tree)):
        return visit(tree)
    if isinstance(tree, MutableMapping) and type(tree) is not dict:
        return _mapping(tree, visit, stop)
    if isinstance(tree, Mapping):
        values = {key: mapped(value, visit, stop) for key, value in tree.items()}
        return MappingProxyType(values) if isinstance(tree, MappingProxyType) else values
    if isinstance(tree, list | tuple):
        return _sequence(tree, [mapped(value, visit, stop) for value in tree])
    record = copy.copy(tree)
    for field in dataclasses.fields(tree):
        if hasattr(tree, field.name):
            object.__setattr__(record, field.name, mapped(getattr(tree, field.name), visit, stop))
    return record


def _mapping(tree: MutableMapping[Any, Any], visit: Visit, stop: Stop | None) -> Any:
    rebuilt = copy.copy(tree)
    if getattr(tree, "__dict__", None) is tree:  # a dictionary whose keys are its attributes, too
        object.__setattr__(rebuilt, "__dict__", rebuilt)
    for key, value in tree.items():
        rebuilt[key] = mapped(value, visit, stop)
    return rebuilt


def _sequence(tree: Any, values: list[Any]) -> Any:
    if type(tree) in (list, tuple):
        return type(tree)(values)
    if isinstance(tree, list):
        rebuilt = copy.copy(tree)
        rebuilt[:] = values
        return rebuilt
    if hasattr(tree, "_make"):
        return type(tree)._make(values)
    try:
        return type(tree)(values)  # torch's own records, such as torch.return_types.max, and plain subclasses
    except TypeError:
        return tuple(values)


def leaves(tree: Any, name: str = "", stop: Stop | None = None) -> list[tuple[str, Any]]:
    """Return every leaf of a tree with its place: ``("1.mask", tensor)``; the place of a tree that is a leaf is empty.

    ``stop`` is as in `mapped`.
    """
    if not is_inner(tree) or (stop is not None and stop(tree)):
        return [(name, tree)]
    parts: list[tuple[str, Any]] = []
    for key, value in children(tree):
        parts += leaves(value, f"{name}.{key}" if name else key, stop)
    return parts


def is_inner(tree: Any) -> bool:
    """Return whether something is a node with children, and no leaf."""
    if isinstance(tree, Tensor | PackedSequence | torch.Size | str | bytes):
        return False
    return isinstance(tree, Mapping | list | tuple) or (dataclasses.is_dataclass(tree) and not isinstance(tree, type))


def children(tree: Any) -> list[tuple[str, Any]]:
    """Return the children of a node by name; none of a leaf."""
    if not is_inner(tree):
        return []
    if isinstance(tree, Mapping):
        return [(str(key), value) for key, value in tree.items()]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, list | tuple):
        return [(str(index), value) for index, value in enumerate(tree)]
    return [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree) if hasattr(tree, f.name)]


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors of a tree, in its order; those of packed sequences are their data."""
    found = (leaf.data if isinstance(leaf, PackedSequence) else leaf for _, leaf in leaves(tree))
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def describe(tree: Any) -> str:
    """Say what a tree holds, for messages: ``a dict with image: float32 [8, 3, 4, 4], label: int64 [8]``."""
    if not is_inner(tree):
        return _leaf(tree)
    parts = [f"{name}: {_leaf(leaf)}" for name, leaf in leaves(tree)]
    more = f", and {len(parts) - 6} more" if len(parts) > 6 else ""
    return f"{kind(tree)} with {', '.join(parts[:6]) or 'nothing in it'}{more}"


def kind(value: object) -> str:
    """Return a name of what a value is, with its article: ``a dict``, ``an Image``, ``None``."""
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[:1] in "AEIOUaeiou" else f"a {name}"


def _leaf(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"
    return kind(leaf)
