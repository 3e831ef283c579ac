"""Every check leaves everything as it was: it runs in somebody's training loop, between two of their lines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import numpy
import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.conversion import convert
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.sampling.predictive import predict

Measures = Mapping[str, Callable[..., Evidence]]
Batch = tuple[Tensor, Tensor]

CHECKS = (
    "layers.replaced",
    "memory.separate",
    "posterior.start",
    "mean.equals_teacher",
    "noise.varies",
    "noise.source",
    "noise.spread",
    "noise.posterior",
    "noise.fresh",
    "estimator.flipout",
    "kl.present",
    "kl.loss",
    "gradient.samples",
    "loss.data",
    "data.sane",
    "teacher.agreement",
    "calibration.temperature",
    "calibration.classes",
    "scores.against_teacher",
    "uncertainty.ood",
    "predictions.rows",
    "teacher.tensors",
)


class Snapshot:
    """All that a check could leave behind, compared by identity, version and bits: NaN equals itself."""

    def __init__(self, *models: nn.Module) -> None:
        self.models = models
        self.before = self.take()
        # What is compared by identity must stay alive, or its id could be given away again.
        self.alive = [
            [dict(m.__dict__), dict(m._parameters), dict(m._buffers), [p.grad for p in m.parameters(recurse=False)]]
            for model in models
            for m in model.modules()
        ]

    def take(self) -> dict[str, Any]:
        seen: dict[str, Any] = {
            "python's random state": random.getstate(),
            "numpy's random state": repr(numpy.random.get_state(legacy=False)["state"]["key"].tolist()),
            "numpy's place in it": numpy.random.get_state(legacy=False)["state"]["pos"],
            "numpy's spare Gaussian": numpy.random.get_state(legacy=False)["gauss"],
            "torch's random state": torch.get_rng_state().tolist(),
            "grad mode": torch.is_grad_enabled(),
        }
        for index, model in enumerate(self.models):
            for path, module in model.named_modules(remove_duplicate=False):
                place = f"model {index}, {path or 'root'}"
                seen[f"{place}: mode"] = module.training
                seen[f"{place}: class"] = type(module)
                for name, value in module.__dict__.items():
                    seen[f"{place}: attribute {name}"] = id(value)
                    if isinstance(value, dict) and name.endswith("_hooks"):
                        seen[f"{place}: {name}"] = [(key, id(hook)) for key, hook in value.items()]
                for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
                    for name, tensor in tensors.items():
                        seen[f"{place}: {kind} {name}"] = _state(tensor)
                        if tensor is not None:
                            seen[f"{place}: {kind} {name}.grad"] = _state(tensor.grad)
        return seen

    def assert_unchanged(self) -> None:
        after = self.take()
        changed = [what for what in self.before.keys() | after.keys() if self.before.get(what) != after.get(what)]
        assert not changed, sorted(changed)


def _state(tensor: Tensor | None) -> tuple[object, ...] | None:
    if tensor is None:
        return None
    bits = tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
    return id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad, tensor.shape, tensor.dtype, bits


class _Broken(RuntimeError):
    pass


def _refuse(*_: object) -> None:
    raise _Broken("the head is broken")


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    kl: Tensor = get_kl_loss(model)
    return functional.cross_entropy(model(batch[0]), batch[1]) + kl / 10


def _raising_loss(model: nn.Module, batch: Batch) -> Tensor:
    model(batch[0])
    raise _Broken("no such label")


def _backward_loss(model: nn.Module, batch: Batch) -> Tensor:
    loss = _loss(model, batch)
    loss.backward()
    return loss


def _training_loss(model: nn.Module, batch: Batch) -> Tensor:
    model.train()
    return _loss(model, batch)


@pytest.fixture
def model(teacher: nn.Module, estimator: str) -> nn.Module:
    """A converted network with gradients, a frozen parameter, a hook, and noise buffers that hold NaN (conftest)."""
    converted = convert(teacher, type=estimator)  # type: ignore[arg-type]
    for index, parameter in enumerate(converted.parameters()):
        parameter.grad = torch.full_like(parameter, float(index)) if index % 3 else None
    converted.get_submodule("stem").get_parameter("mu_kernel").requires_grad_(False)
    converted.get_submodule("block").register_forward_hook(lambda *_: None)
    return converted


@pytest.fixture(autouse=True)
def _random_states() -> Iterator[None]:
    """Known states to start from, in the middle of a stream: the audit must not seed, nor draw."""
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)
    random.gauss(0, 1)
    numpy.random.standard_normal()
    torch.randn(3)
    yield
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _not_for(id: str, model: nn.Module) -> bool:
    return id == "estimator.flipout" and not any(layer.estimator == "Flipout" for layer in bayesian_layers(model))


@pytest.mark.parametrize("id", CHECKS)
@pytest.mark.parametrize("mode", ["eval", "train", "mixed"])
def test_nothing_changes(
    id: str, mode: str, model: nn.Module, teacher: nn.Module, batch: Batch, measures: Measures
) -> None:
    """A model in train mode is audited as one in eval mode, and stays in train mode; so does a mixture."""
    model.train(mode == "train")
    teacher.train(mode == "train")
    if mode == "mixed":
        model.get_submodule("norm").train()
    snapshot = Snapshot(model, teacher)
    given = {"images": batch[0], "labels": batch[1], "loss": _loss, "ood": batch[0].flip(-1)}
    evidence = measures[id](model, teacher=teacher, **given)
    assert evidence.verdict is not Verdict.ERROR, evidence.explain()
    assert (evidence.verdict is Verdict.NOT_APPLICABLE) == _not_for(id, model), evidence.explain()
    snapshot.assert_unchanged()


@pytest.mark.parametrize("id", CHECKS)
def test_nothing_changes_when_forward_raises_midway(
    id: str, model: nn.Module, teacher: nn.Module, batch: Batch, measures: Measures
) -> None:
    """Half a forward has drawn noise and moved BatchNorm's counters by the time that the head raises."""
    model.get_submodule("head").register_forward_pre_hook(_refuse)
    model.train()
    with pytest.raises(_Broken):
        deepcopy(model)(batch[0])
    snapshot = Snapshot(model, teacher)
    try:
        given = {"images": batch[0], "labels": batch[1], "loss": _loss, "ood": batch[0].flip(-1)}
        evidence = measures[id](model, teacher=teacher, **given)
    finally:
        snapshot.assert_unchanged()
    assert evidence.verdict is not Verdict.ERROR, evidence.explain()
    without_a_pass = (
        "layers.replaced",
        "memory.separate",
        "posterior.start",
        "kl.present",
        "data.sane",
        "teacher.tensors",
    )
    if id not in without_a_pass and not _not_for(id, model):
        assert evidence.verdict is Verdict.FAIL
        assert "the head is broken" in evidence.explain()


