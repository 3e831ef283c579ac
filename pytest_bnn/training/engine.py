"""Fine-tuning by the engine: a step's gradient through drawn weights, then Adam and the next draw in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy
import torch
from torch import Tensor, nn

from pytest_bnn.errors import in_a_line
from pytest_bnn.libraries import posterior
from pytest_bnn.libraries.capture import LayerCall, capture
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.network.comparing import difference, tolerance
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.sampling.engine.handshake import shake_hands
from pytest_bnn.sampling.engine.noise import PhiloxNoise, Scratch, flat
from pytest_bnn.sampling.engine.plan import Unsupported
from pytest_bnn.sampling.engine.replica import replicate
from pytest_bnn.sampling.own import unwritten
from pytest_bnn.sampling.threads import share, spread

#: The data term of a loss, from the logits and what they should be.
DataTerm: TypeAlias = Callable[[Tensor, Tensor], Tensor]

#: Adam's constants, those of ``torch.optim.Adam``.
BETAS, TINY = (0.9, 0.999), 1e-8

#: Numbers of a tensor that one thread takes at a time; a multiple of the noise's block.
_PART = 128 * 2048

#: Allowed error of a gradient, relative to its norm: the noise behind a weight is known to about 1e-6 of it.
_GRADIENT_TOLERANCE = 1e-3


class _Trained:
    """A posterior tensor with its drawn weights, a leaf of the graph, and Adam's memory."""

    def __init__(self, tensor: PosteriorTensor, stream: int) -> None:
        self.tensor = tensor
        self.stream = stream
        self.weight = torch.empty_like(tensor.mu.detach()).requires_grad_()
        self.eps = torch.zeros(tensor.count)
        self.moments = torch.zeros(4, tensor.count)
        self.prior = tensor.flat_prior()

    def take(self, used: Tensor) -> None:
        """Take weights that the model's own forward used."""
        with torch.no_grad():
            self.weight.copy_(used)
        self.eps.copy_(((used - self.tensor.mu.detach()) / self.tensor.sigma).flatten())

    def arrays(self) -> tuple[Any, ...]:
        """Return the arrays that the compiled step works on, in its order."""
        gradient = torch.zeros_like(self.weight) if self.weight.grad is None else self.weight.grad
        tensors = (self.tensor.mu.detach(), self.tensor.rho.detach(), self.weight.detach(), self.eps, gradient)
        return (
            *(flat(t.contiguous()).numpy() for t in tensors),
            self.moments.numpy(),
            *(prior.numpy() for prior in self.prior),
        )


class FusedSteps:
    """Steps of Adam on ``data term + kl_weight * KL``, in place, for a network whose forward the engine can repeat.

    The noise of a step depends on the seed and its number alone. Make it with `fused_steps`, which looks first.
    """

    def __init__(
        self, model: nn.Module, calls: Sequence[LayerCall], data_term: DataTerm, kl_weight: float, seed: int
    ) -> None:
        noise = PhiloxNoise(seed)
        self.name = f"engine ({noise.name})"
        from pytest_bnn.sampling.engine.posterior_kernels import adam_step

        self._step, self._key = adam_step, noise.key
        self._data_term, self._kl_weight = data_term, kl_weight
        self._count = self._draws = 0
        self._adam: torch.optim.Adam | None = None
        self._scratch = [Scratch() for _ in range(share())]
        self.tensors: dict[tuple[int, str], _Trained] = {}
        swap: dict[int, nn.Module] = {}
        for call in calls:
            trained = {t.role: _Trained(t, len(self.tensors) + i) for i, t in enumerate(call.layer.tensors)}
            self.tensors.update({(id(call.layer.module), role): value for role, value in trained.items()})
            swap[id(call.layer.module)] = _TrainedLayer(call, trained["weight"], trained.get("bias"))
        self.network = replicate(model, swap)
        drawn = {id(p) for value in self.tensors.values() for p in (value.tensor.mu, value.tensor.rho)}
        self.others = [p for p in model.parameters() if p.requires_grad and id(p) not in drawn]

    def take(self, calls: Sequence[LayerCall]) -> None:
        """Let the next step be one of the weights that the model's own forward used."""
        for call in calls:
            used = call.functional[-1]
            self.tensors[id(call.layer.module), "weight"].take(used.weight.detach())
            if used.bias is not None:
                self.tensors[id(call.layer.module), "bias"].take(used.bias.detach())

    def forward(self, images: Tensor, target: Tensor) -> tuple[float, None]:
        """Return the data term on a batch; the KL comes with `update`."""
        for leaf in (*(value.weight for value in self.tensors.values()), *self.others):
            leaf.grad = None
        with torch.enable_grad():
            self._loss = self._data_term(output_tensor(self.network(images)), target)
        return float(self._loss.detach()), None

    def update(self, learning_rate: float) -> tuple[float, float]:
        """Take the step and draw the next weights; return the KL before it and the norm of the loss's gradient."""
        self._loss.backward()
        return self._move(learning_rate)

    def start(self) -> None:
        """Begin anew: no step was taken, and the first weights are drawn."""
        self._count = 0
        self._adam = torch.optim.Adam(self.others, betas=BETAS, eps=TINY) if self.others else None
        for value in self.tensors.values():
            value.moments.zero_()

    def _move(self, learning_rate: float) -> tuple[float, float]:
        self._count += 1
        self._draws += 1
        corrections = [1 - beta**self._count for beta in BETAS]
        jobs = []
        for value in self.tensors.values():
            rate = learning_rate / corrections[0]
            rates = [rate * value.tensor.mu.requires_grad, rate * value.tensor.rho.requires_grad]
            rates += [*BETAS, math.sqrt(corrections[1]), TINY]
            factor = numpy.float32(self._kl_weight / value.tensor.count)
            given = (*value.arrays(), factor, numpy.array(rates, dtype=numpy.float32))
            size = value.tensor.count
            jobs += [(value, given, start, min(start + _PART, size)) for start in range(0, size, _PART)]

        def run(scratch: Scratch, job: Any) -> list[float]:
            value, given, start, stop = job
            counter = (value.stream, self._draws, *self._key, scratch.words, scratch.normals)
            sums = numpy.zeros(3)
            self._step(*given, start, stop, *counter, sums)
            return sums.tolist()

        kl, squares = 0.0, 0.0
        for (value, *_), (part, to_mu, to_rho) in zip(jobs, spread(self._scratch, jobs, run), strict=True):
            kl += part / value.tensor.count  # bayesian-torch's convention: a mean over each tensor
            squares += to_mu * value.tensor.mu.requires_grad + to_rho * value.tensor.rho.requires_grad
        squares += sum(float(p.grad.double().square().sum()) for p in self.others if p.grad is not None)
        if self._adam is not None:
            self._adam.param_groups[0]["lr"] = learning_rate
            self._adam.step()
        for value in self.tensors.values():
            for moved in (value.tensor.mu, value.tensor.rho):
                torch.autograd.graph.increment_version(moved)
        return kl, math.sqrt(squares)


