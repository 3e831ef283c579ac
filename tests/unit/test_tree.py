"""Trees of tensors: every kind of container that data sets and networks use is walked and rebuilt as itself."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree

from pytest_bnn.network.tree import children, describe, is_inner, kind, leaves, mapped, tensors

X, Y = torch.arange(6.0).reshape(3, 2), torch.arange(3)


Triple = namedtuple("Triple", "a b c")


class Pair(NamedTuple):
    inputs: Any
    labels: Any


@dataclass
class Record:
    inputs: Any
    labels: Any = None


@dataclass(frozen=True)
class Frozen:
    inputs: Any
    labels: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    inputs: Any
    labels: Any = None


@dataclass
class Late:
    """A field that nobody fills, and one that is not an argument."""

    inputs: Any
    labels: Any = field(init=False)


class Attributes(dict[str, Any]):
    """A dictionary whose keys are its attributes: ``batch.inputs``."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.__dict__ = self


class Reading(dict[str, Any]):
    """The same by reading alone."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Rows(list[Any]):
    """A list with a name."""

    name = "rows"


class Fixed(tuple[Any, ...]):
    """A tuple of its own kind."""


class Columns(UserDict[str, Any]):
    """As tokenizers give it: not made by calling it with a dictionary."""

    def __init__(self, data: Any, encodings: Any) -> None:
        super().__init__(data)
        self.encodings = encodings


TREES: dict[str, Any] = {
    "tensor": X,
    "dict": {"inputs": X, "labels": Y},
    "dict of numbers": {0: X, 1: Y},
    "OrderedDict": OrderedDict(inputs=X, labels=Y),
    "defaultdict": defaultdict(list, inputs=X, labels=Y),
    "UserDict": UserDict(inputs=X, labels=Y),
    "UserDict that is made otherwise": Columns({"inputs": X, "labels": Y}, encodings="kept"),
    "mapping that cannot be written": MappingProxyType({"inputs": X, "labels": Y}),
    "attributes": Attributes(inputs=X, labels=Y),
    "attributes to read": Reading(inputs=X, labels=Y),
    "tuple": (X, Y),
    "list": [X, Y],
    "own list": Rows([X, Y]),
    "own tuple": Fixed((X, Y)),
    "NamedTuple": Pair(X, Y),
    "namedtuple": Triple(X, Y, None),
    "what torch.max returns": torch.max(X, 0),
    "dataclass": Record(X, Y),
    "frozen dataclass": Frozen(X, Y),
    "dataclass with slots": Slotted(X, Y),
    "dataclass without a value": Late(X),
    "nested": {"a": [X, (Y, {"b": Pair(X, Frozen(Y))})], "c": UserDict(d=[X])},
    "empty": {"a": [], "b": (), "c": {}},
}


def same(one: Any, other: Any) -> bool:
    """Say whether trees are of the same types, with equal leaves."""
    if type(one) is not type(other) or is_inner(one) != is_inner(other):
        return False
    if not is_inner(one):
        return torch.equal(one, other) if isinstance(one, Tensor) else one is other or one == other
    ours, theirs = children(one), children(other)
    return [name for name, _ in ours] == [name for name, _ in theirs] and all(
        same(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_rebuilt_as_it_was(name: str) -> None:
    """Of the same types, with the same leaves; and it is another one, so that changing it changes nobody's data."""
    tree = TREES[name]
    rebuilt = mapped(tree, lambda leaf: leaf)
    assert same(rebuilt, tree)
    assert not is_inner(tree) or rebuilt is not tree


@pytest.mark.parametrize("name", TREES)
def test_every_tensor_is_visited_once(name: str) -> None:
    """In the order of `leaves`, and the tree stays as it is."""
    tree = TREES[name]
    before = [(id(leaf), leaf.clone() if isinstance(leaf, Tensor) else leaf) for _, leaf in leaves(tree)]
    seen: list[Any] = []
    doubled = mapped(tree, lambda leaf: seen.append(leaf) or (2 * leaf if isinstance(leaf, Tensor) else leaf))  # type: ignore[func-returns-value]
    assert [id(leaf) for leaf in seen] == [id(leaf) for _, leaf in leaves(tree)]
    assert [id(leaf) for _, leaf in leaves(tree)] == [number for number, _ in before]
    assert all(same(leaf, kept) for (_, leaf), (_, kept) in zip(leaves(tree), before, strict=True))
    for one, other in zip(tensors(doubled), tensors(tree), strict=True):
        assert torch.equal(one, 2 * other)


