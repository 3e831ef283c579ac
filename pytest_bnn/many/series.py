"""A series of checkpoints: what is done already stays, the rest goes to an executor, each result is written at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, as_completed
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from pytest_bnn.errors import InputError, WriteError, in_words
from pytest_bnn.many import engines
from pytest_bnn.many import work as works
from pytest_bnn.many.work import KEY, LOADS, Job, Work, broken, jobs_of, perform
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report.files import write_texts

K = TypeVar("K")
#: Each job that was done, with the JSON of its audit.
Results: TypeAlias = Generator[tuple[Job, str], None, None]

#: Called with each job that is done, its audit, how many are done and how many there are.
Done = Callable[[Job, AuditRun, int, int], None]
#: Takes from an audit what is kept of it: given the file of its JSON, the audit, and whether it is new.
Keep = Callable[[Path, AuditRun, bool], K]

_KILLED = "the process that judged it ended before it was done, for example for lack of memory"
_KILLED_FIX = "try it alone, with --jobs 1; give fewer examples with --images"
_LOST_FIX = "see the messages of the executor and its workers, and start again"


def audit_series(
    work: Work,
    files: Iterable[str],
    folder: str | Path,
    *,
    keep: Keep[K],
    jobs: int = 1,
    executor: Executor | None = None,
    done: Done | None = None,
) -> list[K]:
    """Audit checkpoints; write the JSON of each into a folder as soon as it is there.

    An audit whose JSON is there already, whole and of the same checkpoint, data and settings, is not done again. None
    is held in memory once ``keep`` has taken from it what it needs.

    Args:
        work: What they share.
        files: The checkpoints.
        folder: Where the JSON files go.
        keep: Takes from each audit what is returned, before its JSON is written.
        jobs: How many processes of this machine; 1 is this process alone.
        executor: Where the jobs run in place of these, such as Dask's ``client.get_executor()``.
        done: Called with each audit that is there.

    Returns:
        What ``keep`` gave of each checkpoint, in their order.

    Raises:
        InputError: The model, the data or the settings cannot be used; no process can be started.
        WriteError: An audit cannot be written, for want of space say; it says how many are there and how to go on.
    """
    folder = Path(folder)
    _make(folder)
    work, todo = jobs_of(work, list(files))
    kept: dict[str, K] = {}

    def take(job: Job, run: AuditRun, text: str = "") -> None:
        target = folder / f"{slug(job.name)}.json"
        _require_there(folder)
        what = keep(target, run, not job.earlier)
        if text:
            write_texts({target: text})
        kept[job.key] = what
        if done is not None:
            done(job, run, len(kept), len(todo))

    with saying_how_far(kept, len(todo)):
        for job in todo:
            earlier = _finished(folder / f"{slug(job.name)}.json", job)
            if earlier is not None:
                take(replace(job, earlier=True), earlier)
        left = [job for job in todo if job.key not in kept]
        with closing(_judged(work, left, jobs, executor)) as found:
            for job, text in found:
                take(job, AuditRun.from_json(text), text)
        _require_there(folder)
    return [kept[job.key] for job in todo]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder {str(folder)!r} cannot be made ({error.strerror or error})", fix="choose another one"
        ) from error


def _require_there(folder: Path) -> None:
    """Let audits not go into a new folder where the one with those before them was taken away."""
    if not folder.is_dir():
        raise WriteError(f"the folder {str(folder)!r} is no longer there", fix="put it back")


@contextmanager
def saying_how_far(kept: Sized, of: int) -> Iterator[None]:
    """Let an error of the disk say how many audits are whole, and how to go on."""
    try:
        yield
    except WriteError as error:
        raise WriteError(
            f"{error.problem}. Of {of:,} checkpoints {len(kept):,} are audited",
            fix="mend that and start the same again: an audit that lies there whole is not done again",
        ) from error


def _judged(work: Work, jobs: list[Job], workers: int, executor: Executor | None) -> Results:
    if executor is not None:
        yield from _by(executor, work, jobs)
    elif workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, perform(work, job)
    else:
        works.forget()
        yield from _by_processes(work, jobs, workers)


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


def _by(executor: Executor, work: Work, jobs: list[Job]) -> Results:
    """Let an executor that is not ours do the jobs; what it loses is told, and not done again."""
    futures: dict[Future[str], Job] = {}
    try:
        for job in jobs:
            future = _handed(executor, work, job)
            if future.done():  # one that works in this thread gives nothing to wait for, and loses nothing if it ends
                yield job, _text(future, job)
            else:
                futures[future] = job
        for future in as_completed(list(futures)):
            job = futures.pop(future)
            yield job, _text(future, job)
    finally:
        for future in futures:
            future.cancel()


def _handed(executor: Executor, work: Work, job: Job) -> Future[str]:
    """Give a job to an executor; one that it does not take is lost as one that it does not finish."""
    try:
        return executor.submit(perform, work, job, 1)
    except Exception as error:
        refused: Future[str] = Future()
        refused.set_exception(error)
        return refused


def _text(future: Future[str], job: Job) -> str:
    error: BaseException | None = CancelledError("it was cancelled") if future.cancelled() else future.exception()
    if error is None:
        return future.result()
    said = in_words(error)
    if isinstance(error, BrokenExecutor):
        return broken(job, f"{_KILLED} ({said})", _KILLED_FIX).to_json()
    return broken(job, f"the executor lost it ({said})", _LOST_FIX).to_json()


def _by_processes(work: Work, jobs: list[Job], workers: int) -> Results:
    """Let processes of this machine do the jobs; those that were at work when one was killed are tried again alone."""
    left = list(jobs)
    while left:
        with engines.processes(min(workers, len(left))) as pool:
            futures = {_handed(pool, work, job): job for job in left}
            for future in as_completed(list(futures)):
                job = futures.pop(future)
                if not isinstance(future.exception(), BrokenExecutor):
                    left.remove(job)
                    yield job, _text(future, job)
        # Jobs are begun in their order, so that the first ones of those that are not done were at work.
        suspects, left = left[:workers], left[workers:]
        yield from _alone(work, suspects)


def _alone(work: Work, suspects: list[Job]) -> Results:
    """Do jobs one after the other, in one process for as long as none of them ends it."""
    while suspects:
        with engines.processes(1) as pool:
            _require_start(pool)
            while suspects:
                job = suspects.pop(0)
                future = _handed(pool, work, job)
                yield job, _text(future, job)
                if isinstance(future.exception(), BrokenExecutor):
                    break


def _require_start(pool: Executor) -> None:
    try:
        pool.submit(engines.started).result()
    except BrokenExecutor as error:
        raise InputError(
            f"no process can be started that audits checkpoints ({error})",
            fix="see what it said above; --jobs 1 needs none",
        ) from error
