"""Makes of a recipe what an audit takes: a teacher, a conversion that may be trained, data and a loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from bayesian_torch.layers import LinearReparameterization
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert
from tests.property.odd.losses import BATCHES, KLS, weight_of
from tests.property.odd.recipe import ALL, DTYPES, Recipe, term_of
from tests.property.odd.shapes import CLASSES, EXAMPLES, Shape


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.inner(*arguments, **named)


_WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
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
    """Return examples that the teacher is sure of, with its answers for labels.

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


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make an optimizer of all parameters, whose steps are small, and larger than the rounding of bfloat16."""
    half = recipe.dtype == "bfloat16"
    if recipe.optimizer == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=0.01 if half else 0.001)
    return torch.optim.SGD(model.parameters(), lr=0.1 if half else 0.01, momentum=0.9)


def _train(model: nn.Module, loss: Any, batch: Any, recipe: Recipe) -> None:
    """Take the steps; none that leaves the teacher's answers, as early stopping does."""
    optimizer = _optimizer(model.train(), recipe)
    for _ in range(recipe.steps):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer.zero_grad()
        value = loss(model, batch)
        if not recipe.backward:
            value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not _agrees(model, batch, ALL[recipe.shape]):
            model.load_state_dict(before)
            return


def _agrees(model: nn.Module, batch: Any, shape: Shape) -> bool:
    """Say whether the network at its means gives nearly all of the teacher's labels, where these are classes."""
    still = copy.deepcopy(model).eval()
    inputs, labels = (batch, batch[shape.label]) if shape.label else batch
    with torch.no_grad():
        for name, parameter in still.named_parameters():
            if "rho_" in name:
                parameter.fill_(-40.0)
        answer = shape.answer(shape.call(still, inputs))
    if shape.meaning in ("numbers", "variance"):
        return True
    said = answer > 0 if shape.meaning == "sides" else answer.argmax(1)
    return float((said == labels).float().mean()) > 0.98


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
    model = _WRAPPED[recipe.wrapper](model).train(recipe.train)
    model.zero_grad()
    given = {"model": model, "teacher": teacher if recipe.teacher else None, "data": batch if recipe.labels else inputs}
    if not (recipe.loss and recipe.labels):
        return given
    return {**given, "loss": loss, "options": declared_of(recipe, labels)}
