"""Imports run one way, and heavy libraries are imported late and in few rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "gpusq_deploy"

# A room may import rooms to its left, and itself.
ORDER = [
    "__init__",
    "errors",
    "text",
    "progress",
    "artifacts",
    "numerics",
    "graph",
    "frontend",
    "engines",
    "calibration",
    "sparsity",
    "quantize",
    "bundle",
    "compile",
    "benchmarks",
    "contrib",
    "cli",
    "__main__",
]

# Who may import what, anywhere in a file.
ROOMS_OF = {
    # calibration: torch.distributed carries bytes between the processes that torchrun starts, and only there.
    "torch": {"frontend", "sparsity", "compile", "contrib", "calibration"},
    "timm": set[str](),
    "tensorrt": {"engines"},
    "tensorrt_rtx": {"engines"},
    "cuda": {"engines"},
    "pycuda": {"engines"},
    # graph: what constants come to is worked out by it.
    "onnxruntime": {"engines", "graph"},
    "click": {"cli", "__main__"},
    "rich": {"cli", "bundle", "benchmarks"},
}

# Importing one of these costs a second or needs hardware: no --help may.
HEAVY = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "pycuda",
    "timm",
    "PIL",
)

COMMANDS = ("build", "calibrate", "validate", "inspect", "bench", "compare", "compress", "rewrite", "doctor")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    links = [PACKAGE / name for name in ("calibration", "engines", "benchmarks")]
    files = {path for folder in (PACKAGE, *links) for path in folder.rglob("*.py")}
    scripts = {"demo", "gpu", "peers"}
    return sorted(path for path in files if not scripts & set(path.relative_to(PACKAGE).parts))


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in sources()} <= set(ORDER)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    here = ORDER.index(room_of(path))
    for name in imports_of(path):
        if name.startswith("gpusq_deploy."):
            room = name.split(".")[1]
            assert ORDER.index(room) <= here, f"{room_of(path)} must not import {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    for name in imports_of(path):
        allowed = ROOMS_OF.get(name.partition(".")[0])
        assert allowed is None or room_of(path) in allowed, f"{room_of(path)} must not import {name}"


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    script = (
        "import sys\n"
        f"from gpusq_deploy.cli.{command} import command\n"
        "command.main(['--help'], standalone_mode=False)\n"
        f"heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
