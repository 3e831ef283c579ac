"""What all tests share. pytest allows `pytest_plugins` at the root of the tests only: its own test bench."""

from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True, scope="session")
def _no_options_from_outside() -> Iterator[None]:
    """Keep options meant for this session, such as CI's number of workers, away from the sessions that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_ADDOPTS", raising=False)
        yield
