"""The state of a network in a file: read without executing code, and put into a network whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.errors import InputError, WeightsError
from pytest_bnn.network.tree import kind

#: Names under which training scripts keep a state_dict beside an optimizer's and a number of epochs.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "module")
#: What wrappers put before each name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_AGAIN = "save it again with safetensors.torch.save_file(model.state_dict(), path)"


def found(patterns: Iterable[str]) -> list[str]:
    """Return the files that patterns such as ``runs/*/last.safetensors`` name, each once, by pattern and then by name.

    Raises:
        InputError: A pattern names no file.
    """
    files: list[str] = []
    for pattern in patterns:
        named = sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())  # noqa: PTH207
        if not named:
            raise InputError(
                f"no checkpoint is called {pattern!r}",
                fix="give a file, or a pattern in quotes such as 'runs/*/last.safetensors'",
            )
        files += named
    return list(dict.fromkeys(files))


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state_dict from a ``.safetensors`` file or a torch checkpoint, on the CPU.

    Of a checkpoint that holds more, such as an optimizer's state, the network's state_dict is taken.

    Raises:
        WeightsError: The file is missing, damaged, holds code, or holds no state_dict.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no file {str(path)!r}", fix="give the path of a checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load warns of odd pickles before it refuses them
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything: IndexError, struct.error, ...
        # torch's own words advise to load it with weights_only=False: the one thing not to do.
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise WeightsError(
                f"{path} holds more than tensors, and loading it would execute code ({code[1]})", fix=_AGAIN
            ) from error
        detail = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else _first_line(error)
        raise WeightsError(f"{path} is truncated or is not a torch checkpoint ({detail})", fix=_AGAIN) from error
    return _state_in(held, path)


def load_into(network: nn.Module, path: str | Path, name: str = "") -> None:
    """Load a file's state into a network: every tensor, by its own name.

    Args:
        network: What gets the state.
        path: The file.
        name: How messages call it; its path when empty.

    Raises:
        WeightsError: As in `read_state`, or the state does not fit; the network is as it was.
    """
    state, expected, name = read_state(path), network.state_dict(), name or str(path)
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        raise WeightsError(f"{name} does not fit the network: {_unfitting(state, missing, unexpected)}",
                           fix=_fix_of_names(state, expected))  # fmt: skip
    wrong = [
        f"{key} is {tuple(state[key].shape)}, the network's is {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if isinstance(tensor, Tensor) and state[key].shape != tensor.shape
    ]
    if wrong:
        raise WeightsError(
            f"{name} does not fit the network: {some(wrong)}", fix="let the factory make the network that was saved"
        )
    network.load_state_dict(state, strict=True)


def some(names: list[str], most: int = 4) -> str:
    """Return names as a text, of many the first ones and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is truncated or is not a safetensors file ({error})", fix=_AGAIN) from error


def _state_in(held: Any, path: Path) -> dict[str, Tensor]:
    if _is_state(held):
        return dict(held)
    if isinstance(held, Mapping):
        inner = [name for name in _NESTED if _is_state(held.get(name))]
        if len(inner) == 1:
            return dict(held[inner[0]])
    raise WeightsError(f"{path} holds no state_dict: a dict of names and tensors, but {kind(held)}", fix=_AGAIN)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _unfitting(state: Mapping[str, Tensor], missing: list[str], unexpected: list[str]) -> str:
    parts = [f"it lacks {some(missing)}"] if missing else []
    parts += [f"it holds {some(unexpected)}, which the network has not"] if unexpected else []
    return " and ".join(parts)


def _fix_of_names(state: Mapping[str, Tensor], expected: Mapping[str, Any]) -> str:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state) and {n.removeprefix(prefix) for n in state} == set(expected):
            return f"every name begins with {prefix!r}, as a wrapper saves it: save the inner network's state_dict"
        if all(name.startswith(prefix) for name in expected) and {f"{prefix}{n}" for n in state} == set(expected):
            return f"the network's names begin with {prefix!r}: let the factory return the inner network"
    return "let the factory make the network that was saved, and save model.state_dict() whole"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
