"""From a finding to recorded evidence: what goes wrong on the way becomes a verdict, never the end of the process."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pytest_bnn.checks._first import on_first_ones
from pytest_bnn.checks.choices import Severity
from pytest_bnn.checks.declaration import Declaration
from pytest_bnn.checks.finding import (
    NO_EXIT,
    RAISED,
    TRAINING_LOSS,
    Finding,
    LossError,
    NoCutError,
    NotHereError,
    not_applicable,
    raised_remedy,
)
from pytest_bnn.errors import PytestBnnError, in_words
from pytest_bnn.libraries.posterior import KlError
from pytest_bnn.libraries.registry import lacking
from pytest_bnn.network.calling import ForwardError
from pytest_bnn.network.devices import trouble, where
from pytest_bnn.network.float64 import float64_for
from pytest_bnn.options import in_force, sources_in_force
from pytest_bnn.progress import Event, begin
from pytest_bnn.records.evidence import Evidence, Measurement, Verdict
from pytest_bnn.records.recorder import record, recorder_in_force, running_test
from pytest_bnn.sampling.freed import give_memory_back
from pytest_bnn.sampling.threads import limited
from pytest_bnn.subject import Subject


def judged(
    check: Declaration,
    subject: Subject,
    find: Callable[[Subject], Finding],
    *,
    inside_an_audit: bool,
    severity: Severity = "error",
) -> Evidence:
    """Find out whether a claim holds, and record the evidence.

    A model whose own forward raises fails the claim. Anything else that goes wrong inside the check is the verdict
    ``error``, `SystemExit` too. Wrong input (`PytestBnnError`) is raised; inside an audit, which goes on with the next
    check, it is the verdict ``error`` with the fix as its remedy.

    Args:
        check: What is claimed.
        subject: What is judged.
        find: Judges it.
        inside_an_audit: Whether other checks of the same subject follow.
        severity: With ``"warn"`` a failure is a warning; with ``"off"`` the claim is not judged.
    """
    start = time.perf_counter()
    subject.samplers.clear()
    if not inside_an_audit:
        begin(Event(subject=subject.name, check=check.id))
    ours = check.where.startswith("pytest_bnn.")  # others say it as they want it said

    def of_its_data(it: Subject) -> Finding:
        found = find(it)
        return on_first_ones(it, found) if check.of_data and not ours else found  # ours say which examples they take

    finding = _found(subject, lambda it: _premise(check, it, severity) or of_its_data(it), inside_an_audit)
    if inside_an_audit:
        give_memory_back()
    if check.of_data and finding.verdict is Verdict.INCONCLUSIVE and not _must_decide():
        note = "examples that do not decide the claim count as a warning; --inconclusive fail makes it a failure"
        finding = replace(finding, verdict=Verdict.WARN, notes=(*finding.notes, note))
    if severity == "warn" and finding.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        word = {"fail": "a failure", "inconclusive": "an undecided claim"}[finding.verdict.value]
        note = f"the severity of {check.id} is warn: {word} counts as a warning"
        finding = replace(finding, verdict=Verdict.WARN, notes=(*finding.notes, note))
    with float64_for(where(subject.model)):
        stage = subject.stage
    write, of_layer = (_sentence, _of_layer) if ours else (str, str)
    notes = finding.notes + _notes(check, subject, finding)
    evidence = Evidence(
        id=check.id,
        subject=subject.name,
        stage=stage,
        verdict=finding.verdict,
        claim=check.claim,
        headline=write(finding.headline),
        measurements=finding.measurements,
        threshold=finding.threshold,
        layers=tuple(replace(layer, finding=of_layer(layer.finding)) for layer in finding.layers),
        remedy=write(finding.remedy),
        notes=tuple(map(write, notes)),
        seed=subject.seed,
        samples=finding.samples,
        seconds=round(time.perf_counter() - start, 3),
        sampler=", then ".join(subject.samplers),
        certainty=finding.certainty,
        charts=finding.charts,
        accepted=finding.accepted,
        missing=finding.missing,
        explained_by=finding.explained_by,
        test=running_test(),
        key=subject.key,
    )
    record(evidence)
    return evidence


#: A first word that is one: no path, no call and no name with a dot or an underscore in it.
_WORD = re.compile(r"[a-z]+(?=[\s,;:'\u2019)]|-[a-z]|$)")


def _sentence(text: str) -> str:
    """Write a finding as a sentence: with a capital letter, and a full stop."""
    text = text.strip()
    if _WORD.match(text):
        text = text[0].upper() + text[1:]
    return text + "." if text and text[-1] not in ".!?" else text


#: What a layer does, or is, where it is not said of what.
_PREDICATE = re.compile(r"(is|are|was|has|does|draws|gets|gives|keeps|multiplies|puts|shares|shows|never)\b")


def _of_layer(text: str) -> str:
    """Write a finding about a layer, behind whose name it stands, as a sentence: about "it" where it names nothing."""
    return _sentence(f"it {text}" if _PREDICATE.match(text) else text)


def _must_decide() -> bool:
    """Say whether someone asked that claims about data which stay undecided fail."""
    return in_force().inconclusive == "fail" and "inconclusive" in sources_in_force()


def _notes(check: Declaration, subject: Subject, finding: Finding) -> tuple[str, ...]:
    """Return the notes about the data and the loss's batch, where the verdict rests on them."""
    if finding.verdict is Verdict.NOT_APPLICABLE and not finding.measurements:
        return ()
    return (subject.notes if "images" in check.needs else ()) + (subject.loss_notes() if "loss" in check.needs else ())


