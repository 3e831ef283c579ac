"""What every checkpoint of one series has in common, and the audit of one of them, in whichever process."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pytest_bnn.audit.named import Named, Parts
from pytest_bnn.audit.provenance import provenance
from pytest_bnn.checks import own, registry
from pytest_bnn.checks.choices import Choices, choosing
from pytest_bnn.data import checkpoints, sources
from pytest_bnn.data.samples import Samples
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.network.tree import leaves
from pytest_bnn.options import Settings, Source, using
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.run import AuditRun

#: The id of what stands in an audit whose checkpoint could not be loaded, or whose worker ended.
LOADS = "checkpoint"
#: Where an audit says what it is the audit of: the digest of checkpoint, data and settings.
KEY = "audit key"

#: What does not change what an audit finds.
_WITHOUT_EFFECT = ("threads",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all audits of a series share, as plain values that cross a process boundary.

    ``folder`` is where modules are found that are not installed; ``plugins`` and its conftest declare more checks.
    """

    named: Named
    checks: tuple[str, ...] | None = None
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    setting_sources: Mapping[str, Source] = field(default_factory=dict)
    choices: Choices = field(default_factory=Choices)
    plugins: tuple[str, ...] = ()
    folder: str = ""

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Let its settings, options and checks be in force inside, in whichever process."""
        if self.folder and self.folder not in sys.path:
            sys.path.insert(0, self.folder)
        # A factory may go elsewhere, and paths are of the folder of the start.
        with chdir(Path.cwd()), using(self.settings, self.setting_sources), choosing(self.choices):
            for module in (*self.plugins, *self.choices.plugins):
                registry.import_module(module, "--plugin")
            if self.folder:
                own.load(Path(self.folder))
            yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One checkpoint: the file, its name in reports, and the digest of all that its audit depends on."""

    file: str
    name: str
    sha256: str
    key: str


def perform(work: Work, job: Job, threads: int = 0) -> str:
    """Audit one checkpoint; return the audit's JSON.

    What cannot be loaded is an audit with one verdict, ``error``: the others of the series go on.

    Args:
        work: What it shares with the others.
        job: The checkpoint.
        threads: As in `Settings`, for this process; 0 leaves it as it is in ``work``.
    """
    if threads:
        work = replace(work, settings=replace(work.settings, threads=threads))
    with work.in_force():
        try:
            parts = _parts(work)
            run = parts.with_state(job.file, job.name).audit(name=job.name, checks=work.checks, options=work.options)
        except PytestBnnError as error:
            run = broken(job, error.problem, error.fix)
        said = {**run.provenance, **provenance(seed=int(work.settings.seed)), "checkpoint": job.name}
        return replace(run, provenance={**said, "checkpoint sha256": job.sha256, KEY: job.key}).to_json()


def broken(job: Job, headline: str, remedy: str) -> AuditRun:
    """Return the audit of a checkpoint that could not be judged."""
    evidence = Evidence(
        id=LOADS,
        subject=job.name,
        stage="unknown",
        verdict=Verdict.ERROR,
        claim="The checkpoint can be loaded into the network, and judged.",
        headline=headline,
        remedy=remedy,
    )
    return AuditRun(checks=(evidence,), provenance={"checkpoint sha256": job.sha256, KEY: job.key})


def jobs_of(work: Work, files: list[str]) -> list[Job]:
    """Return a job a checkpoint; reads the data, and each file once.

    Raises:
        InputError: The model or the data cannot be used.
    """
    with work.in_force():
        parts = _parts(work)
        shared = _digest_of_work(work, parts)
    jobs = []
    for file in files:
        sha256 = checkpoints.sha256(file)
        key = hashlib.sha256(f"{shared} {sha256} {file}".encode()).hexdigest()
        jobs.append(Job(file=str(Path(file).resolve()), name=file, sha256=sha256, key=key))
    return jobs


#: The parts that this process has loaded, by what they are the parts of: one factory call for all its checkpoints.
_loaded: dict[str, Parts] = {}


def _parts(work: Work) -> Parts:
    key = f"{work.folder} {work.named} {work.settings.seed}"
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = work.named.load()
    return _loaded[key]


def _digest_of_work(work: Work, parts: Parts) -> str:
    """Return a digest of all that an audit depends on beside its checkpoint: settings, data, the modules named."""
    settings = {name: value for name, value in asdict(work.settings).items() if name not in _WITHOUT_EFFECT}
    chosen = {f"{id}.{key}": [str(one.given) for one in all] for (id, key), all in work.choices.by_name.items()}
    said = {
        "named": asdict(work.named),
        "checks": work.checks,
        "options": {id: {name: str(value) for name, value in given.items()} for id, given in work.options.items()},
        "settings": settings,
        "choices": dict(sorted(chosen.items())),
        "plugins": work.plugins,
        "data": [digest(part) for part in (parts.data, parts.evaluation, parts.ood, parts.shifts)],
        "teacher": None if parts.teacher is None else digest(parts.teacher.state_dict()),
        "sources": [_source(name) for name in asdict(work.named).values() if isinstance(name, str) and ":" in name],
        "versions": [version("pytest-bnn"), torch.__version__],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def digest(data: Any) -> str:
    """Return the SHA-256 of all tensors in a tree, with their names, dtypes and shapes, in its order."""
    found = hashlib.sha256()
    tree = data.item if isinstance(data, Samples) else data
    for name, leaf in leaves(tree):
        found.update(name.encode())
        if isinstance(leaf, Tensor):
            found.update(f"{leaf.dtype} {list(leaf.shape)}".encode())
            found.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()


def _source(name: str) -> str:
    """Return the digest of the file in which a name is defined; empty where it has none."""
    try:
        path = inspect.getsourcefile(sources.load(name, "--model"))
    except (TypeError, PytestBnnError):
        path = None
    return "" if path is None else checkpoints.sha256(path)
