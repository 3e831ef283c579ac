"""Attention made of Bayesian layers that are called: torch's own keeps bare weights, and reads those of its layer.

Each projection is a Bayesian layer of its own, so every forward draws it once, its KL term is counted once, and both
estimators work. The modules around them own no posterior.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

#: The projections that `nn.MultiheadAttention` keeps as bare parameters, in the order of its packed weight.
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class BayesianMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose four projections are layers, with the same arguments and results.

    Shapes, masks and the returned weights are those of torch's; nested tensors are not supported.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see `nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask: give the mask too")
        batched = query.dim() == 3
        projected = [layer(x) for layer, x in zip(self._in_projections(), (query, key, value), strict=True)]
        if not batched:
            projected = [x.unsqueeze(0) for x in projected]
            key_padding_mask = key_padding_mask if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            projected = [x.transpose(0, 1) for x in projected]
        q, k, v = projected
        # Torch follows the hint only where neither padding nor returned weights need the mask.
        hinted = is_causal and key_padding_mask is None and not need_weights
        mask = None if hinted else self._mask(q, k, attn_mask, key_padding_mask)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat((k, self.bias_k.expand(len(k), -1, -1)), 1)
            v = torch.cat((v, self.bias_v.expand(len(v), -1, -1)), 1)
        if self.add_zero_attn:
            k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        if mask is not None:  # what was appended may always be attended to
            mask = functional.pad(mask, (0, k.shape[1] - mask.shape[-1]))
        out, weights = self._attend(q, k, v, mask, need_weights=need_weights, is_causal=hinted)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return self.out_proj(out.squeeze(0)), weights if weights is None else weights.squeeze(0)
        return self.out_proj(out if self.batch_first else out.transpose(0, 1)), weights

    def _in_projections(self) -> list[nn.Module]:
        return [self.get_submodule(name) for name in PROJECTIONS]

    def _mask(self, q: Tensor, k: Tensor, attention: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Return one additive mask that broadcasts to ``[N, heads, L, S]``."""
        mask = None
        if attention is not None:
            mask = _additive(attention, q)
            if mask.dim() == 3:
                mask = mask.view(len(q), self.num_heads, q.shape[1], k.shape[1])
        if padding is not None:
            mask = _additive(padding, q)[:, None, None, :] + (0 if mask is None else mask)
        return mask

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, need_weights: bool, is_causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)
            weights = functional.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            out = weights @ v
        else:
            out = functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        return out.transpose(1, 2).flatten(2), weights


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)
