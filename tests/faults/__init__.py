"""Faults that are injected on purpose, and the checks that find them."""
