"""The history that a model's numbers tell: of each posterior tensor, beside its teacher's and beside the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_bnn.libraries.alignment import MODERATE, UNRELATED_ERROR, Alignment, is_related
from pytest_bnn.libraries.fingerprint import (
    FAR,
    Fingerprint,
    equal_values,
    fingerprint,
    is_one_ratio,
    moved_by,
    precision,
    ratios,
    rho_of,
    some,
    usable_places,
)
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers

#: Median deviation of log(sigma / abs(mu)) below which sigma lies at its own places: among permuted ones it is about 1.
_ABOUT = 0.1

#: Places of a tensor from which it can be told that sigma belongs to other places.
_PLACES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What one posterior tensor tells; ``weight`` is the teacher's tensor that it is paired with, or None."""

    tensor: PosteriorTensor
    weight: Tensor | None
    print: Fingerprint

    @property
    def untouched(self) -> bool:
        """Whether mu and sigma are both where a conversion puts them, so that no step of training moved either.

        That is a sigma of one share of abs(mu), or of one value where mu is the teacher's to the bit and every sigma
        has a parameter of its own: steps would have moved them apart.
        """
        if self.print.fresh:
            return True
        rho = self.tensor.rho.detach()
        return self.print.equal and rho.numel() > 1 and rho.shape == self.tensor.mu.shape and _is_one_value(rho)

    @property
    def moved(self) -> bool:
        """Whether it left the teacher's weight, by what can be seen, and is no random start."""
        return self.weight is not None and not self.untouched and not self.print.equal and not self.print.random_start

    @property
    def delta(self) -> float:
        """The share of abs(mu) that sigma is, in the middle of the places; NaN where no place tells."""
        return self._share_of(self.tensor.mu.detach())

    @property
    def delta_of_teacher(self) -> float:
        """The share of abs(teacher's weight) that sigma is; NaN where there is none, or no place tells."""
        return float("nan") if self.weight is None else self._share_of(self.weight)

    def _share_of(self, reference: Tensor) -> float:
        rho, reference = some(rho_of(self.tensor)), some(reference.to(self.tensor.mu.device))
        if not len(usable_places(rho, reference)):
            return float("nan")
        return float(ratios(rho, reference, self.tensor.map)[0].exp().median())

    @property
    def tells(self) -> bool:
        """Whether its numbers can tell whether a step was taken: those of a few places, or of zeros, cannot."""
        rho, mu = some(rho_of(self.tensor)), some(self.tensor.mu.detach())
        return self.print.fresh or len(usable_places(rho, mu)) >= _PLACES


def _is_one_value(values: Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())


def traces(model: nn.Module, teacher: nn.Module | None, alignment: Alignment) -> tuple[Trace, ...]:
    """Return what each posterior tensor of a model tells, in its order; biases are paired with weights."""
    weights = {(id(tensor.module), tensor.mu_name): weight for tensor, weight in alignment.pairs}
    paired = {id(tensor.module) for tensor, _ in alignment.pairs}
    sources = dict(teacher.named_modules()) if teacher is not None else {}
    teacher_paths = alignment.teacher_paths()
    found = []
    for layer in bayesian_layers(model):
        for tensor in layer.tensors:
            weight = weights.get((id(tensor.module), tensor.mu_name))
            if weight is None and tensor.role == "bias" and id(tensor.module) in paired:
                bias = getattr(sources.get(teacher_paths.get(layer.path, "\0")), "bias", None)
                weight = bias.detach() if isinstance(bias, Tensor) and bias.shape == tensor.mu.shape else None
            found.append(Trace(tensor, weight, fingerprint(tensor, weight)))
    return tuple(found)


def carries_the_teacher(trace: Trace, among: int) -> bool:
    """Return whether a tensor has something of the teacher's weight, among so many tensors that are asked about."""
    return trace.print.equal or is_related([trace.print.cosine], [trace.print.size], UNRELATED_ERROR / among)


def left_at_the_start(found: Sequence[Trace]) -> tuple[Trace, ...]:
    """Return the weight tensors at the library's random start, where most others have something of the teacher.

    Each is large enough that even a moderate relation to the teacher's weight would show, and shows none.
    """
    paired = [trace for trace in found if trace.tensor.role == "weight" and trace.weight is not None]
    carrying = [trace for trace in paired if carries_the_teacher(trace, len(paired))]
    lost = [
        trace
        for trace in paired
        if trace.print.random_start
        and trace not in carrying
        and is_related([MODERATE], [trace.print.size], UNRELATED_ERROR / len(paired))
    ]
    return tuple(lost) if 2 * len(carrying) >= len(paired) else ()


