"""A data set is known again by what it holds: a file, a label or a number that changed makes it another one."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from pytest_bnn.audit.named import Named
from pytest_bnn.data.holdings import of_data_set
from pytest_bnn.data.large import LargeData
from pytest_bnn.many.key import _examples


class Holds(Dataset[tuple[Tensor, int]]):
    """Has what it is given as its attributes."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return torch.full((3,), float(number)), number % 2


def read(data: Any, count: int = 20) -> str:
    """Return what a series asks: the digest of a data set of which some examples were read."""
    return LargeData.of(data, few=count).data.digest()


def touch(path: Path) -> str:
    path.write_bytes(b"jpeg")
    os.utime(path, (1, 1))
    return str(path)


def change(path: Path) -> None:
    path.write_bytes(b"jpge")
    os.utime(path, (2, 2))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(6):
        folder = tmp_path / "pictures" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        touch(folder / f"{number}.jpg")
    return tmp_path / "pictures"


FOLDERS: list[Callable[[Path], Dataset[Any]]] = [
    lambda folder: ImageFolder(folder),
    lambda folder: Subset(ImageFolder(folder), [0, 2, 5]),
    lambda folder: ConcatDataset([TensorDataset(torch.zeros(2)), ImageFolder(folder)]),
    lambda folder: Subset(ConcatDataset([Subset(ImageFolder(folder), range(6)), ImageFolder(folder)]), [1]),
    lambda folder: Holds(inner=[{"train": ImageFolder(folder)}]),
]


@pytest.mark.parametrize("make", FOLDERS)
def test_one_file_of_a_folder_makes_another_data_set(make: Callable[[Path], Dataset[Any]], pictures: Path) -> None:
    before = of_data_set(make(pictures))
    assert of_data_set(make(pictures)) == before
    change(pictures / "class1" / "3.jpg")
    changed = of_data_set(make(pictures))
    assert changed != before
    touch(pictures / "class1" / "7.jpg")
    more = of_data_set(make(pictures))
    assert more != changed
    (pictures / "class1" / "7.jpg").rename(pictures / "class0" / "7.jpg")
    assert of_data_set(make(pictures)) != more, "one label"


def frame(*rows: Any) -> Any:
    """A table as pandas has it, which is not installed everywhere."""

    class Frame:
        def __init__(self) -> None:
            self.block = object()

        def to_numpy(self) -> Any:
            return numpy.array(rows, dtype=object)

    return Frame()


@dataclass
class Row:
    path: str
    label: int


PAIRS: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
    ("a label in a list", lambda: [0, 1, 2], lambda: [0, 2, 1]),
    ("a label in a tuple", lambda: [("a.jpg", 0), ("b.jpg", 1)], lambda: [("a.jpg", 0), ("b.jpg", 0)]),
    ("a number in a dictionary", lambda: {"a": 1.5}, lambda: {"a": 1.25}),
    ("a name in a dictionary", lambda: {"a": 1.5}, lambda: {"b": 1.5}),
    ("a label in a record", lambda: [Row("a", 0)], lambda: [Row("a", 1)]),
    ("a name in an array of texts", lambda: numpy.array(["cat", "dog"]), lambda: numpy.array(["cat", "cow"])),
    ("a name in an array of bytes", lambda: numpy.array([b"cat"]), lambda: numpy.array([b"cow"])),
    (
        "a name in an array of objects",
        lambda: numpy.array(["cat", 3], dtype=object),
        lambda: numpy.array(["cow", 3], dtype=object),
    ),
    ("a date", lambda: numpy.array(["2026-01-01"], "M8[D]"), lambda: numpy.array(["2026-01-02"], "M8[D]")),
    ("a number in an array", lambda: numpy.arange(3.0), lambda: numpy.array([0, 1, 2 + 1e-9])),
    ("the order of an array", lambda: numpy.arange(6).reshape(2, 3), lambda: numpy.arange(6).reshape(3, 2)),
    ("a number in a tensor", lambda: torch.arange(3), lambda: torch.tensor([0, 1, 3])),
    ("a label in a table", lambda: frame(["a.jpg", 0]), lambda: frame(["a.jpg", 1])),
    ("a row of a table", lambda: frame(["a.jpg", 0]), lambda: frame(["a.jpg", 0], ["b.jpg", 0])),
    ("a text in a set", lambda: {"a", "b"}, lambda: {"a", "c"}),
    ("a number in a queue", lambda: deque([1, 2]), lambda: deque([1, 3])),
    ("bytes", lambda: [b"jpeg"], lambda: [b"jpge"]),
    ("what is missing", lambda: ["a", None], lambda: ["a", ""]),
    ("where lists end", lambda: [["a"], ["b", "c"]], lambda: [["a", "b"], ["c"]]),
]


