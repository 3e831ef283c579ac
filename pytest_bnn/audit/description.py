"""A subject's description in a report beside its verdicts: layers, predictions beside their images, a fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.audit.pictures import class_name, thumbnail
from pytest_bnn.audit.predictive import predictive
from pytest_bnn.checks.layers.replaced import is_convolution_or_linear
from pytest_bnn.data.digests import of_state
from pytest_bnn.data.origin import Origin, of_function
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Acceptance
from pytest_bnn.records.run import ClassShare, LayerRow, Prediction, SubjectRecord, TrainingStep
from pytest_bnn.sampling.bank import probabilities, softmax
from pytest_bnn.stats.moments import Mean
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import are_shares

#: How many images are shown: those with the most uncertain mean prediction, by its entropy.
IMAGES = 8
CLASSES = 5


def describe(
    subject: Subject,
    training: Sequence[TrainingStep] = (),
    origin: Origin | None = None,
    accepted: Sequence[Acceptance] = (),
) -> SubjectRecord:
    """Describe a subject for the report; predictions are shown where passes were drawn already.

    Args:
        subject: What was audited.
        training: The trajectory of `finetune`.
        origin: Where its parts came from, as far as that is known.
        accepted: Layers that are deterministic on purpose.
    """
    origin = origin or Origin()
    return SubjectRecord(
        name=subject.name,
        stage=subject.stage,
        model=type(subject.model).__name__,
        teacher=None if subject.teacher is None else type(subject.teacher).__name__,
        images=0 if subject.images is None else len(subject.images),
        sha256=sha256(subject.model),
        layers=tuple(_accepting(_layer_rows(subject.model), subject.model, accepted)),
        predictions=tuple(_predictions(subject)),
        training=tuple(training),
        prediction_summary=predictive(subject),
        sampler=subject.sampler,
        data_sha256=subject.data_sha256(),
        sources={**_sources(subject), **origin.sources},
        files=origin.files,
    )


def sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a model's state, as `of_state` computes it."""
    return of_state(model.state_dict())


def _sources(subject: Subject) -> dict[str, str]:
    """Say where the functions are from that were given beside a model."""
    factory = None if subject.factory is None else subject.factory.make
    functions = {"model": factory, "loss": subject.loss}
    told = {role: of_function(function) for role, function in functions.items() if function is not None}
    return {role: words for role, words in told.items() if words}


def _layer_rows(model: nn.Module) -> list[LayerRow]:
    layers = {id(layer.module): layer for layer in bayesian_layers(model)}
    rows = []
    for path, module in model.named_modules():
        layer = layers.get(id(module))
        if layer is not None:
            relative = torch.cat(
                [(t.sigma / t.mu.detach().abs().clamp_min(1e-12)).double().flatten() for t in layer.tensors]
            )
            rows.append(
                LayerRow(
                    path=path,
                    kind=f"{layer.kind} ({layer.estimator})",
                    shape="x".join(str(size) for size in layer.tensors[0].mu.shape),
                    weights=layer.weights,
                    bayesian=True,
                    sigma_over_mu=float(relative.median()),
                    kl=sum(tensor.kl_sum() for tensor in layer.tensors),
                )
            )
        elif is_convolution_or_linear(module):
            weight = getattr(module, "weight", None)
            sizes = weight.shape if isinstance(weight, Tensor) and not is_lazy(weight) else ()
            rows.append(
                LayerRow(
                    path=path,
                    kind=type(module).__name__,
                    shape="x".join(str(size) for size in sizes),
                    weights=sum(p.numel() for p in module.parameters() if not is_lazy(p)),
                    bayesian=False,
                )
            )
    return rows


