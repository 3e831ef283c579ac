"""How a report shows one example: its picture, small enough for a page, and the name of its class."""

from __future__ import annotations

import base64
import io

import torch

from pytest_bnn.data.batch import Batch, Inputs
from pytest_bnn.subject import Subject

#: The longest side of a picture, in pixels.
THUMBNAIL = 96


def class_name(subject: Subject, index: int) -> str:
    """Return the name of a class, or its number where it has none."""
    return subject.class_names[index] if 0 <= index < len(subject.class_names) else f"class {index}"


def thumbnail(images: Inputs, index: int) -> str:
    """Return a PNG of an image tensor as a data URI, stretched to its full range; empty where it is no picture."""
    from PIL import Image

    pictures = images.tensors[0] if isinstance(images, Batch) else images
    image = pictures[index].detach().cpu().double() if len(pictures) == len(images) else torch.zeros(0)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or min(image.shape[1:]) < 2:
        return ""
    low, high = float(image.min()), float(image.max())
    pixels = (255 * (image - low) / max(high - low, 1e-12)).round().to(torch.uint8)
    picture = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
