"""What data sets hold: tensors, lists and files, by whose digest it is known whether one is the same as before."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor
from torch.utils.data import Dataset

from pytest_bnn.data.digests import take
from pytest_bnn.network.tree import children, is_inner

#: Where objects that read files, such as those of h5py, numpy and zipfile, name them.
_NAMES = ("filename", "name", "path")

#: What is told by its text alone.
_NUMBERS = {int, float, bool, type(None)}
_PLAIN = {*_NUMBERS, str}

#: Texts that are taken into a digest together.
_FLUSH = 4096


def of_data_set(data: Any, read: Callable[[], object] | None = None) -> str:
    """Return the digest of what a data set holds, without reading its items one by one.

    That is: its tensors and arrays; the texts and numbers in its lists, dictionaries and tables; of files that these
    or its attributes name, as torchvision's folders do, size and time of change; and the same of data sets in it. A
    number or text that is an attribute by itself may be a clock or a counter, and does not count; what it has
    elsewhere is not seen.

    Args:
        data: A data set.
        read: Reads some of it: lists and dictionaries that grow by that, such as logs and caches, do not count.
    """
    files: dict[str, str] = {}
    held = _held(data, files, {})
    if read is not None:
        arrays = {key: said for key, (said, is_array) in held.items() if is_array}
        read()
        after = _held(data, files, arrays)
        held = {key: said for key, said in held.items() if after.get(key) == said}
    digest = hashlib.sha256()
    for key in sorted(held):
        digest.update(f"{key} {held[key][0]} ".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _held(data: Any, files: dict[str, str], known: Mapping[str, str]) -> dict[str, tuple[str, bool]]:
    """Return a digest of each attribute, and whether it is a tensor or array; ``known`` ones are not made again."""
    found: dict[str, tuple[str, bool]] = {}
    seen = {id(data)}
    left: list[tuple[str, Any]] = [("", data)]
    while left:
        name, one = left.pop()
        for key, value in sorted(getattr(one, "__dict__", {}).items()):
            place = f"{name}{key}"
            is_array = isinstance(value, Tensor | numpy.ndarray)
            if is_array and place in known:
                found[place] = known[place], True
                continue
            walk = _Walk(files, seen)
            walk.take(value, alone=True)
            found[place] = f"{type(value).__qualname__} {walk.digest.hexdigest()}", is_array
            left += [(f"{place}.{number}.", inner) for number, inner in enumerate(walk.data_sets)]
    return found


class _Walk:
    """Takes the parts of one attribute into a digest, and collects the data sets in it."""

    def __init__(self, files: dict[str, str], seen: set[int]) -> None:
        self._digest = hashlib.sha256()
        self._said: list[str] = []
        self.data_sets: list[Any] = []
        self._files, self._seen = files, seen
        self._made: list[Any] = []  # they stay, so that no other object gets their id

    def take(self, value: Any, *, alone: bool = False) -> None:
        """Take a value.

        Args:
            value: Any.
            alone: Whether it is an attribute by itself, of which a text or number does not count.
        """
        if type(value) is tuple and set(map(type, value)) <= _PLAIN:  # those of a folder are a million
            for part in value:
                self._say(str(part), self._file(part))
        elif isinstance(value, str | Path):
            self._say("" if alone else str(value), self._file(value))
        elif isinstance(value, int | float | complex | bytes | numpy.generic) or value is None:
            self._say("" if alone else repr(value))
        elif id(value) in self._seen:
            self._say("again")
        elif isinstance(value, Dataset):
            self._seen.add(id(value))
            self.data_sets.append(value)
        elif isinstance(value, Tensor):
            take(self.digest, "", value)
        elif isinstance(value, numpy.ndarray):
            self._array(value)
        else:
            self._inside(value)

    def _inside(self, value: Any) -> None:
        inner = self._parts(value)
        if inner is None:
            self._say(type(value).__qualname__, *self._read_by(value))
            return
        self._seen.add(id(value))
        self._say(f"{type(value).__qualname__} {len(inner)}")
        if set(map(type, inner)) <= _NUMBERS:
            self._say(repr(inner))
            return
        for part in inner:
            self.take(part)
        if isinstance(value, tuple):  # it is what it holds, and may be made anew at each look
            self._seen.discard(id(value))

    def _parts(self, value: Any) -> list[Any] | None:
        """Return what a container holds; None of anything else."""
        if type(value) in (list, tuple):
            return value if isinstance(value, list) else list(value)
        if isinstance(value, Mapping):
            return [part for item in value.items() for part in item]
        if is_inner(value):
            return [part for _, part in children(value)]
        if isinstance(value, set | frozenset):
            return sorted(value, key=repr)
        if isinstance(value, deque):
            return list(value)
        if hasattr(type(value), "to_numpy"):  # a table of pandas or polars
            with contextlib.suppress(Exception):
                table = [numpy.asarray(value.to_numpy())]
                self._made.append(table)
                return table
        return None

    def _array(self, value: Any) -> None:
        if file := of_mapped(value):
            self._say(file)
        elif value.dtype.hasobject or value.dtype.kind in "US":  # which may be the names of files
            listed = value.tolist()
            self._made.append(listed)
            self._say(f"{value.shape}")
            self.take(listed)
        else:
            self._say(f"{value.dtype} {value.shape}")
            self.digest.update(numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8).data)

    def _say(self, *texts: str) -> None:
        self._said.append("\0".join((*texts, "\n")))
        if len(self._said) > _FLUSH:
            self._flush()

    def _flush(self) -> None:
        self._digest.update("".join(self._said).encode("utf-8", "backslashreplace"))
        self._said.clear()

    @property
    def digest(self) -> Any:
        """The digest of all that was taken."""
        self._flush()
        return self._digest

    def _read_by(self, value: Any) -> Iterator[str]:
        """Yield the state of a file that an open handle reads, as far as it names it."""
        with contextlib.suppress(Exception):
            for owner in (value, getattr(value, "file", None)):
                for name in _NAMES:
                    if said := self._file(getattr(owner, name, None)):
                        yield said
                        return

    def _file(self, named: object) -> str:
        """Return size and time of change of a file, by its path; empty where there is none."""
        if not isinstance(named, str | Path) or not str(named):
            return ""
        path = str(named)
        if path not in self._files:
            self._files[path] = _state_of(path)
        return self._files[path]


def of_mapped(array: Any) -> str:
    """Say which file an array is that is mapped into memory, and when it was changed; empty of another one.

    A part of such an array is another one: it does not tell which part it is.
    """
    base: object = getattr(array, "base", None)
    if not isinstance(array, numpy.memmap) or not isinstance(base, mmap.mmap) or array.filename is None:
        return ""
    path = str(array.filename)
    return f"{path} {_state_of(path)} {array.dtype} {array.shape} {array.strides} {array.offset}"


def _state_of(path: str) -> str:
    try:
        found = os.stat(path)  # noqa: PTH116  of a million files it takes half the time
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else ""
