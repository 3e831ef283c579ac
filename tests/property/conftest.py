"""Hypothesis' profiles: ``ci`` repeats itself; ``--hypothesis-profile=nightly`` is random, and long."""

from hypothesis import settings

settings.register_profile("ci", max_examples=150, derandomize=True, deadline=None, database=None)
settings.register_profile("nightly", max_examples=5000, deadline=None, database=None, print_blob=True)
settings.load_profile("ci")
