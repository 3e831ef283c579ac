"""``@check``: a claim about a subject and the function that judges it become `Check`, with ``measure`` and ``assert_``.

Loads neither torch nor numpy before a check runs, so that a conftest may declare checks.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_bnn.checks import choices, registry
from pytest_bnn.checks.changed import IN_PYTHON, changes_by
from pytest_bnn.checks.declaration import BUDGET, CheckOption, Declaration, Need
from pytest_bnn.checks.finding import Finding, LossError, at_fault, not_applicable
from pytest_bnn.checks.values import NoKindError, annotated, kind_of
from pytest_bnn.errors import InputError, OptionError
from pytest_bnn.options import budget_in_force, in_force
from pytest_bnn.records.evidence import Evidence
from pytest_bnn.records.recorder import record
from pytest_bnn.subject import Subject

if TYPE_CHECKING:
    from torch import nn

    from pytest_bnn.stats.budget import Budget
    from pytest_bnn.subject import Subject


class Check:
    """A claim about a subject with the function that judges it; made by `check`.

    Args:
        id: The id in reports and options.
        claim: What is true of a sound model.
        needs: What must be given beside the model: ``"teacher"``, ``"images"``, ``"loss"``.
        sampled: Whether sampling decides it.
        function: The function that judges it.
        declaration: All of this, where it is known already.
    """

    def __init__(
        self,
        *,
        id: str = "",
        claim: str = "",
        needs: tuple[Need, ...] = (),
        sampled: bool = False,
        function: Callable[..., Finding] | None = None,
        declaration: Declaration | None = None,
    ) -> None:
        self.declaration = declaration or Declaration(id=id, claim=claim, needs=needs, sampled=sampled)
        self.function = function
        self._takes_budget = function is not None and BUDGET in inspect.signature(function).parameters
        #: ``measure(model_or_subject, **options, **given)`` -> Evidence; see `Subject` for what can be given.
        self.measure = _measuring(self)
        #: The same; raises AssertionError with the whole story when the claim fails.
        self.assert_ = _asserting(self)

    def __repr__(self) -> str:
        return f"Check({self.id!r})"

    def __call__(self, subject: Subject, /, **options: Any) -> Finding:
        """Judge a subject with these options and nothing around it: no evidence, no record, no error caught."""
        assert self.function is not None
        return self.function(subject, **options)

    @property
    def id(self) -> str:
        """The id in reports and options."""
        return self.declaration.id

    @property
    def claim(self) -> str:
        """What is true of a sound model."""
        return self.declaration.claim

    @property
    def needs(self) -> tuple[Need, ...]:
        """What must be given beside the model."""
        return self.declaration.needs

    @property
    def sampled(self) -> bool:
        """Whether sampling decides it."""
        return self.declaration.sampled

    def run(self, subject: Subject, find: Callable[[Subject], Finding]) -> Evidence:
        """Find out whether the claim holds, and record the evidence.

        A model whose own forward raises fails the claim; anything else that goes wrong inside the check is the
        verdict ``error``; wrong input (`PytestBnnError`) is raised.
        """
        from pytest_bnn.checks.judging import judged

        return judged(self.declaration, subject, find, inside_an_audit=False)

    def judge(
        self, subject: Subject, options: Mapping[str, object], budget: Budget | None, *, severity: choices.Severity
    ) -> Evidence:
        """Judge a subject as a part of an audit: wrong input to this check is its verdict ``error``."""
        from pytest_bnn.checks.judging import judged

        find = functools.partial(self, **options, **self.budgeted(budget))
        return judged(self.declaration, subject, find, inside_an_audit=True, severity=severity)

    def budgeted(self, budget: Budget | None) -> dict[str, Budget]:
        """Return the argument for the share of the error rates, where the function takes one; those in force when None.

        Args:
            budget: The share.
        """
        if not self._takes_budget:
            return {}
        return {BUDGET: budget or budget_in_force()}


def check(
    id: str = "",
    *,
    claim: str,
    needs: tuple[Need, ...] = (),
    can: tuple[str, ...] = (),
    sampled: bool = False,
    after: str = "",
    of_data: bool = False,
    either: tuple[str, ...] = (),
) -> Callable[[Callable[..., Finding]], Check]:
    """Make a check of a function ``name(subject, *, option=default, ...) -> Finding``.

    From then on it is one of the checks of ``pytest-bnn audit``, ``bnn_audit`` and the report. The function's
    keyword-only arguments are its options: bool, int, float, str, ``Literal``, a pair of these, ``Mapping[str, str]``
    or an alias of `pytest_bnn.checks.values`; each with a default. An argument ``budget`` is the check's share of the
    error rates.

    Args:
        id: ``"mycompany.rule"``. Checks in this package have the id of their place.
        claim: What is true of a sound model, as one sentence.
        needs: What must be given beside the model: ``"teacher"``, ``"images"``, ``"loss"``. Where one of them is
            missing, the claim is not applicable.
        can: The capabilities that the claim needs of the adapter of the layers' library, such as ``"mean_field"`` (see
            `pytest_bnn.libraries.protocol.CAPABILITIES`). Where one is missing, the claim is not applicable.
        sampled: Whether sampling decides the claim, so that it takes a share of the run's error rates.
        after: The id of the check that it follows in a report.
        of_data: Whether the claim is about data of which there may be too few to decide it: undecided it counts as a
            warning, unless ``--inconclusive fail`` was asked for.
        either: Names of options of which at most one is given.

    Raises:
        InputError: There is a check of this id already, or an option has no default or a type that no text gives.
    """

    def decorate(function: Callable[..., Finding]) -> Check:
        __tracebackhide__ = True  # pytest shows the line of the decorator
        name = id or registry.id_of_place(function)
        declaration = Declaration(
            id=name,
            claim=claim,
            needs=tuple(needs),
            can=tuple(can),
            sampled=sampled,
            after=after,
            of_data=of_data,
            options=_options_of(function, name),
            either=tuple(either),
            where=function.__module__,
        )
        made = Check(function=function, declaration=declaration)
        registry.register(made, Path(function.__code__.co_filename))
        return made

    return decorate


def _options_of(function: Callable[..., Finding], id: str) -> tuple[CheckOption, ...]:
    options = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or name == BUDGET:
            continue
        given = parameter.annotation
        try:
            kind = kind_of(annotated(given, function.__globals__) if isinstance(given, str) else given)
        except NoKindError:
            raise InputError(
                f"the option {name} of the check {id} is annotated with {given!r}, which no text can give",
                fix="annotate it with bool, int, float, str, Literal, a pair of these or Mapping[str, str]",
            ) from None
        if parameter.default is inspect.Parameter.empty:
            raise InputError(f"the option {name} of the check {id} has no default", fix="give it one in the signature")
        options.append(CheckOption(name=name, kind=kind, default=parameter.default))
    return tuple(options)


def _measuring(check: Check) -> Callable[..., Evidence]:
    """Make the ``measure_*`` of a check, with the signature and the documentation that its function asks for."""

    def measure(model: nn.Module | Subject, **arguments: Any) -> Evidence:
        from pytest_bnn.checks.judging import judged
        from pytest_bnn.subject import Given, Subject

        known = Given.__required_keys__ | Given.__optional_keys__
        given = {name: arguments.pop(name) for name in [*arguments] if name in known}
        budget = arguments.pop(BUDGET, None) if check._takes_budget else None
        options = choices.filled(check.declaration, arguments)
        for change in changes_by(check.id, arguments, IN_PYTHON):
            record(change)
        if not isinstance(model, Subject):
            given = {"seed": int(in_force().seed), **given}
        subject = Subject.of(model, given)  # type: ignore[arg-type]
        find = functools.partial(check, **options, **check.budgeted(budget))
        severity = choices.severity_of(check.id)
        return judged(check.declaration, subject, find, inside_an_audit=False, severity=severity)

    measure.__name__ = measure.__qualname__ = f"measure_{check.id.replace('.', '_')}"
    if check.function is not None:
        measure.__module__ = check.function.__module__
    measure.__signature__ = _signature(check)  # type: ignore[attr-defined]
    measure.__doc__ = _documentation(check)
    return measure


def _asserting(check: Check) -> Callable[..., Evidence]:
    """Make the ``assert_*`` of a check: the same arguments, AssertionError when the claim fails."""

    @functools.wraps(check.measure)
    def assert_(*args: Any, **kwargs: Any) -> Evidence:
        __tracebackhide__ = True
        return check.measure(*args, **kwargs).raise_if_failed()

    assert_.__name__ = assert_.__qualname__ = f"assert_{check.id.replace('.', '_')}"
    summary = (check.measure.__doc__ or "").replace("Measure whether", "Assert that", 1)
    assert_.__doc__ = f"{summary.rstrip()}\n\nRaises AssertionError with the whole story when the claim fails.\n"
    return assert_


def _signature(check: Check) -> inspect.Signature:
    kinds = inspect.Parameter
    parameters = [kinds("model", kinds.POSITIONAL_OR_KEYWORD, annotation="nn.Module | Subject")]
    for option in check.declaration.options:
        annotation = option.kind.annotation
        parameters.append(kinds(option.name, kinds.KEYWORD_ONLY, default=option.default, annotation=annotation))
    if check._takes_budget:
        parameters.append(kinds(BUDGET, kinds.KEYWORD_ONLY, default=None, annotation="Budget | None"))
    parameters.append(kinds("given", kinds.VAR_KEYWORD, annotation="Unpack[Given]"))
    return inspect.Signature(parameters, return_annotation="Evidence")


def _documentation(check: Check) -> str:
    """Return the documentation of ``measure_*``: the function's, with what it says of the subject under **given."""
    text = inspect.getdoc(check.function) if check.function is not None else ""
    if not text:
        return f"Measure whether the claim holds: {check.claim}"
    found = re.search(r"^    subject: (.*(?:\n        .*)*)\n?", text, re.M)
    given = found[1] if found else "See `Subject`."
    if found:
        text = text[: found.start()] + text[found.end() :]
    arguments = "    model: The Bayesian network, or a `Subject`.\n"
    last = f"    **given: {given}\n"
    if check._takes_budget and "    budget: " not in text:
        last = "    budget: Error rates; those in force when None.\n" + last
    head, heading, rest = text.partition("Args:\n")
    if not heading:
        head, heading, rest = f"{text.rstrip()}\n\n", "Args:\n", ""
    entries = re.match(r"(?:    .*\n?)*", rest)
    assert entries is not None
    own = entries[0].rstrip("\n")
    return f"{head}{heading}{arguments}{own + chr(10) if own else ''}{last}{rest[entries.end() :]}"


__all__ = ["Check", "Finding", "LossError", "OptionError", "at_fault", "check", "not_applicable"]
