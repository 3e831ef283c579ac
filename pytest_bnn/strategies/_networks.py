"""Whole networks that run, and inputs for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from torch import Tensor, nn

from pytest_bnn.strategies._blocks import ODD_BLOCKS, PLAIN_BLOCKS, Sketch, call
from pytest_bnn.strategies._layers import (
    DTYPES,
    KINDS,
    Draw,
    check_bound,
    check_choice,
    check_dtypes,
    fitting,
    shapes,
    suffix,
)
from pytest_bnn.strategies._parts import definition
from pytest_bnn.strategies._source import IMPORTS, Shape, build, input_shape, remember

#: Features of a network beside its chain of layers that any converter should bear.
PLAIN_FEATURES = (*PLAIN_BLOCKS, "frozen", "modes", "hooks")
#: All features that `architectures` knows.
FEATURES = (*PLAIN_FEATURES, *ODD_BLOCKS, "root", "tied", "values")

_STATISTICS = """for module in network.modules():
    if getattr(module, "running_var", None) is not None:
        nn.init.normal_(module.running_mean)
        nn.init.uniform_(module.running_var, 0.5, 2.0)"""


@st.composite
def _architectures(
    draw: Draw[Any],
    lengths: tuple[int, int],
    features: tuple[str, ...],
    kinds: tuple[str, ...],
    dtypes: tuple[torch.dtype, ...],
    most: int,
) -> nn.Module:
    chosen: set[str] = draw(st.sets(st.sampled_from(features), max_size=4)) if features else set()
    blocks = tuple(block for block in (*PLAIN_BLOCKS, *ODD_BLOCKS) if block in chosen)
    sketch = Sketch(draw, kinds, blocks, most)
    needed = {kind for kind in kinds if kind in ("Linear", "Conv", "ConvTranspose", "LSTM")}
    dims = [d for d, shape in enumerate([(1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)]) if needed & {*fitting(kinds, shape)}]
    shape = shapes(draw, dims=dims, most=most)
    if "root" in chosen and lengths[0] == 1:
        code, _ = sketch.layer(shape, parametric=True)
    else:
        codes, _ = sketch.chain(shape, lengths, parametric=True)
        sketch.define(definition("Network", shape=shape))
        code = call("Network", *codes)
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 9))
    classes = list(sketch.definitions.values())
    made = [f"torch.manual_seed({seed})", *sketch.statements, f"network = {code}{suffix(dtype)}.eval()"]
    if "BatchNorm" in code:
        made.append(_STATISTICS)
    network = build(_page(classes, made), shape)
    extra = list(_touches(draw, chosen, network))
    if extra:
        if any("(double)" in line for line in extra):
            classes.append(definition("double"))
        network = build(_page(classes, [*made, *extra]), shape)
    return network


def _page(definitions: list[str], statements: list[str]) -> str:
    gap = "\n\n\n" if definitions else "\n\n"
    return gap.join([IMPORTS, *definitions, "\n".join(statements)])


def _touches(draw: Draw[Any], chosen: set[str], network: nn.Module) -> Iterator[str]:
    """Draw statements that change single parts of a finished network."""
    modules = [path for path, module in network.named_modules() if path and not isinstance(module, nn.Identity)]
    own = [name for name, _ in network.named_parameters() if "parametrizations" not in name]
    if "frozen" in chosen and own:
        if modules and draw(st.booleans()):
            yield f"network.get_submodule({draw(st.sampled_from(modules))!r}).requires_grad_(False)"
        else:
            yield f"network.get_parameter({draw(st.sampled_from(own))!r}).requires_grad_(False)"
    if "modes" in chosen:
        training = draw(st.booleans())
        if training or not modules:
            yield "network.train()"
        if modules:
            path = draw(st.sampled_from(modules))
            yield f"network.get_submodule({path!r}).{'eval' if training else 'train'}()"
    if "hooks" in chosen:
        leaves = [
            path
            for path, module in network.named_modules()
            if path
            and not module._modules
            and not isinstance(module, nn.RNNBase)
            and not path.endswith("out_proj")  # torch's attention never calls it
        ]
        if leaves:
            yield f"network.get_submodule({draw(st.sampled_from(leaves))!r}).register_forward_hook(double)"
    if "tied" in chosen:
        pairs = list(_pairs(network))
        if pairs:
            one, other = draw(st.sampled_from(pairs))
            yield f"network.get_submodule({other!r}).weight = network.get_submodule({one!r}).weight"
    if "values" in chosen and own:
        value = draw(st.sampled_from((0.0, 1000.0)))
        yield f"nn.init.constant_(network.get_parameter({draw(st.sampled_from(own))!r}), {value})"


def _pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    places: defaultdict[Shape, list[str]] = defaultdict(list)
    for path, module in network.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and path:
            places[tuple(weight.shape)].append(path)
    for paths in places.values():
        yield from ((paths[0], other) for other in paths[1:])


def architectures(
    *,
    min_layers: int = 1,
    max_layers: int = 5,
    features: Collection[str] = FEATURES,
    kinds: Collection[str] = KINDS,
    dtypes: Collection[torch.dtype] = DTYPES,
    max_channels: int = 4,
) -> st.SearchStrategy[nn.Module]:
    """Generate whole networks that run, each with at least one layer that owns weights or a block in its place.

    A network is shown as the code that rebuilds it from torch alone; `source` gives that code. At most four
    features come together. Examples shrink to ``Network(nn.Linear(1, 1))``: fewer layers, no features, sizes of 1.

    Args:
        min_layers: The fewest layers or blocks at the top, at least 1.
        max_layers: The most.
        features: What networks may have beside a chain of layers, of `FEATURES`; none for plain chains.
        kinds: What layers may be, of `KINDS`; at least one that owns weights.
        dtypes: Floating-point types of a whole network.
        max_channels: The most channels or features a single layer gives, at least 1.

    Raises:
        InvalidArgument: An argument is out of its range.
    """
    check_bound("min_layers", min_layers, 1)
    check_bound("max_layers", max_layers, min_layers)
    check_bound("max_channels", max_channels, 1)
    check_choice("kinds", kinds, KINDS)
    check_dtypes(dtypes)
    if not {"Linear", "Conv", "ConvTranspose", "LSTM"} & set(kinds):
        raise InvalidArgument(f"kinds={kinds!r} has no layer with weights to convert")
    if features:
        check_choice("features", features, FEATURES)
    ordered = tuple(feature for feature in FEATURES if feature in features)
    return _architectures(
        (min_layers, max_layers), ordered, tuple(k for k in KINDS if k in kinds), tuple(dtypes), max_channels
    )


@st.composite
def _inputs(draw: Draw[Any], shape: Shape, dtype: torch.dtype, batches: tuple[int, int]) -> Tensor:
    size = (draw(st.integers(*batches)), *shape)
    seed = draw(st.integers(0, 9))
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    cast = "" if dtype is torch.float32 else f".to({dtype})"
    remember(x, f"torch.randn({size}, generator=torch.Generator().manual_seed({seed})){cast}")
    return x


def inputs_for(model: nn.Module, *, min_batch: int = 1, max_batch: int = 3) -> st.SearchStrategy[Tensor]:
    """Generate batches of standard normal inputs for a network, in its dtype.

    Args:
        model: A drawn network, or any module with an attribute ``input_shape``, the shape of one input.
        min_batch: The smallest batch, at least 1. Where a BatchNorm is in train mode, which can refuse a single input,
            2 if ``max_batch`` allows.
        max_batch: The largest batch.

    Raises:
        InvalidArgument: The network does not know its input shape, or a bound is out of its range.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model={model!r} must be a torch.nn.Module")
    check_bound("min_batch", min_batch, 1)
    check_bound("max_batch", max_batch, min_batch)
    shape = input_shape(model)
    if shape is None:
        raise InvalidArgument(f"{type(model).__name__} has no input_shape: set it to the shape of one input")
    tensors = chain(model.parameters(), model.buffers())
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules()):
        min_batch = min(max(2, min_batch), max_batch)
    return _inputs(shape, dtype, (min_batch, max_batch))
