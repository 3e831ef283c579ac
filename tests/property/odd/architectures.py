"""Large architectures in a small size: torchvision's own classes, and blocks of a ResNet."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from tests.property.odd.shapes import CLASSES, Shape, images

_SIDE = 8


class Residual(nn.Module):
    """Blocks of a ResNet, with batch norms, and dropout before the head."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        wider = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride=2, bias=False), nn.BatchNorm2d(2 * width))
        same = [BasicBlock(width, width) for _ in range(depth - 1)]
        self.blocks = nn.Sequential(*same, BasicBlock(width, 2 * width, stride=2, downsample=wider))
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(self.norm(self.stem(x)).relu()).mean((2, 3))
        out: Tensor = self.head(self.dropout(features))
        return out


def _columns(width: int) -> int:
    """Return a width that four heads, or two of them in two stages, divide: 4, 8 or 12."""
    return 4 * (1 + width // 6)


def vision_transformer(width: int, depth: int) -> nn.Module:
    made: nn.Module = VisionTransformer(
        image_size=_SIDE, patch_size=4, num_layers=depth, num_heads=2, hidden_dim=_columns(width), mlp_dim=2 * width,
        dropout=0.1, num_classes=CLASSES,
    )  # fmt: skip
    return made


def swin(width: int, depth: int) -> nn.Module:
    made: nn.Module = SwinTransformer(
        patch_size=[2, 2], embed_dim=_columns(width), depths=[depth, 1], num_heads=[1, 2], window_size=[2, 2],
        num_classes=CLASSES,
    )  # fmt: skip
    return made


def convnext(width: int, depth: int) -> nn.Module:
    stages = [CNBlockConfig(width, 2 * width, depth), CNBlockConfig(2 * width, None, 1)]
    made: nn.Module = ConvNeXt(stages, stochastic_depth_prob=0.1, num_classes=CLASSES)
    return made


def _of_images(network: Callable[[int, int], nn.Module]) -> Shape:
    return Shape(network=network, inputs=lambda: images(3, _SIDE), meaning="scores")


ARCHITECTURES: dict[str, Shape] = {
    "ViT": _of_images(vision_transformer),
    "Swin": _of_images(swin),
    "ConvNeXt": _of_images(convnext),
    "ResNet": _of_images(Residual),
}
