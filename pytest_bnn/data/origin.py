"""Where a subject came from: what was named, and the files that were read for it, seen while they were."""

from __future__ import annotations

import importlib
import inspect
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Final

from pytest_bnn.records.digests import of_file
from pytest_bnn.records.run import FileDigest

#: What weights and data are kept in.
ENDINGS: Final = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz", ".npy", ".pkl", ".parquet")
MOST_FILES: Final = 20

#: Functions that open a file by other means than Python's, by their modules.
_NATIVE: Final = (("safetensors.torch", "safe_open"), ("torch.jit", "load"))

_reading: ContextVar[FilesRead | None] = ContextVar("pytest_bnn_reading", default=None)
_hooked: list[bool] = []

#: The folder of this package.
_PACKAGE: Final = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the parts of a subject came from, by their roles ("model", "data", ...), and the files read for them."""

    sources: Mapping[str, str] = field(default_factory=dict)
    files: tuple[FileDigest, ...] = ()


class FilesRead:
    """The files of weights and data that were opened for reading; see `files_read`."""

    def __init__(self) -> None:
        self._start = Path.cwd()
        self._paths: dict[Path, None] = {}

    def take(self, path: object, flags: object = os.O_RDONLY) -> None:
        """Note a file that is opened, where it is of the kind and not written to."""
        if not isinstance(path, str | bytes | os.PathLike) or len(self._paths) >= MOST_FILES:
            return
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
            return
        name = os.fsdecode(path)
        if name.lower().endswith(ENDINGS):
            self._paths.setdefault(Path(os.path.abspath(name)))  # noqa: PTH100  links stay as they were named

    def digests(self) -> tuple[FileDigest, ...]:
        """Return their digests now, in the order in which they were opened, without those that are gone."""
        found = []
        for path in self._paths:
            try:
                if stat.S_ISREG(path.stat().st_mode):
                    found.append(of_file(path, within(path, self._start)))
            except OSError:
                continue
        return tuple(found)


@contextmanager
def files_read() -> Iterator[FilesRead]:
    """Watch which files of weights and data are opened inside, in this thread; nothing else is done about them.

    Seen is what Python opens, and what safetensors and TorchScript do.
    """
    if not _hooked:
        sys.addaudithook(_opened)  # it stays, and does nothing while nobody watches
        _hooked.append(True)
    found = FilesRead()
    token = _reading.set(found)
    try:
        with ExitStack() as patches:
            for place, name in _NATIVE:
                try:
                    module = importlib.import_module(place)
                    original = getattr(module, name)
                except (ImportError, AttributeError):
                    continue
                patches.callback(setattr, module, name, original)
                setattr(module, name, _noting(original))
            yield found
    finally:
        _reading.reset(token)


def _opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open":
        return
    found = _reading.get()
    if found is not None:
        found.take(arguments[0], arguments[2])


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def noting(*arguments: Any, **keywords: Any) -> Any:
        found = _reading.get()
        path = next(iter((*arguments, *keywords.values())), None)
        if found is not None:
            found.take(path)
        return original(*arguments, **keywords)

    return noting


def named(name: str, start: Path | None = None) -> str:
    """Write ``MODULE:NAME``, which was imported, with the file of its module: ``my_net:bayesian (my_net.py)``."""
    module = sys.modules.get(name.partition(":")[0])
    file = getattr(module, "__file__", None)
    return f"{name} ({within(file, start)})" if file else name


def of_function(function: object, start: Path | None = None) -> str:
    """Write where a function, or a callable object's class, is from: ``train:loss (train.py)``; empty if unknown."""
    found = function if hasattr(function, "__qualname__") else type(function)
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", "")
    if not isinstance(module, str) or not name:
        return ""
    try:
        file = inspect.getsourcefile(found)  # type: ignore[arg-type]
    except (TypeError, OSError):
        file = None
    return f"{module}:{name} ({within(file, start)})" if file else f"{module}:{name}"


def within(path: str | Path, folder: Path | None = None) -> str:
    """Write a path relative to a folder, the current one when None, where it lies in it; else in full.

    A file of this package is written from the package on, wherever that is installed.
    """
    path, folder = Path(path), folder or Path.cwd()
    if path.is_relative_to(_PACKAGE) and not path.is_relative_to(folder):
        return path.relative_to(_PACKAGE.parent).as_posix()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
