"""Every fault of the catalogue that a check claims to see, to be injected into healthy networks.

Used by ``tests/faults`` and by `benchmarks.catalogue`, which takes every row to every network.
"""

from benchmarks.faults.conversion import CONVERSION
from benchmarks.faults.posterior import POSTERIOR
from benchmarks.faults.use import USE

FAULTS = (*POSTERIOR, *CONVERSION, *USE)

NETWORKS = ("residual", "plain", "resnet18")
