"""Why a converted network is not its teacher, as far as the first module that differs shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_bnn.libraries.alignment import Alignment
from pytest_bnn.libraries.fingerprint import equal_values
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.comparing import Parting
from pytest_bnn.network.isolation import replaced
from pytest_bnn.network.naming import called

_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Cause:
    """What was found at the first module that differs, empty where nothing was, and what to do."""

    found: str
    remedy: str


def cause_of(where: Parting, teacher: nn.Module, model: nn.Module, alignment: Alignment) -> Cause:
    """Say why the first module that differs does so; a setting is named only where its weights are the teacher's."""
    path = alignment.teacher_paths().get(where.path, where.path)
    original, now = teacher.get_submodule(path), model.get_submodule(where.path)
    # A Bayesian layer computes the same in both modes, and the library's conversion leaves it in train mode.
    if where.training and not original.training and not bayesian_layers(now):
        return Cause(
            "it runs in train mode, its counterpart in the teacher does not",
            "put the whole model into eval mode before it is used: model.eval()",
        )
    before, after = dict(original.named_buffers(recurse=False)), dict(now.named_buffers(recurse=False))
    if norms := [name for name in _STATISTICS if not _same(before.get(name), after.get(name))]:
        lost = _lost(now, original)
        start = " and is that of a layer just built" if lost else ""
        return Cause(
            f"its {(lost or norms)[0]} is not the teacher's{start}",
            "load the running statistics of the teacher; passes in train mode and estimating them anew change them",
        )
    compared = list(_weights(original, now, alignment))
    if other := [name for name, same in compared if not same]:
        return Cause(
            f"its {other[0]} is not the teacher's",
            f"the weights of {called(where.path)} are not those of this teacher: give the teacher that "
            "was converted, convert again after the weights were changed (another checkpoint, a mask, a scale, "
            "quantised weights), or say --stage finetuned where they were trained on purpose",
        )
    if "weight" not in dict(compared):
        return Cause("", "look at that module: it computes something else than its counterpart in the teacher")
    return Cause(f"its weights are the teacher's, so it computes otherwise: {_otherwise(original, now)}", _SETTING)


_SETTING = (
    "look at that module: the conversion lost a setting (padding mode, output padding, stride), a hook, or the forward "
    "of a class that is not torch's; pytest_bnn.convert() keeps settings and hooks, and refuses such classes"
)


def _otherwise(original: nn.Module, now: nn.Module) -> str:
    if not type(original).__module__.startswith("torch."):
        return f"in the teacher it is a {type(original).__module__}.{type(original).__qualname__}, which is not torch's"
    if original._forward_hooks or original._forward_pre_hooks:
        return "the teacher's has a forward hook"
    mode = getattr(original, "padding_mode", "zeros")
    if mode != "zeros":
        return f"the teacher's has the padding mode {mode}"
    if any(getattr(original, "output_padding", ())):
        return f"the teacher's has the output padding {original.output_padding}"
    if type(now).forward.__module__.split(".")[0] not in ("torch", "bayesian_torch", "pytest_bnn"):
        return f"its forward is that of {type(now).__module__}.{type(now).__qualname__}, and no library's"
    return "a setting"


def _weights(original: nn.Module, now: nn.Module, alignment: Alignment) -> Iterator[tuple[str, bool]]:
    """Compare the tensors that a module has in both networks, the weight first; nothing where that is not known."""
    means: dict[str, Tensor] = {
        tensor.role: tensor.mu.detach() for layer in bayesian_layers(now) if not layer.path for tensor in layer.tensors
    }
    weights = [weight for tensor, weight in alignment.pairs if tensor.module is now]
    if weights:
        yield "weight", _same(weights[0], means["weight"])
    own = dict(now.named_parameters(recurse=False))
    for name, tensor in original.named_parameters(recurse=False):
        found = means.get(name, own.get(name))
        if found is not None and not (name == "weight" and weights):
            yield name, _same(tensor.detach(), found.detach())


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and equal_values(other, one.to(other.device))


def _lost(now: nn.Module, original: nn.Module) -> list[str]:
    """Return the running statistics that are as a layer is built with them, and are not so in the teacher's."""
    mine, theirs = dict(now.named_buffers(recurse=False)), dict(original.named_buffers(recurse=False))
    starts = {"running_mean": 0, "running_var": 1}
    return [
        name
        for name, start in starts.items()
        if (a := mine.get(name)) is not None
        and (b := theirs.get(name)) is not None
        and bool((a == start).all())
        and not bool((b == start).all())
    ]


@contextmanager
def restored_statistics(teacher: nn.Module, model: nn.Module, alignment: Alignment) -> Iterator[tuple[str, ...]]:
    """Put the teacher's running statistics where they were estimated anew, for a while; yield the layers' paths.

    A layer that has one of them as it was built is not among them: it lost the teacher's, and estimated nothing.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    entries: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    found = []
    for path, original in teacher.named_modules():
        now = modules.get(alignment.paths.get(path, "\0"))
        if now is None or now.training or _lost(now, original):
            continue
        before, after = dict(original.named_buffers(recurse=False)), dict(now.named_buffers(recurse=False))
        pairs = [(name, before.get(name), after.get(name)) for name in _STATISTICS]
        other = [(name, a, b) for name, a, b in pairs if a is not None and b is not None and not _same(a, b)]
        if other and all(a.shape == b.shape for _, a, b in other):
            found.append(called(alignment.paths[path]))
            entries += [(now._buffers, name, a.detach().to(b)) for name, a, b in other]
    with torch.no_grad(), replaced(entries):
        yield tuple(found)
