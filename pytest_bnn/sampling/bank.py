"""The Monte-Carlo passes of a subject, drawn once and shared by its checks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import BayesianLayer, bayesian_layers, zero_sigma
from pytest_bnn.network.isolation import raised_in, seed_everything, undisturbed
from pytest_bnn.options import in_force

if TYPE_CHECKING:
    from pytest_bnn.sampling.engine.run import Engine

#: Packages whose modules do in their forward what their documentation says.
_KNOWN = frozenset({"torch", "torchvision", "bayesian_torch", "pytest_bnn"})

#: Numbers in the images of one chunk: 64 images of 3x224x224. Bounds the memory of a pass.
_CHUNK = 64 * 3 * 224 * 224


class ForwardError(Exception):
    """A model's own forward raised; the cause is chained."""

    def __init__(self, error: BaseException, place: str = "") -> None:
        first = next(iter(str(error).strip().splitlines()), "")
        super().__init__(f"{type(error).__name__}: {first}" + (f", in {place}" if place else ""))


def output_tensor(output: Any) -> Tensor:
    """Take the logits from what a model returned: a tensor, ``(out, kl)``, or an object or dict with logits."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) and "logits" in output:
        return output_tensor(output["logits"])
    if isinstance(output, tuple | list) and output:
        return output_tensor(output[0])
    if hasattr(output, "logits"):
        return output_tensor(output.logits)
    raise TypeError(f"the model returned {type(output).__name__}, not a tensor or (tensor, kl)")


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model once on a batch, without gradients.

    Raises:
        ForwardError: The model raised, or returned something that is no tensor of rows of numbers.
    """
    try:
        with torch.no_grad():
            output = output_tensor(model(images))
        rows = output.ndim > 1 or output.shape == images.shape[:1]
        if not rows or not output.numel() or output.is_complex():
            kind = "complex tensor" if output.is_complex() else "tensor"
            raise TypeError(
                f"the model returned a {kind} of shape {list(output.shape)} for {len(images)} inputs, and not a row of "
                "real numbers for each"
            )
        return output
    except (Exception, SystemExit, GeneratorExit) as error:
        raise ForwardError(error, raised_in(model, error)) from error


def pass_seed(seed: int, index: int) -> int:
    """Give pass number ``index`` its own seed, so that a pass does not depend on which ones ran before it."""
    return int(
        numpy.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, numpy.uint64)[0] >> numpy.uint64(1)
    )


def probabilities(outputs: Tensor) -> Tensor:
    """Turn class scores ``[..., classes]`` into probabilities; scores that already are some stay as they are."""
    sums = outputs.sum(-1)
    if bool((outputs >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4)):
        return outputs
    return torch.softmax(outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs, dim=-1)


def unwritten(model: nn.Module) -> list[Tensor]:
    """Give the parameters and priors of a model whose forward is known not to write to them; none of any other.

    Known are modules of torch, torchvision, bayesian-torch and this package, without hooks or forwards of their own.
    """
    if not all(_is_known(module) for module in model.modules()):
        return []
    priors = {
        (id(tensor.module), name)
        for layer in bayesian_layers(model)
        for tensor in layer.tensors
        for name in (tensor.prior_mu_name, tensor.prior_sigma_name)
    }
    found: list[Tensor] = list(model.parameters())
    written = set()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and (id(module), name) in priors:
                found.append(buffer)
            elif buffer is not None:
                written.add(buffer.untyped_storage().data_ptr())
    return [t for t in found if not is_lazy(t) and t.untyped_storage().data_ptr() not in written]


@contextmanager
def undisturbed_passes(model: nn.Module, *, seed: int) -> Iterator[None]:
    """Run passes without gradients inside `undisturbed`, sparing copies where the forward is known (`unwritten`).

    Of such a model only the noise buffers of the layer that is running are copied, and put back after its call.
    """
    spared = unwritten(model)
    layers = bayesian_layers(model) if spared else ()
    spared += [noise for layer in layers for noise in layer.noise]
    with undisturbed(model, seed=seed, unwritten=spared), _kept_noise(layers):
        yield


@contextmanager
def _kept_noise(layers: Sequence[BayesianLayer]) -> Iterator[None]:
    running: list[list[tuple[Tensor, Tensor]]] = []
    handles = []

    def put_back(*_: Any) -> None:
        for noise, before in running.pop():
            noise.data.copy_(before)

    for layer in layers:

        def keep(*_: Any, layer: BayesianLayer = layer) -> None:
            running.append([(noise, noise.detach().clone()) for noise in layer.noise])

        handles += [layer.module.register_forward_pre_hook(keep), layer.module.register_forward_hook(put_back)]
    try:
        yield
    finally:
        while running:
            put_back()
        for handle in handles:
            handle.remove()


