"""Layers of our own, where the library's lose a setting: each is a subclass, so it still is what it says it is.

Their class names are the library's, since the name says what a layer was and how it draws. They are made for networks:
``forward`` gives the output alone, and the KL term comes from ``kl_loss()``.
"""

from __future__ import annotations

from typing import Any

import torch
from bayesian_torch import layers as library
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.libraries.bayesian_torch import ESTIMATORS, STAND_INS

_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def draw(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Return sigma * eps of a layer's weight and bias, with fresh eps in the layer's buffers, as the library does."""
    weight_name = "kernel" if hasattr(layer, "rho_kernel") else "weight"
    eps = getattr(layer, f"eps_{weight_name}").data.normal_()
    weight = torch.log1p(torch.exp(getattr(layer, f"rho_{weight_name}"))) * eps
    bias = None
    if layer.mu_bias is not None:
        bias = torch.log1p(torch.exp(layer.rho_bias)) * layer.eps_bias.data.normal_()
    return weight, bias


def signs(like: Tensor) -> Tensor:
    """Return random signs of a tensor's shape, as the library's Flipout draws them."""
    return like.clone().uniform_(-1, 1).sign()


class _Padded:
    """A convolution whose padding mode is not zeros: pads first, as torch's own does (faults.md, A18)."""

    padding_mode: str
    border: list[int]

    def forward(self, input: Tensor, return_kl: bool = True) -> Any:
        padded = functional.pad(input, self.border, mode=self.padding_mode)
        return super().forward(padded, return_kl)  # type: ignore[misc]


class _Transposed:
    """What both estimators of a transposed convolution share: ``output_size`` works as with torch's own."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        layer: Any = self
        if layer.prior_weight_sigma.shape != layer.mu_kernel.shape:  # the library swaps the channels
            sigma = torch.full_like(layer.mu_kernel.detach(), layer.prior_variance)
            layer.register_buffer("prior_weight_sigma", sigma, persistent=False)

    def _transposed(self, input: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None) -> Tensor:
        layer: Any = self
        dimensions = weight.dim() - 2
        padding = nn.modules.conv._ConvTransposeNd._output_padding(
            layer, input, output_size, layer.stride, layer.padding, layer.kernel_size, dimensions, layer.dilation
        )
        out: Tensor = _TRANSPOSED[dimensions](
            input, weight, bias, layer.stride, layer.padding, padding, layer.groups, layer.dilation
        )
        return out


class _TransposedReparameterization(_Transposed):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        layer: Any = self
        weight, bias = draw(layer)
        bias = bias if bias is None else layer.mu_bias + bias
        return self._transposed(input, layer.mu_kernel + weight, bias, output_size)


class _TransposedFlipout(_Transposed):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        layer: Any = self
        mean = self._transposed(input, layer.mu_kernel, layer.mu_bias, output_size)
        sign_in, sign_out = signs(input), signs(mean)
        weight, bias = draw(layer)
        return mean + self._transposed(input * sign_in, weight, bias, output_size) * sign_out


class _Keyless:
    """The projection of Swin V2, whose attention takes the key's bias for 0 whatever it is."""

    def _without_key(self, bias: Tensor) -> Tensor:
        third = len(bias) // 3
        return torch.cat((bias[:third], torch.zeros_like(bias[:third]), bias[2 * third :]))


class _KeylessReparameterization(_Keyless):
    def forward(self, input: Tensor, return_kl: bool = True) -> Tensor:
        layer: Any = self
        weight, bias = draw(layer)
        assert bias is not None
        return functional.linear(input, layer.mu_weight + weight, self._without_key(layer.mu_bias + bias))


class _KeylessFlipout(_Keyless):
    def forward(self, input: Tensor, return_kl: bool = True) -> Tensor:
        layer: Any = self
        weight, bias = draw(layer)
        assert bias is not None
        mean = functional.linear(input, layer.mu_weight, self._without_key(layer.mu_bias))
        sign_in, sign_out = signs(input), signs(mean)
        return mean + functional.linear(input * sign_in, weight, self._without_key(bias)) * sign_out


# Written out one by one: pickle finds a class by its name in its module.
class Conv1dReparameterization(_Padded, library.Conv1dReparameterization):  # type: ignore[misc]
    """A padded one-dimensional convolution."""


class Conv2dReparameterization(_Padded, library.Conv2dReparameterization):  # type: ignore[misc]
    """A padded two-dimensional convolution."""


class Conv3dReparameterization(_Padded, library.Conv3dReparameterization):  # type: ignore[misc]
    """A padded three-dimensional convolution."""


class Conv1dFlipout(_Padded, library.Conv1dFlipout):  # type: ignore[misc]
    """A padded one-dimensional convolution."""


class Conv2dFlipout(_Padded, library.Conv2dFlipout):  # type: ignore[misc]
    """A padded two-dimensional convolution."""


class Conv3dFlipout(_Padded, library.Conv3dFlipout):  # type: ignore[misc]
    """A padded three-dimensional convolution."""


class ConvTranspose1dReparameterization(_TransposedReparameterization, library.ConvTranspose1dReparameterization):  # type: ignore[misc]
    """A one-dimensional transposed convolution."""


class ConvTranspose2dReparameterization(_TransposedReparameterization, library.ConvTranspose2dReparameterization):  # type: ignore[misc]
    """A two-dimensional transposed convolution."""


class ConvTranspose3dReparameterization(_TransposedReparameterization, library.ConvTranspose3dReparameterization):  # type: ignore[misc]
    """A three-dimensional transposed convolution."""


class ConvTranspose1dFlipout(_TransposedFlipout, library.ConvTranspose1dFlipout):  # type: ignore[misc]
    """A one-dimensional transposed convolution."""


class ConvTranspose2dFlipout(_TransposedFlipout, library.ConvTranspose2dFlipout):  # type: ignore[misc]
    """A two-dimensional transposed convolution."""


class ConvTranspose3dFlipout(_TransposedFlipout, library.ConvTranspose3dFlipout):  # type: ignore[misc]
    """A three-dimensional transposed convolution."""


class LinearReparameterization(_KeylessReparameterization, library.LinearReparameterization):  # type: ignore[misc]
    """The projection of Swin V2 to query, key and value."""


class LinearFlipout(_KeylessFlipout, library.LinearFlipout):  # type: ignore[misc]
    """The projection of Swin V2 to query, key and value."""


def layer_class(kind: str, estimator: str, *, own: bool) -> type[nn.Module]:
    """Return the class of a Bayesian layer: the library's, or ours where the layer needs more."""
    assert estimator in ESTIMATORS
    name = kind + estimator
    found: type[nn.Module] = globals()[name] if own else getattr(library, name)
    return found


# The padded and transposed layers draw exactly as the library's do; those of Swin V2 leave out a part of the bias.
STAND_INS.update(
    kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, nn.Module) and issubclass(kind, _Padded | _Transposed)
)
