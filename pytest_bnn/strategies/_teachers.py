"""Small ResNets that look as if they were trained."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from pytest_bnn.strategies._layers import DTYPES, Draw, check_bound, check_choice, check_dtypes, suffix
from pytest_bnn.strategies._parts import definition
from pytest_bnn.strategies._source import IMPORTS, build

#: torchvision's residual blocks; the first is what examples shrink to.
RESIDUAL_BLOCKS = ("BasicBlock", "Bottleneck")

_SHAPE = (3, 16, 16)


@st.composite
def _teachers(
    draw: Draw[Any],
    blocks: tuple[str, ...],
    stages: int,
    depth: int,
    channels: tuple[int, int],
    classes: tuple[int, int],
    dtypes: tuple[torch.dtype, ...],
) -> nn.Module:
    block = draw(st.sampled_from(blocks))
    depths = draw(st.lists(st.integers(1, depth), min_size=1, max_size=stages))
    width, outputs = draw(st.integers(*channels)), draw(st.integers(*classes))
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 9))
    made = f"SmallResNet(resnet.{block}, {depths}, {width}, {outputs}){suffix(dtype)}"
    parts = [
        f"{IMPORTS}\nfrom torchvision.models import resnet",
        definition("SmallResNet", shape=_SHAPE),
        definition("trained"),
    ]
    while True:
        teacher = build("\n\n\n".join([*parts, f"torch.manual_seed({seed})\nnetwork = trained({made})"]), _SHAPE)
        if _is_alive(teacher):
            return teacher
        seed += 10


def _is_alive(teacher: nn.Module) -> bool:
    """Return whether the outputs tell images apart: with few channels, some seeds leave every ReLU at 0 for many."""
    reference = next(teacher.parameters())
    images = torch.randn((16, *_SHAPE), generator=torch.Generator().manual_seed(0)).to(reference)
    with torch.no_grad():
        outputs = teacher(images)
    spread = bool((outputs.std(0) > 1e-3 * outputs.abs().max()).all())
    return spread and len(torch.unique(outputs, dim=0)) == len(images)


def teachers(
    *,
    blocks: Collection[str] = RESIDUAL_BLOCKS,
    max_stages: int = 4,
    max_depth: int = 2,
    min_channels: int = 2,
    max_channels: int = 4,
    min_classes: int = 2,
    max_classes: int = 10,
    dtypes: Collection[torch.dtype] = DTYPES,
) -> st.SearchStrategy[nn.Module]:
    """Generate small ResNets of torchvision's own class and blocks, in eval mode, with weights as after a training.

    They take images of 3x16x16. The weights differ from an initialisation as those of trained networks do:

    - Weights of convolutions and of the last layer are the initial ones times log-normal factors: their scale is the
      initial one, their tails are heavier (a kurtosis of about 8 instead of 3).
    - gamma and beta of every BatchNorm are spread, around 0.8 and -0.1; those that end a residual branch too.
    - The running statistics of every BatchNorm are those of its activations on random images, to nine tenths.

    Outputs are finite, every one of them changes with the image, and 16 random images have 16 different ones. A
    teacher is shown as the code that rebuilds it from torch and torchvision; `source` gives that code. Examples shrink
    to one stage of one BasicBlock.

    Args:
        blocks: Residual blocks to choose from, of `RESIDUAL_BLOCKS`; one network has one kind.
        max_stages: The most stages, 1 to 4; the others are `nn.Identity`.
        max_depth: The most blocks a stage, at least 1.
        min_channels: The fewest channels of the first stage, at least 1; they double from stage to stage.
        max_channels: The most.
        min_classes: The fewest outputs, at least 1.
        max_classes: The most.
        dtypes: Floating-point types of a whole network.

    Raises:
        InvalidArgument: An argument is out of its range.
    """
    check_choice("blocks", blocks, RESIDUAL_BLOCKS)
    check_bound("max_stages", max_stages, 1, 4)
    check_bound("max_depth", max_depth, 1)
    check_bound("min_channels", min_channels, 1)
    check_bound("max_channels", max_channels, min_channels)
    check_bound("min_classes", min_classes, 1)
    check_bound("max_classes", max_classes, min_classes)
    check_dtypes(dtypes)
    ordered = tuple(block for block in RESIDUAL_BLOCKS if block in blocks)
    return _teachers(
        ordered, max_stages, max_depth, (min_channels, max_channels), (min_classes, max_classes), tuple(dtypes)
    )
