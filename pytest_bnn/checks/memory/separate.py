"""``memory.separate``: does every tensor that training or a forward pass writes have memory of its own?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import NOTHING_BAYESIAN, Finding, not_applicable
from pytest_bnn.checks.memory._spans import Span, of_all, of_posteriors, overlaps
from pytest_bnn.checks.memory._written import changed_in_training, is_frozen, reached
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import LayerFinding, Threshold, Verdict
from pytest_bnn.subject import Subject


@check(
    claim="Every tensor that training or a forward pass writes has memory of its own: mu, rho and noise not that of "
    "another layer or of a prior, and no tensor that of the teacher.",
    can=("mean_field",),
    after="layers.replaced",
)
def separate(subject: Subject) -> Finding:
    """Measure whether every tensor that training or a forward pass writes has memory of its own.

    Training writes mu, rho and all other parameters that a gradient reaches; every pass writes the noise buffers, and
    one in train mode the running statistics. Where a mu, a rho or a noise buffer overlaps with another of them or with
    a prior, or where any written tensor overlaps with a parameter or buffer of the teacher, writing the one changes the
    other, without an error. Priors may share their memory, with each other and with the teacher: nothing writes them.
    So may a frozen part that both networks use, and tensors that are tied within the model.

    Args:
        subject: teacher and images (which show what is written) and so on; see `Subject`.
    """
    return _find(subject)


measure_memory_separate, assert_memory_separate = separate.measure, separate.assert_

CLONE = "clone the tensor where it is put into the layer: copy_() or .clone(), not .data = other"
MOPED = "; bayesian-torch's utils.MOPED() aliases teacher, mu and prior"
COPY = (
    "put copies into the model: take its modules and tensors from copy.deepcopy(teacher), or freeze what both networks "
    "use, with requires_grad_(False) and in eval mode"
)
SAME = (
    "give the network as it was before the conversion as the teacher: dnn_to_bnn changes a network in place, so keep "
    "copy.deepcopy(network) before it is called"
)
EVAL = "keep it in eval mode while the model is trained, or give the model a copy of its own (copy.deepcopy)"


def _find(subject: Subject) -> Finding:
    model, teacher = subject.model, subject.teacher
    posteriors = [*of_posteriors(model)]
    if not posteriors:
        return not_applicable(NOTHING_BAYESIAN)
    if teacher is not None and (how := _is_one_network(model, teacher)):
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"{how}: whatever trains the model trains its teacher, and no check can compare the two",
            threshold=Threshold(quantity="networks", observed=1, relation="==", allowed=2),
            remedy=SAME,
        )
    known = {(span.start, span.end) for span in posteriors}
    others = [span for span in of_all(model, "deterministic") if (span.start, span.end) not in known]
    theirs = [*of_all(teacher, "teacher")] if teacher is not None else []
    pairs = overlaps([*posteriors, *others, *theirs])
    shared = _Shared(subject, pairs)
    bad = [(one, other) for one, other in pairs if one.role == "posterior" or one.name in shared.written]
    findings = _findings(bad, shared)
    choices = [LayerFinding(path=p, kind=kind, ok=False, finding=_STATISTICS) for p, kind in shared.statistics.items()]
    count = sum(span.role == "posterior" for span in posteriors) + sum(p.requires_grad for p in _others(model, others))
    headline = f"{count} tensors that are written have memory of their own"
    if findings:
        headline = _headline(findings)
    elif choices:
        headline = f"{called(choices[0].path)} is the teacher's own, and its statistics move in train mode"
    verdict = Verdict.FAIL if findings else Verdict.WARN if choices else Verdict.PASS
    return Finding(
        verdict=verdict,
        headline=headline,
        threshold=Threshold(quantity="pairs that share memory", observed=len(bad), relation="==", allowed=0)
        if verdict is not Verdict.WARN
        else None,
        layers=(*(found.layer for found in findings), *choices),
        remedy="; ".join(_remedies(bad, findings, choices)),
        notes=shared.notes,
    )


_STATISTICS = (
    "is frozen, and the teacher uses it too: a pass in train mode moves its running statistics, and so the teacher's"
)


def _is_one_network(model: nn.Module, teacher: nn.Module) -> str:
    """Say how model and teacher are one network; empty where they are two."""
    if teacher is model:
        return "the teacher is the model itself"
    if any(module is model for module in teacher.modules()):
        return "the model is a part of its teacher"
    if any(module is teacher for module in model.modules()) and bayesian_layers(teacher):
        return "the teacher is the converted network inside of the model"
    return ""


def _others(model: nn.Module, spans: list[Span]) -> list[nn.Parameter]:
    names = {span.name for span in spans}
    return [parameter for name, parameter in model.named_parameters() if name in names]


@dataclass(frozen=True, slots=True)
class _Found:
    """A pair of tensors, or a module with all of its tensors, in the words of the headline and of its layer."""

    said: str
    layer: LayerFinding


class _Shared:
    """What the model shares with its teacher beside posteriors, and what of it is written."""

    def __init__(self, subject: Subject, pairs: list[tuple[Span, Span]]) -> None:
        model, teacher = subject.model, subject.teacher
        mine = {one.name: one for one, _ in pairs if one.role == "deterministic"}
        buffers = {name for name, span in mine.items() if span.buffer}
        self.trained = reached(subject, {name for name, _ in model.named_parameters()}) if mine else set()
        moving = changed_in_training(subject, buffers) if buffers else set()
        #: Running statistics of frozen modules: whether they are in train mode when the model is trained, who knows.
        self.statistics: dict[str, str] = {}
        self.written = self.trained & mine.keys()
        for name in sorted(moving):
            path = mine[name].path
            if not is_frozen(model, path, self.trained):
                self.written.add(name)
            elif not (model.training and not model.get_submodule(path).training):
                self.statistics[path] = mine[name].kind
        theirs = {id(module) for module in teacher.modules()} if teacher is not None else set()
        self.modules = {p: m for p, m in model.named_modules() if id(m) in theirs}
        unused = sorted(name for name in mine.keys() - buffers if name not in self.trained)
        self.notes = (
            (f"{len(unused)} tensors are the teacher's too, and training writes none of them, {unused[0]} first",)
            if unused
            else ()
        )

    def module_of(self, span: Span) -> str | None:
        """Return the path of the outermost module around a tensor that is the teacher's own; None without one."""
        around = [p for p in self.modules if span.path == p or span.path.startswith(f"{p}.") or not p]
        return min(around, key=len, default=None)


