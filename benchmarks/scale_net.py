"""What `benchmarks.scale` audits: a small network, its checkpoints' data, and a check that draws what it is told."""

from __future__ import annotations

import functools
from typing import Any

import numpy
import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.resident import kib
from pytest_bnn import Finding, Measurement, Subject, Verdict, check, convert, predict

#: Files in the current folder, of each series its own.
DATA, IMAGES, LABELS = "data.pt", "images.npy", "labels.npy"


def teacher() -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    last = nn.Linear(512, 10)
    last.weight.data *= 10
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(4), nn.Flatten(), last).eval()


def bayesian() -> nn.Module:
    return convert(teacher(), moped_delta=0.05)


def held_out() -> tuple[Tensor, ...]:
    return tuple(torch.load(DATA))


def loss(model: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    found: Tensor = nn.functional.cross_entropy(model(images), labels) + get_kl_loss(model) / 45
    return found


@functools.cache
def mapped(path: str) -> Any:
    return numpy.load(path, mmap_mode="r")


class Labelled(Dataset[tuple[Tensor, int]]):
    """Images in a file that is not read into memory."""

    def __init__(self, examples: int) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(mapped(IMAGES)[number].copy()).float().div(40).sub(3)
        return image, int(mapped(LABELS)[number])


def save_labelled(examples: int) -> None:
    generator, network = torch.Generator().manual_seed(1), teacher()
    images = numpy.lib.format.open_memmap(IMAGES, "w+", "uint8", (examples, 3, 32, 32))
    labels = numpy.zeros(examples, "int64")
    for start in range(0, examples, 1000):
        many = min(1000, examples - start)
        colours = torch.randn(many, 3, 1, 1, generator=generator)
        noisy = colours + torch.randn(many, 3, 32, 32, generator=generator)
        whole = (noisy + 3).mul(40).clamp(0, 255).byte()
        images[start : start + many] = whole.numpy()
        with torch.no_grad():
            shares = network(whole.float().div(40).sub(3)).softmax(1)
        labels[start : start + many] = torch.multinomial(shares, 1, generator=generator)[:, 0].numpy()
    numpy.save(LABELS, labels)


@check("scale.predicts", claim="Passes over all examples can be drawn.")
def predicts(subject: Subject, *, passes: int = 1) -> Finding:
    assert isinstance(subject.images, Tensor)
    found = predict(subject.model, subject.images, passes=passes, seed=subject.seed)
    drawn = Measurement(name="drawn", value=float(found.passes * len(subject.images)), unit="passes of an example")
    memory = Measurement(name="memory", value=kib("VmHWM") / 1024, unit="MiB")
    return Finding(verdict=Verdict.PASS, headline="they are drawn", measurements=(drawn, memory))
