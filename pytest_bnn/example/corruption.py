"""How digits are made hard: blur, noise and shifts of amounts that each image draws for itself.

The embedded teacher is trained on clean and corrupted digits alike, so that on corrupted ones, which it cannot always
read, it knows how sure it may be. Training and `digits("hard")` corrupt with the same function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

#: The side of an image as the embedded teacher sees it.
SIZE = 32
#: The widest blur: the share of the mean over 3x3 pixels of the 8x8 grid, from 0 (none) to 1.
LARGEST_BLUR = 0.6
#: The largest standard deviation of the normal noise on the 8x8 grid, where black is -1 and white 1.
LARGEST_NOISE = 1.3
#: The largest shift, in pixels of the enlarged 32x32 image, down or up and right or left.
LARGEST_SHIFT = 2


def enlarged(grids: Tensor) -> Tensor:
    """Return grids ``[N, 1, 8, 8]`` as the embedded teacher sees them: bilinear, ``[N, 3, 32, 32]``."""
    import torch

    images = torch.nn.functional.interpolate(grids, size=(SIZE, SIZE), mode="bilinear")
    return images.expand(-1, 3, -1, -1).contiguous()


def shifted(images: Tensor, generator: Generator, largest: int = LARGEST_SHIFT) -> Tensor:
    """Move every image by whole pixels of its own, up to ``largest`` either way; the edge is repeated."""
    import torch

    padded = torch.nn.functional.pad(images, [largest] * 4, mode="replicate")
    top, left = torch.randint(2 * largest + 1, (2, len(images)), generator=generator)
    return windows(padded, top, left, images.shape[2:])


def windows(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, ...]) -> Tensor:
    """Cut a window of ``size``, height and width, out of every image, each at a place of its own.

    Args:
        images: ``[N, C, H, W]``.
        top: The first row of each window, ``[N]``.
        left: The first column of each window, ``[N]``.
        size: Height and width of the windows.
    """
    import torch

    image = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(images.shape[1])[:, None, None]
    rows = top[:, None, None, None] + torch.arange(size[0])[:, None]
    return images[image, channel, rows, left[:, None, None, None] + torch.arange(size[1])]


def corrupted(grids: Tensor, generator: Generator) -> Tensor:
    """Blur digits, add noise, enlarge and shift them, each by an amount drawn uniformly for each image.

    Args:
        grids: ``[N, 1, 8, 8]``, float32 in [-1, 1], as `digit_grids` gives them.
        generator: What the amounts, the noise and the shifts are drawn from.

    Returns:
        ``[N, 3, 32, 32]``, float32 in [-1, 1]; some are no longer readable.
    """
    import torch
    from torch.nn.functional import avg_pool2d, pad

    def amounts(largest: float) -> Tensor:
        return largest * torch.rand(len(grids), 1, 1, 1, generator=generator)

    smooth = avg_pool2d(pad(grids, [1] * 4, mode="replicate"), 3, stride=1)
    blurred = torch.lerp(grids, smooth, amounts(LARGEST_BLUR))
    noise = amounts(LARGEST_NOISE) * torch.randn(grids.shape, generator=generator)
    return shifted(enlarged((blurred + noise).clamp(-1, 1)), generator)
