"""A conversion used in any order: trained, saved, loaded, copied, cast, frozen and sampled."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any, ClassVar

import torch
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor, nn

from pytest_bnn import properties
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers, kl
from pytest_bnn.network.isolation import preserved_random_state, seed_everything
from pytest_bnn.properties import PropertyError, Trial
from pytest_bnn.properties.trial import Snapshot, run, same
from pytest_bnn.strategies._networks import PLAIN_FEATURES, architectures, inputs_for


class ConversionMachine(RuleBasedStateMachine):
    """A stateful test of a converter: what it makes must stay a Bayesian network through all that is done to one.

    Networks are converted once, and then, in any order, trained for a step, saved and loaded into another conversion,
    deep-copied, cast to another dtype, frozen in part and sampled. After each step the teacher is untouched, mu, rho
    and requires_grad are what the steps so far made of them, the KL term is the closed form, the noise is the
    posterior's, and, until the first training step, the network at its posterior mean is its teacher.

    A subclass names the converter and, if need be, other networks; its ``TestCase`` is what pytest collects. A network
    that the converter refuses is left aside.

    Attributes:
        networks: A strategy for networks; those of the default are none that a layer-by-layer converter cannot take.
    """

    networks: ClassVar[st.SearchStrategy[nn.Module]] = architectures(
        kinds=("Linear", "Conv", "activation", "normalisation", "pooling"), features=PLAIN_FEATURES, max_layers=3
    )

    @staticmethod
    def convert(network: nn.Module) -> nn.Module:
        """Return the converted network: what a subclass overrides."""
        return convert(network)

    def __init__(self) -> None:
        super().__init__()
        self.trial: Trial = None  # type: ignore[assignment]  # `begin` runs before all else
        self.trained = False

    @initialize(data=st.data(), seed=st.integers(0, 9))
    def begin(self, data: Any, seed: int) -> None:
        """Convert a network."""
        network = data.draw(self.networks, label="network")
        x = data.draw(inputs_for(network), label="x")
        self.trial = properties.attempt(type(self).convert, network, x, seed=seed)
        assume(not self.trial.refused)
        properties.failure_is_a_refusal(self.trial)
        self.teacher = self.trial.network if self.trial.in_place else self.trial.given
        self.snapshot = Snapshot.of(self.teacher)
        self._remember()

    def _tensors(self) -> dict[str, PosteriorTensor]:
        return {tensor.name: tensor for layer in bayesian_layers(self.trial.result) for tensor in layer.tensors}

    def _remember(self) -> None:
        """Take the state of the posterior as it is for what it should be."""
        self.expected = {
            name: [(value.detach().clone(), value.requires_grad) for value in (tensor.mu, tensor.rho)]
            for name, tensor in self._tensors().items()
        }

    @rule(rate=st.sampled_from((1e-3, 1e-2)))
    def train_a_step(self, rate: float) -> None:
        """Take a step of gradient descent on outputs and KL; what is frozen must not move, the rest has gradients."""
        model = self.trial.result.eval()
        for parameter in model.parameters():
            parameter.grad = None
        with preserved_random_state():
            seed_everything(self.trial.seed)
            divergence = kl(model)
            loss = _sum(model(self.trial.x)) + (0 if divergence is None else 1e-3 * divergence)
        if not loss.requires_grad:
            return
        loss.backward()
        for name, tensor in self._tensors().items():
            for role, value in (("mu", tensor.mu), ("rho", tensor.rho)):
                if value.requires_grad and value.grad is None:
                    raise PropertyError("train_a_step", f"no gradient reaches {role} of {name}", [tensor.path])
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(rate * parameter.grad.clamp(-1, 1))
        frozen = {name: pair for name, pair in self.expected.items() if not (pair[0][1] or pair[1][1])}
        self._remember()
        self.expected |= frozen
        self.trained = True

    @rule()
    def save_and_load(self) -> None:
        """Go on with another conversion of the teacher, into which the state was loaded."""
        file = io.BytesIO()
        torch.save(self.trial.result.state_dict(), file)
        file.seek(0)
        other = run(type(self).convert, copy.deepcopy(self.trial.network), self.trial.seed + 1)
        other.load_state_dict(torch.load(file, weights_only=True))
        for name, parameter in self.trial.result.named_parameters():
            other.get_parameter(name).requires_grad_(parameter.requires_grad)
        self.trial = replace(self.trial, converted=other)

    @rule()
    def deep_copy(self) -> None:
        """Go on with a copy; the original is destroyed."""
        original = self.trial.result
        self.trial = replace(self.trial, converted=copy.deepcopy(original))
        with torch.no_grad():
            for parameter in original.parameters():
                parameter.fill_(torch.nan)

    @rule(dtype=st.sampled_from((torch.float32, torch.float64)))
    def cast(self, dtype: torch.dtype) -> None:
        """Cast the network, and its teacher with it."""
        trial = self.trial
        self.trial = replace(
            trial, network=copy.deepcopy(trial.network).to(dtype), x=trial.x.to(dtype), converted=trial.result.to(dtype)
        )
        self.expected = {
            name: [(value.to(dtype), requires_grad) for value, requires_grad in pair]
            for name, pair in self.expected.items()
        }

    @rule(data=st.data(), frozen=st.booleans())
    def freeze(self, data: Any, frozen: bool) -> None:
        """Freeze a layer, or let it be trained again."""
        layers = bayesian_layers(self.trial.result)
        layer = data.draw(st.sampled_from(layers).map(lambda layer: layer.path), label="layer")
        self.trial.result.get_submodule(layer).requires_grad_(not frozen)
        self.expected |= {
            name: [(value, not frozen) for value, _ in self.expected[name]]
            for name, tensor in self._tensors().items()
            if tensor.path == layer
        }

    @rule()
    def sample(self) -> None:
        """Run a forward; the same seed gives the same outputs, the posterior stays as it is."""
        first, second = self.trial.outputs("sample"), self.trial.outputs("sample")
        if not all(map(same, first, second)):
            raise PropertyError("sample", "two forward passes from the same seed give other outputs")

    @invariant()
    def it_is_sound(self) -> None:
        """The teacher is untouched, the posterior is what it should be, and so are mean, KL and noise."""
        found = self.snapshot.difference(self.teacher)
        if found:
            raise PropertyError("teacher_is_untouched", found[1], [found[0]])
        self._require_expected()
        properties.kl_is_closed_form(self.trial)
        properties.noise_is_posterior(self.trial)
        if not self.trained:
            properties.mean_equals_teacher(self.trial)

    def _require_expected(self) -> None:
        name, tensors = "posterior_is_as_expected", self._tensors()
        if tensors.keys() != self.expected.keys():
            raise PropertyError(
                name, f"what is Bayesian changed: {', '.join(sorted(tensors.keys() ^ self.expected.keys()))}"
            )
        for full, pair in self.expected.items():
            tensor = tensors[full]
            for role, value, (expected, trained) in zip(("mu", "rho"), (tensor.mu, tensor.rho), pair, strict=True):
                text = f"{role} of {full} has "
                if not same(value, expected):
                    raise PropertyError(name, text + "other values", [tensor.path])
                if value.requires_grad != trained:
                    raise PropertyError(name, text + f"requires_grad {value.requires_grad}", [tensor.path])


def _sum(output: Any) -> Tensor:
    tensors = [output] if isinstance(output, Tensor) else [t for t in output if isinstance(t, Tensor)]
    return torch.stack([tensor.square().mean() for tensor in tensors]).sum()
