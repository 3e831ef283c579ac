"""What a conversion will do, decided before anything is made: a plan for every layer, or the reasons why not."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pytest_bnn.conversion.attention import PROJECTIONS
from pytest_bnn.conversion.baking import baked, making_hooks, sources
from pytest_bnn.conversion.parameters import Conversion
from pytest_bnn.conversion.references import Method, references, shared_tensors
from pytest_bnn.libraries.posterior import is_bayesian

#: The layers that are converted, with every subclass that inherits their forward.
CONVERTIBLE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip

#: The library goes by words in a class's name.
_SELECTED_NAMES = ("Conv", "Linear", "LSTM")

#: What the body of a subclass may define besides data: none of it changes what the layer computes for others.
_HARMLESS = {
    "__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__constants__", "__parameters__", "__orig_bases__", "__slots__", "__dict__",
    "__weakref__", "__firstlineno__", "__static_attributes__", "__repr__", "extra_repr", "_get_name",
    "reset_parameters",
}  # fmt: skip

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

#: Instance attributes of the library's layers that no convolution or Linear has.
_TAKEN = {
    "prior_mean", "prior_variance", "posterior_mu_init", "posterior_rho_init", "kl", "quant_prepare",
    "_dnn_to_bnn_flag", "dnn_to_bnn_flag", "kl_loss", "kl_div", "init_parameters", "prepare", "border",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPlan:
    """One Bayesian layer to be made: what it was, its settings, its weights, and what it takes over."""

    path: str
    kind: str
    origin: nn.Module
    settings: dict[str, Any]
    weight: Tensor
    bias: Tensor | None
    trained: tuple[bool, bool]
    #: Whether the library's layer can not do it, and what one of ours needs to know.
    own: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    #: Keys of the hooks that would make the weight anew before every forward.
    dropped_hooks: frozenset[int] = frozenset()


@dataclass(slots=True, eq=False)
class Plan:
    """What becomes of a network's modules, or why it can not be converted."""

    obstacles: list[str] = field(default_factory=list)
    layers: list[LayerPlan] = field(default_factory=list)
    #: Every `nn.MultiheadAttention`, with the plans of the projections that it keeps as bare parameters.
    attentions: list[tuple[nn.Module, list[LayerPlan]]] = field(default_factory=list)
    #: Modules that only change their class.
    renamed: list[tuple[nn.Module, type[nn.Module]]] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)


def make_plan(model: nn.Module, conversion: Conversion) -> Plan:
    """Plan the conversion of a model; draws random numbers, so call it where the random state is preserved."""
    plan = Plan()
    if any(is_bayesian(module) for module in model.modules()):
        plan.obstacles.append("it already holds Bayesian layers")
        return plan
    keyless = set(_swin(model, plan))
    planned: dict[int, str] = {}
    for path, module in model.named_modules():
        if not _is_selected(module):
            continue
        planned[id(module)] = path
        reasons = list(_plan(path, module, plan, conversion, keyless=id(module) in keyless))
        plan.obstacles += [f"{_named(path, module)} {reason}" for reason in reasons]
    if not planned:
        plan.obstacles.append("it has no Linear or convolution layer")
    plan.obstacles += shared_tensors(model, planned)
    for reference in references(model, planned):
        if isinstance(reference, Method):
            plan.methods.append(reference)
        else:
            plan.obstacles.append(reference)
    return plan


def _named(path: str, module: nn.Module) -> str:
    return f"{path or 'the model itself'} ({type(module).__name__})"


def _is_selected(module: nn.Module) -> bool:
    if isinstance(module, (*CONVERTIBLE, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)):
        return True
    named = not module._modules and any(word in type(module).__name__ for word in _SELECTED_NAMES)
    # What is neither parameter nor buffer, and saved all the same, are packed weights.
    return named and bool(set(module.state_dict()) - {name for name, _ in module.named_buffers()})