def _findings(bad: list[tuple[Span, Span]], shared: _Shared) -> list[_Found]:
    found: list[_Found] = []
    by_module: dict[str, list[str]] = {}
    for one, other in bad:
        root = shared.module_of(one) if other.role == "teacher" else None
        if root is None:
            said = f"{one.full} shares memory with {other.full}"
            pair = LayerFinding(path=one.path, kind=one.kind, ok=False, finding=said)
            found.append(_Found(f"{one.full} with {other.full}", pair))
        else:
            by_module.setdefault(root, []).append(one.name.removeprefix(root).lstrip("."))
    for root, names in by_module.items():
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        said = f"is the teacher's own module, so what writes its {listed} changes the teacher"
        kind = type(shared.modules[root]).__name__
        layer = LayerFinding(path=root, kind=kind, ok=False, finding=said)
        found.append(_Found(f"{called(root)} is the teacher's own module", layer))
    return found


def _headline(findings: list[_Found]) -> str:
    modules = [found for found in findings if "own module" in found.said]
    pairs = [found for found in findings if found not in modules]
    parts = []
    if pairs:
        parts.append(f"{len(pairs)} {'pairs' if len(pairs) > 1 else 'pair'} of tensors share memory: {pairs[0].said}")
    if modules:
        parts.append(modules[0].said + (f", and so are {len(modules) - 1} more" if len(modules) > 1 else ""))
    return "; ".join(parts)


def _remedies(bad: list[tuple[Span, Span]], findings: list[_Found], choices: list[LayerFinding]) -> Iterable[str]:
    if any("own module" in found.said for found in findings) or any(one.role == "deterministic" for one, _ in bad):
        yield COPY
    if any("shares memory" in found.layer.finding for found in findings):
        posteriors = [(one, other) for one, other in bad if one.role == "posterior"]
        aliased = any("mu" in one.name and other.role in ("prior", "teacher") for one, other in posteriors)
        if posteriors:
            yield CLONE + (MOPED if aliased else "")
    if choices and not findings:
        yield EVAL
