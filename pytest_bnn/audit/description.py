"""A subject's description in a report beside its verdicts: layers, predictions beside their images, a fingerprint."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.checks.layers.replaced import is_convolution_or_linear
from pytest_bnn.data.batch import Batch, Inputs
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.run import ClassShare, LayerRow, Prediction, SubjectRecord, TrainingStep
from pytest_bnn.sampling.bank import probabilities
from pytest_bnn.subject import Subject

#: How many images are shown: those with the most uncertain mean prediction, by its entropy.
IMAGES = 8
CLASSES = 5
THUMBNAIL = 96


def describe(subject: Subject, training: Sequence[TrainingStep] = ()) -> SubjectRecord:
    """Describe a subject for the report; predictions are shown where passes were drawn already."""
    return SubjectRecord(
        name=subject.name,
        stage=subject.stage,
        model=type(subject.model).__name__,
        teacher=None if subject.teacher is None else type(subject.teacher).__name__,
        images=0 if subject.images is None else len(subject.images),
        sha256=sha256(subject.model),
        layers=tuple(_layer_rows(subject.model)),
        predictions=tuple(_predictions(subject)),
        training=tuple(training),
        sampler=subject.sampler,
    )


def sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a model's state: names, dtypes, shapes and bytes of its state_dict, in its order."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or is_lazy(tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if tensor.is_meta:  # it has no bytes
            continue
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def _predictions(subject: Subject) -> list[Prediction]:
    if subject.images is None or subject.bank.drawn < 2:
        return []
    shares = subject.bank.first(subject.bank.drawn)
    if shares.ndim != 3 or shares.shape[2] < 2 or not bool(torch.isfinite(shares).all()):
        return []
    shares = probabilities(shares).double().cpu()
    teacher = _teacher_shares(subject, shares.shape[1:])
    labels = _class_indices(subject.labels)
    entropies = torch.special.entr(shares.mean(0)).sum(1)
    rows = []
    for index in entropies.argsort(descending=True, stable=True)[:IMAGES].tolist():
        passes = shares[:, index]
        mean = passes.mean(0)
        entropy = float(entropies[index])
        expected_entropy = float(torch.special.entr(passes).sum(1).mean())
        low, high = torch.quantile(passes, torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
        rows.append(
            Prediction(
                index=index,
                image=_thumbnail(subject.images, index),
                label=None if labels is None else _label(subject, labels[index]),
                passes=len(passes),
                entropy=entropy,
                mutual_information=max(0.0, entropy - expected_entropy),
                classes=tuple(
                    ClassShare(
                        name=_label(subject, leader),
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


def _label(subject: Subject, index: int) -> str:
    return subject.class_names[index] if 0 <= index < len(subject.class_names) else f"class {index}"


def _thumbnail(images: Inputs, index: int) -> str:
    """Return a PNG of an image tensor as a data URI, stretched to its full range; empty where it is no picture."""
    from PIL import Image

    pictures = images.tensors[0] if isinstance(images, Batch) else images
    image = pictures[index].detach().cpu().double() if len(pictures) == len(images) else torch.zeros(0)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or min(image.shape[1:]) < 2:
        return ""
    low, high = float(image.min()), float(image.max())
    pixels = (255 * (image - low) / max(high - low, 1e-12)).round().to(torch.uint8)
    picture = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
