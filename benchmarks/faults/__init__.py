"""Every fault of the catalogue that a check claims to see, to be injected into healthy networks.

Used by ``tests/faults`` and by `benchmarks.catalogue`, which takes every row to every network.
"""

from benchmarks.faults.library import LIBRARY
from benchmarks.faults.use import USE

FAULTS = (*LIBRARY, *USE)

NETWORKS = ("residual", "plain", "resnet18")
