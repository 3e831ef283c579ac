"""``layers.replaced``: did every weight that multiplies become Bayesian, and is each layer in use?"""

from __future__ import annotations

import math
from collections import Counter

from torch import nn
from torch.nn.parameter import is_lazy

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.layers._kernels import require_posteriors
from pytest_bnn.checks.layers._row import FUNCTIONAL, MISSING, RECURRENT, REMEDY, TIED, Row, remedies
from pytest_bnn.checks.layers._sharing import is_convolution_or_linear as is_convolution_or_linear
from pytest_bnn.checks.layers._sharing import require_sharing
from pytest_bnn.checks.layers._use import require_use
from pytest_bnn.checks.layers._words import (
    acceptances,
    accepted_in_words,
    counted,
    excuse,
    named_problem,
    unmatched,
    weights_of,
)
from pytest_bnn.checks.values import Reasons
from pytest_bnn.libraries.posterior import (
    BayesianLayer,
    bayesian_layers,
    orphaned_posteriors,
)
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import Acceptance, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject


@check(
    claim="Every convolution and linear layer of the teacher, the projections of its attention among them, and every "
    "other weight that multiplies what comes from the input, became Bayesian; each layer is called in a forward pass, "
    "and what the teacher shares is still shared.",
    can=("mean_field",),
)
def replaced(subject: Subject, *, allow: Reasons | None = None) -> Finding:
    """Measure whether every convolution, linear layer and other kernel became Bayesian.

    Counts by layers and by weights; norms, scales and tables are outside the claim, and a layer with a parametrization
    counts by the weights that it computes with. With images, one pass shows what else multiplies what comes from the
    input: bare tensors, tables used as a head, torch's recurrent layers (which may be meant: a warning), a mu that is
    used undrawn outside of its own layer. `nn.MultiheadAttention` counts as one layer for the three projections
    that it keeps as bare parameters, and its ``out_proj`` as another. A layer of the teacher is found by its path,
    under the prefix of a wrapper, inside the module at its path, by its weights, or by a shape that no other layer
    has. With images, every Bayesian layer must also be called for some of them; excused are layers that the teacher
    does not call either, or for some images only, and those that are called in train mode only. Without a teacher the
    claim is about the model alone. Needs no randomness: the verdict is exact.

    Args:
        subject: teacher, images, name and so on; see `Subject`.
        allow: Layers and tensors left deterministic, or no longer shared, on purpose: a pattern for the path (as in
            fnmatch) to the reason, which the report shows.
    """
    return _find(subject, dict(allow or {}))


measure_layers_replaced, assert_layers_replaced = replaced.measure, replaced.assert_


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


def _find(subject: Subject, allow: dict[str, str]) -> Finding:
    alignment = subject.alignment
    if alignment.copies:
        places = ", ".join(called(place) for place in alignment.copies)
        return not_applicable(
            f"the teacher's layers lie in several places of the model, so it is not clear which of them it became: "
            f"{places}; audit one of these modules by itself"
        )
    layers = {layer.path: layer for layer in bayesian_layers(subject.model)}
    notes: list[str] = []
    rows = _rows(subject, layers) + _extra(subject, layers)
    require_use(subject, layers, rows, notes)
    seen = require_posteriors(subject, layers, rows, notes)
    require_sharing(subject, rows)
    used, shared = excuse(rows, allow, _EXCUSABLE)
    accepted = acceptances(rows, shared)
    nowhere, idle = unmatched(subject, allow, used)
    notes = [f"`{path}` is shared no more, on purpose: {reason}" for path, reason in shared.items()] + notes
    notes = [f"`{row.path or row.names[0]}` {_on_purpose(row)}" for row in rows if row.reason] + notes
    notes += [f"the pattern {p!r} in allow matches nothing in the model" for p in nowhere]
    notes += [f"the pattern {p!r} in allow matches no deterministic layer" for p in idle]
    if alignment.prefix:
        notes.append(f"the teacher's layers are at `{alignment.prefix}` in the model")
    if alignment.moved:
        path, how = next(iter(alignment.moved.items()))
        notes.append(
            f"{len(alignment.moved)} layers are not at the teacher's path, `{path}` first: found at "
            f"{called(alignment.paths[path])}, {how}"
        )
    return _finding(subject, rows, layers, notes, accepted, nowhere, seen=seen)


