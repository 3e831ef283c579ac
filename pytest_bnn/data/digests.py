"""SHA-256 digests of tensors: of a network's state, and of examples."""

from __future__ import annotations

import hashlib
import re
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
            take(digest, name, tensor)
    return digest.hexdigest()


def of_examples(tree: Any, *, objects: bool = False) -> str:
    """Return the digest of a tree of tensors: places, dtypes, shapes and bytes, in the order of the tree.

    Args:
        tree: The examples. Of what is no tensor, texts, numbers and truth values count too.
        objects: Whether all else counts as well, by what ``repr`` says of it, but for addresses.
    """
    digest = hashlib.sha256()
    for name, leaf in leaves(tree):
        if isinstance(leaf, PackedSequence):
            take(digest, f"{name}.data", leaf.data)
            take(digest, f"{name}.batch_sizes", leaf.batch_sizes)
        elif isinstance(leaf, Tensor):
            take(digest, name, leaf)
        elif isinstance(leaf, str | int | float | bool):
            digest.update(f"{name} {leaf!r}".encode("utf-8", "backslashreplace"))
        elif objects:
            said = re.sub(r" at 0x[0-9a-f]+", "", repr(leaf))
            digest.update(f"{name} {said}".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def take(digest: Any, name: str, tensor: Tensor) -> None:
    """Take a tensor into a digest of hashlib: its name, dtype, shape and bytes, as far as it has any.

    Of a quantized tensor these are its integers, behind its scale and zero point, one or one a channel; of a sparse
    one, in any layout, those of the dense one of the same values.
    """
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode("utf-8", "backslashreplace"))
    plain = tensor.detach()
    try:
        if plain.is_quantized:
            digest.update(_scale_of(plain).encode())
            plain = plain.int_repr()
        elif plain.layout is not torch.strided:
            plain = plain.to_dense()
        plain = plain.cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    except (RuntimeError, NotImplementedError, TypeError):  # it has no bytes, as on the meta device
        return


def _scale_of(tensor: Tensor) -> str:
    """Return what the integers of a quantized tensor stand for, as text: equal integers may be other numbers."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return f" {tensor.q_scale()!r} {tensor.q_zero_point()}"
    scales, zeros = tensor.q_per_channel_scales().tolist(), tensor.q_per_channel_zero_points().tolist()
    return f" {scales!r} {zeros!r} {tensor.q_per_channel_axis()}"
