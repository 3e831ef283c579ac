"""A subject's description in a report beside its verdicts: layers, predictions beside their images, a fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.audit.pictures import class_name, thumbnail
from pytest_bnn.audit.predictive import predictive
from pytest_bnn.checks.layers.replaced import is_convolution_or_linear, replaced
from pytest_bnn.checks.noise.spread import contributions
from pytest_bnn.data.digests import of_state
from pytest_bnn.data.origin import Origin, of_function
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers
from pytest_bnn.network.devices import where
from pytest_bnn.network.float64 import float64_for
from pytest_bnn.records.evidence import Acceptance, Evidence
from pytest_bnn.records.run import ClassShare, LayerRow, Prediction, SubjectRecord, TrainingStep
from pytest_bnn.sampling.bank import probabilities, softmax
from pytest_bnn.stats.moments import Mean
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import are_shares

#: How many images are shown, and of these, how many for one reason while there are images for another one.
IMAGES = 8
CLASSES = 5
_DISAGREE, _WRONG, _UNSURE = "BNN and teacher disagree", "wrong and sure of it", "the least certain"
_EACH = {_DISAGREE: 4, _WRONG: 2, _UNSURE: 2}


def describe(
    subject: Subject,
    training: Sequence[TrainingStep] = (),
    evidence: Sequence[Evidence] = (),
    origin: Origin | None = None,
) -> SubjectRecord:
    """Describe a subject for the report; predictions are shown where passes were drawn already.

    Args:
        subject: What was audited.
        training: The trajectory of its fine-tuning.
        evidence: What checks found on it: of it come the layers that are deterministic on purpose, and what drew.
        origin: Where its parts came from, as far as that is known.
    """
    with float64_for(where(subject.model)):
        return _described(subject, training, evidence, origin or Origin())


def _described(
    subject: Subject, training: Sequence[TrainingStep], evidence: Sequence[Evidence], origin: Origin
) -> SubjectRecord:
    return SubjectRecord(
        name=subject.name,
        stage=subject.stage,
        model=type(subject.model).__name__,
        teacher=None if subject.teacher is None else type(subject.teacher).__name__,
        images=0 if subject.images is None else len(subject.images),
        sha256=sha256(subject.model),
        layers=tuple(_layer_rows(subject.model, _accepted(evidence), contributions(subject))),
        predictions=tuple(_predictions(subject)),
        training=tuple(training),
        prediction_summary=predictive(subject),
        sampler=", then ".join(dict.fromkeys(one.sampler for one in evidence if one.sampler) or subject.samplers),
        key=subject.key,
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


def _accepted(evidence: Sequence[Evidence]) -> dict[str, Acceptance]:
    """Return the parts that are deterministic on purpose, by their paths."""
    return {part.path: part for found in evidence if found.id == replaced.id for part in found.accepted}


def _layer_rows(model: nn.Module, accepted: Mapping[str, Acceptance], noise: Mapping[str, float]) -> list[LayerRow]:
    layers = {id(layer.module): layer for layer in bayesian_layers(model)}
    rows = []
    for path, module in model.named_modules():
        layer = layers.get(id(module))
        if layer is not None:
            relative = torch.cat([_sigma_over_mu(tensor).flatten() for tensor in layer.tensors])
            rows.append(
                LayerRow(
                    path=path,
                    kind=f"{layer.kind} ({layer.estimator})",
                    shape="x".join(str(size) for size in layer.tensors[0].mu.shape),
                    weights=layer.weights,
                    bayesian=True,
                    sigma_over_mu=float(relative.median()),
                    kl=sum(tensor.kl_sum() for tensor in layer.tensors),
                    noise=noise.get(path),
                )
            )
        elif (multiplies := is_convolution_or_linear(module)) or path in accepted:
            weight = getattr(module, "weight", None)
            sizes = weight.shape if isinstance(weight, Tensor) and not is_lazy(weight) else ()
            rows.append(
                LayerRow(
                    path=path,
                    kind=type(module).__name__,
                    shape="x".join(str(size) for size in sizes),
                    weights=sum(p.numel() for p in module.parameters() if not is_lazy(p))
                    if multiplies
                    else accepted[path].weights,
                    bayesian=False,
                    accepted=accepted[path].reason if path in accepted else "",
                )
            )
    return rows


def _sigma_over_mu(tensor: PosteriorTensor) -> Tensor:
    size = tensor.mu.detach().abs().clamp_min_(1e-12)
    return torch.div(tensor.sigma, size, out=size)


def _predictions(subject: Subject) -> list[Prediction]:
    if subject.images is None or subject.drawn < 2:
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
    whys = _chosen(mean_shares, teacher, labels, entropies)
    shown = torch.tensor(list(whys), dtype=torch.long)
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
                why=whys[index],
            )
        )
    return rows


def _chosen(mean: Tensor, teacher: Tensor | None, labels: Sequence[int] | None, entropies: Tensor) -> dict[int, str]:
    """Return the images that are shown, by their number, with what each was chosen for.

    First those on which the leading classes of the BNN and its teacher differ, then errors, the surest first of both,
    then those whose mean prediction has the largest entropy. Where there are few for one reason, others fill up.
    """
    confidence, said = mean.max(1)
    surest = confidence.argsort(descending=True, stable=True)
    right = said if labels is None else torch.tensor(labels)
    right = torch.where((right >= 0) & (right < mean.shape[1]), right, said)  # other labels are no class
    candidates = {
        _DISAGREE: [] if teacher is None else surest[(said != teacher.argmax(1))[surest]].tolist(),
        _WRONG: surest[(said != right)[surest]].tolist(),
        _UNSURE: entropies.argsort(descending=True, stable=True).tolist(),
    }
    chosen: dict[int, str] = {}
    for limits in (_EACH, dict.fromkeys(_EACH, IMAGES)):
        for why, limit in limits.items():
            for index in candidates[why]:
                if len(chosen) == IMAGES or sum(one == why for one in chosen.values()) == limit:
                    break
                chosen.setdefault(index, why)
    order = list(_EACH)
    return dict(sorted(chosen.items(), key=lambda pair: order.index(pair[1])))


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