_EXCUSABLE = (REMEDY, MISSING, FUNCTIONAL, RECURRENT, TIED)


def _on_purpose(row: Row) -> str:
    return f"is deterministic on purpose: {row.reason}"


def _rows(subject: Subject, layers: dict[str, BayesianLayer]) -> list[Row]:
    """Return the teacher's layers, each with what is wrong with its counterpart."""
    modules = dict(subject.model.named_modules(remove_duplicate=False))
    by_module = {id(layer.module): layer for layer in layers.values()}
    paths = subject.alignment.paths
    rows = []
    for path, original in () if subject.teacher is None else subject.teacher.named_modules():
        place = paths.get(path)
        now = None if place is None else modules.get(place)
        if projections := _bare_projections(original):
            rows.append(_attention_row(path, original, projections, now, place))
        if not is_convolution_or_linear(original):
            continue
        row = Row(path, type(original).__name__, _own_weights(original), place=place)
        layer = by_module.get(id(now))
        if now is None:
            row.fail("is not in the model: neither at this path nor by its weights or shape", MISSING)
        elif layer is None and (is_convolution_or_linear(now) or list(now.parameters())):
            row.fail(_still_deterministic(now), REMEDY)
        elif layer is None:
            row.fail(f"is not in the model: at its path is a {type(now).__name__} without parameters", MISSING)
        elif layer.weights != row.weights:
            row.fail(f"has {layer.weights} weights as {layer.kind}, {row.weights} in the teacher", MISSING)
        rows.append(row)
    return rows


def _extra(subject: Subject, layers: dict[str, BayesianLayer]) -> list[Row]:
    """Return the model's layers that are nobody's counterpart in the teacher."""
    paths = subject.alignment.paths
    known = set(paths.values()) if subject.teacher is not None else set()
    own = {id(module) for module in subject.teacher.modules()} if subject.teacher is not None else set()
    rows = []
    for path, module in subject.model.named_modules():
        if path in known or id(module) in own:
            continue
        if is_convolution_or_linear(module):
            rows.append(Row(path, type(module).__name__, _own_weights(module), _still_deterministic(module), REMEDY))
        elif projections := _bare_projections(module):
            rows.append(Row(path, type(module).__name__, projections, _BARE, REMEDY))
        elif path in layers and subject.teacher is None:
            rows.append(Row(path, layers[path].kind, layers[path].weights))
    return rows


_BARE = "keeps deterministic projections to query, key and value"


def _attention_row(path: str, original: nn.Module, projections: int, now: nn.Module | None, place: str | None) -> Row:
    row = Row(path, type(original).__name__, projections, place=place)
    bayesian = () if now is None else bayesian_layers(now)
    found = sum(layer.weights for layer in bayesian if layer.path != "out_proj")
    if now is None:
        row.fail("is not in the model at this path", MISSING)
    elif _bare_projections(now):
        row.fail(_BARE, REMEDY)
    elif found != projections:
        row.fail(
            f"has {found} weights in Bayesian projections to query, key and value, {projections} in the teacher",
            MISSING,
        )
    return row


def _still_deterministic(module: nn.Module) -> str:
    kind = type(module).__name__
    kind = f"nn.{kind}" if getattr(nn, kind, None) is type(module) else f"a deterministic {kind}"
    if module._modules:
        return f"is still {kind}: it owns {', '.join(module._modules)}, so dnn_to_bnn skips it"
    return f"is still {kind}"


