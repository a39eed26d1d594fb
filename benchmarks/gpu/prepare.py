"""Plans and references, made beside the measuring on the CPU's cores: what the steps need first is made first.

    python -m gpusq_deploy.benchmarks.gpu.prepare --kit DIR --work DIR --processes N --seconds S

Graphs get their weights and references at once; plans are built as soon as the first step has found how.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.artifacts.base import Value, json_from_value, write_whole
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.benchmarks.gpu.cases import GemmCase, all_cases, case_model
from gpusq_deploy.benchmarks.gpu.graphs import Variant, fill, variants_of
from gpusq_deploy.benchmarks.gpu.possible import BATCH
from gpusq_deploy.benchmarks.gpu.references import save_reference
from gpusq_deploy.benchmarks.gpu.runs import Ground, built_kernels, target_here, why
from gpusq_deploy.benchmarks.gpu.values import BuiltKernel, Way
from gpusq_deploy.engines.builder import EngineBuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings

_POLL_SECONDS = 0.05


class Prepared(Value):
    """What became of one plan, written after it; `writes` is what the INT8 product writes, in the builder's words."""

    seconds: float = 0.0
    kernels: tuple[BuiltKernel, ...] = ()
    why_not: str = ""

    @property
    def writes(self) -> str:
        """Types that the kernel with INT8 inputs writes."""
        return ", ".join(next((kernel.outputs for kernel in self.kernels if "Int8" in kernel.inputs), ()))


def plan_and_record(work: Path, file: str, way: Way) -> tuple[Path, Path]:
    """Where a plan lies, and what became of it; where the second is, the first is or failed."""
    name = f"{file}.{way.name.replace(' ', '-')}"
    return work / f"{name}.plan", work / f"{name}.json"


def reference_of(work: Path, file: str) -> Path:
    """Where a model's reference lies."""
    return work / f"{file}.npz"


def main() -> None:
    """Entry point."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    asked = parser.parse_args()
    prepare(Ground(asked.kit, asked.work, time.monotonic() + asked.seconds), asked.processes)


def prepare(ground: Ground, processes: int) -> None:
    """Everything, each thing in a process of its own: TensorRT has one log for a process, and may end it."""
    waiting: list[Variant | GemmCase] = [*variants_of(ground.kit).variants, *all_cases()]
    running: dict[BaseProcess, Variant | GemmCase] = {}
    # Nothing here has started a thread or a CUDA context: forking saves each process its imports.
    fork = multiprocessing.get_context("fork")
    while waiting or running:
        for process in [process for process in running if not process.is_alive()]:
            source = running.pop(process)
            if process.exitcode:
                _record(source, ground, Prepared(why_not=f"its builder died with {process.exitcode}"))
        while waiting and len(running) < processes:
            source = waiting.pop(0)
            process = fork.Process(target=make, args=(source, ground))
            process.start()
            running[process] = source
        time.sleep(_POLL_SECONDS)


def make(source: Variant | GemmCase, ground: Ground) -> None:
    """One model or product: its graph, for a model its reference, and a plan by every way."""
    model, problem = ground.work / f"{source.file}.onnx", ""
    try:
        _draw(source, model, ground)
    # What fails here is met again, as its reason, where it was to run.
    except Exception as error:
        problem = f"its graph couldn't be made: {why(error)}"
    if ground.wait_for(ground.work / "ways.json") is None:
        return
    for way in ground.ways.ways:
        plan, record = plan_and_record(ground.work, source.file, way)
        prepared = Prepared(why_not=problem) if problem else _built(source, model, plan, way)
        write_whole(record, json_from_value(prepared))


def _record(source: Variant | GemmCase, ground: Ground, prepared: Prepared) -> None:
    for way in ground.ways.ways:
        _plan, record = plan_and_record(ground.work, source.file, way)
        if not record.exists():
            write_whole(record, json_from_value(prepared))


def _draw(source: Variant | GemmCase, model: Path, ground: Ground) -> None:
    if isinstance(source, GemmCase):
        ir.save(case_model(source), model)
        return
    fill(ground.kit, source, model)
    save_reference(model, reference_of(ground.work, source.file), threads=2)


def _built(source: Variant | GemmCase, model: Path, plan: Path, way: Way) -> Prepared:
    batch = BATCH
    if isinstance(source, GemmCase):
        batch = BatchRange(minimum=source.batch, optimum=source.batch, maximum=source.batch)
    try:
        settings = BuildSettings(batch=batch, sparse="2:4" in source.name)
        options = EngineBuildOptions(backend=way.backend, capability=way.capability)
        built = build_engine(model, target_here(), settings, options)
    except Exception as error:
        return Prepared(why_not=f"building failed: {why(error)}")
    write_whole(plan, built.engine_bytes)
    return Prepared(seconds=built.seconds, kernels=built_kernels(built.layers))


if __name__ == "__main__":
    main()
