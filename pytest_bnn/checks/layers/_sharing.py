"""What the teacher shares: a module at several places, a tensor of several modules; and whether the model does."""

from __future__ import annotations

from torch import nn

from pytest_bnn.checks.layers._row import TIED, UNTIED, Row
from pytest_bnn.libraries.posterior import is_bayesian
from pytest_bnn.subject import Subject


def is_convolution_or_linear(module: nn.Module) -> bool:
    """Return whether the claim is about a module: a deterministic convolution or Linear, subclasses included."""
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and not is_bayesian(module)


def require_sharing(subject: Subject, rows: list[Row]) -> None:
    """Note at the rows what the teacher shares and the model does not.

    Between two convolutions or Linear that is a fault; with another module, such as an embedding whose table is the
    head's weight, it may be meant.
    """
    if subject.teacher is None:
        return
    modules = dict(subject.model.named_modules(remove_duplicate=False))
    now = {path: modules.get(place) for path, place in subject.alignment.paths.items()}
    by_path = {row.path: row for row in rows}
    first_place: dict[int, str] = {}
    owner: dict[int, str] = {}
    for path, module in subject.teacher.named_modules(remove_duplicate=False):
        first = first_place.setdefault(id(module), path)
        if first != path:
            if is_convolution_or_linear(module) and now.get(first) is not now.get(path):
                by_path[first].fail(f"is one module with `{path}` in the teacher, and two in the model", UNTIED)
            continue
        for name, tensor in module.named_parameters(recurse=False):
            other = owner.setdefault(id(tensor), path)
            if other == path or _share_parameters(now.get(other), now.get(path)):
                continue
            whose = f"`{other}`" if other else "the network itself"
            said = f"shares its {name} with {whose} in the teacher, and no longer in the model"
            kernels = [p for p in (path, other) if is_convolution_or_linear(subject.teacher.get_submodule(p))]
            if len(kernels) == 2:
                by_path[path].fail(said, UNTIED)
                continue
            if not (_has_parameters(now.get(other)) and _has_parameters(now.get(path))):
                continue  # what is not there shares nothing, and a row says so where it is in the claim
            if not kernels and path not in by_path:
                row = Row(path, type(module).__name__, 0)
                rows.append(row)
                by_path[path] = row
            elif kernels and kernels[0] != path:
                said = f"shares its {name} with {path} in the teacher, and no longer in the model"
            by_path[kernels[0] if kernels else path].warn(said, TIED)


def _has_parameters(module: nn.Module | None) -> bool:
    return module is not None and any(True for _ in module.parameters(recurse=False))


def _share_parameters(one: nn.Module | None, other: nn.Module | None) -> bool:
    if one is None or other is None:
        return False
    return bool({id(p) for p in one.parameters()} & {id(p) for p in other.parameters()})
