"""SHA-256 digests of files, folders and audits: what a report shows, so that anyone can compute it again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from pytest_bnn.records.run import AuditRun, FileDigest


def of_file(path: str | Path, shown: str = "") -> FileDigest:
    """Return the digest of a file's bytes, as ``sha256sum`` computes it; read in pieces.

    Args:
        path: The file.
        shown: The path in the record; ``path`` itself when empty.

    Raises:
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    return FileDigest(path=shown or str(path), sha256=digest, bytes=size)


def of_folder(folder: str | Path) -> str:
    """Return one digest of all files in a folder and below it, by their paths and bytes.

    It is that of the lines which ``sha256sum`` prints for them, in the order of their paths' bytes:
    ``find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum``.

    Raises:
        OSError: A file cannot be read.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    digest = hashlib.sha256()
    for name in sorted(files, key=os.fsencode):
        digest.update(of_file(files[name]).sha256.encode() + b"  " + os.fsencode(name) + b"\n")
    return digest.hexdigest()


def of_audit(run: AuditRun) -> str:
    """Return the digest of an audit's JSON, without spaces and with its names sorted: a file's layout is no matter."""
    document = json.loads(run.to_json())
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
