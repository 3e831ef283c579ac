"""torchvision's shifted window attention on layers that are called; loaded only where torchvision's is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    shifted_window_attention,
)

from pytest_bnn.conversion.attention import Called

if TYPE_CHECKING:
    from torch import nn


def _forward(module: Any, x: Tensor, **more: Any) -> Tensor:
    # The layers add their own biases.
    out: Tensor = shifted_window_attention(
        x,
        Called(module.qkv),
        Called(module.proj),
        module.get_relative_position_bias(),
        module.window_size,
        module.num_heads,
        shift_size=module.shift_size,
        attention_dropout=module.attention_dropout,
        dropout=module.dropout,
        training=module.training,
        **more,
    )
    return out


class BayesianShiftedWindowAttention(ShiftedWindowAttention):  # type: ignore[misc]
    """The attention of Swin, whose ``qkv`` and ``proj`` are Bayesian layers."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows; ``[N, H, W, C]`` to the same."""
        return _forward(self, x)


class BayesianShiftedWindowAttentionV2(ShiftedWindowAttentionV2):  # type: ignore[misc]
    """The attention of Swin V2; ``qkv`` is the layer that leaves out the key's bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows by cosine; ``[N, H, W, C]`` to the same."""
        return _forward(self, x, logit_scale=self.logit_scale)


#: The class of a converted module, by the class that it had.
CONVERTED: dict[type[nn.Module], type[nn.Module]] = {
    ShiftedWindowAttentionV2: BayesianShiftedWindowAttentionV2,
    ShiftedWindowAttention: BayesianShiftedWindowAttention,
}

#: Those whose attention takes the key's bias for 0.
KEYLESS = (ShiftedWindowAttentionV2,)
