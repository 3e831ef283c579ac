"""The tensors that a network multiplies by: which of its own are operands of a matrix product or convolution.

One forward pass is followed operation by operation, below autograd and autocast, so that it does not matter how a
product is written (a module, a functional call, ``einsum``, a fused kernel of torch). Each tensor carries along whether
it depends on the input, whether it is random, and from which of the network's tensors it was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pytest_bnn.network.tree import tensors

#: What a tensor carries along: two flags, then a bit for each tensor that it was computed from.
_INPUT, _RANDOM, _FIRST = 1, 2, 4

#: The places of the operands in products of two or three tensors, and of what is added to them.
_PRODUCTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "matmul"), ((0, 1), ())),
    **dict.fromkeys(("addmm", "addmv", "addbmm", "baddbmm"), ((1, 2), (0,))),
    "linear": ((0, 1), (2,)),
    "_trilinear": ((0, 1, 2), ()),
    "bilinear": ((0, 1, 2), (3,)),
}

#: Fused layers: every matrix among their arguments is an operand, every vector is added.
_FUSED = {
    "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn",
    "gru", "lstm", "rnn_tanh", "rnn_relu", "gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell",
}  # fmt: skip

#: What is taken out of a table by numbers is no kernel, whatever is done with it.
_LOOKUPS = frozenset(["embedding", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select", "gather"])


@dataclass(frozen=True, slots=True)
class Operand:
    """One use of a network's own tensors as an operand beside one that depends on the input.

    Attributes:
        sources: The names of the tensors that the operand was computed from.
        added: The names of those that the same operation adds, such as a bias.
        random: Whether a draw of random numbers is part of the operand.
        inside: The paths of the modules that were running.
    """

    sources: frozenset[str]
    added: frozenset[str]
    random: bool
    inside: frozenset[str]


def operands(network: nn.Module, run: Callable[[], object], named: Mapping[str, Tensor]) -> list[Operand]:
    """Return the uses of some tensors as operands in one run of a network; each once.

    An operand that depends on the input itself is none, and neither is what is looked up in a table. Registers hooks:
    use it within `isolation.undisturbed`.

    Args:
        network: What runs. What it is called with is the input.
        run: Runs it.
        named: The tensors to look for, by name; those of its modules' own that are not among them are constants.
    """
    mode = _Following(named)
    for path, module in network.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # it takes no hooks

            def enter(_module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                if not path:
                    mode.start([*tensors(args), *tensors(kwargs)])
                mode.running.append(path)

            module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
            module.register_forward_hook(lambda *_: mode.leave(), always_call=True)
    with mode:
        run()
    return list(mode.found)


class _Following(TorchDispatchMode):
    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running: list[str] = []
        self.found: dict[Operand, None] = {}
        self._labels: Any = WeakTensorKeyDictionary()
        self._written: dict[int, int] = {}
        self._names = list(named)
        # What shares memory with one of them, such as its .data, is known by the bytes that it reaches.
        self._spans: dict[int, list[tuple[int, int, int]]] = {}
        for index, tensor in enumerate(named.values()):
            bit = _FIRST << index
            self._labels[tensor] = self._labels.get(tensor, 0) | bit
            self._spans.setdefault(_storage(tensor), []).append((*_reach(tensor), bit))

    def start(self, inputs: Iterable[Tensor]) -> None:
        """Note what the network is called with."""
        for tensor in inputs:
            self._labels[tensor] = _INPUT
            self._write(tensor, _INPUT)

    def leave(self) -> None:
        """Note that the innermost module is done."""
        self.running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        given = [*tensors(args), *tensors(kwargs)]
        labels = [self._label(tensor) for tensor in given]
        self._note(name, args, given, labels)
        mixed = 0 if name.endswith("_like") or name.startswith("new_") else _union(labels)
        if torch.Tag.nondeterministic_seeded in func.tags:
            mixed |= _RANDOM
        if name in _LOOKUPS:
            mixed &= _INPUT | _RANDOM
        mixed = mixed & (_INPUT | _RANDOM) if mixed & _INPUT else mixed
        for place in _written_places(func):
            for tensor in tensors(args[place] if place < len(args) else ()):
                self._labels[tensor] = mixed
                self._write(tensor, mixed)
        for tensor in tensors(kwargs.get("out")):
            self._labels[tensor] = mixed
        inside = {_storage(tensor) for tensor in given}
        for tensor in tensors(result):
            if _storage(tensor) not in inside:
                self._written.pop(_storage(tensor), None)
            self._labels[tensor] = mixed
        return result

    def _write(self, tensor: Tensor, label: int) -> None:
        storage = _storage(tensor)
        self._written[storage] = self._written.get(storage, 0) | label

    def _label(self, tensor: Tensor) -> int:
        storage = _storage(tensor)
        own = self._labels.get(tensor)
        if own is None:
            start, end = _reach(tensor)
            own = _union(bit for low, high, bit in self._spans.get(storage, ()) if low < end and start < high)
        known: int = own | self._written.get(storage, 0)
        return known

    def _note(self, name: str, args: Any, given: list[Tensor], labels: list[int]) -> None:
        if name in _PRODUCTS:
            places, added = _PRODUCTS[name]
        elif "scaled_dot_product" in name:
            places, added = (0, 1, 2), ()
        elif "conv" in name and "backward" not in name:
            places, added = (0, 1), (2,)
        elif name in _FUSED:
            matrices = [label for tensor, label in zip(given, labels, strict=True) if tensor.ndim > 1]
            self._use(matrices, _union(label for label, tensor in zip(labels, given, strict=True) if tensor.ndim == 1))
            return
        else:
            return
        self._use(
            [self._label(args[p]) for p in places if p < len(args) and isinstance(args[p], Tensor)],
            _union(self._label(args[p]) for p in added if p < len(args) and isinstance(args[p], Tensor)),
        )

    def _use(self, factors: list[int], added: int) -> None:
        if not any(factor & _INPUT for factor in factors):
            return
        for factor in factors:
            if not factor & _INPUT and factor >= _FIRST:
                random, inside = bool(factor & _RANDOM), frozenset(self.running)
                self.found[Operand(self._names_of(factor), self._names_of(added), random, inside)] = None

    def _names_of(self, label: int) -> frozenset[str]:
        return frozenset() if label & _INPUT else frozenset(self._listed(label // _FIRST))

    def _listed(self, bits: int) -> Iterator[str]:
        while bits:
            lowest = bits & -bits
            yield self._names[lowest.bit_length() - 1]
            bits ^= lowest


def _union(labels: Iterable[int]) -> int:
    found = 0
    for label in labels:
        found |= label
    return found


@cache
def _written_places(func: Any) -> tuple[int, ...]:
    """Return the places of the arguments that an operation writes to."""
    arguments = enumerate(func._schema.arguments)
    return tuple(i for i, argument in arguments if argument.alias_info is not None and argument.alias_info.is_write)


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, or without memory
        return 0


def _reach(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte that a tensor reaches, and the one behind its last."""
    try:
        start = tensor.data_ptr()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    except (NotImplementedError, RuntimeError):
        return 0, 0
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start
