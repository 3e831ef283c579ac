"""Images that become harder to recognise step by step: noise, blur, less contrast, rotation.

The amounts are shares of what an image has itself, its standard deviation or its size, so that they mean the same
whatever the images' units are.

Source: Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations", for the kinds; Ovadia et al. 2019, "Can you trust your model's uncertainty?", for their use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

#: Channels of what is taken for images, and the least height and width.
_CHANNELS, _SMALLEST = (1, 3, 4), 8

#: Standard deviation of the noise, as a share of the image's own.
_NOISE = (0.5, 1.0, 2.0)

#: Standard deviation of the blur, as a share of the shorter side.
_BLUR = (1 / 32, 1 / 16, 1 / 8)

#: What is left of the contrast.
_CONTRAST = (0.5, 0.25, 0.1)

#: Degrees.
_ROTATION = (20.0, 40.0, 60.0)


def are_images(inputs: object) -> bool:
    """Say whether inputs look like images: numbers ``[N, C, H, W]`` with one, three or four channels."""
    return (
        isinstance(inputs, Tensor)
        and inputs.ndim == 4
        and inputs.is_floating_point()
        and inputs.shape[1] in _CHANNELS
        and min(inputs.shape[2:]) >= _SMALLEST
    )


def corruptions(images: Tensor, seed: int) -> Mapping[str, list[Tensor]]:
    """Return images at growing amounts of each kind of corruption, the least first.

    Args:
        images: ``[N, C, H, W]``.
        seed: Of the noise, which is the same in all amounts.
    """
    exact = images.detach().float()
    kinds: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
        "noise": (_noisy(exact, seed), _NOISE),
        "blur": (blurred, _BLUR),
        "contrast": (_faded, _CONTRAST),
        "rotation": (_rotated, _ROTATION),
    }
    return {
        name: [change(exact, amount).to(images.dtype) for amount in amounts]
        for name, (change, amounts) in kinds.items()
    }


def _noisy(images: Tensor, seed: int) -> Callable[[Tensor, float], Tensor]:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    size = images.flatten(1).std(1)[:, None, None, None]
    return lambda values, share: values + share * size * noise


def blurred(images: Tensor, share: float) -> Tensor:
    """Blur images by a normal kernel whose standard deviation is a share of the shorter side; the edge is repeated."""
    height, width = images.shape[2:]
    sigma = share * min(height, width)
    reach = min(math.ceil(3 * sigma), height - 1, width - 1)
    steps = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.softmax(-(steps / sigma).square() / 2, 0)
    flat = images.flatten(0, 1)[:, None]
    flat = functional.conv2d(functional.pad(flat, [0, 0, reach, reach], mode="replicate"), kernel[None, None, :, None])
    flat = functional.conv2d(functional.pad(flat, [reach, reach, 0, 0], mode="replicate"), kernel[None, None, None])
    found: Tensor = flat[:, 0].unflatten(0, images.shape[:2])
    return found


def _faded(images: Tensor, left: float) -> Tensor:
    return torch.lerp(images.mean((1, 2, 3), keepdim=True).expand_as(images), images, left)


def _rotated(images: Tensor, degrees: float) -> Tensor:
    angle = math.radians(degrees)
    height, width = images.shape[2:]
    turn = torch.tensor(
        [
            [math.cos(angle), -math.sin(angle) * height / width, 0.0],
            [math.sin(angle) * width / height, math.cos(angle), 0.0],
        ],
        device=images.device,
    )
    grid = functional.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