def _plan(path: str, module: nn.Module, plan: Plan, conversion: Conversion, *, keyless: bool) -> Iterator[str]:
    """Put a module into the plan, or give the reasons why not."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        yield "is recurrent: the library drops its trained weights"
        return
    base = next((b for b in (*CONVERTIBLE, nn.MultiheadAttention) if isinstance(module, b)), None)
    if base is None:
        yield f"is a layer by its name only ({_full_name(module)}): its weights would stay deterministic"
        return
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        yield "is lazy: run the network once first"
        return
    if own := _own_definitions(module, base):
        yield f"is a subclass with its own {', '.join(own)}, so a Bayesian {base.__name__} may not do what it does"
        return
    if base is nn.MultiheadAttention:
        yield from _plan_attention(path, module, plan, conversion)
        return
    if reason := _structural_obstacle(module, base):
        yield reason
        return
    layer = _layer_plan(path, module, base, keyless=keyless)
    yield from _numeric_obstacles(layer, conversion)
    plan.layers.append(layer)


def _structural_obstacle(module: nn.Module, base: type[nn.Module]) -> str:
    children = set(module._modules) - ({"parametrizations"} if parametrize.is_parametrized(module) else set())
    if children:
        return f"owns child modules ({', '.join(sorted(children))}), which a Bayesian layer would lack"
    if any(isinstance(child, CONVERTIBLE) for child in module.modules() if child is not module):
        return "has a parametrization with convolution or linear layers of its own"
    further = [
        name for name in (*module._parameters, *module._buffers) if name not in {"weight", "bias"} | sources(module)
    ]
    if further:
        return f"owns further parameters or buffers ({', '.join(further)}), which a Bayesian layer would lack"
    clashes = [name for name in _extra_attributes(module, base) if name in _TAKEN or hasattr(base, name)]
    if clashes:
        return f"carries attributes that a Bayesian layer cannot take over ({', '.join(sorted(clashes))})"
    return ""


def _numeric_obstacles(layer: LayerPlan, conversion: Conversion) -> Iterator[str]:
    for role, tensor in (("weight", layer.weight), ("bias", layer.bias)):
        if tensor is None:
            continue
        if tensor.is_meta:
            yield "is on the meta device, without numbers: load its weights first"
            return
        if not tensor.is_floating_point():
            yield f"holds {tensor.dtype} in its {role}: a posterior needs real numbers"
            return
        if tensor.dtype is torch.float16:
            yield "is float16, where sigma underflows to 0: convert in float32"
            return
        # One pass over the tensor; NaN comes through.
        largest = max(abs(float(value)) for value in torch.aminmax(tensor)) if tensor.numel() else 0.0
        if not largest < float("inf"):
            yield f"holds NaN or infinity in its {role}"
        elif conversion.moped_enable and conversion.moped_delta * largest > 88:
            yield (
                f"has a {role} of size {largest:.3g}: moped_delta * abs(weight) overflows above 88; lower moped_delta"
            )


def _layer_plan(path: str, module: nn.Module, base: type[nn.Module], *, keyless: bool) -> LayerPlan:
    weight, bias = baked(module, "weight"), baked(module, "bias")
    assert weight.value is not None
    attributes = {
        name: value
        for cls in reversed(_between(module, base))
        for name, value in vars(cls).items()
        if name not in _HARMLESS
    }
    attributes |= {name: module.__dict__[name] for name in _extra_attributes(module, base)}
    if base is nn.Linear:
        names: tuple[str, ...] = ("in_features", "out_features")
    else:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    settings = {name: getattr(module, name) for name in names}
    settings["bias"] = bias.value is not None
    transposed = issubclass(base, nn.modules.conv._ConvTransposeNd)
    if transposed:
        settings["output_padding"] = module.output_padding
    if base in (nn.Conv1d, nn.ConvTranspose1d):
        (settings["kernel_size"],) = settings["kernel_size"]  # the library builds it from a number only
    padded = base is not nn.Linear and module.padding_mode != "zeros"
    if padded:
        attributes |= {"padding_mode": module.padding_mode, "border": list(module._reversed_padding_repeated_twice)}  # type: ignore[arg-type]
        settings["padding"] = 0
    return LayerPlan(
        path=path,
        kind=base.__name__,
        origin=module,
        settings=settings,
        weight=weight.value,
        bias=bias.value,
        trained=(weight.trained, bias.trained),
        own=transposed or padded or (keyless and bias.value is not None),
        attributes=attributes,
        dropped_hooks=frozenset(making_hooks(module)),
    )


def _between(module: nn.Module, base: type[nn.Module]) -> list[type]:
    """Return the classes by which a module's class extends a base, save for the one that parametrizing made."""
    classes = [cls for cls in type(module).__mro__ if cls not in base.__mro__]
    return classes[1:] if parametrize.is_parametrized(module) else classes


