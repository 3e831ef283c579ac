"""A series of checkpoints: what is done already stays, the rest goes to an executor, each result is written at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from pathlib import Path

from pytest_bnn.errors import InputError
from pytest_bnn.many import engines
from pytest_bnn.many.work import KEY, LOADS, Job, Work, broken, jobs_of, perform
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report.files import write_texts

#: Called with each job that is done, its audit, how many are done and how many there are.
Done = Callable[[Job, AuditRun, int, int], None]

_KILLED = "the process that judged it ended before it was done, for example for lack of memory"
_KILLED_FIX = "try it alone, with --jobs 1; give fewer examples with --images"


def audit_series(
    work: Work,
    files: Iterable[str],
    folder: str | Path,
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    done: Done | None = None,
) -> list[tuple[Path, AuditRun]]:
    """Audit checkpoints; write the JSON of each into a folder as soon as it is there.

    An audit whose JSON is there already, whole and of the same checkpoint, data and settings, is not done again.

    Args:
        work: What they share.
        files: The checkpoints.
        folder: Where the JSON files go.
        jobs: How many processes of this machine; 1 is this process alone.
        executor: Where the jobs run in place of these, such as Dask's ``client.get_executor()``.
        done: Called with each audit that is there.

    Returns:
        The file and the audit of each checkpoint, in their order.

    Raises:
        InputError: The model, the data or the settings cannot be used.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    todo = jobs_of(work, list(files))
    targets = {job.key: folder / f"{slug(job.name)}.json" for job in todo}
    found: dict[str, AuditRun] = {}

    def take(job: Job, text: str) -> None:
        run = AuditRun.from_json(text)
        write_texts({targets[job.key]: text})
        found[job.key] = run
        if done is not None:
            done(job, run, len(found), len(todo))

    for job in todo:
        earlier = _finished(targets[job.key], job)
        if earlier is not None:
            found[job.key] = earlier
            if done is not None:
                done(job, earlier, len(found), len(todo))
    left = [job for job in todo if job.key not in found]
    if executor is not None:
        for job, text in _by(executor, work, left):
            take(job, text)
    elif jobs == 1 or len(left) < 2:
        for job in left:
            take(job, perform(work, job))
    else:
        for job, text in _by_processes(work, left, jobs):
            take(job, text)
    return [(targets[job.key], found[job.key]) for job in todo]


def slug(name: str) -> str:
    """Return a name for the files of a checkpoint: readable, and of this path alone."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", str(Path(name).with_suffix(""))).strip("-.")[-80:]
    return f"{readable or 'checkpoint'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _finished(target: Path, job: Job) -> AuditRun | None:
    """Return the audit that was written before; None where it is another's, broken or half written."""
    try:
        run = AuditRun.from_json(target.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InputError):
        return None
    same = run.provenance.get(KEY) == job.key and all(check.id != LOADS for check in run.checks)
    return run if same else None


def _by(executor: Executor, work: Work, jobs: list[Job]) -> Iterator[tuple[Job, str]]:
    """Let an executor that is not ours do the jobs; what it loses is told, and not done again."""
    futures = {executor.submit(perform, work, job, 1): job for job in jobs}
    try:
        for future in as_completed(futures):
            yield futures[future], _text(future, futures[future])
    finally:
        for future in futures:
            future.cancel()


def _text(future: Future[str], job: Job) -> str:
    error = future.exception()
    if error is None:
        return future.result()
    return broken(job, f"{_KILLED} ({type(error).__name__}: {error})", _KILLED_FIX).to_json()


def _by_processes(work: Work, jobs: list[Job], workers: int) -> Iterator[tuple[Job, str]]:
    """Let processes of this machine do the jobs; those that were at work when one was killed are tried again alone."""
    left, suspects = list(jobs), []
    while left:
        with engines.processes(min(workers, len(left))) as pool:
            futures = {pool.submit(perform, work, job, 1): job for job in left}
            try:
                for future in as_completed(futures):
                    if isinstance(future.exception(), BrokenExecutor):
                        break
                    left.remove(futures[future])
                    yield futures[future], _text(future, futures[future])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        # Those that had been handed to a worker come first: any of them may be the one that ends it.
        handed, left = left[: workers + 1], left[workers + 1 :]
        suspects += handed
    for job in suspects:
        with engines.processes(1) as pool:
            yield job, _text(pool.submit(perform, work, job, 1), job)
