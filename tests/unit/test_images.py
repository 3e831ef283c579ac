"""The bundled images are the split that the teacher was trained on, and pictures become the batches it expects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import transforms

from pytest_bnn.errors import InputError
from pytest_bnn.example.images import (
    PHOTO_NAMES,
    digits,
    digits_batch,
    imagenet_batch,
    open_image,
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


@pytest.mark.parametrize("part", ["train", "held_out"])
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


def test_count_takes_from_the_start() -> None:
    """Small audits and full audits must share their first images."""
    images, labels = digits("held_out", 5)
    all_images, all_labels = digits("held_out")
    assert torch.equal(images, all_images[:5])
    assert torch.equal(labels, all_labels[:5])


def test_an_unknown_part_is_refused() -> None:
    """A typo must not silently give the training images."""
    with pytest.raises(ValueError, match="'train' or 'held_out', not 'test'"):
        digits("test")  # type: ignore[arg-type]


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