def _finding(
    subject: Subject,
    rows: list[Row],
    layers: dict[str, BayesianLayer],
    notes: list[str],
    accepted: tuple[Acceptance, ...],
    nowhere: list[str],
    *,
    seen: bool,
) -> Finding:
    claimed = [row for row in rows if not row.reason]
    problems = [row for row in claimed if row.problem]
    good = [row for row in claimed if not row.problem or row.remedy == TIED]
    weights, all_weights = weights_of(good), weights_of(claimed)
    orphans = orphaned_posteriors(subject.model)
    if orphans:
        notes.append(
            f"{len(orphans)} modules still own mu and rho without being Bayesian layers ({called(orphans[0])} "
            "first): the model was derived with torch.fx or create_feature_extractor, which bakes one draw of the "
            "noise in"
        )
    headline = counted(good, rows)
    if words := accepted_in_words(accepted, weights_of(rows)):
        headline += f"; {words}"
    if nowhere:
        headline += f"; --allow {', '.join(map(repr, nowhere))} matches nothing in the model"
    if still := [row for row in problems if row.remedy != TIED]:
        headline += f"; {named_problem(still[0])}"
        headline += f"; {len(still) - 1} more below" if still[1:] else ""
    if untied := [row for row in problems if row.remedy == TIED]:
        headline += f"; `{untied[0].path}` {untied[0].problem}"
    ok = bool(layers) and not problems
    if not layers:
        headline += "; the model has no Bayesian layer at all"
    choices = bool(layers) and all(row.choice for row in problems)
    outside = _outside(subject, rows, layers)
    listed = ", ".join(f"{kind} {count:,}" for kind, count in outside.most_common(5))
    return Finding(
        verdict=Verdict.PASS if ok else Verdict.WARN if choices else Verdict.FAIL,
        headline=headline,
        measurements=(
            Measurement(name="Bayesian layers", value=len(good), note="convolutions and linear layers"),
            Measurement(name="layers in the claim", value=len(claimed)),
            Measurement(name="Bayesian weights", value=weights),
            Measurement(name="weights in the claim", value=all_weights, note="" if seen else _NOT_SEEN),
            Measurement(name="layers deterministic on purpose", value=len(rows) - len(claimed)),
            Measurement(name="weights outside the claim", value=outside.total(), note=listed),
        ),
        threshold=Threshold(quantity="Bayesian layers", observed=len(good), relation="==", allowed=len(claimed) or 1)
        if ok or len(problems) > len(untied) or not layers
        else None,
        layers=tuple(
            LayerFinding(
                path=row.path,
                kind=row.kind,
                ok=not row.problem,
                finding=row.problem or (_on_purpose(row) if row.reason else _found(row)),
            )
            for row in sorted(rows, key=lambda row: (not row.problem, row.choice, -row.weights if row.problem else 0))
        ),
        remedy="" if ok else "; ".join(remedies(problems)) or REMEDY,
        notes=tuple(notes),
        accepted=accepted,
    )


_NOT_SEEN = "of convolutions, linear and recurrent layers: no pass showed what else multiplies"


def _outside(subject: Subject, rows: list[Row], layers: dict[str, BayesianLayer]) -> Counter[str]:
    """Count the model's weights that are neither in the claim nor a posterior's, by the kinds of their modules."""
    modules = dict(subject.model.named_modules(remove_duplicate=False))
    inside = set(layers)
    inside |= {path for row in rows if not row.names and (path := row.path if row.place is None else row.place)}
    named = {name for row in rows for name in row.names}
    multiplying = {row.path for row in rows if row.names}
    found: Counter[str] = Counter()
    for name, parameter in subject.model.named_parameters():
        path = name.rpartition(".")[0]
        if name in named or any(path == one or path.startswith(f"{one}.") for one in inside) or is_lazy(parameter):
            continue
        if path in multiplying and parameter.ndim < 2:
            continue
        found[type(modules[path]).__name__] += parameter.numel()
    return found


def _found(row: Row) -> str:
    return "is Bayesian" if row.place in (None, row.path) else f"is Bayesian, at {called(row.place)}"
