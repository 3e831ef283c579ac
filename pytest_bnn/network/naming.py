"""How messages name what is in a network."""

from __future__ import annotations


def called(path: str) -> str:
    """Name a module or a tensor by its path, as code; the network itself has none."""
    return f"`{path}`" if path else "the model itself"
