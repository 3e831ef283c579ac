"""The bundled images are the split that the teacher was trained on, and pictures become the batches it expects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy
import pytest
import torch
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.stats import kstest
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import transforms

from pytest_bnn.errors import InputError
from pytest_bnn.example import corruption
from pytest_bnn.example.images import (
    PHOTO_NAMES,
    digit_grids,
    digits,
    digits_batch,
    imagenet_batch,
    open_image,
    outside_digits,
    photograph,
)
from pytest_bnn.example.weights import load_teacher


def enlarged(image: numpy.ndarray) -> Tensor:
    """Return an 8x8 digit as the teacher sees it, resized by Pillow: the oracle for torch's interpolation."""
    large = Image.fromarray(image.astype(numpy.float32)).resize((32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(numpy.array(large)) / 8 - 1


def keys(images: Tensor) -> list[bytes]:
    """Return each image as a key that forgives float noise: the finest step between two digits is far above."""
    return [(image[0] * 1000).round().to(torch.int32).numpy().tobytes() for image in images]


def test_the_two_parts_are_all_digits_once() -> None:
    """A held-out image that was trained on would make the teacher's accuracy worthless."""
    train, _ = digits("train")
    held_out, _ = digits("held_out")
    assert (len(train), len(held_out)) == (1437, 360)
    everything = torch.stack([enlarged(image) for image in load_digits().images])[:, None]
    assert Counter(keys(train)) + Counter(keys(held_out)) == Counter(keys(everything))
    assert not Counter(keys(train)) & Counter(keys(held_out))


def test_every_image_keeps_its_label() -> None:
    """A shuffle of images and labels apart from each other would go unseen by counts."""
    source = load_digits()
    known = dict(zip(keys(torch.stack([enlarged(i) for i in source.images])[:, None]), source.target, strict=True))
    for part in ("train", "held_out"):
        images, labels = digits(part)
        assert [int(known[key]) for key in keys(images)] == labels.tolist()


def test_the_split_is_stratified() -> None:
    """Every class gives a fifth of its images, to the nearest image."""
    all_labels = torch.from_numpy(load_digits().target)
    _, labels = digits("held_out")
    for digit in range(10):
        assert abs(int((labels == digit).sum()) - 0.2 * int((all_labels == digit).sum())) < 1


@pytest.mark.parametrize("part", ["train", "held_out", "hard"])
def test_images_have_the_promised_form(part: str) -> None:
    """Shape, dtype, range [-1, 1] with both ends used, three equal channels."""
    images, labels = digits(part)  # type: ignore[arg-type]
    assert images.shape[1:] == (3, 32, 32)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert labels.shape == (len(images),)
    assert float(images.min()) == -1
    assert float(images.max()) == 1
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])


def test_images_are_copies_and_the_same_every_time() -> None:
    """A test that scribbles on its images must not change those of the next test."""
    images, labels = digits("held_out", 3)
    before, labels_before = images.clone(), labels.clone()
    images.fill_(7)
    labels.fill_(-1)
    again, labels_again = digits("held_out", 3)
    assert torch.equal(again, before)
    assert torch.equal(labels_again, labels_before)
    assert again.is_contiguous()


@pytest.mark.parametrize("part", ["held_out", "hard"])
def test_count_takes_from_the_start(part: Literal["held_out", "hard"]) -> None:
    """Small audits and full audits must share their first images."""
    images, labels = digits(part, 5)
    all_images, all_labels = digits(part)
    assert torch.equal(images, all_images[:5])
    assert torch.equal(labels, all_labels[:5])


def test_an_unknown_part_is_refused() -> None:
    """A typo must not silently give the training images."""
    with pytest.raises(ValueError, match="'train', 'held_out' or 'hard', not 'test'"):
        digits("test")  # type: ignore[arg-type]


def test_hard_digits_are_the_held_out_ones_in_their_order() -> None:
    """Claims about calibration on the hard part rest on its labels: each image is most like its own original."""
    clean, labels = digits("held_out")
    hard, same = digits("hard")
    assert torch.equal(same, labels)
    assert not torch.equal(hard, clean)
    centred = [images.flatten(1) - images.flatten(1).mean(1, keepdim=True) for images in (hard, clean)]
    one, other = (torch.nn.functional.normalize(rows, dim=1) for rows in centred)
    likeness = one @ other.T
    own = (likeness.argmax(1) == torch.arange(len(hard))).double().mean()
    assert own > 0.3, "by chance it would be 1 in 360"


