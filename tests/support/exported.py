"""What gpusq-export wrote, run as those run it who don't have this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Where the headers and libraries of the C++ program are, if they are here: folders, apart by a colon.
HEADERS = {"onnxruntime": "ONNXRUNTIME_INCLUDE", "tensorrt": "TENSORRT_INCLUDE"}


def run_python(folder: Path, *words: object, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """`infer.py` in a process that can't import this package; `path` goes before everything else."""
    blocked = folder.parent / "blocked"
    (blocked / "gpusq_deploy").mkdir(parents=True, exist_ok=True)
    (blocked / "gpusq_deploy" / "__init__.py").write_text("raise ImportError('this package must not be needed')\n")
    before = [str(blocked)] if path is None else [path, str(blocked)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(before)}
    command = [sys.executable, str(folder / "infer.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def headers(runtime: str) -> list[str]:
    """Include folders that the environment names for a runtime; none where it names none."""
    return [folder for folder in os.environ.get(HEADERS[runtime], "").split(os.pathsep) if folder]
