"""``memory.separate``: does every tensor that training or a forward pass writes have memory of its own?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import NOTHING_BAYESIAN, Finding, not_applicable
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.libraries.registry import nobody_knows
from pytest_bnn.records.evidence import LayerFinding, Threshold, Verdict
from pytest_bnn.subject import Subject


@check(
    claim="Every mu, rho and noise buffer has memory of its own: not that of another layer, of a prior or of the "
    "teacher.",
    after="layers.replaced",
)
def separate(subject: Subject) -> Finding:
    """Measure whether every tensor that training or a forward pass writes has memory of its own.

    Training writes mu and rho, every pass writes the noise buffers. Where one of them overlaps with another of them,
    with a prior, or with a parameter or buffer of the teacher, writing the one changes the other, without an error.
    Priors may share their memory, with each other and with the teacher: nothing writes them.

    Args:
        subject: teacher and so on; see `Subject`.
    """
    return _find(subject)


measure_memory_separate, assert_memory_separate = separate.measure, separate.assert_


@dataclass(frozen=True, slots=True)
class _Span:
    """The bytes that a tensor reaches, and whether something writes them."""

    storage: int
    start: int
    end: int
    name: str
    path: str
    kind: str
    written: bool

    @classmethod
    def of(cls, tensor: Tensor, name: str, path: str, kind: str, *, written: bool) -> _Span:
        reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
        return cls(
            tensor.untyped_storage().data_ptr(),
            start,
            start + reach * tensor.element_size(),
            name,
            path,
            kind,
            written,
        )


def _find(subject: Subject) -> Finding:
    spans = [*_of_the_model(subject.model)]
    if not spans:
        return not_applicable(nobody_knows(subject.model) or NOTHING_BAYESIAN)
    written = sum(span.written for span in spans)
    if subject.teacher is not None:
        spans += _of_the_teacher(subject.teacher)
    overlaps = _overlaps(spans)
    findings = tuple(
        LayerFinding(path=one.path, kind=one.kind, ok=False, finding=f"{one.name} shares memory with {other.name}")
        for one, other in overlaps
    )
    headline = f"{written} tensors that are written have memory of their own"
    if overlaps:
        one, other = overlaps[0]
        headline = f"{len(overlaps)} pairs of tensors share memory: {one.name} with {other.name}"
    return Finding(
        verdict=Verdict.FAIL if overlaps else Verdict.PASS,
        headline=headline,
        threshold=Threshold(quantity="pairs that share memory", observed=len(overlaps), relation="==", allowed=0),
        layers=findings,
        remedy="clone the tensor where it is put into the layer: copy_() or .clone(), not .data = other; "
        "bayesian-torch's utils.MOPED() aliases teacher, mu and prior"
        if overlaps
        else "",
    )


def _of_the_model(model: nn.Module) -> Iterator[_Span]:
    for layer in bayesian_layers(model):
        for tensor in layer.tensors:
            # Of what is computed anew in each call, such as a parametrized rho, the parameter behind it is written.
            used = (
                (tensor.mu_parameter, tensor.mu_name, True),
                (tensor.rho_parameter, tensor.rho_name, True),
                *((getattr(layer.module, name, None), name, True) for name in (tensor.eps_name,)),
                *((getattr(layer.module, n), n, False) for n in (tensor.prior_mu_name, tensor.prior_sigma_name)),
            )
            for value, name, written in used:
                if isinstance(value, Tensor) and value.is_leaf and value.numel() and not value.is_meta:
                    full = f"{layer.path}.{name}" if layer.path else name
                    yield _Span.of(value, full, layer.path, layer.kind, written=written)


def _of_the_teacher(teacher: nn.Module) -> Iterator[_Span]:
    for name, tensor in (*teacher.named_parameters(), *teacher.named_buffers()):
        if tensor.numel() and not nn.parameter.is_lazy(tensor) and not tensor.is_meta:
            path = name.rpartition(".")[0]
            yield _Span.of(tensor, f"the teacher's {name}", path, "teacher", written=False)


def _overlaps(spans: list[_Span]) -> list[tuple[_Span, _Span]]:
    """Give the pairs that overlap, of which at least one is written; that one comes first.

    They come in the order of the model, not of the memory, which is another one in every run.
    """
    place = {id(span): index for index, span in enumerate(spans)}
    spans = sorted(spans, key=lambda span: (span.storage, span.start))
    found = []
    for index, span in enumerate(spans):
        for other in spans[index + 1 :]:
            if other.storage != span.storage or other.start >= span.end:
                break
            if span.written or other.written:
                one, two = sorted((span, other), key=lambda span: (not span.written, place[id(span)]))
                found.append((one, two))
    return sorted(found, key=lambda pair: (place[id(pair[0])], place[id(pair[1])]))
