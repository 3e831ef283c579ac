"""The training loss as checks take it: on one batch, from a seed, with gradients that must be finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pytest_bnn.checks._gradients import Gradients
from pytest_bnn.checks._used import Used
from pytest_bnn.checks._watching import Backwards, OutputCall, keeping, moved_mu, run_backward
from pytest_bnn.checks.finding import Finding, LossError, NoCutError, at_fault
from pytest_bnn.data.batch import Batch, device_of, rows_of
from pytest_bnn.data.loss import BATCH
from pytest_bnn.data.placement import advice
from pytest_bnn.errors import InputError
from pytest_bnn.libraries import posterior
from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.libraries.cut import Key, cut_operands, key_of, watched_operands
from pytest_bnn.libraries.gaussian import not_finite
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, shifted_prior, zero_noise
from pytest_bnn.libraries.protocol import tensors_of
from pytest_bnn.libraries.silence import unproven_silence
from pytest_bnn.network.calling import forward
from pytest_bnn.network.foreign import foreign_left_alone
from pytest_bnn.network.isolation import seed_everything, undisturbed
from pytest_bnn.network.tree import mapped
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.sampling.own import unwritten_by_loss
from pytest_bnn.subject import Subject

#: What to do about a loss that takes steps in the parameters.
STEPS = "give a loss that returns one scalar, and leave such steps to the training loop"

#: What to do about a loss that has a value and no gradient.
FINITE_DERIVATIVE = (
    "look for what has a finite value and no finite derivative: a square root or a norm at 0, a logarithm of 0 that a "
    "mask hides"
)

#: Rows that suffice to prove that silence is silent; two, so that a BatchNorm in train mode runs.
_ROWS = 2


#: What becomes of the noise in an evaluation: it stays as it is drawn, is 0, or is cut off from mu and rho.
Noise: TypeAlias = Literal["drawn", "silent", "cut"]


@dataclass(slots=True, eq=False)
class Evaluation:
    """What one evaluation of the loss did.

    Attributes:
        value: The loss.
        gradients: To each tensor's mu and rho (their parameters), read in float64; None where none came. Where mu was
            moved, to mu alone.
        calls: The calls of Bayesian layers. Of the weights they used only the form is left, where nothing else was
            asked for.
        used: What these weights and their gradients showed, where only their form is left.
        called: How often the model, or a module in it, was called.
        reached: Whether a gradient came to any parameter of the model.
        by_normal: Paths of the layers that drew by ``torch.normal`` for tensors in a graph; seen in silence alone.
        not_cut: Paths of the layers whose weights are not seen, so that they were not cut.
        undrawn: Tensors whose mu is used as it is, outside of their layer's own call; seen in the cut alone.
        to_rho: Tensors from whose rho the weights that were used were computed in the graph; seen in the cut alone.
        moved: How far each mu was moved, float64.
        outputs: The calls of the model as a whole; their outputs keep the gradients that were taken.
        foreign: Modules beside the model that ran in train mode, so that their buffers changed; they were put back.
        stepped: Whether the loss wrote into a mu or rho, as SAM and an optimizer's step do.
    """

    value: float = 0.0
    gradients: Gradients = field(default_factory=Gradients)
    calls: list[LayerCall] = field(default_factory=list)
    used: Used = field(default_factory=Used)
    called: int = 0
    reached: bool = False
    by_normal: frozenset[str] = frozenset()
    not_cut: tuple[str, ...] = ()
    undrawn: tuple[PosteriorTensor, ...] = ()
    to_rho: frozenset[Key] = frozenset()
    moved: Mapping[Key, Tensor] = field(default_factory=dict)
    outputs: list[OutputCall] = field(default_factory=list)
    foreign: tuple[nn.Module, ...] = ()
    stepped: bool = False


def evaluate(
    subject: Subject,
    layers: Sequence[BayesianLayer],
    *,
    noise: Noise = "drawn",
    train: bool = False,
    free_rho: bool = False,
    prior_shift: float = 0.0,
    mu_shift: float = 0.0,
    push: Mapping[Key, Tensor] | None = None,
    seed: int | None = None,
    backward: bool = True,
    batch: Any = None,
    replaced: Callable[[Any], Any] | None = None,
    times: float = 1.0,
    keep_weights: bool = False,
) -> Evaluation:
    """Evaluate the loss and its gradient on one batch; the loss may run backward itself.

    Args:
        subject: With a loss and images.
        layers: The model's Bayesian layers.
        noise: As it is drawn, with every draw of a layer 0, or with the drawn weights cut from mu and rho.
        train: In train mode as a whole.
        free_rho: With every rho trained, frozen ones too.
        prior_shift: With every prior mean moved by that much.
        mu_shift: With every mu moved by random numbers, as large as sigma; in the cut the drawn weights stay.
        push: In the cut, what is added to the drawn weights of some tensors, mu left where it is.
        seed: The seed of the random generators; the subject's when None.
        backward: Take the gradient too.
        batch: What the loss gets; the subject's when None.
        replaced: Gives what the loss gets in place of each output of the model.
        times: A factor on the gradients, which a loss that runs backward itself does not have.
        keep_weights: Keep the weights that the layers used, with their gradients, and not only their form.

    Raises:
        InputError: The loss raised, or returned no scalar tensor.
        LossError: It is NaN or infinite.
    """
    model, found = subject.model, Evaluation()
    assert subject.probed is not None  # before anything is watched: probing runs the model
    seed = subject.seed if seed is None else seed
    beside = [subject.teacher] if subject.teacher is not None else []
    assert subject.loss is not None
    spared = unwritten_by_loss(subject.loss, model, *beside)
    with undisturbed(model, *beside, seed=seed, unwritten=spared), torch.enable_grad(), ExitStack() as stack:
        foreign = stack.enter_context(foreign_left_alone(model))
        if train:
            for module in model.modules():
                module.training = True
        for tensor in tensors_of(layers) if free_rho else ():
            tensor.rho_parameter.requires_grad_(True)

        own = {id(module) for module in model.modules()}

        def count(module: nn.Module, _inputs: Any) -> None:
            found.called += id(module) in own

        for module in model.modules():
            module.register_forward_pre_hook(count)
        if mu_shift:
            found.moved = stack.enter_context(moved_mu(tensors_of(layers), mu_shift))
        if prior_shift:
            stack.enter_context(shifted_prior(model, prior_shift))
        draws = stack.enter_context(zero_noise(model)) if noise == "silent" else None
        if noise == "cut":
            operands = stack.enter_context(cut_operands(model, found.moved, push))
        else:
            operands = stack.enter_context(watched_operands(model))
        model.register_forward_hook(keeping(model, found.outputs, replaced), with_kwargs=True)
        backwards = Backwards()
        before = _versions(layers)
        with backwards:
            value = loss_of(subject, seed=seed, batch=batch)
        found.stepped = before != _versions(layers)
        leaves = [parameter for parameter in model.parameters() if parameter.is_leaf]  # a shifted prior is none
        if backward:
            run_backward(value * times if times != 1.0 else value, backwards, leaves)
        found.value = float(value.detach())
        found.gradients = Gradients(
            {
                key_of(t): (_kept(t.mu_parameter.grad), None if mu_shift else _kept(t.rho_parameter.grad))
                for t in tensors_of(layers)
            }
        )
        found.reached = any(parameter.grad is not None for parameter in leaves)
        found.by_normal = frozenset() if draws is None else frozenset(draws.cut)
        found.not_cut, found.undrawn = operands.not_cut(tuple(layers)), operands.undrawn(tuple(layers))
        found.calls, found.to_rho = list(operands.calls), frozenset(operands.to_rho)
        # The graph behind the outputs holds the weights that were used, and before a backward pass all else, too.
        found.outputs = [OutputCall(call.inputs, mapped(call.output, _without_graph)) for call in found.outputs]
        del value
    found.foreign = tuple(foreign.values())
    if not keep_weights:
        found.used, found.calls = Used.of(found.calls), [call.form() for call in found.calls]
    return found


def _versions(layers: Sequence[BayesianLayer]) -> list[tuple[int, int]]:
    """Return what changes when a mu or rho is written to, or gets other memory."""
    parameters = [p for t in tensors_of(tuple(layers)) for p in (t.mu_parameter, t.rho_parameter)]
    return [(parameter._version, parameter.data_ptr()) for parameter in parameters]


def cut_of(subject: Subject, layers: Sequence[BayesianLayer], *, train: bool = False) -> Evaluation:
    """Return the evaluation in the cut, with every rho trained; done once for all checks of a subject.

    Raises:
        InputError: The loss raised, or returned no scalar tensor.
        LossError: It is NaN or infinite.
        NoCutError: It does so in the cut alone.
    """
    key = f"cut, {'train' if train else 'eval'} mode"
    if key not in subject.evaluations:
        new = subject.evaluations[key] = _cut(subject, layers, train)
        for other in subject.evaluations.values():
            if isinstance(other, Evaluation) and other is not new:
                new.gradients.share(other.gradients)
    found = subject.evaluations[key]
    assert isinstance(found, Evaluation)
    return found


def _cut(subject: Subject, layers: Sequence[BayesianLayer], train: bool) -> Evaluation:
    try:
        found = evaluate(subject, layers, noise="cut", train=train, free_rho=True)
    except (InputError, LossError) as error:
        evaluate(subject, layers, train=train, free_rho=True)
        problem = error.problem if isinstance(error, InputError) else str(error)
        raise NoCutError(
            "the loss works as it is, and not where the weights that are drawn are cut off from mu and rho, as one "
            f"that takes gradients to the parameters itself does ({problem}); {STEPS}"
        ) from error
    if found.stepped:
        raise NoCutError(
            f"the loss writes into mu or rho itself, as SAM does, so that its passes see different weights; {STEPS}"
        )
    return found


def _kept(gradient: Tensor | None) -> Tensor | None:
    """Return a gradient as it is: the parameter lets go of it when the evaluation ends, and nothing adds to it."""
    return None if gradient is None else gradient.detach()


def _without_graph(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.requires_grad:
        return leaf
    found = leaf.detach()
    found.grad = leaf.grad
    return found


def unproven(subject: Subject) -> str:
    """Say why the model's noise is not proven to be silent where it should; empty where it is: on two rows."""
    few = subject.require_images()[:_ROWS]
    with undisturbed(subject.model, seed=subject.seed):
        return unproven_silence(subject.model, lambda: forward(subject.model, few), seed=subject.seed)


