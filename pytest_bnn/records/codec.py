"""Records as plain values and back: what JSON and pytest-xdist's channel carry safely.

NaN and infinities, which JSON lacks, are written as ``{"float": "NaN" | "Infinity" | "-Infinity"}``.
"""

from __future__ import annotations

import enum
import functools
import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final, TypeAlias

from pytest_bnn.errors import InputError

Scalar: TypeAlias = str | int | float | bool | None
Plain: TypeAlias = "Scalar | list[Plain] | dict[str, Plain]"


# Bidirectional overrides can make a reader see another text than the one that is there.
_HIDDEN: Final = (
    *(code for code in range(0x20) if code not in (0x09, 0x0A)),
    *range(0x7F, 0xA0),
    *range(0x200E, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)
_CLEAN: Final = re.compile(f"[{re.escape(''.join(map(chr, _HIDDEN)))}]")


def clean(text: str) -> str:
    """Make text safe to show and to write as UTF-8: control characters and lone surrogates become visible."""
    return _CLEAN.sub("�", text).encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """Make text safe to show in a line of its own: a name with line breaks cannot look like other lines."""
    return " ".join(clean(text).splitlines())


def show(value: Scalar) -> str:
    """Write a value for people: short floats, thousands separated."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def to_plain(value: object) -> Plain:
    """Turn records, numpy and torch scalars, enums and odd strings into what JSON and execnet carry safely."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        number = float(value)
        if math.isfinite(number):
            return number
        return {"float": "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"}
    if is_dataclass(value) and not isinstance(value, type):
        return {name: to_plain(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, Mapping):
        return {str(to_plain(key)): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    scalar = getattr(value, "item", None)
    if callable(scalar) and getattr(value, "ndim", None) == 0:
        return to_plain(scalar())
    return to_plain(str(value))


@functools.cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    """Return the names of a record's fields: thousands of records are of a few kinds."""
    return tuple(field.name for field in fields(kind))


def from_plain(plain: Any, kind: type[Any]) -> Any:
    """Rebuild a record of the type ``kind`` from what `to_plain` gave.

    Raises:
        InputError: A field is missing or of the wrong type; the message has its place.
    """
    import msgspec

    try:
        return msgspec.convert(_with_floats(plain), kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InputError(f"the audit does not fit its schema: {error}", fix="give the audit.json of a run") from error


def _with_floats(plain: Any) -> Any:
    if isinstance(plain, dict):
        if plain.keys() == {"float"} and plain["float"] in ("NaN", "Infinity", "-Infinity"):
            return float(plain["float"])
        # Provenance is free text; what looks like an encoded number there is none.
        return {key: value if key in ("provenance", "sources") else _with_floats(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_with_floats(value) for value in plain]
    return plain


def schema_definitions(kind: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema definitions of a record and of all that it holds, with the encoding of NaN."""
    import msgspec

    schema = json.loads(json.dumps(msgspec.json.schema(kind)))  # its defaults are tuples
    definitions: dict[str, Any] = _with_non_finite(schema["$defs"])
    for definition in definitions.values():
        # What msgspec does from 0.23 on, for older ones too.
        if "description" in definition:
            definition["description"] = inspect.cleandoc(definition["description"])
        for name, value in definition.get("properties", {}).items():
            if value.get("type") == "object" and name not in definition.get("required", ()):
                value.setdefault("default", {})
    definitions["NonFinite"] = {
        "description": "NaN or an infinity, which JSON numbers cannot express",
        "type": "object",
        "properties": {"float": {"enum": ["NaN", "Infinity", "-Infinity"]}},
        "required": ["float"],
        "additionalProperties": False,
    }
    return definitions


def _with_non_finite(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_non_finite(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "number":
        return {"anyOf": [schema, {"$ref": "#/$defs/NonFinite"}]}
    items = {key: _with_non_finite(item) for key, item in schema.items()}
    for key in ("anyOf", "enum"):  # unions are sets: their order would change from process to process
        if key in items:
            items[key] = sorted(items[key], key=json.dumps)
    return items
