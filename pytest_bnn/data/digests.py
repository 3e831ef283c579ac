"""SHA-256 digests of tensors: of a network's state, and of examples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence

from pytest_bnn.network.tree import leaves


def of_state(state: Mapping[str, Any]) -> str:
    """Return the digest of a state_dict: names, dtypes, shapes and bytes of its tensors, in the order of their names.

    The order in which they were registered makes no difference: files such as .safetensors do not keep it.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if isinstance(tensor, Tensor) and not is_lazy(tensor):
            _take(digest, name, tensor)
    return digest.hexdigest()


def of_examples(tree: Any) -> str:
    """Return the digest of a tree of tensors: places, dtypes, shapes and bytes, in the order of the tree.

    Of what is no tensor, texts, numbers and truth values count too.
    """
    digest = hashlib.sha256()
    for name, leaf in leaves(tree):
        if isinstance(leaf, PackedSequence):
            _take(digest, f"{name}.data", leaf.data)
            _take(digest, f"{name}.batch_sizes", leaf.batch_sizes)
        elif isinstance(leaf, Tensor):
            _take(digest, name, leaf)
        elif isinstance(leaf, str | int | float | bool):
            digest.update(f"{name} {leaf!r}".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _take(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode("utf-8", "backslashreplace"))
    if tensor.is_meta:  # it has no bytes
        return
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
