"""Train the embedded teacher: ``python -m pytest_bnn.example.teachers.train_digits [FOLDER]``.

torchvision's ResNet18 with ten classes, on four fifths of scikit-learn's digits at 3x32x32: SGD with Nesterov
momentum under a one-cycle schedule. Half of each batch is only shifted, by up to two pixels; the other half is blurred
and noisy too, as `digits("hard")` is, with its true labels, so that the teacher learns how sure it may be of what is
hard to read. Runs on one thread, so that the sums are done in the same order each time; takes two minutes.
Writes ``digits-resnet18.safetensors`` (float16) and its model card ``digits-resnet18.json``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Literal

import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from pytest_bnn.example.corruption import LARGEST_BLUR, LARGEST_NOISE, LARGEST_SHIFT, corrupted, enlarged, shifted
from pytest_bnn.example.images import DIGITS_HELD_OUT, DIGITS_SEED, HARD_SEED, digit_grids, digits

NAME = "digits-resnet18"
SEED = 0
THREADS = 1
EPOCHS = 13
BATCH = 64
LEARNING_RATE = 0.05
WEIGHT_DECAY = 1e-4
#: MOPED sets sigma = delta * abs(w), so a weight that float16 rounds to zero would be dead for good.
SMALLEST_WEIGHT = 1e-5


def train(seed: int = SEED, epochs: int = EPOCHS) -> nn.Module:
    """Train a ResNet18 on the digits' training part, half of it corrupted; return it in eval mode, float32."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    grids, labels = digit_grids("train")
    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    steps = epochs * -(-len(grids) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        for rows in torch.randperm(len(grids)).split(BATCH):
            clean, hard = grids[rows].tensor_split(2)
            images = torch.cat([shifted(enlarged(clean), generator), corrupted(hard, generator)])
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.4f}", flush=True)
    return model.eval()


def to_float16(model: nn.Module) -> dict[str, Tensor]:
    """Round a state_dict to float16 with no convolution or linear weight below `SMALLEST_WEIGHT` in size."""
    halves: dict[str, Tensor] = {}
    converted = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for name, _ in module.named_parameters(recurse=False)
    }
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            halves[name] = tensor
            continue
        if name in converted:
            sign = torch.where(tensor < 0, -1.0, 1.0)
            tensor = sign * tensor.abs().clamp_min(SMALLEST_WEIGHT)
        halves[name] = tensor.half().contiguous()
    return halves


def judged(state: dict[str, Tensor], part: Literal["held_out", "hard"]) -> tuple[float, float]:
    """Return accuracy and mean confidence of a float16 state_dict, loaded as float32, on a part of the digits."""
    model = torchvision.models.resnet18(num_classes=10)
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    images, labels = digits(part)
    with torch.no_grad():
        confidence, classes = model.eval()(images).softmax(1).max(1)
    return float((classes == labels).double().mean()), float(confidence.double().mean())


def main(folder: Path) -> None:
    """Train, round, measure, and write weights and model card into ``folder``."""
    torch.set_num_threads(THREADS)
    state = to_float16(train())
    accuracy, _ = judged(state, "held_out")
    hard_accuracy, hard_confidence = judged(state, "hard")
    path = folder / f"{NAME}.safetensors"
    save_file(state, path)
    card = {
        "name": NAME,
        "architecture": "torchvision.models.resnet18(num_classes=10)",
        "task": "scikit-learn's digits, bilinear to 3x32x32, scaled to [-1, 1]",
        "held_out_accuracy": round(accuracy, 6),
        "held_out_images": len(digits("held_out")[1]),
        "hard_accuracy": round(hard_accuracy, 6),
        "hard_confidence": round(hard_confidence, 6),
        "hard_images": len(digits("hard")[1]),
        "corruption": {
            "seed": HARD_SEED,
            "seed_chosen": "of 0 to 7, for a confidence near the accuracy",
            "largest_blur": LARGEST_BLUR,
            "largest_noise": LARGEST_NOISE,
            "largest_shift_pixels": LARGEST_SHIFT,
            "amounts": "uniform from 0 for each image; blur and noise on the 8x8 grid, clamped to [-1, 1]",
        },
        "split": {"held_out": DIGITS_HELD_OUT, "seed": DIGITS_SEED, "stratified": True},
        "training": {
            "seed": SEED,
            "threads": THREADS,
            "images": "half of each batch shifted, the other half corrupted, labels kept",
            "epochs": EPOCHS,
            "batch": BATCH,
            "optimizer": "SGD, Nesterov momentum 0.9, one-cycle",
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "script": "python -m pytest_bnn.example.teachers.train_digits",
        },
        "precision": f"float16, no converted weight below {SMALLEST_WEIGHT:g}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "BSD-3-Clause; the digits are scikit-learn's copy of the UCI optical digits",
    }
    (folder / f"{NAME}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"{path}: accuracy {accuracy:.4f} held out, {hard_accuracy:.4f} hard (confidence {hard_confidence:.4f})")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
