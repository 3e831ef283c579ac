"""What a case is: an input, and the right answer to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

#: The verdicts that accuse nobody and leave nothing open.
SOUND = ("pass", "warn", "not_applicable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What somebody audits; ``data`` is made anew by each call, as a factory of theirs would."""

    model: nn.Module
    teacher: nn.Module | None = None
    data: Callable[[], Any] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    stage: str = "auto"
    kl_weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An input of a kind, and the right answer: of all checks not named in ``verdicts`` none may accuse.

    Attributes:
        name: What it is, in words.
        kind: What assumption it lies outside of.
        make: Makes the input.
        verdicts: The verdicts that a check may give, by its id.
        says: What a check's evidence has to say, as a regular expression, by its id.
        push: Whether it stands for its kind in every push.
        needs: A distribution that it cannot do without, and nobody else needs.
    """

    name: str
    kind: str
    make: Callable[[], Input]
    verdicts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)
    push: bool = False
    needs: str | None = None


#: All of them, in the order of their files.
CASES: list[Case] = []


def case(
    kind: str,
    *,
    verdicts: Mapping[str, str] | None = None,
    says: Mapping[str, str] | None = None,
    push: bool = False,
    needs: str | None = None,
) -> Callable[[Callable[[], Input]], Callable[[], Input]]:
    """Add a factory to the cases; verdicts are written ``"fail"`` or ``"fail or not_applicable"``."""

    def add(make: Callable[[], Input]) -> Callable[[], Input]:
        allowed = {id: tuple(words.split(" or ")) for id, words in (verdicts or {}).items()}
        name = make.__name__.replace("_", " ")
        CASES.append(Case(name=name, kind=kind, make=make, verdicts=allowed, says=says or {}, push=push, needs=needs))
        return make

    return add
