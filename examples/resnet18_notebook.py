"""A ResNet18 becomes Bayesian: from an image file to predictions with an uncertainty, and to the audit's report.

Reads top to bottom, like a notebook. Offline, on the embedded digits teacher and a picture of a held-out digit:

    python resnet18_notebook.py

With torchvision's ImageNet weights and a photograph of your own:

    python resnet18_notebook.py --weights imagenet dog.jpg
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import pytest_bnn
from pytest_bnn.example.images import suitable
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.run import TrainingStep
from pytest_bnn.training.finetune import batch_size, number_of_batches

TOP = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the exercise; give 0 when every claim of the audit holds, 1 when one does not, 4 on wrong input."""
    given = _parser().parse_args(arguments)
    try:
        return _exercise(given)
    except pytest_bnn.InputError as error:
        print(f"resnet18_notebook: {error}", file=sys.stderr)
        return 4


def _exercise(given: argparse.Namespace) -> int:
    torch.manual_seed(given.seed)

    # 1. The teacher: a trained, deterministic ResNet18 in eval mode. Its class names come with its weights.
    teacher = pytest_bnn.load_teacher(given.weights)
    names = teacher.class_names
    print(f"teacher: resnet18, weights {teacher.name}, {len(names)} classes")

    # 2. An image file, opened with Pillow; the transform that the teacher was trained with makes it a batch of one.
    if given.image is not None:
        image = pytest_bnn.open_image(given.image)
    elif teacher.images == "digits":
        image = _held_out_digit()
    else:
        raise pytest_bnn.InputError(
            "there is no image to look at", fix="give an image file: --weights imagenet dog.jpg"
        )
    to_batch = pytest_bnn.digits_batch if teacher.images == "digits" else pytest_bnn.imagenet_batch
    batch = to_batch(image)
    print(f"image: {image.width}x{image.height} pixels, as a batch {list(batch.shape)}")

    # 3. What the teacher says.
    with torch.no_grad():
        logits = teacher.model(batch)
    print(f"\nthe teacher's top {TOP}, from logits of shape {list(logits.shape)}")
    _print_top(pytest_bnn.probabilities(logits)[0], names)

    # 4. The conversion. MOPED puts mu at the trained weights and sigma at delta * abs(weight): a small delta keeps
    #    what the network knows. convert() gives a copy, in eval mode as the teacher is.
    bnn = pytest_bnn.convert(teacher.model, type=given.type, moped_delta=given.delta)
    print(f"\nconverted with {given.type}, moped_delta {given.delta:g}; the first layer is now")
    print(f"  {type(teacher.model.conv1).__name__} -> {type(bnn.conv1).__name__}")

    # 5. Every pass draws new weights, so two passes differ. Neither of them is the prediction.
    for number in (1, 2):
        with torch.no_grad():
            shares = pytest_bnn.probabilities(bnn(batch))[0]
        print(f"pass {number}: {names[int(shares.argmax())]} {100 * float(shares.max()):.4f} %")

    # 6. Fine-tuning toward the teacher's logits on a training set, not on one image. The loss has its KL term, at
    #    1 / number of batches, and gradients are cleared every step. Our image leads the set, because the
    #    trajectory reports the first image's class after each step.
    images = torch.cat([batch, suitable(teacher.images, "train")[0]])
    size = batch_size(images)
    batches = number_of_batches(len(images), size)
    finetuned = copy.deepcopy(bnn)
    print(f"\nfine-tuning: {given.steps} steps of {size} images, KL weight 1/{batches}")
    trajectory = pytest_bnn.finetune(
        finetuned,
        teacher.model,
        images,
        steps=given.steps,
        batch=size,
        kl_weight=1 / batches,
        seed=given.seed,
        class_names=names,
        progress=_print_step,
    )

    # 7. The prediction: the mean of the probabilities over many passes, with its uncertainty.
    _print_prediction(torch.cat([*pytest_bnn.PassBank(finetuned, batch, given.seed).blocks(0, given.passes)]), names)

    # 8. The audit: every claim about the fine-tuned network on held-out images, and a report.
    judged, labels = suitable(teacher.images, "held_out")
    print("\nthe audit")
    run = pytest_bnn.audit_model(
        finetuned,
        teacher=teacher.model,
        data=(judged[: given.images], None if labels is None else labels[: given.images]),
        loss=pytest_bnn.distillation_loss(teacher.model, 1 / batches),
        name="resnet18 fine-tuned",
        seed=given.seed,
        class_names=names,
        thresholds=pytest_bnn.Thresholds(num_batches=batches, max_passes=given.passes),
        training=trajectory,
    )
    for check in run.checks:
        print(f"  {check.verdict.replace('_', ' '):<15} {check.id:<20} {check.headline}")
    page, data = pytest_bnn.write_report(run, given.output)
    print(f"report: {page}  data: {data}")
    return 0 if run.verdict in (Verdict.PASS, Verdict.WARN) else 1


def _held_out_digit() -> Image.Image:
    """Write a digit that the teacher never saw as a PNG and open it again: the way that any image file takes."""
    images, labels = pytest_bnn.digits("held_out", 1)
    grey = ((images[0, 0] + 1) / 2 * 255).round().to(torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digit.png"
        Image.fromarray(grey.numpy()).save(path)
        print(f"no image was given: a held-out digit, labelled {pytest_bnn.load_teacher().class_names[int(labels[0])]}")
        return pytest_bnn.open_image(path)


def _print_top(shares: Tensor, names: Sequence[str]) -> None:
    for share, index in zip(*shares.topk(min(TOP, len(names))), strict=True):
        print(f"  {100 * float(share):8.4f} %  {names[int(index)]}")


def _print_step(step: TrainingStep) -> None:
    print(f"  step {step.step:>3}: loss {step.loss:.4f}, one pass says {step.top1} {step.percent:.2f} %", flush=True)


def _print_prediction(outputs: Tensor, names: Sequence[str]) -> None:
    """Print the mean prediction for the first image of ``[passes, images, classes]``, with its uncertainty."""
    shares = pytest_bnn.probabilities(outputs)[:, 0].double()
    mean = shares.mean(0)
    entropy = float(torch.special.entr(mean).sum())
    expected_entropy = float(torch.special.entr(shares).sum(1).mean())
    low, high = shares.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
    print(f"\nthe BNN's mean prediction over {len(shares)} passes, with the 5-95 % range of single passes")
    for share, index in zip(*mean.topk(min(TOP, len(names))), strict=True):
        place = int(index)
        span = f"[{100 * float(low[place]):.4f}, {100 * float(high[place]):.4f}]"
        print(f"  {100 * float(share):8.4f} %  {span:<22} {names[place]}")
    print(f"predictive entropy {entropy:.4f} nats: how unsure the mean is")
    print(f"mutual information {max(0.0, entropy - expected_entropy):.4f} nats: how much the passes disagree")


def _parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?", help="an image file; a held-out digit when the teacher knows digits")
    parser.add_argument("--weights", default="digits", help="digits, imagenet or a path (default: %(default)s)")
    parser.add_argument("--type", choices=("Reparameterization", "Flipout"), default="Reparameterization")
    parser.add_argument("--delta", type=float, default=0.1, help="MOPED delta (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="fine-tuning steps (default: %(default)s)")
    parser.add_argument(
        "--passes",
        type=int,
        default=128,
        help="passes of the prediction, and at most of a check (default: %(default)s)",
    )
    parser.add_argument("--images", type=int, help="the most held-out images that the audit judges (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", default="audit.html", help="the report (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
