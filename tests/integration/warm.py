"""New processes without the seconds that their imports take: one that has imported torch and its kin forks each.

What runs in it is as alone as in any other process: nothing of ours is imported yet, and neither is pytest.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

#: Of others' packages only: pytest has to import itself what it rewrites, its plugins among them.
HEAVY = (
    "torch", "torchvision", "bayesian_torch.models.dnn_to_bnn", "scipy.stats", "numba", "sklearn.datasets",
    "PIL.Image", "jinja2", "msgspec", "rich.table", "safetensors.torch",
)  # fmt: skip


def python(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ...`` or ``python -c CODE ...``; give its exit code and what it said."""
    if not hasattr(os, "fork"):
        return alone(*arguments, cwd=cwd, env=env)
    with tempfile.TemporaryDirectory() as folder:
        said = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        order = {"arguments": arguments, "cwd": str(cwd or Path.cwd()), "env": dict(env), "said": said}
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        texts = [Path(path).read_text(encoding="utf-8") for path in said]
    return subprocess.CompletedProcess([sys.executable, *arguments], code, *texts)


def alone(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Do the same in a process that imports everything itself, with an order of hashes of its own."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=dict(env), capture_output=True, text=True, check=False
    )


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__))]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    # It ends with its standard input.
    atexit.register(server.communicate)
    return server


def serve() -> None:
    """Fork a process for each line, and print its exit code when it has ended."""
    for name in HEAVY:
        importlib.import_module(name)
    # Out of the collector's sight: pytest collects twice a session, which would look through all of torch each time.
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _become(order: dict[str, Any]) -> None:
    code: object = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(order["said"], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        paths = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
        sys.path[:1] = ["", *paths]
        kind, what, *rest = order["arguments"]
        sys.argv = [what if kind == "-m" else kind, *rest]
        code = 0
        if kind == "-m":
            sys.path[0] = str(Path.cwd())
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code or 0))  # type: ignore[call-overload]


if __name__ == "__main__":
    serve()
