"""What judges the shards of large data, as a command line says it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from pytest_bnn.options import in_force

if TYPE_CHECKING:
    from pytest_bnn.data.large import Workers


@contextmanager
def of(given: argparse.Namespace) -> Iterator[Workers | None]:
    """Give what judges shards side by side: processes of this machine, or a Ray cluster; this process where one does.

    Raises:
        InputError: Ray is not installed, or its cluster does not answer.
    """
    if given.engine == "ray":
        from pytest_bnn.many.engines import ray_cluster

        with ray_cluster(given.ray_address, in_force().jobs or None) as executor:
            yield executor
        return
    if given.evaluation_images is None and not given.subject:
        yield None
        return
    from pytest_bnn.audit.beside import jobs
    from pytest_bnn.many.engines import processes

    count = in_force().jobs or jobs()  # a number that is given holds where nothing can be forked, too
    yield partial(processes, count) if count > 1 else None
