"""What is measured: from a bundle, a plan or an ONNX file to one model file on one runtime, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, get_args

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.artifacts.manifest import BatchRange, Manifest
from gpusq_deploy.artifacts.receipt import Receipt
from gpusq_deploy.bundle import MANIFEST, MODEL, RECEIPT, is_bundle
from gpusq_deploy.engines.api import BackendName
from gpusq_deploy.engines.gpu import Gpu, find_gpu
from gpusq_deploy.engines.refit import require_same_sparsity
from gpusq_deploy.engines.runtimes import RuntimeChoice, choose_runtime
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.packed import require_dense

_PLAN_SUFFIXES = (".plan", ".engine")


class Subject(NamedTuple):
    """One file on one runtime. `name` identifies it without the machine's paths; `batch` is the bundle's range.

    `weights` is the model that a plan without weights takes them from; `reference` the one that a plan was built from,
    to compare with on the CPU, where it is known.
    """

    path: Path
    name: str
    choice: RuntimeChoice
    batch: BatchRange | None
    weights: Path | None = None
    reference: Path | None = None

    @property
    def default_batches(self) -> tuple[int, ...]:
        """The bundle's minimum and optimum, or 1."""
        if self.batch is None:
            return (1,)
        return tuple(sorted({self.batch.minimum, self.batch.optimum}))


def find_subject(path: Path, requested: str) -> Subject:
    """Choose model file and runtime.

    Args:
        path: A bundle's folder, a TensorRT plan, or an ONNX model.
        requested: A runtime's name or `auto`.

    Raises:
        GpusqError: Not one of the three, or the runtime asked for can't run it here.
    """
    if path.is_dir():
        return _of_bundle(path, requested)
    if path.suffix in _PLAN_SUFFIXES:
        return _of_plan(path, requested)
    if path.suffix == ".onnx":
        return Subject(path, path.name, choose_runtime(requested, plans=()), None)
    raise GpusqError(
        "neither a bundle's folder nor a .onnx, .plan or .engine file",
        place=str(path),
        hint="give the folder that gpusq-build made",
    )


def _of_bundle(folder: Path, requested: str) -> Subject:
    if not is_bundle(folder):
        raise GpusqError(
            "the folder is not a bundle: it has no manifest.json",
            place=str(folder),
            hint="give the folder that gpusq-build made, or a .onnx or .plan file",
        )
    receipt = read_value(folder / RECEIPT, Receipt)
    built = {engine.backend for engine in receipt.engines}
    choice = choose_runtime(requested, plans=[name for name in get_args(BackendName) if name in built])
    if choice.name == "onnxruntime":
        require_dense(folder)
    path = folder / (MODEL if choice.name == "onnxruntime" else _plan_for_this_gpu(receipt, choice.name))
    name = f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}"
    manifest = read_value(folder / MANIFEST, Manifest)
    weights = folder / MODEL if manifest.engine.strip and choice.name != "onnxruntime" else None
    if weights is not None:
        require_dense(folder)
        require_same_sparsity(weights, manifest.sparsity)
    reference = None if choice.name == "onnxruntime" else folder / MODEL
    return Subject(path, name, choice, manifest.batch, weights, reference)


def _of_plan(path: Path, requested: str) -> Subject:
    # The file doesn't say which of the two backends built it; loading it on the wrong one fails with the reason.
    choice = choose_runtime(requested, plans=get_args(BackendName))
    if choice.name == "onnxruntime":
        raise GpusqError(
            f"an engine plan can't run on onnxruntime ({choice.reason})",
            place=str(path),
            hint="run this on the plan's own GPU, or give the bundle's model.onnx to run on the CPU",
        )
    bundle = path.resolve().parent.parent
    return Subject(path, path.name, choice, None, reference=bundle / MODEL if is_bundle(bundle) else None)


def _plan_for_this_gpu(receipt: Receipt, backend: str) -> str:
    """The backend's plan that was built for the GPU that answers here; its only one where none answers."""
    engines = [engine for engine in receipt.engines if engine.backend == backend]
    gpu = find_gpu()
    if isinstance(gpu, Gpu):
        fitting = [engine for engine in engines if engine.compute_capability == gpu.compute_capability]
        if not fitting:
            built = ", ".join(f"{engine.target} ({engine.compute_capability})" for engine in engines)
            raise GpusqError(
                f"the bundle has no plan for this GPU, a {gpu.name} ({gpu.compute_capability}): only for {built}",
                place=f"--runtime {backend}",
                hint="gpusq-build BUNDLE --target NAME builds one",
            )
        engines = fitting
    if len(engines) == 1:
        return engines[0].plan_file
    raise GpusqError(
        f"the bundle has {len(engines)} plans for {backend}: {', '.join(engine.plan_file for engine in engines)}",
        place=f"GPU here: {gpu}",
        hint="name the plan of this GPU instead of the bundle",
    )
