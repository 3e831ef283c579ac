"""What a property is: a name, when it applies, and a function that raises where it does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pytest_bnn.isolation import raised_in
from pytest_bnn.properties._trial import Trial

When = Literal["converted", "refused", "failed", "always"]


class PropertyError(AssertionError):
    """A property that does not hold: its name, the layer that shows it (a path, where there is one), and how.

    ``cause`` is the exception that the converted network raised, where it did.
    """

    def __init__(self, name: str, problem: str, *, layer: str | None = None, cause: Exception | None = None) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem
        self.layer = layer
        self.cause = cause


class Broken(Exception):  # noqa: N818  raised and caught here only, on the way to a PropertyError
    """Raised inside a property, which adds its name."""

    def __init__(self, problem: str, *, layer: str | None = None, cause: Exception | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.layer = layer
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Property:
    """One property of conversions; call it with a `Trial`.

    Raises `PropertyError`, an AssertionError that begins with the property's name, where it does not hold.
    An exception of the converted network counts as that too. Where it does not apply, it does nothing.
    """

    name: str
    when: When
    test: Callable[[Trial], None]
    __doc__: str

    def applies(self, trial: Trial) -> bool:
        """Whether the property says anything about this trial."""
        if self.when == "converted":
            return trial.converted is not None
        if self.when == "refused":
            return trial.refused
        return trial.error is not None if self.when == "failed" else True

    def __call__(self, trial: Trial) -> None:
        if not self.applies(trial):
            return
        try:
            self.test(trial)
        except Broken as broken:
            raise PropertyError(self.name, broken.problem, layer=broken.layer, cause=broken.cause) from broken.cause
        except Exception as error:
            place = raised_in(trial.converted, error) if trial.converted is not None else ""
            layer = place.partition(" (")[0] or None
            where = f" in {place}" if place else ""
            problem = f"{type(error).__name__}{where}: {error}"
            raise PropertyError(self.name, problem, layer=layer, cause=error) from error


def holds(name: str, when: When = "converted") -> Callable[[Callable[[Trial], None]], Property]:
    """Make a property of a function."""

    def decorate(test: Callable[[Trial], None]) -> Property:
        return Property(name, when, test, test.__doc__ or "")

    return decorate
