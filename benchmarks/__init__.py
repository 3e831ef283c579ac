"""Figures of the documentation, measured: each module is a command, ``python -m benchmarks.NAME``."""
