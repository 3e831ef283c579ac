"""Noise, blur, contrast and rotation of images, beside scipy and torchvision."""

from __future__ import annotations

import numpy
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision.transforms.v2 import functional

from pytest_bnn.data.corruptions import _rotated, are_images, blurred, corruptions

IMAGES = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def test_blur_is_a_normal_kernel() -> None:
    found = blurred(IMAGES, 1 / 16)
    wanted = gaussian_filter(IMAGES.numpy(), sigma=(0, 0, 1, 1), mode="nearest", truncate=3)
    assert numpy.abs(found.numpy() - wanted).max() < 1e-5


def test_a_quarter_turn_is_torchvisions() -> None:
    square = IMAGES[..., :16]
    assert torch.allclose(_rotated(square, 90.0), torch.rot90(square, 1, (2, 3)), atol=1e-5) or torch.allclose(
        _rotated(square, 90.0), torch.rot90(square, -1, (2, 3)), atol=1e-5
    )
    turned = _rotated(IMAGES, 30.0)[..., 6:10, 10:14]
    both = [functional.rotate(IMAGES, angle, functional.InterpolationMode.BILINEAR) for angle in (30.0, -30.0)]
    assert min(float((turned - one[..., 6:10, 10:14]).abs().max()) for one in both) < 1e-3


def test_each_kind_takes_away_more_and_more() -> None:
    made = corruptions(IMAGES, seed=0)
    assert list(made) == ["noise", "blur", "contrast", "rotation"]
    for name in ("noise", "blur", "contrast"):
        apart = [float((step - IMAGES).square().mean()) for step in made[name]]
        assert apart == sorted(apart)
        assert apart[0] > 0
    again = corruptions(IMAGES, seed=0)
    assert all(torch.equal(a, b) for name in made for a, b in zip(made[name], again[name], strict=True))
    kept = [float(step.std() / IMAGES.std()) for step in corruptions(torch.randn(2, 1, 64, 64), seed=0)["contrast"]]
    assert len(kept) == 3
    means = [step.mean((1, 2, 3)) for step in made["contrast"]]
    assert all(torch.allclose(mean, IMAGES.mean((1, 2, 3)), atol=1e-6) for mean in means)


def test_noise_is_a_share_of_each_images_own_deviation() -> None:
    images = torch.cat([0.01 * torch.randn(1, 1, 64, 64), torch.randn(1, 1, 64, 64)])
    step = corruptions(images, seed=1)["noise"][0] - images
    shares = step.flatten(1).std(1) / images.flatten(1).std(1)
    assert shares.tolist() == pytest.approx([0.5, 0.5], rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    assert {step.dtype for steps in corruptions(IMAGES.to(dtype), 0).values() for step in steps} == {dtype}


def test_what_looks_like_images() -> None:
    assert are_images(IMAGES)
    for other in (IMAGES[0], IMAGES.long(), torch.rand(2, 7, 16, 16), torch.rand(2, 3, 4, 4), [IMAGES]):
        assert not are_images(other)
