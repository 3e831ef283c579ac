"""torchvision's shifted window attention on layers that are called; loaded only where torchvision's is.

torchvision's own reads ``.weight`` of its layers, after it has cut the image into windows. A linear layer works pixel
by pixel, so it may as well be called before, and after the windows were put together again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

if TYPE_CHECKING:
    from torch import nn


def _attend(module: Any, x: Tensor, logit_scale: Tensor | None = None) -> Tensor:
    """Do what torchvision's ``shifted_window_attention`` does, ``[N, H, W, C]`` to the same."""
    _, height, width, channels = x.shape
    window: tuple[int, int] = tuple(module.window_size)
    x = functional.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    size = (x.shape[1], x.shape[2])
    shift = [0 if w >= whole else s for s, w, whole in zip(module.shift_size, window, size, strict=True)]
    qkv = torch.roll(module.qkv(x), (-shift[0], -shift[1]), (1, 2))
    rows, columns = size[0] // window[0], size[1] // window[1]
    cut = qkv.view(len(x), rows, window[0], columns, window[1], 3, module.num_heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    q, k, v = cut.flatten(5, 6).flatten(2, 3)  # each [N, windows, heads, pixels, channels of a head]
    if logit_scale is None:
        scores = (q * (channels // module.num_heads) ** -0.5) @ k.transpose(-2, -1)
    else:
        cosine = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
        scores = cosine * torch.clamp(logit_scale, max=math.log(100.0)).exp()
    scores = scores + module.get_relative_position_bias()
    if sum(shift) > 0:
        scores = scores + _mask(x, size, window, shift)
    weights = functional.dropout(scores.softmax(-1), module.attention_dropout, module.training)
    out = (weights @ v).unflatten(1, (rows, columns)).unflatten(4, window).permute(0, 1, 4, 2, 5, 3, 6)
    out = torch.roll(out.reshape(len(x), *size, channels), (shift[0], shift[1]), (1, 2))
    out = module.proj(out[:, :height, :width].contiguous())
    return functional.dropout(out, module.dropout, module.training)


def _mask(like: Tensor, size: tuple[int, int], window: tuple[int, int], shift: list[int]) -> Tensor:
    """Keep apart what only the cyclic shift brought together; ``[windows, 1, pixels, pixels]``."""
    regions = like.new_zeros(size)
    count = 0
    for rows in (slice(0, -window[0]), slice(-window[0], -shift[0]), slice(-shift[0], None)):
        for columns in (slice(0, -window[1]), slice(-window[1], -shift[1]), slice(-shift[1], None)):
            regions[rows, columns] = count
            count += 1
    cut = regions.view(size[0] // window[0], window[0], size[1] // window[1], window[1]).transpose(1, 2)
    pixels = cut.flatten(2).flatten(0, 1)
    apart = pixels[:, None, :] != pixels[:, :, None]
    return like.new_zeros(apart.shape).masked_fill_(apart, -100.0).unsqueeze(1)


class BayesianShiftedWindowAttention(ShiftedWindowAttention):  # type: ignore[misc]
    """The attention of Swin, whose ``qkv`` and ``proj`` are Bayesian layers."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows."""
        return _attend(self, x)


class BayesianShiftedWindowAttentionV2(ShiftedWindowAttentionV2):  # type: ignore[misc]
    """The attention of Swin V2; ``qkv`` is the layer that leaves out the key's bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows, by cosine."""
        return _attend(self, x, self.logit_scale)


#: The class of a converted module, by the class that it had.
CONVERTED: dict[type[nn.Module], type[nn.Module]] = {
    ShiftedWindowAttentionV2: BayesianShiftedWindowAttentionV2,
    ShiftedWindowAttention: BayesianShiftedWindowAttention,
}

#: Those whose attention takes the key's bias for 0.
KEYLESS = (ShiftedWindowAttentionV2,)
