"""gpusq-doctor: what this machine can build, run and measure, and what is missing for the rest."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from gpusq_deploy.cli.command import Command
from gpusq_deploy.cli.common import echo_json, run_command
from gpusq_deploy.cli.ending import NO_ENGINE, NOT_ON_DEVICES
from gpusq_deploy.text import some

if TYPE_CHECKING:
    from gpusq_deploy.engines import HealthCheck, Target

_LIBRARIES = {"timm": "timm", "torchvision": "torchvision", "transformers": "transformers"}
_NOT_INSTALLED = re.compile(r"(?:^|\s)([A-Za-z][\w-]*) is not installed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ability:
    """One thing that this machine can do or can't: why, and the command that would change it."""

    what: str
    works: bool
    why: str
    fix: str | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {"what": self.what, "works": self.works, "why": self.why, "fix": self.fix}


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What can be built, run and measured here."""

    build: tuple[Ability, ...]
    run: tuple[Ability, ...]
    measure: tuple[Ability, ...]

    @property
    def builds(self) -> bool:
        """True where anything can be built: a bundle from a checkpoint, or an engine for a target."""
        return any(ability.works for ability in self.build)


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@click.pass_context
def command(context: click.Context, *, as_json: bool) -> None:
    """Say what this machine can build, run and measure, and what is missing for the rest.

    Exit 0, or 6 where nothing at all can be built.
    """
    from gpusq_deploy.engines import all_versions

    health, versions = examine(), all_versions()
    if as_json:
        parts = {name: [ability.as_json() for ability in getattr(health, name)] for name in ("build", "run", "measure")}
        echo_json({"versions": versions, **parts})
    else:
        _print(health, versions)
    context.exit(0 if health.builds else NO_ENGINE)


def examine() -> Health:
    """Try everything: some seconds, for libraries are loaded, each in a process of its own."""
    from gpusq_deploy.engines import (
        TRAITS,
        check_builder,
        check_engines,
        check_gpu,
        check_nvidia_smi,
        check_onnxruntime,
        load_targets,
    )

    builders = {name: check_builder(name) for name in TRAITS}
    gpu, ort = check_gpu(), check_onnxruntime()
    engines = [check_engines(name) for name in TRAITS]
    cpu = Ability(what="latency on the CPU", works=ort.works, why=_version_of(ort), fix=_fix(ort))
    return Health(
        build=(_checkpoints(), *_architectures(), *(_engine(target, builders) for target in load_targets())),
        run=(
            Ability(what="model.onnx on the CPU", works=ort.works, why=_version_of(ort), fix=_fix(ort)),
            Ability(what="a GPU", works=gpu.works, why=gpu.said, fix=None if gpu.works else _DRIVER),
            *(Ability(what=check.name, works=check.works, why=check.said, fix=_fix(check)) for check in engines),
        ),
        measure=(cpu, _gpu_latency(engines), _clocks(check_nvidia_smi())),
    )


_DRIVER = "use a machine with an NVIDIA GPU and its driver"


def _version_of(check: HealthCheck) -> str:
    return f"{check.name} {check.said}" if check.works else check.said


def _checkpoints() -> Ability:
    missing = [package for module, package in NOT_ON_DEVICES.items() if not _installed(module)]
    what = "a bundle from a checkpoint"
    if missing:
        return Ability(
            what=what,
            works=False,
            why=f"not installed: {some(missing, 9)}; bundles get their engines without",
            fix=f"pip install {' '.join(missing)}",
        )
    return Ability(what=what, works=True, why=f"installed: {', '.join(NOT_ON_DEVICES.values())}")


def _architectures() -> Iterator[Ability]:
    for module, package in _LIBRARIES.items():
        here = _installed(module)
        yield Ability(
            what=f"architectures of {package}",
            works=here and _checkpoints().works,
            why="installed" if here else f"{package} is not installed",
            fix=None if here else f"pip install {package}",
        )


def _engine(target: Target, builders: dict[Any, HealthCheck]) -> Ability:
    """Whether a target's engine can be built here, by a builder that was seen to work."""
    from gpusq_deploy.artifacts import SkippedTarget
    from gpusq_deploy.engines import choose_backend

    what = f"an engine for {target.name}"
    broken = [name for name in target.ahead_of_time if not builders[name].works]
    if broken and len(broken) == len(target.ahead_of_time):
        check = builders[broken[0]]
        return Ability(what=what, works=False, why=f"{broken[0]}: {check.said}", fix=_install(broken[0]))
    choice = choose_backend(target, bundle="BUNDLE")
    if isinstance(choice, SkippedTarget):
        return Ability(what=what, works=False, why=choice.reason, fix=f"on the device: {choice.command}")
    check = builders[choice.name]
    if not check.works:
        return Ability(what=what, works=False, why=f"{choice.name}: {check.said}", fix=_install(choice.name))
    return Ability(what=what, works=True, why=f"{choice.name} {check.said}")


def _gpu_latency(engines: Sequence[HealthCheck]) -> Ability:
    working = [check.name for check in engines if check.works]
    return Ability(
        what="latency on the GPU",
        works=bool(working),
        why=", ".join(working) if working else "no engine can be run here",
        fix=None if working else "see what is missing for running engines",
    )


def _clocks(check: HealthCheck) -> Ability:
    fix = None if check.works else "nvidia-smi comes with the driver"
    return Ability(what="the GPU's clocks", works=check.works, why=check.said, fix=fix)


def _fix(check: HealthCheck) -> str | None:
    """The command that installs what a check missed; the driver where that is what is missing."""
    if check.works:
        return None
    if "driver" in check.said or "GPU" in check.said:
        return _DRIVER
    found = _NOT_INSTALLED.search(check.said) or re.search(r"No module named '([\w-]+)", check.said)
    return _install(found.group(1).replace("_", "-")) if found else None


def _install(package: str) -> str:
    if package == "tensorrt-rtx" and (sys.platform != "linux" or platform.machine() != "x86_64"):
        return "tensorrt-rtx has wheels for Linux on x86-64 alone; build on such a machine, or use tensorrt here"
    return "pip install 'gpusq-deploy[tensorrt]'" if package == "tensorrt" else f"pip install {package}"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module of this name is there already, and has no spec
        return False


def _print(health: Health, versions: dict[str, str]) -> None:
    from gpusq_deploy.bundle import print_pairs, result_console

    console = result_console()
    rows: list[tuple[str, str]] = []
    for verb, abilities in (("build", health.build), ("run", health.run), ("measure", health.measure)):
        for ability in abilities:
            fix = f"\n     try: {ability.fix}" if ability.fix else ""
            rows.append((f"{verb} {ability.what}", f"{'yes' if ability.works else 'no':<3}  {ability.why}{fix}"))
    print_pairs(console, ", ".join(f"{name} {version}" for name, version in list(versions.items())[:2]), rows)
    count = sum(line.startswith("build an engine") and text.startswith("yes") for line, text in rows)
    click.echo(f"engines for {count} targets can be built here; gpusq-build --list targets says what each is")


def main() -> None:
    """Entry point."""
    run_command(command)
