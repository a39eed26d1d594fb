"""What is installed is what is on disk, and nothing else."""

from __future__ import annotations

import ast
import configparser
import importlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpusq_deploy

ROOT = Path(__file__).resolve().parents[2]
MAPPED = ("calibration", "engines", "benchmarks")
# Scripts that run from the repository and are not shipped.
NOT_SHIPPED = ("benchmarks/demo", "benchmarks/gpu", "benchmarks/peers")


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def packages_on_disk() -> Iterator[str]:
    for folder in sorted([ROOT / "gpusq_deploy", *(ROOT / name for name in MAPPED)]):
        for path in folder.rglob("__init__.py"):
            relative = path.parent.relative_to(ROOT)
            if relative.as_posix().startswith(NOT_SHIPPED):
                continue
            parts = relative.parts if relative.parts[0] == "gpusq_deploy" else ("gpusq_deploy", *relative.parts)
            yield ".".join(parts)


def test_the_handwritten_package_list_is_the_disk(config: configparser.ConfigParser) -> None:
    assert config["options"]["packages"].split() == sorted(set(packages_on_disk()))


def test_every_python_file_lies_in_a_package() -> None:
    folders = {path.parent for name in ("gpusq_deploy", *MAPPED) for path in (ROOT / name).rglob("*.py")}
    strays = [folder for folder in folders if not (folder / "__init__.py").exists()]
    assert [s for s in strays if not s.relative_to(ROOT).as_posix().startswith(NOT_SHIPPED)] == []


def test_the_mapped_folders_are_reached_by_relative_links() -> None:
    for name in MAPPED:
        link = ROOT / "gpusq_deploy" / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"


def test_every_entry_point_can_be_called(config: configparser.ConfigParser) -> None:
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    targets = [line.split("=")[1].strip() for line in lines if line]
    assert len(targets) == 13
    for target in targets:
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_version_stands_once(config: configparser.ConfigParser) -> None:
    assert config["metadata"]["version"] == "attr: gpusq_deploy.__version__"
    assert (ROOT / "CHANGELOG.md").read_text().count(f"## {gpusq_deploy.__version__}") == 1


def test_no_file_imports_relatively_or_by_a_bare_folder_name() -> None:
    for name in ("gpusq_deploy", *MAPPED):
        for path in (ROOT / name).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    assert node.level == 0, path
                    assert (node.module or "").partition(".")[0] not in MAPPED, path


@pytest.mark.slow
def test_the_wheel_holds_one_package_and_its_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv", "demo-out", ".gpu", "build", "*.egg-info", "tests", ".*_cache"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as wheel:
        names = wheel.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gpusq_deploy"}
    for needed in (
        "py.typed",
        "calibration/recipes/static_wi8_ai8.toml",
        "engines/targets/a100.toml",
        "bundle/handover/templates/config.pbtxt.j2",
        "bundle/report/html/templates/report.html.j2",
        "bundle/report/html/templates/style.css",
        "cli/build.py",
        "cli/__init__.pyi",
    ):
        assert f"gpusq_deploy/{needed}" in names
    assert not [name for name in names if any(f"/{folder}/" in name for folder in NOT_SHIPPED)]
