"""What makes a network anew: the user's own function, with how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Factory:
    """Calls a function without arguments and remembers how many seconds its last call took.

    Args:
        make: Gives a network, anew in each call.

    Attributes:
        seconds: How long the last call took; None before the first one.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.seconds: float | None = None

    def __call__(self) -> Any:
        """Make a network."""
        start = time.perf_counter()
        try:
            return self.make()
        finally:
            self.seconds = time.perf_counter() - start