def _accepting(rows: list[LayerRow], model: nn.Module, accepted: Sequence[Acceptance]) -> list[LayerRow]:
    """Put the reasons into the rows of layers that were accepted; those that have none get one, with what they are."""
    reasons = {one.path: one for one in accepted if one.weights}
    rows = [replace(row, accepted=reasons.pop(row.path).reason) if row.path in reasons else row for row in rows]
    modules = dict(model.named_modules(remove_duplicate=False))
    return rows + [
        LayerRow(
            path=path,
            kind=type(modules[path]).__name__ if path in modules else "",
            shape="",
            weights=one.weights,
            bayesian=False,
            accepted=one.reason,
        )
        for path, one in reasons.items()
    ]


def _predictions(subject: Subject) -> list[Prediction]:
    if subject.images is None or subject.bank.drawn < 2:
        return []
    outputs = _what_outputs_are(subject)
    if not outputs:
        return []
    given, over_passes = outputs == "probabilities", Mean()
    for block in _shares(subject, given=given):
        over_passes.take(block)
    mean_shares = over_passes.mean
    teacher = _teacher_shares(subject, mean_shares.shape)
    labels = _class_indices(subject.labels)
    entropies = torch.special.entr(mean_shares).sum(1)
    shown = entropies.argsort(descending=True, stable=True)[:IMAGES]
    # Quantiles take draws: those of the few images that are shown.
    shares = torch.cat([*_shares(subject, given=given, rows=shown)])
    rows = []
    for place, index in enumerate(shown.tolist()):
        passes, mean = shares[:, place], mean_shares[index]
        entropy = float(entropies[index])
        expected_entropy = float(torch.special.entr(passes).sum(1).mean())
        low, high = torch.quantile(passes, torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
        rows.append(
            Prediction(
                index=index,
                image=thumbnail(subject.images, index),
                label=None if labels is None else class_name(subject, labels[index]),
                passes=len(passes),
                entropy=entropy,
                mutual_information=max(0.0, entropy - expected_entropy),
                classes=tuple(
                    ClassShare(
                        name=class_name(subject, leader),
                        teacher=None if teacher is None else float(teacher[index, leader]),
                        mean=float(mean[leader]),
                        low=float(low[leader]),
                        high=float(high[leader]),
                    )
                    for leader in _leaders(mean, None if teacher is None else teacher[index])
                ),
            )
        )
    return rows


def _shares(subject: Subject, *, given: bool, rows: Tensor | None = None) -> Iterator[Tensor]:
    """Yield the probabilities of the passes that were drawn, blocks ``[passes, N, classes]`` in float64.

    Args:
        subject: What is shown.
        given: Whether the outputs are probabilities already.
        rows: The numbers of the images; all when None.
    """
    bank = subject.bank
    for block in bank.blocks(0, bank.drawn, rows):
        yield (block if given else softmax(block)).double().cpu()


def _what_outputs_are(subject: Subject) -> Literal["probabilities", "scores", ""]:
    """Return what the outputs of all passes are; empty where they are neither, or not finite."""
    given = True
    for block in subject.bank.blocks(0, subject.bank.drawn):
        if block.ndim != 3 or block.shape[2] < 2 or not bool(torch.isfinite(block).all()):
            return ""
        given = given and are_shares(block)
    return "probabilities" if given else "scores"


def _leaders(mean: Tensor, teacher: Tensor | None) -> list[int]:
    """Return the leading classes of the mean, the teacher's own leading class among them."""
    leaders: list[int] = mean.argsort(descending=True)[:CLASSES].tolist()
    if teacher is not None and int(teacher.argmax()) not in leaders:
        leaders[-1] = int(teacher.argmax())
    return leaders


def _teacher_shares(subject: Subject, shape: torch.Size) -> Tensor | None:
    if subject.teacher is None:
        return None
    output = subject.teacher_output().detach().cpu()
    return probabilities(output).double() if output.shape == shape else None


def _class_indices(labels: Any) -> list[int] | None:
    """Return labels as class indices; None for soft labels and for targets of a regression."""
    if not isinstance(labels, Tensor) or labels.numel() != len(labels) or labels.is_complex():
        return None
    values = labels.flatten().double()
    return [int(value) for value in values] if bool((values % 1 == 0).all()) else None
