"""Whether each layer is in use: called for some example, or with an excuse for not being called."""

from __future__ import annotations

from pytest_bnn.checks.layers._calls import calls, calls_in_train_mode
from pytest_bnn.checks.layers._row import IDLE, REMEDY, Row
from pytest_bnn.libraries.alignment import Alignment
from pytest_bnn.libraries.posterior import BayesianLayer
from pytest_bnn.network.naming import called
from pytest_bnn.subject import Subject, fitted


def require_use(subject: Subject, layers: dict[str, BayesianLayer], rows: list[Row], notes: list[str]) -> None:
    """Note at the rows which layers are never called; drop deterministic ones of the model's own that nothing calls."""
    places = {row.path if row.place is None else row.place: row for row in rows}
    extra = {row.path for row in rows if row.place is None and row.problem and row.remedy == REMEDY}
    if subject.images is None:
        if layers:
            notes.append("no images were given, so it was not seen whether every Bayesian layer is called")
        return
    rows_in = fitted(subject.images, subject.model)
    seen = calls(subject.model, rows_in, set(layers) | extra, seed=subject.seed)
    if seen.error:
        notes.append(f"it was not seen which layers are called: the forward raised {seen.error}")
        return
    if subject.teacher is not None:
        for path in sorted(extra - seen.ever):
            rows.remove(places.pop(path))
            notes.append(f"{called(path)} is deterministic, and outside of the claim: no forward pass calls it")
    for path in sorted(_idle(subject, set(layers) - seen.ever, notes)):
        if path not in places:
            places[path] = Row(path, layers[path].kind, layers[path].weights)
            rows.append(places[path])
        places[path].fail(f"is never called in a forward pass, for none of {len(rows_in)} examples", IDLE)


def _idle(subject: Subject, silent: set[str], notes: list[str]) -> set[str]:
    """Return the layers that no pass called and that have no excuse."""
    if not silent or subject.images is None:
        return set()
    original = _originals(subject.alignment, silent) if subject.teacher is not None else {}
    if original and subject.teacher is not None:
        images, wanted = fitted(subject.images, subject.teacher), set(original.values())
        ever = calls(subject.teacher, images, wanted, seed=subject.seed).ever
        silent = {path for path in silent if path not in original or original[path] in ever}
        judged = silent & original.keys()
        always = calls(subject.teacher, images, wanted, seed=subject.seed, single=True).always if judged else None
        for path in sorted(judged):
            if always is not None and original[path] not in always:
                silent.remove(path)
                notes.append(f"{called(path)} was not called; its teacher calls it for some examples only")
    # A layer of the teacher, called there in eval mode, has no excuse in being called in train mode.
    free = silent - set(subject.alignment.paths.values())
    trained = calls_in_train_mode(subject.model, subject.images, seed=subject.seed) & free if free else set()
    notes += [f"{called(path)} is called in train mode only" for path in sorted(trained)]
    return silent - trained


def _originals(alignment: Alignment, layers: set[str]) -> dict[str, str]:
    """Return the teacher's module for each layer: its own counterpart, or that of the nearest module around it."""
    teacher_paths, found = alignment.teacher_paths(), {}
    for path in layers:
        around = path
        while around and around not in teacher_paths:
            around = around.rpartition(".")[0]
        if teacher_paths.get(around):
            found[path] = teacher_paths[around]
        elif path in teacher_paths:
            found[path] = teacher_paths[path]
    return found
