"""What an option of a check may be, and how a text or a value of TOML becomes one. Loads nothing heavy.

A check annotates its options with bool, int, float, str, ``Literal``, a pair of these or ``Mapping[str, str]``, each
possibly ``| None``; with the aliases of this module where a value has bounds, or follows a setting such as
``--samples``.
"""

from __future__ import annotations

import ast
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on a value beside its type; ``words`` complete "give ..." and "must be ..."."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Follows:
    """The setting, by its name in Python, that an option takes where nobody gives the option itself.

    With ``lowers`` the setting can only lower the option's own default.
    """

    setting: str
    lowers: bool = False


def _increasing(pair: tuple[float, float]) -> bool:
    return 0 < pair[0] < pair[1] < math.inf


_FROM_2 = Rule("a whole number from 2", lambda value: value >= 2)

Share: TypeAlias = Annotated[float, Rule("a number above 0, up to 1", lambda value: 0 < value <= 1)]
Positive: TypeAlias = Annotated[float, Rule("a number above 0", lambda value: 0 < value < math.inf)]
Count: TypeAlias = Annotated[int, Rule("a whole number from 1", lambda value: value >= 1)]
Band: TypeAlias = Annotated[tuple[float, float], Rule("two numbers LOW:HIGH with 0 < LOW < HIGH", _increasing)]
Reasons: TypeAlias = Annotated[
    Mapping[str, str], Rule("NAME=REASON, each with a reason", lambda value: all(r.strip() for r in value.values()))
]
#: The most passes that a check may draw: ``--samples``.
Passes: TypeAlias = Annotated[int, _FROM_2, Follows("samples")]
#: The same for a check whose default is as many as its question ever takes.
FewPasses: TypeAlias = Annotated[int, _FROM_2, Follows("samples", lowers=True)]
AgreementShare: TypeAlias = Annotated[Share, Follows("min_agreement")]
SpreadBand: TypeAlias = Annotated[Band, Follows("spread")]
OfPopulation: TypeAlias = Annotated[bool, Follows("population")]
#: What the head of a regression gives: the mean alone, or what beside it; auto lets the loss and names tell.
NumbersHead: TypeAlias = Literal["auto", "mean", "variance", "log_variance", "std", "log_std"]

_ALIASES = {
    "Share": Share, "Positive": Positive, "Count": Count, "Band": Band, "Reasons": Reasons, "Passes": Passes,
    "FewPasses": FewPasses, "AgreementShare": AgreementShare, "SpreadBand": SpreadBand, "OfPopulation": OfPopulation,
    "NumbersHead": NumbersHead,
    "Annotated": Annotated, "Literal": Literal, "Mapping": Mapping, "Rule": Rule, "Follows": Follows,
    "bool": bool, "int": int, "float": float, "str": str, "tuple": tuple, "dict": dict,
}  # fmt: skip

