"""What must hold however a conversion ends: the teacher untouched; a refusal with a reason, and nothing half done."""

from __future__ import annotations

from pytest_bnn.properties.trial import PropertyError, Trial, first_line


def teacher_is_untouched(trial: Trial) -> None:
    """The network that was handed over is as it was, unless the converter gives it back: then it works in place."""
    if trial.in_place:
        return
    found = trial.before.difference(trial.given)
    if found:
        raise PropertyError("teacher_is_untouched", found[1], [found[0]])


def failure_is_a_refusal(trial: Trial) -> None:
    """A converter that cannot convert a network says so with `pytest_bnn.ConversionError`; it raises nothing else."""
    if trial.error is not None and not trial.refused:
        text = f"{type(trial.error).__name__}: {first_line(trial.error)}"
        raise PropertyError("failure_is_a_refusal", text) from trial.error


def refusal_names_the_module(trial: Trial) -> None:
    """A refusal names a module by its path, or the network by its class."""
    if not trial.refused:
        return
    message = str(trial.error)
    names = {path for path, _ in trial.network.named_modules(remove_duplicate=False) if path}
    names |= {f"{name}" for name, _ in trial.network.named_parameters()} | {type(trial.network).__name__}
    if not any(name in message for name in names):
        raise PropertyError("refusal_names_the_module", f"the reason names no module of the network: {message}")


def failure_leaves_nothing_half_done(trial: Trial) -> None:
    """Where the converter raised, the network that it got is as it was, in every module and tensor."""
    if trial.error is None:
        return
    found = trial.before.difference(trial.given)
    if found:
        text = f"the converter raised {type(trial.error).__name__} and left the network changed: {found[1]}"
        raise PropertyError("failure_leaves_nothing_half_done", text, [found[0]]) from trial.error