@pytest.mark.parametrize(
    "tree", [TREES[name] for name in ("dict", "OrderedDict", "defaultdict", "tuple", "list", "NamedTuple")]
)
def test_torch_agrees_where_it_knows_the_type(tree: Any) -> None:
    """Oracle: torch's own walk, which is not public."""
    assert [id(leaf) for _, leaf in leaves(tree)] == [id(leaf) for leaf in _pytree.tree_leaves(tree)]
    assert same(mapped(tree, torch.neg), _pytree.tree_map(torch.neg, tree))


def test_attributes_follow_the_keys() -> None:
    """A loss that reads ``batch.inputs`` gets what was put there, not what was there before."""
    for tree in (TREES["attributes"], TREES["attributes to read"]):
        assert torch.equal(mapped(tree, lambda leaf: leaf + 1).inputs, X + 1)
    assert mapped(TREES["UserDict that is made otherwise"], lambda leaf: leaf).encodings == "kept"


@pytest.mark.parametrize(
    "leaf",
    [
        None,
        3,
        "text",
        b"bytes",
        numpy.zeros(3),
        numpy.array(["a"], dtype=object),
        SimpleNamespace(inputs=X),
        torch.Size([2, 3]),
        range(3),
        {1, 2},
        pack_sequence([X, X[:2]]),
        Record,
    ],
)
def test_what_is_no_tree_is_left_alone(leaf: Any) -> None:
    """Objects, texts and arrays are leaves, the very same behind a walk; packed sequences are, too."""
    assert not is_inner(leaf)
    assert children(leaf) == []
    assert mapped({"a": leaf}, lambda value: value)["a"] is leaf
    assert leaves(leaf) == [("", leaf)]


def test_tensors_of_packed_sequences() -> None:
    """They are their data."""
    packed = pack_sequence([X, X[:2]])
    assert [t.shape for t in tensors((packed, Y))] == [packed.data.shape, Y.shape]


def test_places_and_words() -> None:
    """A place is the way to a leaf; what a tree holds is said in a line, however much it is."""
    names = [name for name, _ in leaves(TREES["nested"])]
    assert names == ["a.0", "a.1.0", "a.1.1.b.inputs", "a.1.1.b.labels.inputs", "a.1.1.b.labels.labels", "c.d.0"]
    assert describe({"image": X, "path": "a"}) == "a dict with image: float32 [3, 2], path: a str"
    assert describe([X] * 9).endswith("5: float32 [3, 2], and 3 more")
    assert describe({}) == "a dict with nothing in it"
    assert (kind(None), kind(OrderedDict())) == ("None", "an OrderedDict")


def test_a_node_may_be_a_leaf() -> None:
    """Where the caller says so, as for a list of names."""
    tree = {"paths": ["a", "b"], "x": [X]}

    def stop(node: Any) -> bool:
        return bool(node == ["a", "b"])

    assert [name for name, _ in leaves(tree, stop=stop)] == ["paths", "x.0"]
    assert mapped(tree, lambda leaf: leaf[:1], stop)["paths"] == ["a"]


LEAVES = st.one_of(
    st.integers(0, 9), st.none(), st.text(max_size=3), st.builds(lambda n: torch.arange(float(n)), st.integers(0, 3))
)


def nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        named,
        named.map(UserDict),
        named.map(OrderedDict),
        named.map(lambda values: Attributes(**values)),
        st.builds(Pair, inner, inner),
        st.builds(Frozen, inner, inner),
        st.builds(Record, inner, inner),
        st.builds(Slotted, inner, inner),
    )


@given(st.recursive(LEAVES, nodes, max_leaves=12))
def test_any_tree_is_rebuilt(tree: Any) -> None:
    """Whatever is in whatever."""
    assert same(mapped(tree, lambda leaf: leaf), tree)
    assert len(tensors(mapped(tree, lambda leaf: leaf))) == len(tensors(tree))
