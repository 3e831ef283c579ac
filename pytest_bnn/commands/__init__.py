"""The commands of ``pytest-bnn``, one module each: what it takes (``add``), and what it does (``run``)."""
