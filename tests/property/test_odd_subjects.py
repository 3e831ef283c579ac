"""Healthy networks of odd shapes, by the hundred: nobody accuses them, and whoever abstains says what is missing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import pytest
import torch
from bayesian_torch.layers import LinearReparameterization
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import pytest_bnn
from pytest_bnn import Evidence, Verdict, convert

EXAMPLES, FEATURES, TOKENS, SIDE, CLASSES, WORDS = 24, 5, 4, 6, 3, 20

#: What can be done about a premise: an option, an argument in Python, a function of ours, or a page to read.
WAY = re.compile(r"--[a-z]|\b[a-z_]+=|\b(?:convert|pytest_bnn\.\w+)\(|docs/|\.md\b|https?://")


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


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.inner(*arguments, **named)


class LocalNoise(LinearReparameterization):  # type: ignore[misc, unused-ignore]
    """The library's layer with noise that is drawn where it is used, in place of a buffer."""

    def forward(self, input: Tensor, return_kl: bool = True) -> Any:
        parts = [(self.mu_weight, self.rho_weight), (self.mu_bias, self.rho_bias)]
        drawn = [mu + functional.softplus(rho) * torch.randn_like(mu) for mu, rho in parts]
        return functional.linear(input, *drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A network with the data that it takes; ``term`` is the data term of its loss, of its output and its labels."""

    network: Callable[[int, int], nn.Module]
    inputs: Callable[[], Any]
    labels: Callable[[], Tensor]
    term: Callable[[Any, Tensor], Tensor]
    call: Callable[[nn.Module, Any], Any] = lambda model, inputs: model(inputs)
    label: str = ""


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _rows() -> Tensor:
    return _noise(EXAMPLES, FEATURES)


def _images() -> Tensor:
    return _noise(EXAMPLES, 1, SIDE, SIDE)


def _ids() -> Tensor:
    return torch.arange(EXAMPLES * TOKENS).reshape(EXAMPLES, TOKENS) * 7 % WORDS


def _two() -> dict[str, Tensor]:
    return {"first": _rows(), "second": _noise(EXAMPLES, FEATURES, seed=1)}


def _classes(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(CLASSES, (EXAMPLES, *shape), generator=torch.Generator().manual_seed(2))


def _numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: _noise(EXAMPLES, *shape, seed=3)


def _likelihood(shares: Tensor, labels: Tensor) -> Tensor:
    return functional.nll_loss(shares.float().clamp_min(1e-6).log(), labels)


def _gaussian(output: Any, labels: Tensor) -> Tensor:
    mean, log_variance = output
    return functional.gaussian_nll_loss(mean, labels, log_variance.exp())


def _by_last_dimension(output: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), labels.flatten())


_scores = functional.cross_entropy
_error = functional.mse_loss

SHAPES: dict[str, Shape] = {
    "scores": Shape(network=Body, inputs=_rows, labels=_classes(), term=_scores),
    "shares": Shape(network=Shares, inputs=_rows, labels=_classes(), term=_likelihood),
    "column": Shape(network=Column, inputs=_rows, labels=_numbers(1), term=_error),
    "number": Shape(network=Number, inputs=_rows, labels=_numbers(), term=_error),
    "two targets": Shape(network=TwoTargets, inputs=_rows, labels=_numbers(2), term=_error),
    "mean and variance": Shape(network=TwoHeads, inputs=_rows, labels=_numbers(1), term=_gaussian),
    "features first": Shape(
        network=WithFeatures, inputs=_rows, labels=_classes(), term=lambda out, y: _scores(out.logits, y)
    ),
    "named outputs": Shape(
        network=Named, inputs=_rows, labels=_classes(), term=lambda out, y: _scores(out["logits"], y)
    ),
    "pair": Shape(
        network=Pair,
        inputs=lambda: tuple(_two().values()),
        labels=_classes(),
        term=_scores,
        call=lambda model, inputs: model(*inputs),
    ),
    "keywords": Shape(
        network=ByKeyword,
        inputs=_two,
        labels=_classes(),
        term=_scores,
        call=lambda model, inputs: model(first=inputs["first"], second=inputs["second"]),
        label="labels",
    ),
    "dictionary": Shape(network=Dictionary, inputs=_two, labels=_classes(), term=_scores, label="label"),
    "tokens": Shape(network=Tokens, inputs=_ids, labels=_classes(), term=_scores),
    "tags": Shape(network=Tags, inputs=_ids, labels=_classes(TOKENS), term=_by_last_dimension),
    "pixels": Shape(network=Pixels, inputs=_images, labels=_classes(SIDE, SIDE), term=_scores),
    "depth": Shape(network=Depth, inputs=_images, labels=_numbers(SIDE, SIDE), term=_error),
}

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "a class": Around,
    "DataParallel": nn.DataParallel,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Plain values, of which `subject` makes what is audited: an example that fails can be read and repeated."""

    shape: str = "scores"
    width: int = 4
    depth: int = 1
    seed: int = 0
    dtype: str = "float32"
    type: Literal["Reparameterization", "Flipout"] = "Reparameterization"
    delta: float = 0.05
    noise: str = "the library's"
    wrapper: str = "none"
    teacher: bool = True
    labels: bool = True
    loss: bool = True


#: Networks that call their layers twice: with the library's shared noise buffers their gradient is not healthy (A1).
TWICE = ("pair", "keywords", "dictionary")


def _healthy(recipe: Recipe) -> Recipe:
    own = recipe.noise == "fresh buffers" or (recipe.noise == "local" and recipe.type == "Reparameterization")
    return recipe if own or recipe.shape not in TWICE else replace(recipe, noise="fresh buffers")


RECIPES = st.builds(
    Recipe,
    shape=st.sampled_from(list(SHAPES)),
    width=st.integers(4, 12),
    depth=st.integers(1, 2),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(list(DTYPES)),
    type=st.sampled_from(["Reparameterization", "Flipout"]),
    delta=st.sampled_from([0.05, 0.02, 0.1]),
    noise=st.sampled_from(["the library's", "fresh buffers", "local"]),
    wrapper=st.sampled_from(list(WRAPPERS)),
    teacher=st.booleans(),
    labels=st.booleans(),
    loss=st.booleans(),
).map(_healthy)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Bring the floating tensors of an input to a dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(one, dtype) for name, one in value.items()}
    return tuple(_cast(one, dtype) for one in value)