def _own_definitions(module: nn.Module, base: type[nn.Module]) -> list[str]:
    return sorted(
        name
        for cls in _between(module, base)
        for name, value in vars(cls).items()
        if name not in _HARMLESS and (hasattr(type(value), "__get__") or hasattr(base, name) or name in _TAKEN)
    )


@cache
def _plain_attributes(base: Any) -> frozenset[str]:
    sizes = 2 if base is nn.Linear else 3
    return frozenset(base(*[1] * sizes).__dict__)


def _extra_attributes(module: nn.Module, base: type[nn.Module]) -> list[str]:
    plain = _plain_attributes(cast("Hashable", base)) | sources(module)
    return [name for name in module.__dict__ if name not in plain]


def _plan_attention(path: str, module: nn.Module, plan: Plan, conversion: Conversion) -> Iterator[str]:
    attention: Any = module
    if set(module._modules) != {"out_proj"} or not isinstance(attention.out_proj, nn.Linear):
        yield f"has other modules than its out_proj ({', '.join(module._modules)}): its forward may not call them"
        return
    if any(getattr(attention.out_proj, name).keys() - making_hooks(attention.out_proj) for name in _HOOKS):
        yield "has hooks on its out_proj: torch's attention never calls that layer, and a Bayesian one does"
        return
    packed, bias = attention.in_proj_weight, attention.in_proj_bias
    weights = (
        packed.detach().chunk(3)
        if packed is not None
        else [getattr(attention, f"{name}_weight").detach() for name in PROJECTIONS]
    )
    biases = (None, None, None) if bias is None else bias.detach().chunk(3)
    projections = []
    for name, weight, part in zip(PROJECTIONS, weights, biases, strict=True):
        source = packed if packed is not None else getattr(attention, f"{name}_weight")
        layer = LayerPlan(
            path=f"{path}.{name}" if path else name,
            kind="Linear",
            origin=module,
            settings={"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": bias is not None},
            weight=weight,
            bias=part,
            trained=(source.requires_grad, bias is not None and bias.requires_grad),
        )
        for reason in _numeric_obstacles(layer, conversion):
            yield f"{reason} (of {name})"
        projections.append(layer)
    plan.attentions.append((module, projections))


def _swin(model: nn.Module, plan: Plan) -> Iterator[int]:
    """Plan torchvision's windowed attention, which reads its layers' weights; return the layers without a key bias."""
    if "torchvision.models.swin_transformer" not in sys.modules:
        return
    from pytest_bnn.conversion.swin import CONVERTED, KEYLESS

    for path, module in model.named_modules():
        base = next((cls for cls in CONVERTED if isinstance(module, cls)), None)
        if base is None:
            continue
        own = _own_definitions(module, base)
        if own:
            plan.obstacles.append(
                f"{_named(path, module)} is a subclass of torchvision's with its own {', '.join(own)}"
            )
        plan.renamed.append((module, CONVERTED[base]))
        if base in KEYLESS:
            yield id(module.qkv)


def _full_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
