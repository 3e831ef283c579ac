"""What all tests share. pytest allows `pytest_plugins` at the root of the tests only: its own test bench."""

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _no_options_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep options meant for this session, such as CI's number of workers, away from the sessions that tests start."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
