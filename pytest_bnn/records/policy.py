"""What fails a test: the policy in force says it, where the caller does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol, TypeAlias

Inconclusive: TypeAlias = Literal["fail", "warn"]


class Policy(Protocol):
    """Says what fails a test, such as a recorder; its answers may change."""

    #: Whether an inconclusive verdict is a failure or a warning.
    inconclusive: Inconclusive

    def knows(self, evidence: Any) -> bool:
        """Return whether a failed `Evidence` is known from before, so that it fails nothing."""


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


def is_known(evidence: Any) -> bool:
    """Return whether a failed `Evidence` is known from before: False without a policy in force."""
    policy = _policy.get()
    return policy is not None and policy.knows(evidence)