def loss_of(subject: Subject, *, seed: int | None = None, batch: Any = None) -> Tensor:
    """Evaluate the training loss on one batch, from a seed.

    Raises:
        InputError: The loss raised, or returned no scalar tensor.
        LossError: It is NaN or infinite.
    """
    assert subject.loss is not None
    batch = subject.loss_batch() if batch is None else batch
    seed_everything(subject.seed if seed is None else seed)
    name = getattr(subject.loss, "__name__", type(subject.loss).__name__)
    try:
        value: Any = subject.loss(subject.model, batch)
    except Exception as error:
        # A model that cannot run, or has no KL, is the model's failure and not the loss's.
        forward(subject.model, subject.require_images()[:BATCH])
        posterior.kl(subject.model)
        raise InputError(
            f"the loss {name}(model, batch) raised {type(error).__name__}: {_first_line(error)}",
            fix=advice(error, device_of(subject.require_images()))
            or "give a function that takes the model and one batch, in the structure of the data"
            + _about_the_labels(subject, batch)
            + _about_the_size(subject, batch),
        ) from error
    if isinstance(value, float) and any(parameter.grad is not None for parameter in subject.model.parameters()):
        value = torch.tensor(value)  # a loss that ran backward itself has said all by then
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the loss {name} returned {shape}", fix="return one scalar tensor, before backward()")
    if not bool(torch.isfinite(value)):
        raise LossError(f"the training loss ({name}) is {float(value.detach())}", float(value.detach()))
    return value.reshape(())