class _TrainedLayer(nn.Module):
    def __init__(self, call: LayerCall, weight: _Trained, bias: _Trained | None) -> None:
        super().__init__()
        self._call = call.functional[-1].function, call.functional[-1].rest, call.functional[-1].keywords
        self._border = call.layer.border
        self._drawn = weight, bias

    def forward(self, input: Tensor) -> Tensor:
        function, rest, keywords = self._call
        weight, bias = self._drawn
        if self._border is not None:
            input = nn.functional.pad(input, self._border[0], mode=self._border[1])
        out: Tensor = function(input, weight.weight, None if bias is None else bias.weight, *rest, **keywords)
        return out


def fused_steps(
    model: nn.Module, images: Tensor, target: Tensor, *, data_term: DataTerm, kl_weight: float, seed: int
) -> FusedSteps:
    """Make the engine's steps for a model, once they have repeated the gradient of its own forward.

    After the engine was validated (`engine.handshake`), the model computes its loss on the images, and its gradient by
    autograd, with the KL term of ``get_kl_loss``. Given the weights that it used, the engine must arrive at the same
    loss, KL and gradient of every trained parameter.

    Args:
        model: The network, in eval mode; it is left undisturbed.
        images: A few of the training images; two suffice.
        target: What the data term compares the logits with, one row for each image.
        data_term: The data term of the loss.
        kl_weight: Factor on the KL term.
        seed: The seed of the noise.

    Raises:
        Unsupported: The engine must not train it; the message says why.
    """
    for layer in bayesian_layers(model):
        if not all(t.is_contiguous() for tensor in layer.tensors for t in (tensor.mu.detach(), tensor.rho.detach())):
            raise Unsupported(f"{layer.path}: mu or rho is not contiguous")
    shake_hands(model, images, seed)
    with undisturbed(model, seed=seed, unwritten=unwritten(model)), torch.enable_grad():
        with capture(model) as calls:
            logits = output_tensor(model(images))
        _require_one_call_each(model, calls)
        try:
            steps = FusedSteps(model, calls, data_term, kl_weight, seed)
        except Exception as error:
            raise Unsupported(f"numba cannot be used: {in_a_line(error)}") from error
        wanted = data_term(logits, target)
        wanted_kl = posterior.kl(model)
        assert wanted_kl is not None
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(wanted + kl_weight * wanted_kl, trained, allow_unused=True)
    steps.take(calls)
    found, _ = steps.forward(images, target)
    kl, _ = steps.update(0.0)
    for name, one, other in (("data term", wanted, found), ("KL", wanted_kl, kl)):
        one = one.detach()
        if not 0 <= difference(one, torch.tensor(other)) <= tolerance(one):
            raise Unsupported(f"with the weights of its own forward the engine's {name} is {other:.6g}, not {one:.6g}")
    _require_equal_gradients(model, dict(zip(map(id, trained), gradients, strict=True)), steps)
    steps.start()
    return steps


def _require_one_call_each(model: nn.Module, calls: Sequence[LayerCall]) -> None:
    called = [id(call.layer.module) for call in calls]
    for layer in bayesian_layers(model):
        if layer.estimator != "Reparameterization":
            raise Unsupported(f"{layer.path} uses {layer.estimator}, and the engine trains Reparameterization alone")
        if called.count(id(layer.module)) != 1:
            raise Unsupported(f"{layer.path} runs {called.count(id(layer.module))} times in a forward")


def _require_equal_gradients(model: nn.Module, wanted: dict[int, Tensor | None], steps: FusedSteps) -> None:
    found = {id(parameter): parameter.grad for parameter in steps.others}
    for value in steps.tensors.values():
        mu, rho = value.tensor.mu, value.tensor.rho
        for parameter, moment in ((mu, value.moments[0]), (rho, value.moments[2])):
            if parameter.requires_grad:
                found[id(parameter)] = (moment / (1 - BETAS[0])).view_as(parameter)
    for name, parameter in model.named_parameters():
        one, other = (gradients.get(id(parameter)) for gradients in (wanted, found))
        if one is None and other is None:
            continue
        size = 0.0 if one is None else float(one.norm())
        gap = size if one is None or other is None else float((one - other).norm())
        if other is None or not gap <= _GRADIENT_TOLERANCE * size:
            raise Unsupported(f"the engine's gradient to {name} is off by {gap:.2g}, its own is {size:.2g}")
