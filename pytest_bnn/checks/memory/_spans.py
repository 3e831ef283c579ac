"""The bytes that tensors reach, and which of them overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.libraries.posterior import bayesian_layers

#: Whose a tensor is: a posterior's (mu, rho, noise), a prior's, another one of the model, or the teacher's.
Role = Literal["posterior", "prior", "deterministic", "teacher"]


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes that a tensor reaches; ``path`` and ``name`` say where it is: a module, and the tensor in full."""

    storage: int
    start: int
    end: int
    name: str
    path: str
    kind: str
    role: Role
    buffer: bool = False

    @classmethod
    def of(cls, tensor: Tensor, name: str, path: str, kind: str, role: Role, *, buffer: bool = False) -> Span:
        """Return the span of a tensor."""
        reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
        end = start + reach * tensor.element_size()
        return cls(tensor.untyped_storage().data_ptr(), start, end, name, path, kind, role, buffer)

    @property
    def full(self) -> str:
        """What messages call it."""
        return f"the teacher's `{self.name}`" if self.role == "teacher" else f"`{self.name}`"


def of_posteriors(model: nn.Module) -> Iterator[Span]:
    """Yield mu, rho, noise and priors of all Bayesian layers."""
    for layer in bayesian_layers(model):
        for tensor in layer.tensors:
            # Of what is computed anew in each call, such as a parametrized rho, the parameter behind it is written.
            used: tuple[tuple[object, str, Role], ...] = (
                (tensor.mu_parameter, tensor.mu_name, "posterior"),
                (tensor.rho_parameter, tensor.rho_name, "posterior"),
                (getattr(layer.module, tensor.eps_name, None), tensor.eps_name, "posterior"),
                (getattr(layer.module, tensor.prior_mu_name), tensor.prior_mu_name, "prior"),
                (getattr(layer.module, tensor.prior_sigma_name), tensor.prior_sigma_name, "prior"),
            )
            for value, name, role in used:
                if isinstance(value, Tensor) and value.is_leaf and _has_memory(value):
                    full = f"{layer.path}.{name}" if layer.path else name
                    yield Span.of(value, full, layer.path, layer.kind, role)


def of_all(network: nn.Module, role: Role) -> Iterator[Span]:
    """Yield all parameters and buffers of a network."""
    modules = dict(network.named_modules())
    tensors: list[tuple[str, Tensor, bool]] = [(name, tensor, False) for name, tensor in network.named_parameters()]
    tensors += [(name, tensor, True) for name, tensor in network.named_buffers()]
    for name, tensor, buffer in tensors:
        if _has_memory(tensor):
            path = name.rpartition(".")[0]
            yield Span.of(tensor, name, path, type(modules.get(path)).__name__, role, buffer=buffer)


def _has_memory(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and not tensor.is_meta and tensor.layout is torch.strided and tensor.numel() > 0


def overlaps(spans: list[Span]) -> list[tuple[Span, Span]]:
    """Return the pairs that overlap and of which something may write one; that one comes first.

    Posteriors must not overlap with anything but deterministic tensors of their own model, which one may tie to a mu;
    other tensors of the model must not with the teacher's. They come in the order of the model, not of the memory,
    which is another one in every run.
    """
    place = {id(span): index for index, span in enumerate(spans)}
    ordered = sorted(spans, key=lambda span: (span.storage, span.start))
    found = []
    for index, span in enumerate(ordered):
        for other in ordered[index + 1 :]:
            if other.storage != span.storage or other.start >= span.end:
                break
            one, two = sorted((span, other), key=lambda span: (_RANK[span.role], place[id(span)]))
            if (one.role, two.role) in _FORBIDDEN:
                found.append((one, two))
    return sorted(found, key=lambda pair: (place[id(pair[0])], place[id(pair[1])]))


_RANK = {"posterior": 0, "deterministic": 1, "prior": 2, "teacher": 3}
_FORBIDDEN = {
    ("posterior", "posterior"), ("posterior", "prior"), ("posterior", "teacher"), ("deterministic", "teacher")
}  # fmt: skip