def test_nothing_changes_when_the_loss_is_unusable(
    model: nn.Module, teacher: nn.Module, batch: Batch, measures: Measures
) -> None:
    """A wrong loss is the caller's error, worded as one, and costs neither gradients nor noise."""
    snapshot = Snapshot(model, teacher)
    with pytest.raises(InputError, match="loss"):
        measures["kl.loss"](model, teacher=teacher, images=batch[0], labels=batch[1], loss=_raising_loss)
    snapshot.assert_unchanged()


@pytest.mark.parametrize("id", ["kl.loss", "gradient.samples"])
def test_nothing_changes_when_the_loss_calls_backward(
    id: str, model: nn.Module, teacher: nn.Module, batch: Batch, measures: Measures
) -> None:
    """It is judged by the gradients that it left, and none of them stays."""
    snapshot = Snapshot(model, teacher)
    evidence = measures[id](model, teacher=teacher, images=batch[0], labels=batch[1], loss=_backward_loss)
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    snapshot.assert_unchanged()


def test_nothing_changes_when_the_loss_switches_to_train_mode(
    model: nn.Module, teacher: nn.Module, batch: Batch, measures: Measures
) -> None:
    """Many a training loss calls model.train() itself: dropout draws, BatchNorm counts, and none of it stays."""
    model.get_submodule("stem").get_parameter("mu_kernel").requires_grad_(True)
    snapshot = Snapshot(model, teacher)
    evidence = measures["kl.loss"](model, teacher=teacher, images=batch[0], labels=batch[1], loss=_training_loss)
    snapshot.assert_unchanged()
    assert evidence.verdict is Verdict.PASS, evidence.explain()


OF_THE_LOSS = ("kl.loss", "gradient.samples", "loss.data")


@pytest.mark.parametrize("id", OF_THE_LOSS)
def test_nothing_changes_when_a_loss_that_writes_raises_at_its_end(
    id: str, model: nn.Module, teacher: nn.Module, batch: Batch, measures: Measures
) -> None:
    """It has trained the teacher's statistics, run backward and written into its batch by then."""
    images, labels = batch[0].clone(), batch[1].clone()

    def loss(subject: nn.Module, given: Batch) -> Tensor:
        teacher.train()
        value = _loss(subject, given) + teacher(given[0]).square().mean()
        value.backward()
        given[0].zero_(), given[1].zero_()
        raise _Broken("no such label")

    snapshot = Snapshot(model, teacher)
    with pytest.raises(InputError, match="no such label"):
        measures[id](model, teacher=teacher, images=images, labels=labels, loss=loss)
    snapshot.assert_unchanged()
    assert torch.equal(images, batch[0])
    assert torch.equal(labels, batch[1])


