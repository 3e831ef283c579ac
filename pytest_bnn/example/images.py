"""Where the bundled images come from: scikit-learn's digits and photographs, and images of the user's own.

The digits are the embedded teacher's task (1797 grey 8x8 images, ten classes); the photographs are real
colour pictures for networks with ImageNet weights. Both ship with scikit-learn, so nothing is downloaded.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_bnn.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

#: The split of the digits that the embedded teacher was trained with; part of its model card.
DIGITS_SEED = 0
DIGITS_HELD_OUT = 0.2
DIGITS_SIZE = 32
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

PHOTO_NAMES = ("china.jpg", "flower.jpg")


@cache
def _split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = torch.nn.functional.interpolate(images, size=(DIGITS_SIZE, DIGITS_SIZE), mode="bilinear")
    images = ((images - 0.5) / 0.5).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    train, held_out = train_test_split(
        list(range(len(labels))), test_size=DIGITS_HELD_OUT, random_state=DIGITS_SEED, stratify=digits.target
    )
    return images[train], labels[train], images[held_out], labels[held_out]


def digits(part: Literal["train", "held_out"], count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits as the embedded teacher sees them.

    Args:
        part: ``"train"`` (1437 images) or ``"held_out"`` (360 images, never trained on).
        count: How many images from the start of the part; all of them when None.

    Returns:
        Images ``[N, 3, 32, 32]``, float32 in [-1, 1], and labels ``[N]``, int64. Both are copies.

    Source: scikit-learn's ``load_digits``, a copy of the UCI optical digits test set.
    """
    if part not in ("train", "held_out"):
        raise ValueError(f"part must be 'train' or 'held_out', not {part!r}")
    train_images, train_labels, images, labels = _split()
    if part == "train":
        images, labels = train_images, train_labels
    return images[:count].clone(), labels[:count].clone()


def photograph(name: str = "flower.jpg") -> Image:
    """Return one of the two real photographs that scikit-learn ships, opened with Pillow.

    Args:
        name: ``"china.jpg"`` or ``"flower.jpg"``, 640x427 pixels each.

    Source: scikit-learn's ``load_sample_images``.
    """
    if name not in PHOTO_NAMES:
        raise ValueError(f"no photograph {name!r}; there are {', '.join(PHOTO_NAMES)}")
    import sklearn.datasets

    return open_image(Path(sklearn.datasets.__file__).parent / "images" / name)


def open_image(path: str | Path) -> Image:
    """Open an image file with Pillow, as RGB.

    Raises:
        InputError: The file is missing or is not an image that Pillow reads.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"there is no image {str(path)!r}", fix="give the path of a JPEG or PNG file") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{str(path)!r} is not an image that Pillow can read ({error})", fix="give the path of a JPEG or PNG file"
        ) from error


def imagenet_batch(image: Image) -> Tensor:
    """Turn a photograph into a batch of one for a network with ImageNet weights.

    Resize to 256, centre crop 224, scale to [0, 1], normalise: the transform of
    torchvision's ``ResNet18_Weights.IMAGENET1K_V1``.

    Returns:
        ``[1, 3, 224, 224]``, float32.
    """
    from pytest_bnn.audit.environment import torchvision

    batch: Tensor = torchvision().models.ResNet18_Weights.IMAGENET1K_V1.transforms()(image)[None]
    return batch


def digits_batch(image: Image) -> Tensor:
    """Turn any picture into a batch of one for the embedded digits teacher: grey, 8x8, then as `digits`.

    Returns:
        ``[1, 3, 32, 32]``, float32 in [-1, 1].
    """
    import torch
    from PIL.Image import Resampling

    small = image.convert("L").resize((8, 8), Resampling.BOX)
    grey = torch.tensor(list(small.tobytes()), dtype=torch.float32).reshape(1, 1, 8, 8) / 255
    grey = torch.nn.functional.interpolate(grey, size=(DIGITS_SIZE, DIGITS_SIZE), mode="bilinear")
    return ((grey - 0.5) / 0.5).expand(-1, 3, -1, -1).contiguous()


def photograph_crops(part: Literal["train", "held_out"]) -> Tensor:
    """Return crops of the two photographs for a network with ImageNet weights: other places for each part.

    Every photograph is resized to a short side of 256; ``"train"`` has twelve places in each, mirrored too
    (48 images), ``"held_out"`` eight between them (16 images).

    Returns:
        ``[N, 3, 224, 224]``, float32, normalised as ImageNet's.
    """
    import torch
    from torchvision.transforms import functional

    crops = []
    for name in PHOTO_NAMES:
        picture = functional.resize(functional.to_tensor(photograph(name)), [256], antialias=True)
        picture = functional.normalize(picture, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        across, down = picture.shape[2] - 224, picture.shape[1] - 224
        columns, rows, first = (4, 3, 0.0) if part == "train" else (4, 2, 0.125)
        for column in range(columns):
            for row in range(rows):
                left = int(across * min(1.0, first + column / columns))
                top = int(down * min(1.0, first + row / rows))
                crop = picture[:, top : top + 224, left : left + 224]
                crops += [crop, crop.flip(2)] if part == "train" else [crop]
    return torch.stack(crops)


def suitable(
    images: Literal["digits", "photographs"], part: Literal["train", "held_out"]
) -> tuple[Tensor, Tensor | None]:
    """Return the bundled images for a teacher's task, with labels where there are any."""
    return digits(part) if images == "digits" else (photograph_crops(part), None)
