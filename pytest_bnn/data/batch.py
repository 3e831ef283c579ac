"""A batch: what a network is called with, as rows that can be taken, split and moved together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pytest_bnn.network.tree import Stop, describe, is_inner, leaves, mapped, tensors


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Batch:
    """The arguments of a network for ``rows`` examples.

    Tensors whose dimension ``dim`` has the length ``rows`` are rows (with ``dim`` 1, those of one dimension too), and
    so are lists with an entry for each example (`per_example`); all else is the same for every example and passes
    unchanged.

    Attributes:
        arguments: The positional arguments, each any tree of tensors.
        keywords: The keyword arguments, likewise.
        rows: The number of examples.
        dim: The dimension of the examples: 0, or 1 where time comes first.
        copies: Whether the network gets copies, because its forward writes to what it is given.
        size: The number of rows that the network takes at once, where it takes no other; None where it takes any.
        fields: The names of the network's outputs that count; all that have rows when None.
    """

    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any]
    rows: int
    dim: int = 0
    copies: bool = False
    size: int | None = None
    fields: tuple[str, ...] | None = None

    @classmethod
    def of(cls, *arguments: Any, dim: int = 0, **keywords: Any) -> Batch:
        """Make a batch of what a network is called with.

        Raises:
            ValueError: No tensor in it has examples.
        """
        return cls(arguments=arguments, keywords=keywords, rows=rows_of((arguments, keywords), dim), dim=dim)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """Return some of the examples, by a slice or by their numbers."""
        numbers = torch.arange(self.rows)[rows]

        def take(leaf: Any) -> Any:
            return taken(leaf, numbers, rows=self.rows, dim=self.dim)

        return self._mapped(take, rows=len(numbers))

    def parts(self) -> list[tuple[Batch, int]]:
        """Return the batches that the network is called with, each with how many of its first rows count.

        A network of one size gets rows from the start again where there are not enough left.
        """
        if self.size is None:
            return [(self, self.rows)]
        starts = range(0, self.rows, self.size)
        return [
            (self[torch.arange(start, start + self.size) % self.rows], min(self.size, self.rows - start))
            for start in starts
        ]

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Move every tensor to a device, and those of floating point to a dtype."""

        def move(leaf: Any) -> Any:
            if is_inner(leaf):
                return mapped(leaf, move)
            if not isinstance(leaf, Tensor | PackedSequence):
                return leaf
            where: Any = (device, dtype) if leaf.data.is_floating_point() else (device,)
            return leaf.to(*where)

        return self._mapped(move, rows=self.rows)

    def call(self, network: nn.Module) -> Any:
        """Call a network with the batch."""
        batch = self.copied() if self.copies else self
        return network(*batch.arguments, **batch.keywords)

    def copied(self) -> Batch:
        """Return the same examples with copies of all tensors."""
        return self._mapped(_copy, rows=self.rows)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors in it, in order."""
        return tensors((self.arguments, dict(self.keywords)))

    @property
    def numbers(self) -> int:
        """How many numbers an example has, about: what a pass's memory follows."""
        return max(1, sum(tensor.numel() for tensor in self.tensors) // max(1, self.rows))

    def __str__(self) -> str:
        """Say what the network is called with: ``(float32 [8, 3], mask=bool [8])``."""
        named = [f"{key}={describe(value)}" for key, value in self.keywords.items()]
        return f"({', '.join([*map(describe, self.arguments), *named])})"

    def _mapped(self, visit: Any, *, rows: int) -> Batch:
        stop = per_example(self.rows)
        arguments = tuple(mapped(argument, visit, stop) for argument in self.arguments)
        keywords = {key: mapped(value, visit, stop) for key, value in self.keywords.items()}
        return replace(self, arguments=arguments, keywords=keywords, rows=rows)


#: What checks see a network called with: one tensor, as most are, or a batch.
Inputs = Tensor | Batch


def rows_of(tree: Any, dim: int = 0) -> int:
    """Return the number of examples in a tree: the length, along ``dim``, of its first tensor that has that dimension.

    Raises:
        ValueError: There is no such tensor.
    """
    for _, leaf in leaves(tree):
        if isinstance(leaf, PackedSequence):
            return int(leaf.batch_sizes[0])
        if isinstance(leaf, Tensor) and leaf.ndim > dim:
            return leaf.shape[dim]
    raise ValueError(f"no tensor with a dimension {dim} for the examples")


def per_example(rows: int) -> Stop:
    """Say which lists and tuples have one entry for each example: names of files, boxes of each image.

    Their entries are of one kind, and not all of the tensors in them count the examples themselves, as those of two
    inputs of two examples do.
    """

    def stop(node: Any) -> bool:
        if type(node) not in (list, tuple) or len(node) != rows or len({is_inner(entry) for entry in node}) != 1:
            return False
        held = tensors(node)
        return not held or not all(rows in tensor.shape[: 2 if tensor.ndim > 2 else 1] for tensor in held)

    return stop


def row_dim(leaf: Tensor, *, rows: int, dim: int) -> int | None:
    """Return the dimension of a tensor that counts the examples; None where it has none."""
    if leaf.ndim > dim and leaf.shape[dim] == rows:
        return dim
    return 0 if dim and leaf.ndim and leaf.shape[0] == rows else None


def taken(leaf: Any, numbers: Tensor, *, rows: int, dim: int = 0) -> Any:
    """Take some examples of a leaf; a leaf without examples is given as it is."""
    if isinstance(leaf, PackedSequence):
        padded, lengths = pad_packed_sequence(leaf, batch_first=True)
        chosen = lengths[numbers]
        return pack_padded_sequence(padded[numbers], chosen, batch_first=True, enforce_sorted=False)
    if isinstance(leaf, Tensor):
        where = row_dim(leaf, rows=rows, dim=dim)
        return leaf if where is None else leaf.index_select(where, numbers.to(leaf.device))
    if isinstance(leaf, list | tuple) and len(leaf) == rows:
        return type(leaf)(leaf[index] for index in numbers.tolist())
    return leaf


def call(network: nn.Module, inputs: Inputs) -> Any:
    """Call a network with its inputs, whatever they are."""
    return inputs.call(network) if isinstance(inputs, Batch) else network(inputs)


def device_of(inputs: Inputs) -> torch.device:
    """Return the device that inputs lie on."""
    found = inputs.tensors if isinstance(inputs, Batch) else [inputs]
    return found[0].device


def described(inputs: Inputs) -> str:
    """Say what a network is called with, in a message."""
    if isinstance(inputs, Batch):
        return f"inputs {inputs}"
    return f"images of shape {list(inputs.shape)} and dtype {str(inputs.dtype).removeprefix('torch.')}"


def _copy(leaf: Any) -> Any:
    if is_inner(leaf):
        return mapped(leaf, _copy)
    if isinstance(leaf, PackedSequence):
        return leaf._replace(data=leaf.data.clone())
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