_WORDS = {bool: "yes or no", int: "a whole number", float: "a finite number", str: "a text"}
_TRUTH = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True, slots=True)
class Kind:
    """The values that an option can have. ``parts`` are the kinds of a pair's two values, ``choices`` a Literal's."""

    type: type
    parts: tuple[Kind, ...] = ()
    choices: tuple[Any, ...] = ()
    optional: bool = False
    rules: tuple[Rule, ...] = ()
    follows: Follows | None = None

    @property
    def words(self) -> str:
        """What a value has to be, as it completes "give ..."."""
        words = self.rules[-1].words if self.rules else self._plain
        return f"{words}, or none" if self.optional else words

    @property
    def _plain(self) -> str:
        if self.choices:
            return " or ".join(map(str, self.choices))
        if self.parts:
            return f"{self.parts[0].words} and {self.parts[1].words}, with a colon between them"
        return _WORDS.get(self.type, "NAME=TEXT")

    @property
    def annotation(self) -> str:
        """The type as Python writes it."""
        if self.choices:
            words = (f'"{one}"' if isinstance(one, str) else repr(one) for one in self.choices)
            plain = f"Literal[{', '.join(words)}]"
        elif self.parts:
            plain = f"tuple[{', '.join(part.annotation for part in self.parts)}]"
        else:
            plain = self.type.__name__ if self.type in _WORDS else "Mapping[str, str]"
        return f"{plain} | None" if self.optional else plain

    def judged(self, value: object) -> Any:
        """Return a Python value of this kind in the form that the check uses.

        Raises:
            ValueError: It is of another kind, or breaks a rule.
        """
        if value is None and self.optional:
            return None
        value = self._of_type(value)
        if not all(rule.holds(value) for rule in self.rules):
            raise ValueError
        return value

    def read(self, given: object) -> Any:
        """Return the value that a text, or what TOML made of it, stands for.

        Raises:
            ValueError: It stands for none of this kind.
        """
        if isinstance(given, str):
            given = self._from_text(given)
        return self.judged(given)

    def _of_type(self, value: object) -> Any:
        if self.choices:
            if value not in self.choices:
                raise ValueError
            return value
        if self.parts:
            if not isinstance(value, tuple | list) or len(value) != len(self.parts):
                raise ValueError
            return tuple(part.judged(one) for part, one in zip(self.parts, value, strict=True))
        if self.type is Mapping:
            if not isinstance(value, Mapping):
                raise ValueError
            if not all(isinstance(text, str) for pair in value.items() for text in pair):
                raise ValueError
            return dict(value)
        if self.type is float and isinstance(value, int | float) and not isinstance(value, bool):
            if math.isnan(value):
                raise ValueError
            return float(value)
        if not isinstance(value, self.type) or (isinstance(value, bool) and self.type is not bool):
            raise ValueError
        return value

    def _from_text(self, text: str) -> object:
        if self.optional and text.strip().lower() == "none":
            return None
        if self.choices:
            return next((choice for choice in self.choices if str(choice) == text), text)
        if self.parts:
            return [part._from_text(one) for part, one in zip(self.parts, text.split(":"), strict=True)]
        if self.type is Mapping:
            name, sign, words = text.partition("=")
            if not (name.strip() and sign):
                raise ValueError
            return {name.strip(): words.strip()}
        if self.type is bool:
            return _TRUTH.get(text.strip().lower(), text)
        return text if self.type is str else self.type(text)


class NoKindError(Exception):
    """An annotation of a type that no text can be converted to."""


def kind_of(annotation: Any) -> Kind:
    """Return the kind of an option by its annotation.

    Raises:
        NoKindError: The annotation is none that an option can have.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        plain = kind_of(arguments[0])
        rules = tuple(found for found in arguments[1:] if isinstance(found, Rule))
        follows = next((found for found in arguments[1:] if isinstance(found, Follows)), plain.follows)
        return _with(plain, rules=(*plain.rules, *rules), follows=follows)
    if origin in (typing.Union, types.UnionType):
        others = [one for one in arguments if one is not type(None)]
        if len(others) == 1:
            return _with(kind_of(others[0]), optional=True)
    if origin is Literal:
        return Kind(type(arguments[0]), choices=arguments)
    if origin is tuple and len(arguments) == 2 and Ellipsis not in arguments:
        return Kind(tuple, parts=tuple(kind_of(part) for part in arguments))
    if origin in (Mapping, dict) and arguments == (str, str):
        return Kind(Mapping)
    if annotation in _WORDS:
        return Kind(annotation)
    raise NoKindError(annotation)


def _with(kind: Kind, **changes: Any) -> Kind:
    import dataclasses

    return dataclasses.replace(kind, **changes)


def annotated(text: str, names: Mapping[str, Any] | None = None) -> Any:
    """Return the type that the text of an annotation stands for, by the names given, else by this module's.

    Raises:
        NoKindError: The annotation calls something, or has names that are not given.
    """
    tree = ast.parse(text, mode="eval")
    allowed = (ast.Expression, ast.Name, ast.Load, ast.Subscript, ast.Tuple, ast.Constant, ast.BinOp, ast.BitOr,
               ast.Attribute)  # fmt: skip
    if not all(isinstance(node, allowed) for node in ast.walk(tree)):
        raise NoKindError(text)
    try:
        return eval(compile(tree, "annotation", "eval"), {"__builtins__": {}}, {**_ALIASES, **(names or {})})  # noqa: S307
    except (NameError, AttributeError, TypeError) as error:
        raise NoKindError(text) from error