def _own_noise(model: nn.Module, noise: str) -> None:
    """Let each call of a layer draw noise of its own, as people do who need several passes in one loss."""
    for module in model.modules():
        if noise == "local" and type(module) is LinearReparameterization:
            object.__setattr__(module, "__class__", LocalNoise)
        elif noise == "fresh buffers" and hasattr(module, "kl_loss"):
            module.register_forward_pre_hook(_renew)


def _renew(module: nn.Module, arguments: Any) -> None:
    for name in [name for name in module._buffers if name.startswith("eps_")]:
        module._buffers[name] = torch.empty_like(module.get_buffer(name))


def subject(recipe: Recipe) -> dict[str, Any]:
    """Make what `audit_model` takes."""
    shape, dtype = SHAPES[recipe.shape], DTYPES[recipe.dtype]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        teacher = shape.network(recipe.width, recipe.depth)
        with torch.no_grad():
            for parameter in teacher.parameters():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
                parameter.normal_(0, 1.5 / fan_in**0.5)
        teacher = teacher.to(dtype).eval()
        model = convert(teacher, type=recipe.type, moped_delta=recipe.delta)
    _own_noise(model, recipe.noise)
    model = WRAPPERS[recipe.wrapper](model).eval()
    inputs = _cast(shape.inputs(), dtype)
    labels = _cast(shape.labels(), dtype)
    data: Any = inputs
    if recipe.labels:
        data = {**inputs, shape.label: labels} if shape.label else (inputs, labels)
    given = {"model": model, "teacher": teacher if recipe.teacher else None, "data": data}
    if not (recipe.loss and recipe.labels):
        return given

    def loss(network: nn.Module, batch: Any) -> Tensor:
        found = (batch, batch[shape.label]) if shape.label else batch
        value: Tensor = shape.term(shape.call(network, found[0]), found[1]) + get_kl_loss(network) / 30
        return value

    return {**given, "loss": loss}


def accusations(checks: tuple[Evidence, ...]) -> list[str]:
    return [e.explain() for e in checks if e.verdict in (Verdict.FAIL, Verdict.ERROR)]


def without_a_way(checks: tuple[Evidence, ...]) -> list[str]:
    """Return the evidence that abstains and names no premise, or no way to meet it."""
    abstaining = [e for e in checks if e.verdict is Verdict.NOT_APPLICABLE]
    return [e.explain() for e in abstaining if not e.headline.strip() or not WAY.search(f"{e.headline} {e.remedy}")]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(RECIPES)
def test_a_healthy_network_is_not_accused(recipe: Recipe) -> None:
    run = pytest_bnn.audit_model(**subject(recipe), name="odd")
    assert accusations(run.checks) == []
    assert without_a_way(run.checks) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_healthy(shape: str) -> None:
    """By torch alone: the mean is the teacher's, the passes vary. Or nothing here would prove anything."""
    given = subject(Recipe(shape=shape, delta=0.1))
    inputs, model, teacher = SHAPES[shape].inputs(), given["model"], given["teacher"]

    def outputs(network: nn.Module) -> Tensor:
        with torch.no_grad():
            found = SHAPES[shape].call(network, inputs)
        parts = found.values() if isinstance(found, dict) else found
        return found if isinstance(found, Tensor) else torch.cat([part.flatten() for part in parts])

    passes = torch.stack([outputs(model).flatten() for _ in range(200)])
    wanted = outputs(teacher).flatten()
    scale = float(wanted.abs().max())
    assert 0.1 < scale < 20
    # All but a few features that a Tanh holds at its end.
    assert float((passes.std(0) > 1e-3 * scale).float().mean()) > 0.95
    assert float((passes.mean(0) - wanted).abs().max()) < 0.1 * scale
    assert bool(torch.isfinite(given["loss"](model, given["data"])))
