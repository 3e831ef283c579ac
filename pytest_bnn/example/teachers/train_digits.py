"""Train the embedded teacher: ``python -m pytest_bnn.example.teachers.train_digits [FOLDER]``.

torchvision's ResNet18 with ten classes, on four fifths of scikit-learn's digits at 3x32x32: SGD with Nesterov
momentum under a one-cycle schedule, with random shifts of up to two pixels. Takes a few minutes on two cores.
Writes ``digits-resnet18.safetensors`` (float16) and its model card ``digits-resnet18.json``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from pytest_bnn.example.images import DIGITS_HELD_OUT, DIGITS_SEED, digits

NAME = "digits-resnet18"
SEED = 0
EPOCHS = 14
BATCH = 64
LEARNING_RATE = 0.05
WEIGHT_DECAY = 1e-4
LARGEST_SHIFT = 2
#: MOPED sets sigma = delta * abs(w), so a weight that float16 rounds to zero would be dead for good.
SMALLEST_WEIGHT = 1e-5


def train(seed: int = SEED, epochs: int = EPOCHS) -> nn.Module:
    """Train a ResNet18 on the digits' training part and return it in eval mode, float32."""
    torch.manual_seed(seed)
    images, labels = digits("train")
    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(_shifted(images[rows])), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.4f}", flush=True)
    return model.eval()


def _shifted(images: Tensor) -> Tensor:
    down, right = torch.randint(-LARGEST_SHIFT, LARGEST_SHIFT + 1, (2,)).tolist()
    padded = nn.functional.pad(images, [LARGEST_SHIFT] * 4, mode="replicate")
    top, left = LARGEST_SHIFT + down, LARGEST_SHIFT + right
    return padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]


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


def held_out_accuracy(state: dict[str, Tensor]) -> float:
    """Return the accuracy of a float16 state_dict, loaded as float32, on the digits' held-out fifth."""
    model = torchvision.models.resnet18(num_classes=10)
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    images, labels = digits("held_out")
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).double().mean())


def main(folder: Path) -> None:
    """Train, round, measure, and write weights and model card into ``folder``."""
    state = to_float16(train())
    accuracy = held_out_accuracy(state)
    path = folder / f"{NAME}.safetensors"
    save_file(state, path)
    card = {
        "name": NAME,
        "architecture": "torchvision.models.resnet18(num_classes=10)",
        "task": "scikit-learn's digits, bilinear to 3x32x32, scaled to [-1, 1]",
        "held_out_accuracy": round(accuracy, 6),
        "held_out_images": len(digits("held_out")[1]),
        "split": {"held_out": DIGITS_HELD_OUT, "seed": DIGITS_SEED, "stratified": True},
        "training": {
            "seed": SEED,
            "epochs": EPOCHS,
            "batch": BATCH,
            "optimizer": "SGD, Nesterov momentum 0.9, one-cycle",
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "largest_shift_pixels": LARGEST_SHIFT,
            "script": "python -m pytest_bnn.example.teachers.train_digits",
        },
        "precision": f"float16, no converted weight below {SMALLEST_WEIGHT:g}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "BSD-3-Clause; the digits are scikit-learn's copy of the UCI optical digits",
    }
    (folder / f"{NAME}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"{path}: held-out accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
