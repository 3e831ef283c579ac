"""Networks of odd shapes, small, with the data that they take."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

EXAMPLES, FEATURES, TOKENS, SIDE, CLASSES, WORDS = 24, 5, 4, 6, 3, 20

#: How many examples there are to choose from.
POOL = 4 * EXAMPLES

#: What outputs and labels mean: scores of classes, shares of them, sides of a threshold, numbers, numbers with a
#: logarithm of their variance.
Meaning: TypeAlias = Literal["scores", "shares", "sides", "numbers", "variance"]


class Fields(NamedTuple):
    features: Tensor
    logits: Tensor


class Body(nn.Module):
    """Layers that make features of rows; what the outputs are is settled by the subclasses."""

    outputs = CLASSES

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        columns = [FEATURES, *[width] * depth]
        pairs = itertools.pairwise(columns)
        self.body = nn.Sequential(*[layer for i, o in pairs for layer in (nn.Linear(i, o), nn.Tanh())])
        self.head = nn.Linear(width, self.outputs)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


class Shares(Body):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).softmax(1)


class Column(Body):
    outputs = 1


class Number(Column):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[:, 0]


class TwoTargets(Body):
    outputs = 2


class TwoHeads(Column):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__(width, depth)
        self.spread = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        return self.head(hidden), self.spread(hidden)


class WithFeatures(Body):
    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        return Fields(hidden, self.head(hidden))


class Named(Body):
    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        return {"features": hidden, "logits": self.head(hidden)}


class Pair(Body):
    def forward(self, one: Tensor, other: Tensor) -> Any:  # type: ignore[override]
        return self.head(self.body(one) - 0.5 * self.body(other))


class ByKeyword(Body):
    def forward(self, *, first: Tensor, second: Tensor) -> Any:  # type: ignore[override]
        return self.head(self.body(first) - 0.5 * self.body(second))


class Dictionary(Body):
    def forward(self, inputs: Mapping[str, Tensor]) -> Any:
        return self.head(self.body(inputs["first"]) - 0.5 * self.body(inputs["second"]))


class Tokens(Body):
    """A class for each sequence."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(width, depth)
        self.embed = nn.Embedding(WORDS, FEATURES)

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.body(self.embed(ids)).mean(1))


class Tags(Tokens):
    """A class for each token."""

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.body(self.embed(ids)))


class Pixels(nn.Module):
    """A class for each pixel."""

    outputs = CLASSES

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.Tanh(),
            *[layer for _ in range(depth - 1) for layer in (nn.Conv2d(width, width, 1), nn.Tanh())],
        )
        self.head = nn.Conv2d(width, self.outputs, 1)

    def forward(self, images: Tensor) -> Any:
        return self.head(self.body(images))


class Depth(Pixels):
    """A number for each pixel."""

    outputs = 1

    def forward(self, images: Tensor) -> Any:
        return super().forward(images)[:, 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A network with the data that it takes.

    Attributes:
        network: Makes it, of a width and a depth.
        inputs: Examples without labels, more than are used.
        meaning: What outputs and labels mean.
        answer: The output that the labels are about, with classes in the second dimension.
        call: How the network takes its inputs.
        label: The labels' name in the data, where these are a dictionary.
    """

    network: Callable[[int, int], nn.Module]
    inputs: Callable[[], Any]
    meaning: Meaning
    answer: Callable[[Any], Any] = lambda output: output
    call: Callable[[nn.Module, Any], Any] = lambda model, inputs: model(inputs)
    label: str = ""


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows() -> Tensor:
    return _noise(POOL, FEATURES)


def images(channels: int = 1, side: int = SIDE) -> Tensor:
    return _noise(POOL, channels, side, side)


def ids() -> Tensor:
    return torch.randint(WORDS, (POOL, TOKENS), generator=torch.Generator().manual_seed(2))


def two() -> dict[str, Tensor]:
    return {"first": rows(), "second": _noise(POOL, FEATURES, seed=1)}


SHAPES: dict[str, Shape] = {
    "scores": Shape(network=Body, inputs=rows, meaning="scores"),
    "shares": Shape(network=Shares, inputs=rows, meaning="shares"),
    "column": Shape(network=Column, inputs=rows, meaning="numbers"),
    "number": Shape(network=Number, inputs=rows, meaning="numbers"),
    "side": Shape(network=Column, inputs=rows, meaning="sides"),
    "several sides": Shape(network=Body, inputs=rows, meaning="sides"),
    "two targets": Shape(network=TwoTargets, inputs=rows, meaning="numbers"),
    "mean and variance": Shape(network=TwoHeads, inputs=rows, meaning="variance"),
    "features first": Shape(network=WithFeatures, inputs=rows, meaning="scores", answer=lambda output: output.logits),
    "named outputs": Shape(network=Named, inputs=rows, meaning="scores", answer=lambda output: output["logits"]),
    "pair": Shape(
        network=Pair,
        inputs=lambda: tuple(two().values()),
        meaning="scores",
        call=lambda model, inputs: model(*inputs),
    ),
    "keywords": Shape(
        network=ByKeyword,
        inputs=two,
        meaning="scores",
        call=lambda model, inputs: model(first=inputs["first"], second=inputs["second"]),
        label="labels",
    ),
    "dictionary": Shape(network=Dictionary, inputs=two, meaning="scores", label="label"),
    "tokens": Shape(network=Tokens, inputs=ids, meaning="scores"),
    "tags": Shape(network=Tags, inputs=ids, meaning="scores", answer=lambda output: output.movedim(-1, 1)),
    "pixels": Shape(network=Pixels, inputs=images, meaning="scores"),
    "depth": Shape(network=Depth, inputs=images, meaning="numbers"),
}

#: Networks that call their layers twice: with the library's shared noise buffers their gradient is not healthy (A1).
TWICE = ("pair", "keywords", "dictionary")
