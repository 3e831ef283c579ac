"""Training losses as users write them, each with what it truly is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.vendor.pretty import RepresentationPrinter
from torch import Tensor, nn

from pytest_bnn.checks.kl.present import MEAN, SUM
from pytest_bnn.libraries import posterior
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.strategies._layers import Draw, check_choice
from pytest_bnn.training.divergence import kl

#: What `losses` choose from; the first of each is what examples shrink to.
DATA_TERMS = ("cross_entropy", "distillation", "mse")
WEIGHTINGS = ("num_batches", "num_examples", "constant")
CONVENTIONS = (MEAN, SUM)
LOSS_KINDS = ("healthy", "missing", "detached", "undivided", "negative")

_TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExampleLoss:
    """A training loss, ``loss(model, (images, labels))``: a data term plus the weighted KL term.

    Args:
        teacher: The network whose outputs are the targets.
        data_term: ``"cross_entropy"`` to the labels, or to the teacher's leading classes where the batch has none;
            ``"distillation"``, the KL divergence from the teacher's softened probabilities; ``"mse"`` to its logits.
        weighting: Where the weight comes from: ``"num_batches"`` and ``"num_examples"`` divide the KL term by
            ``number``, ``"constant"`` multiplies with it.
        number: That number.
        convention: The KL term: ``"mean per tensor"``, bayesian-torch's ``get_kl_loss``, or ``"sum"`` over all weights.
        kind: What was made of it, of `LOSS_KINDS`; see `losses`.

    Raises:
        ValueError: An argument is not one of these.
    """

    teacher: nn.Module
    data_term: str = DATA_TERMS[0]
    weighting: str = WEIGHTINGS[0]
    number: float = 2
    convention: str = MEAN
    kind: str = LOSS_KINDS[0]

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not self.number > 0:
            raise ValueError(f"number must be above 0, not {self.number!r}")

    @property
    def expected_weight(self) -> float:
        """The weight that the KL term should have, in the loss's convention."""
        return self.number if self.weighting == "constant" else 1 / self.number

    @property
    def weight(self) -> float:
        """The weight with which the KL term's gradient truly is in the loss's, in the loss's convention."""
        if self.kind in ("missing", "detached"):
            return 0.0
        if self.kind == "undivided":
            return 1.0
        return -self.expected_weight if self.kind == "negative" else self.expected_weight

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor | None]) -> Tensor:
        """Return the loss of a batch, a scalar with its graph.

        Raises:
            ValueError: The model has no Bayesian layer, and the loss has a KL term.
        """
        data_term = self._data_term(model, *batch)
        if self.kind == "missing":
            return data_term
        term = posterior.kl(model) if self.convention == MEAN else _summed_kl(model)
        if term is None:
            raise ValueError(f"{type(model).__name__} has no Bayesian layer, so no KL term")
        if self.kind == "detached":
            return data_term + self.expected_weight * term.detach()
        return data_term + self.weight * term

    def _data_term(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> Tensor:
        logits = output_tensor(model(images)).flatten(1)
        with torch.no_grad():
            target = output_tensor(self.teacher(images)).flatten(1)
        if self.data_term == "mse":
            return nn.functional.mse_loss(logits, target)
        if self.data_term == "cross_entropy":
            return nn.functional.cross_entropy(logits, target.argmax(1) if labels is None else labels)
        log_probabilities, softened = (logits / _TEMPERATURE).log_softmax(1), (target / _TEMPERATURE).softmax(1)
        return _TEMPERATURE**2 * nn.functional.kl_div(log_probabilities, softened, reduction="batchmean")

    def __repr__(self) -> str:
        """Return the call that makes the loss, for a teacher named ``network``."""
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("weighting", "number", "convention", "kind"))
        return f"ExampleLoss(teacher=network, data_term={self.data_term!r}, {values})"

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        printer.text(repr(self))


_CHOICES = {"data_term": DATA_TERMS, "weighting": WEIGHTINGS, "convention": CONVENTIONS, "kind": LOSS_KINDS}


def _summed_kl(model: nn.Module) -> Tensor | None:
    return kl(model, convention="sum") if bayesian_layers(model) else None


_NUMBERS = {
    "num_batches": st.integers(2, 1000),
    "num_examples": st.integers(2, 60_000),
    "constant": st.sampled_from((0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-6)),
}


@st.composite
def _losses(
    draw: Draw[Any],
    teacher: nn.Module,
    data_terms: tuple[str, ...],
    weightings: tuple[str, ...],
    conventions: tuple[str, ...],
    kinds: tuple[str, ...],
) -> ExampleLoss:
    weighting = draw(st.sampled_from(weightings))
    return ExampleLoss(
        teacher=teacher,
        data_term=draw(st.sampled_from(data_terms)),
        weighting=weighting,
        number=draw(_NUMBERS[weighting]),
        convention=draw(st.sampled_from(conventions)),
        kind=draw(st.sampled_from(kinds)),
    )


def losses(
    teacher: nn.Module,
    *,
    data_terms: Collection[str] = DATA_TERMS,
    weightings: Collection[str] = WEIGHTINGS,
    conventions: Collection[str] = CONVENTIONS,
    kinds: Collection[str] = LOSS_KINDS[:1],
) -> st.SearchStrategy[ExampleLoss]:
    """Generate training losses for conversions of a network, right ones unless ``kinds`` asks for others.

    A loss is called as every loss here, ``loss(model, (images, labels))``, and knows the truth about itself: the
    ``expected_weight`` of its KL term, and the ``weight`` that it really has. The kinds:

    - ``"healthy"``: both are equal.
    - ``"missing"``: there is no KL term. The weight is 0.
    - ``"detached"``: the KL term is in the loss without its graph. The weight is 0.
    - ``"undivided"``: the KL term is added as it is. The weight is 1, which is never the expected one.
    - ``"negative"``: the KL term is subtracted.

    Args:
        teacher: The network that was converted. It is called, in its own modes, without a gradient.
        data_terms: What to choose from, of `DATA_TERMS`.
        weightings: Of `WEIGHTINGS`: 2 to 1000 batches, 2 to 60000 examples, constants from 1e-6 to 0.5.
        conventions: Of `CONVENTIONS`.
        kinds: Of `LOSS_KINDS`.

    Raises:
        InvalidArgument: An argument is out of its range.
    """
    if not isinstance(teacher, nn.Module):
        raise InvalidArgument(f"teacher={teacher!r} must be a torch.nn.Module")
    given = {"data_terms": data_terms, "weightings": weightings, "conventions": conventions, "kinds": kinds}
    chosen = []
    for (name, words), allowed in zip(given.items(), _CHOICES.values(), strict=True):
        check_choice(name, words, allowed)
        chosen.append(tuple(word for word in allowed if word in words))
    return _losses(teacher, *chosen)