@dataclass(frozen=True, slots=True, eq=False)
class Displaced:
    """A tensor whose sigma is what a conversion makes of a mean, but not place by place of its own."""

    trace: Trace
    donor: Trace

    @property
    def of_mu(self) -> bool:
        """Whether mu was displaced and not sigma: sigma is still a share of the teacher's weight, place by place."""
        return self.trace.print.untrained_sigma and not self.trace.print.equal

    @property
    def delta(self) -> float:
        """The share of the donor's abs(mu) that sigma is, whatever the places."""
        sigma, mu = self.trace.tensor.sigma.double(), self.donor.tensor.mu.detach().double()
        largest = mu.abs().max()  # squares of large numbers overflow
        return float((sigma / largest).norm() / (mu / largest).norm())


def displaced(found: Sequence[Trace]) -> Iterator[Displaced]:
    """Yield the tensors whose sorted sigma is one share of the sorted abs(mu) of a tensor, itself or another.

    That is a fresh conversion's in the wrong places: training scales sigma by another factor at each place. Where sigma
    is the memory of the tensor that it fits, the two share a parameter, which is another fault.
    """
    usable = [trace for trace in found if trace.print.size >= _PLACES]
    # Whatever their places, numbers that are the same but for one factor have the same ratio of two norms.
    means = {id(trace): _norms(trace.tensor.mu.detach()) for trace in usable}
    for trace in usable:
        if trace.print.fresh or _in_its_places(trace):
            continue
        rho = rho_of(trace.tensor)
        sigma = _norms(trace.tensor.map.of(rho))
        own = [trace, *(other for other in usable if other is not trace and other.print.size == trace.print.size)]
        for donor in own:
            near = abs(sigma / means[id(donor)] - 1) <= _precision_of(rho)
            if near and _fits_sorted(rho, donor.tensor.mu.detach(), trace) and not _share_memory(trace, donor):
                yield Displaced(trace, donor)
                break


def _in_its_places(trace: Trace) -> bool:
    """Return whether sigma is about one share of abs(mu) at most places, so that it is where it belongs."""
    rho, mu = some(rho_of(trace.tensor)), some(trace.tensor.mu.detach())
    if not len(usable_places(rho, mu)):
        return False
    ratio = ratios(rho, mu, trace.tensor.map)[0]
    return float((ratio - ratio.median()).abs().median()) < _ABOUT


def _norms(values: Tensor) -> float:
    """Return the ratio of the sum of absolute values to the Euclidean norm; NaN for zeros and unless all are finite."""
    sizes = values.flatten().abs().double()
    sizes = sizes / sizes.max()  # squares of large numbers overflow
    return float(sizes.sum() / torch.linalg.vector_norm(sizes))


def _precision_of(rho: Tensor) -> float:
    return 4 * precision(rho).eps * (2 + float(rho.abs().max()))


def _fits_sorted(rho: Tensor, mu: Tensor, trace: Trace) -> bool:
    ordered, sizes = rho.flatten().sort().values, mu.abs().flatten().sort().values
    return len(usable_places(ordered, sizes)) >= _PLACES and is_one_ratio(ordered, sizes, trace.tensor.map)


def _share_memory(trace: Trace, donor: Trace) -> bool:
    one, other = trace.tensor.rho, donor.tensor.rho
    return trace is not donor and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def barely_moved(trace: Trace) -> bool:
    """Return whether mu is so near to the teacher's weight that steps too small for rho's dtype explain it."""
    if trace.weight is None or trace.print.equal:
        return False
    return not moved_by(trace.tensor, trace.weight) > FAR


def never_trained(trace: Trace) -> bool:
    """Say whether mu moved, far enough that sigma would have shown it, and sigma is where the conversion put it."""
    if trace.weight is None or not (trace.moved and trace.print.untrained_sigma):
        return False
    return moved_by(trace.tensor, trace.weight) > FAR


def moved_beside(model: nn.Module, teacher: nn.Module | None, alignment: Alignment) -> tuple[str, ...]:
    """Return the names of parameters without a posterior that the teacher has not got, or has with other values.

    Without a teacher all of them: nothing shows whether they moved.
    """
    posterior = {
        id(parameter)
        for layer in bayesian_layers(model)
        for tensor in layer.tensors
        for parameter in (tensor.mu_parameter, tensor.rho_parameter)
    }
    sources = dict(teacher.named_modules()) if teacher is not None else {}
    teacher_paths = alignment.teacher_paths()
    found = []
    for path, module in model.named_modules():
        before = dict(getattr(sources.get(teacher_paths.get(path, "\0")), "_parameters", {}))
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in posterior:
                continue
            old = before.get(name)
            if old is None or old.shape != parameter.shape or not equal_values(parameter.detach(), old.to(parameter)):
                found.append(f"{path}.{name}" if path else name)
    return tuple(found)