def _is_known(module: nn.Module) -> bool:
    kind = type(module)
    # Generated code comes from no module, and what torch.jit made has no forward of its own.
    origins = {str(getattr(w, "__module__", "")).partition(".")[0] for w in (kind, getattr(kind, "forward", None))}
    hooks = module._forward_hooks or module._forward_pre_hooks
    return origins <= _KNOWN and not hooks and "forward" not in vars(module)


class PassBank:
    """The outputs of a model on a set of images, pass after pass: pass k is the same whoever asks first.

    One draw of the weights serves all images of a pass, as in the library, whatever the chunking. The sampling engine
    draws the passes where it has shown that it repeats the own forward of the model (`pytest_bnn.sampling.engine`);
    otherwise that forward does (there Flipout's signs repeat from chunk to chunk, which no statement about single
    images can notice).

    Args:
        model: The network.
        images: Inputs ``[N, ...]``.
        seed: Of the passes.
        sampler: ``"auto"``, ``"own"`` or ``"engine"``; the setting in force when None.

    Raises:
        ValueError: There is no such sampler.
    """

    def __init__(self, model: nn.Module, images: Tensor, seed: int, *, sampler: str | None = None) -> None:
        if sampler not in (None, "auto", "own", "engine"):
            raise ValueError(f"sampler must be 'auto', 'own' or 'engine', not {sampler!r}")
        self.model = model
        self.images = images
        self.seed = seed
        self.asked = 0
        self._choice = sampler
        self._stored: list[Tensor] = []
        self._engine: Engine | None = None
        self._decided_for: object = None
        self._sampler = ""

    @property
    def drawn(self) -> int:
        """How many passes on all images are there already."""
        return len(self._stored)

    @property
    def sampler(self) -> str:
        """What draws the passes, and why, in words; empty before the first one."""
        return self._sampler

    def first(self, passes: int) -> Tensor:
        """Give the first passes on all images, ``[passes, images, ...]``, drawing those that are missing."""
        self.asked += 1
        if len(self._stored) < passes:
            self._stored.extend(self.draw(len(self._stored), passes))
        return torch.stack(self._stored[:passes])

    def draw(
        self, start: int, stop: int, rows: Tensor | None = None, *, noisy: Collection[str] | None = None
    ) -> Tensor:
        """Give the passes from ``start`` up to ``stop``, on some images or all, without keeping them.

        Args:
            start: The first.
            stop: Behind the last.
            rows: Numbers of the images; all when None.
            noisy: Paths of the layers whose noise is on, the others at their mean; all when None.

        Raises:
            ForwardError: The model raised, or returned something that is no tensor of rows of numbers.
            InputError: The sampler is ``"engine"``, and the engine cannot be used.
        """
        self.asked += 1
        images = self.images if rows is None else self.images[rows]
        self._decide()
        if self._engine is not None:
            numbers = torch.arange(len(images)) if rows is None else rows.to(torch.int64)
            try:
                return self._engine.run(range(start, stop), images, numbers, noisy=noisy)
            except Exception as error:
                self._decline(f"{type(error).__name__}: {error}")
        return self._own(start, stop, images, noisy)

    def _own(self, start: int, stop: int, images: Tensor, noisy: Collection[str] | None) -> Tensor:
        parts = images.split(max(1, _CHUNK // max(1, images[0].numel())))
        passes = []
        silence = nullcontext() if noisy is None else zero_sigma(self.model, save=noisy)
        with undisturbed_passes(self.model, seed=self.seed), silence:
            for index in range(start, stop):
                outputs = []
                for part in parts:
                    seed_everything(pass_seed(self.seed, index))
                    outputs.append(forward(self.model, part))
                passes.append(torch.cat(outputs))
        return torch.stack(passes)

    def _decide(self) -> None:
        """Let the engine and the model shake hands, again where the model has changed."""
        choice = self._choice or in_force().sampler
        state = (choice, None if choice == "own" else _state(self.model))
        if state == self._decided_for:
            return
        self._decided_for, self._engine = state, None
        if choice == "own":
            self._sampler = "own forward (chosen)"
            return
        from pytest_bnn.sampling.engine.handshake import shake_hands
        from pytest_bnn.sampling.engine.plan import Unsupported

        try:
            self._engine = shake_hands(self.model, self.images, self.seed)
        except Unsupported as error:
            self._decline(str(error))
        else:
            warning = f": {self._engine.warning}" if self._engine.warning else ""
            self._sampler = f"engine ({self._engine.noise}{warning})"

    def _decline(self, reason: str) -> None:
        self._engine = None
        self._sampler = f"own forward ({reason})"
        if (self._choice or in_force().sampler) == "engine":
            raise InputError(f"the sampling engine cannot be used: {reason}", fix="leave the sampler at auto")


def _state(model: nn.Module) -> tuple[object, ...]:
    """Give what tells whether a model may have changed: its modules, modes, hooks and tensors, noise buffers aside."""
    found: list[object] = []
    for module in model.modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module)
        found.append((id(module), module.training, hooks))
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and not name.startswith("eps_"):
                found.append((id(tensor), tensor._version))
    return tuple(found)
