"""What all tests share: the two tiers, Hypothesis' profiles, and what is made once for all workers.

A plain ``pytest`` is what every push runs. Tests marked ``nightly(reason)`` wait for ``pytest --nightly``, which runs
everything, with random examples and ten times as many.

Hypothesis' profiles: ``push`` repeats itself; ``--hypothesis-profile=random`` does not; ``nightly``, the one of
``--nightly``, is longer, too, and ``long`` takes hours. All say what they are in full, because a profile takes what it
leaves out from Hypothesis' own, which repeats itself where ``CI`` is set. Tests that settle ``derandomize`` themselves
repeat themselves under each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import settings

if TYPE_CHECKING:
    from torch import Tensor, nn

pytest_plugins = ["pytester"]

# Here, not beside the tests that need them: pytest reads deeper conftests too late to choose among profiles.
settings.register_profile("push", max_examples=30, derandomize=True, deadline=None, database=None)
settings.register_profile("random", max_examples=30, derandomize=False, deadline=None, database=None, print_blob=True)
settings.register_profile("nightly", settings.get_profile("random"), max_examples=300)
settings.register_profile("long", settings.get_profile("random"), max_examples=5000)
settings.load_profile("push")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run every test, with random examples and more of them")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "nightly(reason): too long for every push; `pytest --nightly` runs it")
    # A profile that was asked for by name is loaded by Hypothesis' own plugin, after this.
    if config.getoption("--nightly"):
        settings.load_profile("nightly")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep tests of the nightly tier for ``--nightly``,."""
    late = [item for item in items if item.get_closest_marker("nightly")]
    for item in late:
        mark = item.get_closest_marker("nightly")
        if mark is not None and not (len(mark.args) == 1 and isinstance(mark.args[0], str) and mark.args[0].strip()):
            raise pytest.UsageError(f"{item.nodeid}: the mark nightly needs the reason, and nothing else")
    if late and not config.getoption("--nightly"):
        config.hook.pytest_deselected(items=late)
        items[:] = [item for item in items if item not in set(late)]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], Any]], Any]:
    """Make something expensive once for all workers: ``once(name, make)``.

    What `make` gives has to be plain: trees of tensors, numbers and text, as state dicts are. The first worker that
    asks makes it and leaves it in the folder that the workers share; the others wait for it and read it.
    """
    import torch

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def once(name: str, make: Callable[[], Any]) -> Any:
        path: Path = folder / f"{name}.pt"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                torch.save(make(), path)
        # Also for the one that made it: all workers work with the same.
        return torch.load(path, weights_only=True)

    return once


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