def _premise(check: Declaration, subject: Subject, severity: Severity) -> Finding | None:
    """Say that the claim is not judged here, where it is not."""
    if severity == "off":
        return not_applicable(f"switched off: the severity of {check.id} is off; set it to error or warn to judge it")
    missing = {need: said for need in check.needs if (said := subject.missing(need))}
    if missing:
        return not_applicable(next(iter(missing.values())), tuple(missing))
    lacks = next(filter(None, (lacking(subject.model, capability) for capability in check.can)), "")
    return not_applicable(lacks) if lacks else None


def _found(subject: Subject, find: Callable[[Subject], Finding], inside_an_audit: bool) -> Finding:
    try:
        with limited(), float64_for(where(subject.model)):
            return find(subject)
    except PytestBnnError as error:
        if not inside_an_audit:
            raise
        return Finding(verdict=Verdict.ERROR, headline=error.problem, remedy=error.fix)
    except ForwardError as error:
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"the model's own forward raised {error}",
            measurements=(Measurement(name=RAISED, value=str(error)),),
            remedy=raised_remedy(
                error,
                "make model(images) work first, on this machine and in eval mode; where a shape or a dtype does not "
                "fit, and fits in the teacher, the conversion changed it",
            ),
        )
    except LossError as error:
        return Finding(
            verdict=Verdict.FAIL,
            headline=str(error),
            measurements=(Measurement(name=TRAINING_LOSS, value=error.value),),
            remedy="look for NaN in mu, rho, the noise and the KL term (kl.present and noise.varies name the layer), "
            "then in the loss's data term and its batch",
        )
    except NotHereError as error:
        return not_applicable(str(error), error.missing)
    except NoCutError as error:
        return not_applicable(str(error))
    except KlError as error:
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"the model's own kl_loss() raised {error}",
            remedy="make get_kl_loss(model) work first; a layer whose prior and posterior differ in shape or dtype "
            "cannot have a KL term",
        )
    except (SystemExit, GeneratorExit) as error:
        return _ended(error)
    except Exception as error:
        if reason := _beyond_the_device(subject, error):
            return not_applicable(reason)
        return Finding(
            verdict=Verdict.ERROR,
            headline=f"the check itself broke: {type(error).__name__}: {error}",
            remedy="this is a defect of the check, or the model is of a kind that the check does not know: report it "
            "with the model",
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # A test's skip or timeout is for whoever runs the test; without one, it would end an audit.
        if recorder_in_force() or not inside_an_audit:
            raise
        return _ended(error)


#: What a device cannot do, by `devices.trouble`.
_BEYOND = {
    "float64": "the check computes in float64, which {} does not have",
    "lacks": "the check uses an operation that {} does not have",
    "mixed": "the check, the model or the loss brings tensors of another device together with those of {}",
}


def _beyond_the_device(subject: Subject, error: Exception) -> str:
    """Say why a check cannot be computed where the model is; empty on the CPU, and for other errors."""
    device = where(subject.model)
    words = _BEYOND.get(trouble(error), "")
    if device is None or device.type == "cpu" or not words:
        return ""
    return f"{words.format(device)} ({in_words(error)}); --device cpu judges the model on the CPU"


def _ended(error: BaseException) -> Finding:
    """Say that the model, the loss or the data tried to end the process."""
    said = f"{type(error).__name__}({', '.join(map(repr, error.args))})"
    return Finding(
        verdict=Verdict.ERROR,
        headline=f"what the check ran tried to end the process: {said}{_place(error)}",
        remedy=NO_EXIT,
    )


def _place(error: BaseException) -> str:
    """Name the innermost line that is not ours, torch's or Python's."""
    ours = Path(__file__).parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        inner = {"torch", "bayesian_torch", "_pytest", "pluggy"} & set(path.parts) or ours in path.parents
        if path.suffix == ".py" and not inner:
            return f", in {frame.name}, line {frame.lineno} of {path.name}"
    return ""
