"""``layers.replaced``: did every convolution and linear layer become Bayesian, and is each in use?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from pytest_bnn.checks.check import Finding, check
from pytest_bnn.checks.values import Reasons
from pytest_bnn.libraries.posterior import (
    BayesianLayer,
    bayesian_layers,
    is_bayesian,
    orphaned_posteriors,
    watched_noise,
)
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.sampling.bank import ForwardError, forward
from pytest_bnn.subject import Subject, fitted

REMEDY = (
    "convert with pytest_bnn.convert(), which names what it cannot convert before it touches anything; "
    "for a layer left deterministic on purpose say so with a reason: --allow 'PATTERN=REASON' or "
    "allow={pattern: reason}"
)


@check(
    claim="Every convolution and linear layer of the teacher, the projections of its attention among them, became a "
    "Bayesian layer, is called in a forward pass, and what the teacher shares is still shared.",
)
def replaced(subject: Subject, *, allow: Reasons | None = None) -> Finding:
    """Measure whether every convolution and linear layer became Bayesian.

    Counts by layers and by weights; BatchNorm and embeddings are outside the claim, and a layer with a parametrization
    counts by the weights that it computes with. `nn.MultiheadAttention` counts as one layer for the three projections
    that it keeps as bare parameters, and its ``out_proj`` as another. With images, every Bayesian
    layer must also be called (a layer that the teacher does not call either is excused). Without a teacher the
    claim is about the model alone. Needs no randomness: the verdict is exact.

    Args:
        subject: teacher, images, name and so on; see `Subject`.
        allow: Layers left deterministic on purpose: a pattern for the path (as in fnmatch) to the reason, which
            the report shows.
    """
    return _find(subject, dict(allow or {}))


measure_layers_replaced, assert_layers_replaced = replaced.measure, replaced.assert_


def is_convolution_or_linear(module: nn.Module) -> bool:
    """Say whether the claim is about a module: a deterministic convolution or Linear, subclasses included."""
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and not is_bayesian(module)


def _own_weights(module: nn.Module) -> int:
    """Count the weights and biases that a convolution or Linear computes with, parametrized or not."""
    weight: tuple[int, ...]
    if isinstance(module, nn.Linear):
        weight, out = (module.in_features, module.out_features), module.out_features
    else:
        assert isinstance(module, nn.modules.conv._ConvNd)
        weight, out = (
            (module.in_channels, module.out_channels // module.groups, *module.kernel_size),
            module.out_channels,
        )
    return math.prod(weight) + (out if _has_bias(module) else 0)


def _has_bias(module: nn.Module) -> bool:
    parametrized = module._modules.get("parametrizations")
    names = (
        *(n for n, p in module._parameters.items() if p is not None),
        *(parametrized._modules if parametrized else ()),
    )
    return any(name == "bias" or name.startswith("bias_") for name in names)


def _bare_projections(module: nn.Module) -> int:
    """Count the weights of the projections that an attention keeps as bare parameters, and not in layers."""
    if not isinstance(module, nn.MultiheadAttention):
        return 0
    names = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return sum(p.numel() for name in names if (p := module._parameters.get(name)) is not None)


@dataclass(slots=True)
class _Row:
    path: str
    kind: str
    weights: int
    problem: str = ""
    reason: str = ""


def _find(subject: Subject, allow: dict[str, str]) -> Finding:
    layers = {layer.path: layer for layer in bayesian_layers(subject.model)}
    rows = _rows(subject, layers)
    used = set()
    for row in rows:
        pattern = next((p for p in allow if fnmatchcase(row.path, p)), None)
        if pattern is not None and row.problem:
            used.add(pattern)
            row.reason, row.problem = allow[pattern], ""
    notes = [f"{row.path} is deterministic on purpose: {row.reason}" for row in rows if row.reason]
    notes += [f"the pattern {p!r} in allow matches no deterministic layer" for p in allow if p not in used]
    by_path = {row.path: row for row in rows}
    for path, problem in _not_in_use(subject, layers, notes).items():
        if path not in by_path:
            by_path[path] = _Row(path, layers[path].kind, layers[path].weights)
            rows.append(by_path[path])
        by_path[path].problem = by_path[path].problem or problem
    for path, problem in _untied(subject).items():
        by_path[path].problem = by_path[path].problem or problem
    return _finding(subject, rows, layers, notes)


def _rows(subject: Subject, layers: dict[str, BayesianLayer]) -> list[_Row]:
    modules = dict(subject.model.named_modules(remove_duplicate=False))
    by_module = {id(layer.module): layer for layer in layers.values()}
    rows = []
    for path, original in () if subject.teacher is None else subject.teacher.named_modules():
        if projections := _bare_projections(original):
            rows.append(_attention_row(path, original, projections, modules.get(path)))
        if not is_convolution_or_linear(original):
            continue
        now = modules.get(path)
        row = _Row(path, type(original).__name__, _own_weights(original))
        layer = by_module.get(id(now))
        if now is None:
            row.problem = "is not in the model at this path"
        elif layer is None:
            row.problem = _still_deterministic(now)
        elif layer.weights != row.weights:
            row.problem = f"has {layer.weights} weights as {layer.kind}, {row.weights} in the teacher"
        rows.append(row)
    known = {row.path for row in rows}
    for path, module in subject.model.named_modules():
        if is_convolution_or_linear(module) and path not in known:
            rows.append(_Row(path, type(module).__name__, _own_weights(module), _still_deterministic(module)))
        elif path not in known and (projections := _bare_projections(module)):
            rows.append(_Row(path, type(module).__name__, projections, _BARE))
        elif path in layers and path not in known and subject.teacher is None:
            rows.append(_Row(path, layers[path].kind, layers[path].weights))
    return rows


_BARE = "keeps deterministic projections to query, key and value"


def _attention_row(path: str, original: nn.Module, projections: int, now: nn.Module | None) -> _Row:
    row = _Row(path, type(original).__name__, projections)
    bayesian = () if now is None else bayesian_layers(now)
    found = sum(layer.weights for layer in bayesian if layer.path != "out_proj")
    if now is None:
        row.problem = "is not in the model at this path"
    elif _bare_projections(now):
        row.problem = _BARE
    elif found != projections:
        row.problem = (
            f"has {found} weights in Bayesian projections to query, key and value, {projections} in the teacher"
        )
    return row


def _still_deterministic(module: nn.Module) -> str:
    kind = type(module).__name__
    if module._modules:
        return f"is still a deterministic {kind}: it owns {', '.join(module._modules)}, so dnn_to_bnn skips it"
    return f"is still a deterministic {kind}"


def _not_in_use(subject: Subject, layers: dict[str, BayesianLayer], notes: list[str]) -> dict[str, str]:
    if subject.images is None:
        if layers:
            notes.append("no images were given, so it was not seen whether every Bayesian layer is called")
        return {}
    called = _called(subject.model, subject, notes)
    if called is None:
        return {}
    idle = set(layers) - called
    if idle and subject.teacher is not None:
        teacher_calls = _called(subject.teacher, subject, notes) or set()
        teacher_paths = {path for path, _ in subject.teacher.named_modules(remove_duplicate=False)}
        idle = {path for path in idle if path not in teacher_paths or path in teacher_calls}
    return dict.fromkeys(sorted(idle), "is never called in a forward pass: something else still computes in its place")


def _called(model: nn.Module, subject: Subject, notes: list[str]) -> set[str] | None:
    called: set[str] = set()
    with undisturbed(model, seed=subject.seed):
        for path, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, path=path: called.add(path))
        with watched_noise(model) as drawn:
            try:
                forward(model, fitted(subject.require_images()[:1], model))
            except ForwardError as error:
                notes.append(f"it was not seen which layers are called: the forward raised {error}")
                return None
    return called | drawn


def _untied(subject: Subject) -> dict[str, str]:
    """Find what the teacher shares and the model does not: modules at several paths, tensors of several modules."""
    if subject.teacher is None:
        return {}
    now = dict(subject.model.named_modules(remove_duplicate=False))
    first_place: dict[int, str] = {}
    owner: dict[int, str] = {}
    untied = {}
    for path, module in subject.teacher.named_modules(remove_duplicate=False):
        if not is_convolution_or_linear(module):
            continue
        first = first_place.setdefault(id(module), path)
        if first != path:
            if now.get(first) is not now.get(path):
                untied[first] = f"is one module with {path} in the teacher, and two in the model"
            continue
        for name, tensor in module.named_parameters(recurse=False):
            other = owner.setdefault(id(tensor), path)
            if other != path and not _share_parameters(now.get(other), now.get(path)):
                untied[path] = f"shares its {name} with {other} in the teacher, and no longer in the model"
    return untied


def _share_parameters(one: nn.Module | None, other: nn.Module | None) -> bool:
    if one is None or other is None:
        return False
    return bool({id(p) for p in one.parameters()} & {id(p) for p in other.parameters()})


def _finding(subject: Subject, rows: list[_Row], layers: dict[str, BayesianLayer], notes: list[str]) -> Finding:
    claimed = [row for row in rows if not row.reason]
    good = [row for row in claimed if not row.problem]
    weights, all_weights = sum(row.weights for row in good), sum(row.weights for row in claimed)
    orphans = orphaned_posteriors(subject.model)
    if orphans:
        notes.append(
            f"{len(orphans)} modules still own mu and rho without being Bayesian layers ({orphans[0]} first): the "
            "model was derived with torch.fx or create_feature_extractor, which bakes one draw of the noise in"
        )
    share = f"{100 * weights / all_weights:.4g} %" if all_weights else "none"
    headline = (
        f"{len(good)} of {len(claimed)} convolution and linear layers are Bayesian "
        f"({weights:,} of {all_weights:,} weights, {share})"
    )
    ok = bool(layers) and len(good) == len(claimed)
    if not layers:
        headline += "; the model has no Bayesian layer at all"
    total = sum(p.numel() for p in (subject.teacher or subject.model).parameters())
    outside = total - sum(row.weights for row in rows) if subject.teacher is not None else None
    return Finding(
        verdict=Verdict.PASS if ok else Verdict.FAIL,
        headline=headline,
        measurements=(
            Measurement(name="Bayesian layers", value=len(good), note="convolutions and linear layers"),
            Measurement(name="layers in the claim", value=len(claimed)),
            Measurement(name="Bayesian weights", value=weights),
            Measurement(name="weights in the claim", value=all_weights),
            Measurement(name="layers deterministic on purpose", value=len(rows) - len(claimed)),
            Measurement(
                name="weights outside the claim", value=outside, note="BatchNorm and other modules of the teacher"
            ),
        ),
        threshold=Threshold(quantity="Bayesian layers", observed=len(good), relation="==", allowed=len(claimed) or 1),
        layers=tuple(
            LayerFinding(
                path=row.path,
                kind=row.kind,
                ok=not row.problem,
                finding=row.problem or (f"deterministic on purpose: {row.reason}" if row.reason else "Bayesian"),
            )
            for row in sorted(rows, key=lambda row: (not row.problem, -row.weights if row.problem else 0))
        ),
        remedy="" if ok else _wrapped(subject, layers) or REMEDY,
        notes=tuple(notes),
    )


def _wrapped(subject: Subject, layers: dict[str, BayesianLayer]) -> str:
    """Say what to audit where the model holds the conversion in one child, as DataParallel and torch.compile do."""
    children = [name for name, _ in subject.model.named_children()]
    if subject.teacher is None or len(children) != 1:
        return ""
    wanted = [path for path, module in subject.teacher.named_modules() if is_convolution_or_linear(module)]
    if not wanted or any(f"{children[0]}.{path}" not in layers for path in wanted):
        return ""
    kind = type(subject.model).__name__
    return f"audit model.{children[0]}, the network that {kind} holds: its layers have the teacher's paths"
