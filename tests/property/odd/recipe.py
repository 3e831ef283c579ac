"""Healthy subjects of an audit, each made of plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import torch
from bayesian_torch.layers import LinearReparameterization
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert
from tests.property.odd.architectures import ARCHITECTURES
from tests.property.odd.losses import BATCHES, KLS, TERMS, DataTerm, weight_of
from tests.property.odd.shapes import CLASSES, EXAMPLES, SHAPES, TWICE, Shape

ALL: dict[str, Shape] = {**SHAPES, **ARCHITECTURES}

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.inner(*arguments, **named)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "a class": Around,
    "DataParallel": nn.DataParallel,
}


class LocalNoise(LinearReparameterization):  # type: ignore[misc, unused-ignore]
    """The library's layer with noise that is drawn where it is used, in place of a buffer."""

    def forward(self, input: Tensor, return_kl: bool = True) -> Any:
        parts = [(self.mu_weight, self.rho_weight), (self.mu_bias, self.rho_bias)]
        drawn = [mu + functional.softplus(rho) * torch.randn_like(mu) for mu, rho in parts if mu is not None]
        return functional.linear(input, *drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Plain values, of which `subject` makes what is audited: an example that fails can be read and repeated.

    Attributes:
        term: The data term of the loss, of those that `TERMS` has for what the outputs mean.
        kl: The KL term of the loss, of `KLS`.
        backward: Whether the loss runs backward itself, part by part.
        steps: Steps of training, each on the whole batch; 0 leaves the conversion as it is.
        declared: What is said of the KL's weight.
        train: Whether the model is handed over in train mode.
    """

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
    term: str = ""
    kl: str = "get_kl_loss"
    backward: bool = False
    steps: int = 0
    optimizer: str = "AdamW"
    declared: str = "nothing"
    train: bool = False


def term_of(recipe: Recipe) -> DataTerm:
    """Give the data term of a recipe, the first of its kind where it names none."""
    terms = TERMS[ALL[recipe.shape].meaning]
    return terms[recipe.term] if recipe.term else next(iter(terms.values()))


def healthy(recipe: Recipe) -> Recipe:
    """Give each forward pass noise of its own where several are run backward at once (A1), and where layers share."""
    term = term_of(recipe)
    at_once = term.together or (term.several and not recipe.backward)
    own = recipe.noise == "fresh buffers" or (recipe.noise == "local" and recipe.type == "Reparameterization")
    # What `local` leaves the library's: layers that are not linear.
    own = own and not (at_once and recipe.noise == "local" and recipe.shape not in ("scores", "shares", "side"))
    if own or (recipe.shape not in TWICE and not at_once):
        return recipe
    return replace(recipe, noise="fresh buffers")


def drawn(random: Random) -> Recipe:
    """Draw a recipe; one in ten is of a large architecture, which takes as long as five others."""
    choose = random.choice
    shape = choose([*2 * list(SHAPES), *list(ARCHITECTURES)])
    return healthy(
        Recipe(
            shape=shape,
            width=random.randint(4, 12),
            depth=random.randint(1, 2),
            seed=random.randint(0, 1000),
            dtype=choose(list(DTYPES)),
            type=choose(["Reparameterization", "Flipout"]),
            delta=choose([0.05, 0.02, 0.1]),
            noise=choose(["the library's", "fresh buffers", "local"]),
            wrapper=choose(list(WRAPPERS)),
            teacher=choose([True, True, False]),
            labels=choose([True, True, True, False]),
            loss=choose([True, True, True, False]),
            term=choose(list(TERMS[ALL[shape].meaning])),
            kl=choose(list(KLS)),
            backward=choose([False, False, True]),
            steps=choose([0, 3, 6]),
            optimizer=choose(OPTIMIZERS),
            declared=choose(["nothing", "num_batches", "num_data", "both", "kl_weight"]),
            train=choose([True, False]),
        )
    )


def recipes() -> st.SearchStrategy[Recipe]:
    """Generate recipes of all kinds evenly: of thirty that are drawn choice by choice, two had a loss."""
    return st.randoms(use_true_random=True).map(drawn)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Bring the floating tensors of an input to a dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: cast(one, dtype) for name, one in value.items()}
    return tuple(cast(one, dtype) for one in value)


def _own_noise(model: nn.Module, noise: str) -> None:
    """Let each call of a layer draw noise of its own, as people do who need several passes in one loss."""
    for module in model.modules():
        if noise == "local" and type(module) is LinearReparameterization:
            object.__setattr__(module, "__class__", LocalNoise)
        elif noise == "fresh buffers" and hasattr(module, "kl_loss"):
            module.register_forward_pre_hook(_renew)


def _renew(module: nn.Module, arguments: Any) -> None:
    for name, buffer in list(module._buffers.items()):
        if name.startswith("eps_") and buffer is not None:
            module._buffers[name] = torch.empty_like(buffer)


_NORMS = (nn.LayerNorm, nn.BatchNorm2d)


def _known(shape: Shape, teacher: nn.Module) -> tuple[Any, Tensor]:
    """Give examples that the teacher is sure of, with its answers for labels.

    A model that is trained on them goes on agreeing with it.
    """
    inputs = shape.inputs()
    with torch.no_grad():
        answer = shape.answer(shape.call(teacher, inputs))
    if shape.meaning in ("numbers", "variance"):
        mean = answer[0] if shape.meaning == "variance" else answer
        labels = mean + 0.1 * mean.std() * torch.randn_like(mean)
    elif shape.meaning == "sides":
        labels = (answer > 0).float()
    else:
        labels = answer.argmax(1)
    kept = _surest(answer, labels) if labels.ndim == 1 and not labels.is_floating_point() else torch.arange(EXAMPLES)
    return taken(inputs, kept), labels[kept]


def _surest(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the places of the examples whose class is ahead the most, at most half of them of one class."""
    first, second = scores.topk(2, 1).values.unbind(1)
    order = (second - first).argsort()
    number = functional.one_hot(labels[order], CLASSES).cumsum(0).gather(1, labels[order][:, None])[:, 0]
    return order[(number > EXAMPLES // 2).int().argsort(stable=True)][:EXAMPLES].sort().values


def taken(value: Any, places: Tensor) -> Any:
    """Take some examples of an input."""
    if isinstance(value, Tensor):
        return value[places]
    if isinstance(value, dict):
        return {name: taken(one, places) for name, one in value.items()}
    return tuple(taken(one, places) for one in value)


def _teacher(recipe: Recipe, inputs: Any) -> nn.Module:
    """Make a network whose layers all count, with the statistics of the inputs in its batch norms."""
    shape = ALL[recipe.shape]
    teacher = shape.network(recipe.width, recipe.depth)
    norms = {id(p) for module in teacher.modules() if isinstance(module, _NORMS) for p in module.parameters()}
    with torch.no_grad():
        for parameter in teacher.parameters():
            if id(parameter) in norms:
                parameter.add_(0.1 * torch.randn_like(parameter))
                continue
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.normal_(0, 1.5 / fan_in**0.5)
        for _ in range(20):
            shape.call(teacher.train(), inputs)
    return teacher.eval()


OPTIMIZERS = ("AdamW", "SGD")


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make an optimizer of all parameters, whose steps are small, and larger than the rounding of bfloat16."""
    half = recipe.dtype == "bfloat16"
    if recipe.optimizer == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=0.01 if half else 0.001)
    return torch.optim.SGD(model.parameters(), lr=0.1 if half else 0.01, momentum=0.9)


def _train(model: nn.Module, loss: Any, batch: Any, recipe: Recipe) -> None:
    optimizer = _optimizer(model.train(), recipe)
    for _ in range(recipe.steps):
        optimizer.zero_grad()
        value = loss(model, batch)
        if not recipe.backward:
            value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def loss_of(recipe: Recipe, teacher: nn.Module) -> Callable[[nn.Module, Any], Tensor]:
    """Make the loss of a recipe."""
    shape, term = ALL[recipe.shape], term_of(recipe)

    def loss(network: nn.Module, batch: Any) -> Tensor:
        inputs, labels = (batch, batch[shape.label]) if shape.label else batch

        def run() -> Any:
            return shape.answer(shape.call(network, inputs))

        with torch.no_grad():
            taught = shape.answer(shape.call(teacher, inputs))
        total = torch.zeros(())
        for part in term.parts(run, labels, taught):
            total = total + _counted(part, backward=recipe.backward)
        part = weight_of(term, recipe.kl, labels) * KLS[recipe.kl][0](network)
        return total + _counted(part, backward=recipe.backward)

    return loss


def _counted(part: Tensor, *, backward: bool) -> Tensor:
    if backward:
        part.backward()
    return part.detach() if backward else part


def declared_of(recipe: Recipe, labels: Tensor) -> dict[str, dict[str, Any]]:
    """Say of the KL's weight what is declared, and is so."""
    weight = weight_of(term_of(recipe), recipe.kl, labels)
    said: dict[str, dict[str, Any]] = {
        "nothing": {},
        "num_batches": {"num_batches": BATCHES},
        "num_data": {"num_data": BATCHES * EXAMPLES},
        "both": {"num_batches": BATCHES, "num_data": BATCHES * EXAMPLES},
        "kl_weight": {"kl_weight": weight},
    }
    return {"kl.loss": said[recipe.declared]} if recipe.declared != "nothing" else {}


def subject(recipe: Recipe) -> dict[str, Any]:
    """Make what `audit_model` takes."""
    shape, dtype = ALL[recipe.shape], DTYPES[recipe.dtype]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        teacher = _teacher(recipe, shape.inputs())
        inputs, labels = (cast(part, dtype) for part in _known(shape, teacher))
        batch = {**inputs, shape.label: labels} if shape.label else (inputs, labels)
        teacher = teacher.to(dtype)
        model = convert(teacher, type=recipe.type, moped_delta=recipe.delta)
        _own_noise(model, recipe.noise)
        loss = loss_of(recipe, teacher)
        if recipe.steps:
            _train(model, loss, batch, recipe)
    model = WRAPPERS[recipe.wrapper](model).train(recipe.train)
    model.zero_grad()
    given = {"model": model, "teacher": teacher if recipe.teacher else None, "data": batch if recipe.labels else inputs}
    if not (recipe.loss and recipe.labels):
        return given
    return {**given, "loss": loss, "options": declared_of(recipe, labels)}
