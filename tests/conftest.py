"""What all tests share. pytest allows `pytest_plugins` at the root of the tests only: its own test bench.

Hypothesis' profiles: ``ci`` repeats itself; ``--hypothesis-profile=random`` does not, and ``nightly`` is long, too.
Both say so, because a profile takes what it leaves out from Hypothesis' own, which repeats itself where ``CI`` is set.
Tests that settle ``derandomize`` themselves repeat themselves under each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from torch import Tensor, nn

pytest_plugins = ["pytester"]

# Here, not beside the tests that need them: pytest reads deeper conftests too late to choose among profiles.
settings.register_profile("ci", max_examples=150, derandomize=True, deadline=None, database=None)
settings.register_profile("random", max_examples=150, derandomize=False, deadline=None, database=None, print_blob=True)
settings.register_profile("nightly", settings.get_profile("random"), max_examples=5000)
settings.load_profile("ci")


@pytest.fixture(autouse=True, scope="session")
def _no_options_from_outside() -> Iterator[None]:
    """Keep options meant for this session, such as CI's number of workers, away from the sessions that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_ADDOPTS", raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _memory_holds_anything() -> Iterator[None]:
    """Begin noise buffers, which the library leaves as memory was, as NaN: nothing may depend on what was there."""
    import torch

    register = torch.nn.Module.register_buffer

    def filled(module: nn.Module, name: str, tensor: Tensor | None, *arguments: Any, **named: Any) -> None:
        if name.startswith("eps_") and tensor is not None:
            tensor.fill_(float("nan"))
        register(module, name, tensor, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "register_buffer", filled)
        yield
