"""The nodes of zero-code audits: one item a check, below the network that it judges, below the file that lists it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_bnn.audit.subjects import Described
from pytest_bnn.checks import choices, registry
from pytest_bnn.errors import ClaimWarning, InputError, PytestBnnError
from pytest_bnn.gathering.around_tests import in_force
from pytest_bnn.items import wording
from pytest_bnn.items.requests import TABLES, Wanted, of
from pytest_bnn.presets import PRESETS
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.policy import inconclusive_policy
from pytest_bnn.records.recorder import Recorder, record, record_cut, recording
from pytest_bnn.session import of_session, of_test

if TYPE_CHECKING:
    from _pytest._code.code import TerminalRepr

    from pytest_bnn.data.origin import Origin
    from pytest_bnn.subject import Subject


def roots(session: pytest.Session) -> list[pytest.Collector]:
    """Return the collectors of what is to be audited.

    Raises:
        UsageError: A node id names a check that does not exist.
    """
    request = of(session.config)
    for module in of_session(session.config).choices.plugins:
        registry.read_module(module)
    known = registry.ids()
    for wanted in (*request.named.values(), *request.listed.values()):
        for check in sorted((wanted.checks or set()) - set(known)):
            try:
                registry.refuse(check, wanted.described.name)
            except InputError as error:
                raise pytest.UsageError(str(error)) from None
    found: list[pytest.Collector] = []
    for name, wanted in request.named.items():
        # The id is no path: it has to be given.
        node = SubjectNode.from_parent(session, name=name, nodeid=name, path=wanted.described.path)
        found.append(node.of(wanted))
    if request.listed:
        tables = Tables.from_parent(session, path=session.config.rootpath / TABLES)
        tables.wanted = tuple(request.listed.values())
        found.append(tables)
    return found


class Tables(pytest.File):
    """The subjects of a pyproject.toml."""

    wanted: tuple[Wanted, ...] = ()

    def collect(self) -> Iterator[SubjectNode]:
        """Yield a collector for each of them."""
        for wanted in self.wanted:
            yield SubjectNode.from_parent(self, name=wanted.described.name).of(wanted)


class SubjectNode(pytest.Collector):
    """One network under audit: made when its first check runs, shared by its checks, freed after the last one."""

    described: Described
    checks: set[str] | None = None
    _subject: Subject | None = None
    _origin: Origin | None = None
    _missing: tuple[str, ...] = ()
    #: The check whose set-up told that the network cannot be made.
    _broken: str = ""

    def of(self, wanted: Wanted) -> SubjectNode:
        """Take what is audited; return the node."""
        self._found: list[Evidence] = []
        self.described, self.checks = wanted.described, wanted.checks
        return self

    def collect(self) -> Iterator[CheckItem]:
        """Yield an item for each check, in the order of a report."""
        grouped = self.config.pluginmanager.hasplugin("xdist")  # without it, nobody has declared the marker
        group = re.sub(r"[@\]\[]", "-", self.nodeid)
        session = of_session(self.config)
        with in_force(replace(session, choices=session.choices.and_also(self.described.choices))):
            wanted = [id for id in registry.ids() if not choices.left_out_by_preset(id)]
        for number, id in enumerate(registry.ids()):
            if id in (wanted if self.checks is None else self.checks):
                item = CheckItem.from_parent(self, name=id)
                item.order = f"{self.nodeid} {number:04}"
                item.add_marker(pytest.mark.bnn)
                if grouped:
                    item.add_marker(pytest.mark.xdist_group(group))
                yield item

    def setup(self) -> None:
        """Begin anew: a rerun tries again what failed."""
        self._broken = ""

    def make(self, item: CheckItem) -> None:
        """Make the network and its data, unless another check has."""
        if self._broken not in ("", item.name):
            raise pytest.skip.Exception(
                f"{self.described.name} cannot be audited, as {self._broken} says", _use_item_location=True
            )
        if self._subject is None:
            try:
                with self._in_force(item):
                    self._subject = self._made()
            except PytestBnnError as error:
                self._broken = item.name
                raise pytest.fail.Exception(wording.of_error(error, self.described.name), pytrace=False) from None
            self._broken = ""

    def judge(self, item: CheckItem) -> Evidence:
        """Judge one claim, with its share of the error rates of the whole audit."""
        from pytest_bnn.audit.run import planned, run_steps

        assert self._subject is not None
        # The subject is one, whichever item judges it: its key is this node's id, not the item's.
        own = Recorder(inconclusive=inconclusive_policy(), subject=self.described.name)
        with self._in_force(item), recording(own):
            # What a preset leaves out is judged where a node id names it, beside the others.
            whole = [id for id in registry.ids() if id == item.name or not choices.left_out_by_preset(id)]
            steps = [step for step in planned(whole, missing=self._missing) if step.id == item.name]
            (found,) = run_steps(self._subject, steps)
        evidence = replace(found, key=self.nodeid, test=f"{self.nodeid}::{item.name}")
        record(evidence)
        self._found.append(evidence)
        return evidence

    def teardown(self) -> None:
        """Describe the subject for the report, once, and let go of it."""
        subject, self._subject = self._subject, None
        if subject is not None:
            from pytest_bnn.audit.description import describe

            record(replace(describe(subject, (), self._found, self._origin), key=self.nodeid))
            self._found = []
            words = PRESETS[of_session(self.config).settings.preset].words
            if words and self.checks is None:
                record_cut(words)

    def _made(self) -> Subject:
        from pytest_bnn.audit.named import Named
        from pytest_bnn.audit.run import planned

        root = str(self.config.rootpath)
        if root not in sys.path:
            sys.path.insert(0, root)
        parts = Named(**self.described.parts).load(self.described.called)
        self._missing = tuple(parts.missing)
        planned(missing=self._missing)  # a wrong option is told once
        if self.described.checkpoint:
            parts = parts.with_state(self.described.checkpoint)
        self._origin = parts.origin
        return parts.subject(name=self.described.name)

    @contextmanager
    def _in_force(self, item: pytest.Item) -> Iterator[None]:
        with choices.choosing(of_test(item).choices.and_also(self.described.choices)):
            yield


class CheckItem(pytest.Item):
    """One check of one network."""

    parent: SubjectNode
    #: Its place among the items of one line, in the report.
    order: str = ""

    def take_group(self) -> None:
        """Take the id with a group that pytest-xdist gave: up to 3.8 it sets what pytest reads no more from 9.2 on."""
        given, known = self.__dict__.get("_nodeid"), getattr(self, "_id", None)
        parse = getattr(known, "parse", None)
        if given is not None and parse is not None:
            self._id = parse(given)

    def setup(self) -> None:
        """Make the network, unless another check has."""
        self.parent.make(self)

    def runtest(self) -> None:
        """Judge the claim."""
        evidence = self.parent.judge(self)
        listed = isinstance(self.parent.parent, Tables)
        if evidence.verdict is Verdict.NOT_APPLICABLE:
            raise pytest.skip.Exception(wording.in_pytest(evidence.headline, listed=listed), _use_item_location=True)
        told = wording.in_pytest(evidence.explain(), listed=listed)
        if evidence.fails():
            raise pytest.fail.Exception(told, pytrace=False)
        if evidence.verdict is not Verdict.PASS:
            self.warn(ClaimWarning(told))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str | TerminalRepr:
        """Show what broke from here on, without pytest's own frames."""
        excinfo.traceback = excinfo.traceback.cut(path=__file__)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """Return where to look: the factory, or its table."""
        described = self.parent.described
        return described.path, described.line - 1, f"{described.name}: {self.name}"