def test_seeded_images_leave_the_random_state_alone_and_come_back_the_same() -> None:
    """Two audits must judge on one set of images, and a user's own seed must count on."""
    state = torch.get_rng_state()
    first, again = (dict(outside_digits(), hard=digits("hard")[0]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    first["inverted"].fill_(7)
    assert float(outside_digits()["inverted"].max()) == 1


def test_blur_is_the_mean_of_nine_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against scipy's uniform filter, with neither noise nor shifts: each image lies between itself and its mean."""
    monkeypatch.setattr(corruption, "LARGEST_NOISE", 0.0)
    monkeypatch.setattr(corruption, "shifted", lambda images, generator: images)
    monkeypatch.setattr(corruption, "enlarged", lambda grids: grids)
    grids, _ = digit_grids("held_out")
    blurred = corruption.corrupted(grids, torch.Generator().manual_seed(0))
    smooth = torch.from_numpy(uniform_filter(grids.numpy(), size=(1, 1, 3, 3), mode="nearest"))
    shares = ((blurred - grids) * (smooth - grids)).sum((1, 2, 3)) / (smooth - grids).square().sum((1, 2, 3))
    torch.testing.assert_close(blurred, torch.lerp(grids, smooth, shares[:, None, None, None]), rtol=0, atol=1e-5)
    assert 0 <= float(shares.min()) < 0.05
    assert 0.55 < float(shares.max()) <= corruption.LARGEST_BLUR + 1e-5


def test_noise_has_a_level_of_its_own_for_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey images, far from the clamp in most levels: levels are spread evenly from 0 to the largest."""
    monkeypatch.setattr(corruption, "LARGEST_NOISE", 0.2)
    monkeypatch.setattr(corruption, "shifted", lambda images, generator: images)
    monkeypatch.setattr(corruption, "enlarged", lambda grids: grids)
    noisy = corruption.corrupted(torch.zeros(2000, 1, 8, 8), torch.Generator().manual_seed(0))
    levels = noisy.std((1, 2, 3))
    assert kstest(levels.numpy(), "uniform", args=(0, 0.2)).pvalue > 1e-3
    assert abs(float(noisy.mean())) < 0.01


def test_shifts_move_whole_images_and_reach_every_place() -> None:
    """The oracle is torch.roll away from the edge, which is repeated."""
    images = torch.randn(400, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    moved = corruption.shifted(images, torch.Generator().manual_seed(1), largest=2)
    places = set()
    for image, other in zip(images, moved, strict=True):
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(torch.roll(image, (down, right), (1, 2))[:, 2:-2, 2:-2], other[:, 2:-2, 2:-2])
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) == 25
    constant = torch.ones(3, 1, 4, 4)
    assert torch.equal(corruption.shifted(constant, torch.Generator().manual_seed(0)), constant)


def test_images_outside_have_the_digits_form() -> None:
    """Else a network would tell them by their range or their colours."""
    outside = outside_digits()
    assert list(outside) == ["photographs", "noise", "inverted", "shifted"]
    for name, images in outside.items():
        assert images.shape == (360, 3, 32, 32), name
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        assert float(images.abs().max()) <= 1
        assert torch.equal(images[:, 0], images[:, 1])
        assert torch.equal(images[:, 0], images[:, 2])
        assert len(set(keys(images))) > 300, name


def test_images_outside_are_what_they_are_called() -> None:
    """Inverted digits add up to nothing with the digits, shifted ones are one of four halves, noise is uniform."""
    digit, _ = digits("held_out")
    outside = outside_digits()
    assert torch.equal(outside["inverted"] + digit, torch.zeros_like(digit))
    assert kstest(outside["noise"][:40, 0].flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    empty = torch.full_like(digit[0], -1)
    used = set()
    for image, moved in zip(digit, outside["shifted"], strict=True):
        halves = {
            "up": torch.cat([image[:, 16:], empty[:, :16]], 1),
            "down": torch.cat([empty[:, :16], image[:, :16]], 1),
            "left": torch.cat([image[:, :, 16:], empty[:, :, :16]], 2),
            "right": torch.cat([empty[:, :, :16], image[:, :, :16]], 2),
        }
        ways = [way for way, half in halves.items() if torch.equal(half, moved)]
        assert ways
        used.update(ways)
    assert len(used) == 4


@pytest.mark.parametrize("name", PHOTO_NAMES)
def test_photographs_are_real_and_colourful(name: str) -> None:
    """A grey or empty placeholder would tell nothing about an ImageNet network."""
    picture = photograph(name)
    assert (picture.mode, picture.size) == ("RGB", (640, 427))
    pixels = numpy.asarray(picture).astype(float)
    assert pixels.std() > 20
    assert abs(pixels[..., 0] - pixels[..., 2]).mean() > 5


def test_an_unknown_photograph_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'cat.jpg'; there are china.jpg, flower.jpg"):
        photograph("cat.jpg")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_pictures_of_every_mode_open_as_rgb(mode: str, tmp_path: Path) -> None:
    """A user's PNG with an alpha channel would otherwise have four channels."""
    Image.new(mode, (5, 4)).save(tmp_path / "picture.png")
    picture = open_image(tmp_path / "picture.png")
    assert (picture.mode, picture.size) == ("RGB", (5, 4))


def test_a_missing_picture_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no image .*cat\.jpg.*Give the path of a JPEG or PNG file\.$"):
        open_image(str(tmp_path / "cat.jpg"))


def test_what_is_no_picture_is_one_clear_error(tmp_path: Path) -> None:
    """Text, an empty file, a folder and a broken download all end in the same advice."""
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    photograph().save(tmp_path / "whole.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    photograph().save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    for name in ("text.png", "empty.jpg", "folder.png", "broken.jpg", "broken.png"):
        with pytest.raises(InputError) as caught:
            open_image(tmp_path / name)
        assert name in str(caught.value)
        assert str(caught.value).endswith("Give the path of a JPEG or PNG file.")


@pytest.mark.parametrize("name", PHOTO_NAMES)
def test_imagenet_batch_is_torchvisions_recipe(name: str) -> None:
    """Against the recipe of torchvision's documentation, written out step by step."""
    recipe = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    batch = imagenet_batch(photograph(name))
    assert batch.shape == (1, 3, 224, 224)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch[0], recipe(photograph(name)))


@pytest.mark.parametrize("index", range(10))
def test_a_digit_drawn_as_a_picture_is_the_digit_again(index: int) -> None:
    """A picture of 160x160 colour pixels comes back as the teacher's input, to the rounding of 8-bit colours."""
    images, _ = digits("held_out", 10)
    source = load_digits().images
    wanted = keys(images[index : index + 1])[0]
    original = next(image for image in source if keys(enlarged(image)[None, None])[0] == wanted)
    drawn = Image.fromarray((original * 255 / 16).round().astype(numpy.uint8))
    batch = digits_batch(drawn.resize((160, 160), Image.Resampling.NEAREST).convert("RGB"))
    assert batch.shape == (1, 3, 32, 32)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch[0], images[index], rtol=0, atol=2 * 0.5 / 255 + 1e-6)


def test_the_teacher_reads_drawn_digits_as_it_reads_the_originals() -> None:
    """The two ways into the same teacher must agree, or a user's picture is judged by other rules."""
    model = load_teacher("digits").model
    source = load_digits().images[:40]
    drawn = [Image.fromarray((image * 255 / 16).round().astype(numpy.uint8)) for image in source]
    batch = torch.cat([digits_batch(picture.resize((64, 64), Image.Resampling.NEAREST)) for picture in drawn])
    originals = torch.stack([enlarged(image) for image in source])[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        assert torch.equal(model(batch).argmax(1), model(originals).argmax(1))


def test_a_photograph_as_a_digit_stays_in_range() -> None:
    """Any picture may be given; its numbers are still those that the teacher knows."""
    batch = digits_batch(photograph())
    assert batch.shape == (1, 3, 32, 32)
    assert float(batch.abs().max()) <= 1
