"""Whether an inconclusive verdict is a failure or a warning, as the policy in force says where the caller does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from pytest_bnn.records.evidence import Inconclusive


class Policy(Protocol):
    """Anything that says whether an inconclusive verdict is a failure, such as a recorder; its answer may change."""

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
    """Say what an inconclusive verdict counts as, ``"fail"`` or ``"warn"``: ``"fail"`` without a policy in force."""
    policy = _policy.get()
    return "fail" if policy is None else policy.inconclusive
