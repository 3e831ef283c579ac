"""``pytest-bnn digest``: the digests that a report shows, of the files that they are of."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_bnn.commands.command import PASSED, reader_may_leave
from pytest_bnn.errors import InputError

if TYPE_CHECKING:
    from pytest_bnn.commands.command import Commands

_DESCRIPTION = """\
Compute what a report shows of a file or folder. A checkpoint is read as tensors only; nothing in it is executed.

  file      the bytes of a file, as sha256sum computes it
  folder    the paths and bytes of all files in it
  state     names, dtypes, shapes and numbers of a state_dict: the model's digest in a report
  examples  dtypes, shapes and numbers of tensors or arrays: the data's digest in a report that used all of them
  audit     the JSON of an audit, whatever its layout"""


def add(commands: Commands) -> None:
    """Add the command."""
    digest = commands.add_parser(
        "digest",
        help="compute the digests that a report shows",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    digest.add_argument(
        "files", metavar="FILE", nargs="+", help="a checkpoint, data, a folder of data, an audit's JSON"
    )
    digest.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    digest.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the digests, one a line: what it is of, SHA-256, path."""
    for name in given.files:
        path = Path(name)
        try:
            found = list(_digests(path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{name!r} cannot be read ({reason})", fix="give a file or a folder") from error
        with reader_may_leave():
            for kind, sha256 in found:
                print(f"{kind:<8}  {sha256}  {name}")
    return PASSED


def _digests(path: Path) -> Iterator[tuple[str, str]]:
    from pytest_bnn.records.digests import of_file, of_folder

    if path.is_dir():
        yield "folder", of_folder(path)
        return
    yield "file", of_file(path).sha256
    if path.suffix == ".json":
        yield from _of_audit(path)
    elif path.suffix in (".npy", ".npz"):
        yield from _of_arrays(path)
    else:
        yield from _of_tensors(_tensors(path))


def _of_audit(path: Path) -> Iterator[tuple[str, str]]:
    from pytest_bnn.records.digests import of_audit
    from pytest_bnn.records.run import AuditRun

    try:
        found = AuditRun.from_json(path.read_text(encoding="utf-8"))
    except (InputError, UnicodeDecodeError):
        return
    yield "audit", of_audit(found)


def _of_arrays(path: Path) -> Iterator[tuple[str, str]]:
    import numpy

    from pytest_bnn.data.digests import of_examples
    from pytest_bnn.data.joining import as_tensors

    try:
        found = numpy.load(path, allow_pickle=False)
        tree = found if isinstance(found, numpy.ndarray) else dict(found)
    except (ValueError, OSError, EOFError):
        return
    yield "examples", of_examples(as_tensors(tree))


def _tensors(path: Path) -> Any:
    """Return what a file of torch or safetensors holds; None where it holds none, or what would execute code."""
    import torch

    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file

            return load_file(path)
        except Exception:  # it is damaged: its bytes have a digest all the same
            return None
    for mapped in (True, False):  # a large file is not copied to memory, where its format allows that
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception:  # noqa: S112  no checkpoint, or a damaged one, which raises nearly anything
            continue
    return None


def _of_tensors(found: Any) -> Iterator[tuple[str, str]]:
    from torch import Tensor

    from pytest_bnn.data.digests import of_examples, of_state
    from pytest_bnn.network.tree import tensors

    if _is_state(found):
        yield "state", of_state(found)
    elif isinstance(found, Mapping):
        for name, value in found.items():
            if _is_state(value):
                yield f"state of {name!r}", of_state(value)
    elif isinstance(found, Tensor) or tensors(found):
        yield "examples", of_examples(found)


def _is_state(found: Any) -> bool:
    from torch import Tensor

    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(name, str) for name in found)
        and any(isinstance(value, Tensor) for value in found.values())
        and not any(isinstance(value, Mapping) for value in found.values())
    )