def _about_the_labels(subject: Subject, batch: Any) -> str:
    """Say what the loss was given in place of labels that there are none of."""
    if subject.labels is not None:
        return ""
    if isinstance(batch, tuple) and len(batch) == 2 and batch[1] is None:
        return ": here that is (inputs, None), as no labels were given; take batch[0], or give data with labels"
    return ", and data with labels"


def _about_the_size(subject: Subject, batch: Any) -> str:
    """Say how many of the examples the loss was given, where a loader decides it."""
    images = subject.require_images()
    rows = rows_of(batch, images.dim if isinstance(images, Batch) else 0)
    if rows >= len(images):
        return ""
    return f"; it was given {rows} of {len(images)} examples: a DataLoader's own batch is taken instead, of any size"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]


def is_finite(gradient: Tensor | None) -> bool:
    """Return whether a gradient, if there is one, has neither NaN nor infinity."""
    return gradient is None or not_finite(gradient) == 0


def without_a_gradient(found: list[PosteriorTensor], tensors: int, *, of: str, remedy: str) -> Finding:
    """Return the finding that some gradients ``of`` a loss are not finite."""
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"the loss's gradient to {of} is NaN or infinite in {len(found)} of {tensors} tensors, "
        f"`{found[0].name}` first: one training step would make them NaN",
        layers=tuple(
            at_fault(
                t, f"its {t.role}: the gradient is NaN or infinite; the smallest sigma is {float(t.sigma.min()):.2g}"
            )
            for t in found
        ),
        remedy=remedy,
    )