@pytest.mark.parametrize(("one", "other"), [pytest.param(*pair, id=what) for what, *pair in PAIRS])
def test_one_number_makes_another_data_set(one: Callable[[], Any], other: Callable[[], Any]) -> None:
    assert of_data_set(Holds(held=one())) == of_data_set(Holds(held=one()))
    assert of_data_set(Holds(held=one())) != of_data_set(Holds(held=other()))
    assert of_data_set(Holds(held=Holds(held=one()))) != of_data_set(Holds(held=Holds(held=other())))


class Handle:
    """As an h5py.File is: it names its file, and its numbers cannot be had cheaply."""

    def __init__(self, filename: str) -> None:
        self.filename = filename

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("all of it is read")

    __iter__ = __array__


class Part:
    """As an h5py.Dataset is, which has a name inside of its file."""

    name = "/images"

    def __init__(self, file: Handle) -> None:
        self.file = file


@pytest.mark.parametrize(
    "hold",
    [
        pytest.param(lambda path: path, id="its path"),
        pytest.param(Path, id="its path as a Path"),
        pytest.param(lambda path: [path], id="a list of paths"),
        pytest.param(lambda path: numpy.array([path]), id="an array of paths"),
        pytest.param(lambda path: frame([path, 1]), id="a table of paths"),
        pytest.param(lambda path: Handle(path), id="a handle"),
        pytest.param(lambda path: Part(Handle(path)), id="a part of a handle"),
        pytest.param(lambda path: {"open": [Handle(path)]}, id="a handle inside"),
        pytest.param(lambda path: open(path, "rb"), id="a file"),  # noqa: PTH123, SIM115
        pytest.param(lambda path: numpy.memmap(path, mode="r"), id="a mapped array"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:unclosed file")
def test_a_file_that_changed_makes_another_data_set(hold: Callable[[str], Any], tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    first = of_data_set(Holds(held=hold(touch(path))))
    assert of_data_set(Holds(held=hold(str(path)))) == first
    change(path)
    assert of_data_set(Holds(held=hold(str(path)))) != first


def test_a_mapped_array_is_known_by_its_file_and_a_part_of_it_by_its_numbers(tmp_path: Path) -> None:
    """Hundreds of gigabytes are not read; but two parts of one file are two data sets."""
    path = tmp_path / "images.npy"
    numpy.save(path, numpy.arange(12.0).reshape(6, 2))
    whole = numpy.load(path, mmap_mode="r")
    assert of_data_set(Holds(held=whole[:3])) != of_data_set(Holds(held=whole[3:]))
    held = LargeData.of((whole, numpy.arange(6)), few=2).data.digest()
    assert LargeData.of((numpy.load(path, mmap_mode="r"), numpy.arange(6)), few=2).data.digest() == held
    assert LargeData.of((whole, numpy.arange(6) + 1), few=2).data.digest() != held
    os.utime(path, (5, 5))
    assert LargeData.of((whole, numpy.arange(6)), few=2).data.digest() != held


class Clocked(Holds):
    """Keeps times and counts of what it does, and what it has read."""

    def __init__(self) -> None:
        self.made = time.perf_counter()
        self.process = os.getpid() + id(self)
        self.reads = 0
        self.log: list[float] = []
        self.seconds: dict[int, float] = {}
        self.cache: dict[int, Any] = {}
        self.recent: deque[float] = deque(maxlen=3)
        self.labels = [number % 2 for number in range(20)]

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        self.reads += 1
        self.log.append(time.perf_counter())
        self.recent.append(time.perf_counter())
        self.seconds[number] = time.perf_counter()
        self.cache[number] = torch.full((3,), float(number))
        return self.cache[number], self.labels[number]


def test_clocks_counters_caches_and_logs_make_no_other_data_set() -> None:
    first = read(Clocked(), 5)
    assert read(Clocked(), 5) == first
    other = Clocked()
    other.labels[3] = 0
    assert read(other, 5) != first


def test_reading_for_the_digest_disturbs_no_random_state() -> None:
    before = torch.get_rng_state()
    read(Clocked(), 5)
    assert torch.equal(torch.get_rng_state(), before)


class Unreadable(Holds):
    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if number > 10:
            raise OSError("broken")
        return super().__getitem__(number)


def test_what_cannot_be_read_has_a_digest_too() -> None:
    large = LargeData.of(Unreadable(labels=[1]), few=5, unreadable=1.0)
    assert large.data.digest() == LargeData.of(Unreadable(labels=[1]), few=5, unreadable=1.0).data.digest()
    assert large.data.digest() != LargeData.of(Unreadable(labels=[2]), few=5, unreadable=1.0).data.digest()


def test_circles_end() -> None:
    one: Any = Holds(labels=[1])
    one.parent, one.many = one, [one]
    one.many.append(one.many)
    two: Any = Holds(labels=[2])
    two.parent, two.many = two, [two]
    two.many.append(two.many)
    assert of_data_set(one) != of_data_set(two)


def test_a_long_list_is_cheap() -> None:
    """ImageNet's has 1.3 million entries; each is looked at once, however often it is held."""
    samples = [(f"/nowhere/{number}.jpg", number % 7) for number in range(20000)]
    asked: list[str] = []

    def stat(path: str, *given: Any, **named: Any) -> Any:
        asked.append(path)
        raise FileNotFoundError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)
        of_data_set(Holds(samples=samples, imgs=samples, targets=[label for _, label in samples]), read=lambda: None)
    assert len(asked) == 20000


class Shards(IterableDataset[tuple[Tensor, int]]):
    def __init__(self, urls: list[str]) -> None:
        self.urls = urls

    def __iter__(self) -> Any:
        return iter([(torch.ones(3), 1), (torch.zeros(3), 0)])


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: DataLoader(data, batch_size=2)])
def test_a_stream_is_known_by_the_files_that_it_names(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    path = tmp_path / "shard-0.tar"
    first = read(wrap(Shards([touch(path)])))
    assert read(wrap(Shards([str(path)]))) == first
    change(path)
    assert read(wrap(Shards([str(path)]))) != first


def test_a_series_on_large_data_begins_anew_where_its_data_set_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of forty examples are held in memory, and the file that changed is of another one."""
    (tmp_path / "held_net.py").write_text(SERIES)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pictures").mkdir()
    paths = [touch(tmp_path / "pictures" / f"{number}.pt") for number in range(40)]
    monkeypatch.setenv("HELD_PICTURES", str(tmp_path / "pictures"))
    named = Named(
        model="held_net:net", evaluation="held_net:held_out", evaluation_images="all", shard_size=10, images=2
    )  # fmt: skip

    def key() -> list[str]:
        return _examples(named.load(), 0)

    before = key()
    assert key() == before
    large = named.load().evaluation
    assert isinstance(large, LargeData)
    places = large.few.places.tolist()
    assert 7 not in places
    change(Path(paths[7]))
    assert key() != before
    touch(Path(paths[7]))
    assert key() == before


SERIES = """
import os
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import Dataset


class Folder(Dataset):
    def __init__(self, folder):
        self.samples = [(str(path), number % 2) for number, path in enumerate(sorted(Path(folder).iterdir()))]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, number):
        return torch.full((3,), float(number)), self.samples[number][1]


def net():
    return nn.Linear(3, 2).eval()


def held_out():
    return Folder(os.environ["HELD_PICTURES"])
"""
