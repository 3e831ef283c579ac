"""What an inconclusive verdict counts as, where nobody says: as whatever is in force says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from pytest_bnn.records.evidence import Inconclusive


class Policy(Protocol):
    """What knows whether an inconclusive verdict counts as a failure: a recorder, which may change its mind."""

    inconclusive: Inconclusive


_policy: ContextVar[Policy | None] = ContextVar("pytest_bnn_policy", default=None)


@contextmanager
def following(policy: Policy) -> Iterator[None]:
    """Let ``policy`` be in force inside."""
    token = _policy.set(policy)
    try:
        yield
    finally:
        _policy.reset(token)


def inconclusive_policy() -> Inconclusive:
    """Say what an inconclusive verdict counts as here: the policy in force, ``"fail"`` without one."""
    policy = _policy.get()
    return "fail" if policy is None else policy.inconclusive
