"""Every fault of the catalogue that a check claims to see, to be injected into healthy networks.

Used by ``tests/faults`` and by `benchmarks.catalogue`, which takes every row to every network.
"""

from tests.faults.injectors.conversion import CONVERSION
from tests.faults.injectors.posterior import POSTERIOR
from tests.faults.injectors.use import USE

FAULTS = (*POSTERIOR, *CONVERSION, *USE)

NETWORKS = ("residual", "plain", "resnet18")
