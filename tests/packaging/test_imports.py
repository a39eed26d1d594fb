"""Imports run one way, and heavy libraries are imported late and in few rooms."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "gpusq_deploy"

ROW = re.compile(r"^\| `(\w+)` \|[^|]+\|([^|]*)\|$", re.MULTILINE)


def rooms() -> dict[str, frozenset[str]]:
    """The rooms in import order, each with the libraries that it may import: the table in docs/architecture.md."""
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
    return {row[1]: frozenset(row[2].replace(",", " ").split()) for row in ROW.finditer(text)}


# A room may import rooms before it, and itself.
ORDER = ["__init__", *rooms()]
# Who may import what, anywhere in a file.
GUARDED = {
    "torch",
    "timm",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "pycuda",
    "onnxruntime",
    "click",
    "rich",
    "jinja2",
    "leather",
}
MOST_FOLDERS, MOST_MODULES, MOST_FLOORS = 14, 4, 12

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
    "jinja2",
    "leather",
)

COMMANDS = (
    "build",
    "calibrate",
    "validate",
    "inspect",
    "bench",
    "compare",
    "compress",
    "rewrite",
    "eval",
    "run",
    "export",
    "doctor",
    "detector",
)


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
    allowed = rooms().get(room_of(path), frozenset())
    for name in imports_of(path):
        library = name.partition(".")[0]
        assert library not in GUARDED or library in allowed, f"{room_of(path)} must not import {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_rooms_import_each_other_through_their_faces(path: Path) -> None:
    here = room_of(path)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpusq_deploy."):
            module = str(node.module).split(".")[1:]
            if module[0] != here and (PACKAGE / module[0]).is_dir():
                assert len(module) == 1, f"{node.module} is no public face"
                assert {alias.name for alias in node.names} <= face(module[0]), node.module


@pytest.mark.parametrize("room", sorted(name for name in rooms() if (PACKAGE / name).is_dir()))
def test_a_face_holds_what_others_use_and_no_name_of_a_module(room: str) -> None:
    """Loading a module sets an attribute of its package: a function of its name would be shadowed by it."""
    names = face(room)
    modules = {path.stem for path in (PACKAGE / room).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not names & modules
    package = importlib.import_module(f"gpusq_deploy.{room}")
    assert set(package.__all__) == names
    for name in names:
        assert getattr(package, name) is not None


def test_the_house_is_small() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert folders | modules == set(rooms())
    assert len(folders) <= MOST_FOLDERS
    assert len(modules) <= MOST_MODULES


def test_no_chain_of_imports_is_longer_than_twelve_rooms() -> None:
    """Imports of values: what only type checkers see loads nothing and is no floor."""
    above: dict[str, set[str]] = {room: set() for room in rooms()}
    for path in sources():
        for name in imports_of(path):
            if name.startswith("gpusq_deploy.") and room_of(path) in above:
                above[room_of(path)].add(name.split(".")[1])
    floors: dict[str, int] = {}
    for room in rooms():
        floors[room] = 1 + max((floors[other] for other in above[room] - {room}), default=0)
    assert max(floors.values()) <= MOST_FLOORS, floors


def face(room: str) -> set[str]:
    """The names of a room's `__init__.pyi`."""
    tree = ast.parse((PACKAGE / room / "__init__.pyi").read_text("utf-8"))
    return {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}


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