@pytest.mark.parametrize("own_backward", [False, True])
@pytest.mark.parametrize("id", OF_THE_LOSS)
def test_what_a_loss_trains_beside_the_model_keeps_its_gradients(
    id: str, own_backward: bool, model: nn.Module, teacher: nn.Module, batch: Batch, measures: Measures
) -> None:
    """A second network, which has a gradient already, and a tensor of no module, which has none."""
    classes = teacher(batch[0]).shape[1]
    beside = nn.Sequential(nn.Linear(classes, classes), nn.BatchNorm1d(classes)).train()
    scale = torch.ones((), requires_grad=True)
    for parameter in beside.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = deepcopy(beside.state_dict())

    def loss(subject: nn.Module, given: Batch) -> Tensor:
        kl: Tensor = get_kl_loss(subject)
        value = functional.cross_entropy(scale * beside(subject(given[0])), given[1]) + kl / 10
        if own_backward:
            value.backward()
        return value

    measures[id](model, teacher=teacher, images=batch[0], labels=batch[1], loss=loss)
    assert scale.grad is None
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in beside.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in beside.parameters())
    assert all(torch.equal(value, state[name]) for name, value in beside.state_dict().items())


@pytest.mark.parametrize("id", CHECKS)
def test_check_between_forward_and_backward_keeps_the_gradient(
    id: str, model: nn.Module, teacher: nn.Module, batch: Batch, measures: Measures
) -> None:
    """The library's backward reads the noise buffers: a check that draws into them changes the gradient, silently."""

    def gradients(between: Callable[[], object]) -> list[Tensor]:
        subject = deepcopy(model)
        torch.manual_seed(7)
        subject.zero_grad()
        loss = _loss(subject, batch)
        between_on[0] = subject
        between()
        loss.backward()
        return [p.grad for p in subject.parameters() if p.grad is not None]

    between_on = [model]

    def check() -> object:
        return measures[id](between_on[0], teacher=teacher, images=batch[0], labels=batch[1], loss=_loss)

    expected = gradients(lambda: None)
    assert all(map(torch.equal, expected, gradients(check)))
    careless = gradients(lambda: between_on[0](batch[0]))
    assert not all(map(torch.equal, expected, careless)), "the control: a plain forward in between does change it"


@pytest.mark.parametrize("id", CHECKS)
def test_same_seed_same_numbers(
    id: str, model: nn.Module, teacher: nn.Module, batch: Batch, measures: Measures
) -> None:
    """A verdict that depends on what ran before could not be repeated from its report."""

    def look(seed: int) -> tuple[object, ...]:
        torch.rand(3)
        evidence = measures[id](model, teacher=teacher, images=batch[0], labels=batch[1], loss=_loss, seed=seed)
        return evidence.verdict, evidence.headline, tuple((m.name, repr(m.value)) for m in evidence.measurements)

    assert look(3) == look(3)


@pytest.mark.parametrize(
    ("sampler", "mode"),
    [("own", "eval"), ("own", "train"), ("own", "mixed"), ("engine", "eval"), ("engine", "train")],
)
def test_predict_changes_nothing(sampler: str, mode: str, model: nn.Module, batch: Batch) -> None:
    """Neither when it draws all passes, nor when its progress callback ends them, which is the caller's own code."""
    model.train(mode == "train")
    if mode == "mixed":
        model.get_submodule("norm").train()
    if sampler == "engine":
        model.get_submodule("block")._forward_hooks.clear()
    snapshot = Snapshot(model)
    assert predict(model, batch[0], passes=3, sampler=sampler).sampler.startswith(sampler)
    snapshot.assert_unchanged()
    with pytest.raises(_Broken):
        predict(model, batch[0], passes=3, sampler=sampler, progress=_refuse)
    snapshot.assert_unchanged()


def test_predict_changes_nothing_when_forward_raises_midway(model: nn.Module, batch: Batch) -> None:
    """As a check does; the error is the caller's, with the model's own words in it."""
    model.get_submodule("head").register_forward_pre_hook(_refuse)
    model.train()
    snapshot = Snapshot(model)
    with pytest.raises(InputError, match="the head is broken"):
        predict(model, batch[0])
    snapshot.assert_unchanged()


def test_snapshot_sees_a_disturbance(model: nn.Module, batch: Batch) -> None:
    """The control of the controls: one plain forward in train mode leaves traces that the snapshot must see."""
    model.train()
    snapshot = Snapshot(model)
    with torch.no_grad():
        model(batch[0])
    with pytest.raises(AssertionError, match=r"block\.conv1: buffer eps_kernel"):
        snapshot.assert_unchanged()
