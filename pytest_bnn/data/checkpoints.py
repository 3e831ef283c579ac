"""The state of a network in a file: read without executing code, and put into a network whole or not at all."""

from __future__ import annotations

import glob
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.errors import InputError, WeightsError
from pytest_bnn.network.tree import kind
from pytest_bnn.records.digests import of_file

#: Names under which training scripts keep a state_dict beside an optimizer's and a number of epochs.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "module")
#: How a name ends under which a module keeps what is no tensor.
_EXTRA = "_extra_state"
_AGAIN = "save it again with safetensors.torch.save_file(model.state_dict(), path)"


def found(patterns: Iterable[str | Path]) -> list[str]:
    """Return the files that patterns such as ``runs/*/last.safetensors`` name, by pattern and then by name.

    A file that several patterns name comes once; a link is a file of its own, also one that leads nowhere.

    Args:
        patterns: Patterns, or names of files, which may hold the signs of patterns; ``~`` is the home folder.

    Raises:
        InputError: A pattern names no file.
    """
    files: dict[str, str] = {}
    for pattern in patterns:
        for name in _named(os.path.expanduser(pattern)):  # noqa: PTH111  a pattern is no path
            files.setdefault(os.path.abspath(name), os.path.normpath(name))  # noqa: PTH100  a link stays one
    return list(files.values())


def _named(pattern: str | Path) -> list[str]:
    if Path(pattern).is_file():
        return [str(pattern)]
    names = sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207
    files = [name for name in names if not Path(name).is_dir()]
    if files:
        return files
    if names:
        raise InputError(
            f"{names[0]!r} is a folder, not a checkpoint",
            fix=f"name the files in it, for example {str(Path(names[0]) / '*.safetensors')!r}",
        )
    raise InputError(
        f"no checkpoint is called {str(pattern)!r}",
        fix="give a file, or a pattern in quotes such as 'runs/*/last.safetensors'",
    )


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return of_file(path).sha256


def read_state(path: str | Path, name: str = "") -> dict[str, Any]:
    """Read a state_dict from a ``.safetensors`` file or a torch checkpoint, on the CPU.

    Of a checkpoint that holds more, such as an optimizer's state, the network's state_dict is taken.

    Args:
        path: The file.
        name: How messages call it; its path when empty.

    Raises:
        WeightsError: The file is missing, damaged, holds code, or holds no state_dict.
    """
    path = Path(path)
    name = name or str(path)
    if not path.is_file():
        raise WeightsError(f"there is no file {name!r}", fix="give the path of a checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load warns of odd pickles before it refuses them
            held = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise WeightsError(f"{name} cannot be read ({error.strerror})", fix="let this user read it") from error
    except Exception as error:  # a damaged pickle raises nearly anything: IndexError, struct.error, ...
        # torch's own words advise to load it with weights_only=False: the one thing not to do.
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise WeightsError(
                f"{name} holds more than tensors, and loading it would execute code ({code[1]})", fix=_AGAIN
            ) from error
        detail = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else _first_line(error)
        raise WeightsError(f"{name} is truncated or is not a torch checkpoint ({detail})", fix=_AGAIN) from error
    return _state_in(held, name)


def load_into(network: nn.Module, path: str | Path, name: str = "") -> None:
    """Load a file's state into a network: every tensor, by its own name.

    A tensor that the network has under several names may stand in the file under one of them, as safetensors'
    ``save_model`` writes it.

    Args:
        network: What gets the state.
        path: The file.
        name: How messages call it; its path when empty.

    Raises:
        WeightsError: As in `read_state`, or the state does not fit; the network is as it was.
    """
    name = name or str(path)
    state, expected = read_state(path, name), network.state_dict(keep_vars=True)
    empty = [key for key, tensor in network.named_parameters() if tensor.is_meta]
    empty += [key for key, tensor in network.named_buffers() if tensor.is_meta]
    if empty:
        raise WeightsError(
            f"the network has no memory for {some(empty)}: it was made on the meta device",
            fix="let the factory make it on the CPU, or give it memory and fill it: network.to_empty(device='cpu')",
        )
    state = {**state, **_by_their_other_names(state, expected)}
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        raise WeightsError(f"{name} does not fit the network: {_unfitting(missing, unexpected)}",
                           fix=_fix_of_names(state, expected))  # fmt: skip
    wrong = [words for key, tensor in expected.items() if (words := _difference(key, state[key], tensor))]
    if wrong:
        raise WeightsError(
            f"{name} does not fit the network: {some(wrong)}", fix="let the factory make the network that was saved"
        )
    network.load_state_dict(state, strict=True)


def _by_their_other_names(state: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a state lacks and has under another name of the same tensor."""
    place = {id(tensor): key for key, tensor in expected.items() if key in state and isinstance(tensor, Tensor)}
    return {
        key: state[place[id(tensor)]] for key, tensor in expected.items() if key not in state and id(tensor) in place
    }


def _difference(key: str, found: Any, expected: Any) -> str:
    """Say why a tensor cannot take the place of another; nothing where it can."""
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor) or is_lazy(expected):
        return ""
    if found.shape != expected.shape:
        return f"{key} is {tuple(found.shape)}, the network's is {tuple(expected.shape)}"
    if _numbers(found) != _numbers(expected):
        kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (found, expected)]
        return f"{key} is {kinds[0]}, the network's is {kinds[1]}"
    return ""


def _numbers(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "whole"


def some(names: list[str], most: int = 4) -> str:
    """Return names as a text, of many the first ones and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _read_safetensors(path: Path, name: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{name} is truncated or is not a safetensors file ({error})", fix=_AGAIN) from error


def _state_in(held: Any, name: str) -> dict[str, Any]:
    if _is_state(held):
        return dict(held)
    if isinstance(held, Mapping):
        inner = [key for key in _NESTED if _is_state(held.get(key))]
        if len(inner) == 1:
            return dict(held[inner[0]])
    raise WeightsError(f"{name} holds no state_dict: a dict of names and tensors, but {kind(held)}", fix=_AGAIN)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and (isinstance(v, Tensor) or k.endswith(_EXTRA)) for k, v in value.items())
        and any(isinstance(v, Tensor) for v in value.values())
    )


def _unfitting(missing: list[str], unexpected: list[str]) -> str:
    parts = [f"it lacks {some(missing)}"] if missing else []
    parts += [f"it holds {some(unexpected)}, which the network lacks"] if unexpected else []
    return " and ".join(parts)


def _fix_of_names(state: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    if prefix := _prefix(state, expected):
        return f"every name begins with {prefix!r}, as a wrapper saves it: save the inner network's state_dict"
    if prefix := _prefix(expected, state):
        return f"the network's names begin with {prefix!r}: let the factory return the inner network"
    return "let the factory make the network that was saved, and save model.state_dict() whole"


def _prefix(longer: Mapping[str, Any], shorter: Mapping[str, Any]) -> str:
    """Return what stands before every name in the one, and in none of the other; empty where they differ otherwise."""
    first = next(iter(shorter), "")
    for name in longer if first else ():
        prefix = name.removesuffix(first)
        if prefix and prefix != name and {f"{prefix}{one}" for one in shorter} == set(longer):
            return prefix
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
