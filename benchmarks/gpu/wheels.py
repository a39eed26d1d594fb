"""Which wheels a machine lacks, and where they come from: an index for the rest, this repository for our own."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

from gpusq_deploy.errors import GpusqError

# pip matches platforms exactly, so every one that a wheel may name is given; glibc 2.39 is Ubuntu 24.04's.
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)
# `tensorrt-rtx` is a source distribution that installs these; the first has the module `tensorrt_rtx`, and is one too.
_RTX = ("tensorrt_rtx_cu13", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs")
_ONLY_SOURCE = ("tensorrt_rtx_cu13",)
# The tests' own, and who reads plans back: nice to have beside what setup.cfg demands.
_BESIDES = ("pytest", "hypothesis", "polygraphy")


def collect_wheels(root: Path, python: str, machine: Path, out: Path) -> tuple[str, ...]:
    """Our wheel, and those of everything that a machine lacks, in a folder.

    Args:
        root: The repository.
        python: The machine's Python, such as "3.12".
        machine: A file of the distributions that it has, one a line.
        out: The folder, which is made.

    Returns:
        The wheels' names.

    Raises:
        GpusqError: pip finds none, or a wheel needs what neither it, constraints.txt nor the machine has.
    """
    out.mkdir(parents=True, exist_ok=True)
    has = {canonical(line) for line in machine.read_text().splitlines() if line and not line.startswith("#")}
    versions = pinned(root / "constraints.txt")
    for name in lacking(root / "setup.cfg", has, python):
        _fetch(name, versions.get(canonical(name), versions["tensorrt-rtx"]), python, out)
    _our_own(root, out)
    while unmet := unmet_needs(sorted(out.glob("*.whl")), has, python):
        unknown = [text for name, text in unmet.items() if name not in versions]
        if unknown:
            raise GpusqError(f"neither the kit nor the machine has {', '.join(unknown)}", place=str(machine))
        for name in unmet:
            _fetch(name, versions[name], python, out)
    return tuple(path.name for path in sorted(out.glob("*.whl")))


def lacking(setup: Path, has: set[str], python: str) -> tuple[str, ...]:
    """What we need and the machine lacks, `tensorrt-rtx` as what it installs."""
    parser = configparser.ConfigParser()
    parser.read(setup)
    lines = [line for line in parser["options"]["install_requires"].splitlines() if line]
    names = [*(Requirement(line).name for line in lines if applies(Requirement(line), python)), *_BESIDES]
    wanted = [part for name in names for part in (_RTX if name == "tensorrt-rtx" else (name,))]
    return tuple(name for name in wanted if canonical(name) not in has)


def applies(requirement: Requirement, python: str) -> bool:
    """Whether a requirement holds on a Linux x86-64 machine of this Python, without extras."""
    marker = requirement.marker
    about = {"python_version": python, "sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}
    return marker is None or marker.evaluate(about)


def pinned(constraints: Path) -> dict[str, str]:
    """Versions by canonical name."""
    lines = [line.split("==") for line in constraints.read_text().splitlines() if "==" in line]
    return {canonical(name): version for name, version in lines}


def unmet_needs(wheels: list[Path], has: set[str], python: str) -> dict[str, str]:
    """What the wheels demand that neither they nor the machine have, by name, with the wheel. Extras aren't asked."""
    there = has | {canonical(path.name.split("-")[0]) for path in wheels} | {"tensorrt-rtx"}
    needs = {
        canonical(need.name): f"{need.name} (of {path.name})"
        for path in wheels
        for need in map(Requirement, _needs_of(path))
        if applies(need, python)
    }
    return {name: text for name, text in needs.items() if name not in there}


def canonical(name: str) -> str:
    """A distribution's name in the one form in which names compare."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _needs_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])


def _fetch(name: str, version: str, python: str, out: Path) -> None:
    if name in _ONLY_SOURCE:
        command = ["wheel", "--no-deps", "--wheel-dir", str(out), f"{name}=={version}"]
    else:
        command = ["download", "--no-deps", "--only-binary=:all:", "--python-version", python]
        command += ["--implementation", "cp", *(word for name_ in _PLATFORMS for word in ("--platform", name_))]
        command += ["--dest", str(out), f"{name}=={version}"]
    _pip(command, f"no wheel of {name} {version} for Python {python}")


def _our_own(root: Path, out: Path) -> None:
    """From a copy, for setuptools leaves folders behind where it builds."""
    source = out.parent / "source"
    shutil.rmtree(source, ignore_errors=True)
    kept = ("gpusq_deploy", "calibration", "engines", "benchmarks")
    for name in kept:
        shutil.copytree(root / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(root / name, source / name)
    _pip(["wheel", "--no-deps", "--wheel-dir", str(out), str(source)], "our own wheel couldn't be built")
    shutil.rmtree(source)


def _pip(words: list[str], problem: str) -> None:
    command = [sys.executable, "-m", "pip", words[0], "--quiet", "--disable-pip-version-check", *words[1:]]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise GpusqError(f"{problem}: {' '.join(said)}", place="pip")
