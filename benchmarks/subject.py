"""What is measured: from a bundle, an engine or an ONNX file to one model file on one runtime, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from gpusq_deploy.artifacts import (
    MANIFEST,
    MODEL,
    RECEIPT,
    BatchRange,
    BuiltEngine,
    EngineBuilds,
    EngineOptions,
    Manifest,
    Receipt,
    read_value,
)
from gpusq_deploy.bundle import damaged_files, is_ours
from gpusq_deploy.engines import BackendName, Gpu, RuntimeChoice, choose_runtime, find_gpu
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import is_bundle
from gpusq_deploy.graph import EXTERNAL_DATA
from gpusq_deploy.sparsity import DENSE, require_dense, require_same_sparsity

_ENGINE_SUFFIXES = (".plan", ".engine")
# The first compute capability that `hardware=ampere-plus` means.
_AMPERE = (8, 0)


class Rebuilt(NamedTuple):
    """Several builds of an engine: the files, what they are, and the model that they were built from."""

    paths: tuple[Path, ...]
    builds: EngineBuilds
    model: Path


class MeasuredModel(NamedTuple):
    """One file on one runtime. `name` identifies it without the machine's paths; `batch` is the bundle's range.

    `weights` is the model that an engine without weights takes them from; `reference` the one that an engine was built
    from, to compare with on the CPU, where it is known. `host_code` is true of an engine with a runtime of its own,
    whose bundle vouches for it. `engine` is what a bundle's receipt says of the engine; `rebuilt` is measured in its
    place.
    """

    path: Path
    name: str
    choice: RuntimeChoice
    batch: BatchRange | None
    weights: Path | None = None
    reference: Path | None = None
    host_code: bool = False
    engine: BuiltEngine | None = None
    rebuilt: Rebuilt | None = None

    @property
    def default_batches(self) -> tuple[int, ...]:
        """The bundle's minimum and optimum, or 1."""
        if self.batch is None:
            return (1,)
        return tuple(sorted({self.batch.minimum, self.batch.optimum}))


def find_subject(path: Path, requested: str) -> MeasuredModel:
    """Choose model file and runtime.

    Args:
        path: A bundle's folder, a TensorRT engine, or an ONNX model.
        requested: A runtime's name or `auto`.

    Raises:
        GpusqError: Not one of the three, or the runtime asked for can't run it here.
    """
    if path.is_dir():
        return _of_bundle(path, requested)
    if path.suffix in _ENGINE_SUFFIXES:
        return _of_plan(path, requested)
    if path.suffix == ".onnx":
        folder = path.resolve().parent
        if path.name == MODEL and is_ours(folder):
            _require_model(folder, read_value(folder / MANIFEST, Manifest))
        return MeasuredModel(path, path.name, choose_runtime(requested, engines=()), None)
    raise GpusqError(
        "neither a bundle's folder nor a .onnx, .plan or .engine file",
        place=str(path),
        hint="give the folder that gpusq-build made",
    )


def _of_bundle(folder: Path, requested: str) -> MeasuredModel:
    if not is_bundle(folder):
        raise GpusqError(
            "the folder is not a bundle: it has no manifest.json",
            place=str(folder),
            hint="give the folder that gpusq-build made, or a .onnx or .plan file",
        )
    receipt = read_value(folder / RECEIPT, Receipt)
    built = {engine.backend for engine in receipt.engines}
    choice = choose_runtime(requested, engines=[name for name in get_args(BackendName) if name in built])
    manifest = read_value(folder / MANIFEST, Manifest)
    name = folder.resolve().name
    if choice.name == "onnxruntime":
        _require_model(folder, manifest)
        return MeasuredModel(folder / MODEL, f"{name}/{MODEL}", choice, manifest.batch)
    engine = _engine_for_this_gpu(receipt, manifest, choice.name)
    _require_as_built(engine, folder, manifest)
    weights = _weights_for(engine, folder, manifest)
    path = folder / engine.engine_file
    host_code = _options_of(engine, manifest).version_compatible
    return MeasuredModel(
        path, f"{name}/{engine.engine_file}", choice, manifest.batch, weights, folder / MODEL, host_code, engine
    )


def _of_plan(path: Path, requested: str) -> MeasuredModel:
    # The file doesn't say which of the two backends built it; loading it on the wrong one fails with the reason.
    choice = choose_runtime(requested, engines=get_args(BackendName))
    if choice.name == "onnxruntime":
        raise GpusqError(
            f"an engine can't run on onnxruntime ({choice.reason})",
            place=str(path),
            hint="run this on the engine's own GPU, or give the bundle's model.onnx to run on the CPU",
        )
    folder = path.resolve().parent.parent
    if not is_ours(folder):
        return MeasuredModel(path, path.name, choice, None)
    receipt, manifest = read_value(folder / RECEIPT, Receipt), read_value(folder / MANIFEST, Manifest)
    engine = next((engine for engine in receipt.engines if folder / engine.engine_file == path.resolve()), None)
    if engine is None:
        raise GpusqError(
            "the engine lies in a bundle whose receipt doesn't know it",
            place=str(path),
            hint="copy it elsewhere to run it by itself",
        )
    _require_as_built(engine, folder, manifest)
    weights = _weights_for(engine, folder, manifest)
    host_code = _options_of(engine, manifest).version_compatible
    return MeasuredModel(path, path.name, choice, None, weights, folder / MODEL, host_code, engine)


def _require_as_built(engine: BuiltEngine, folder: Path, manifest: Manifest) -> None:
    """Refuse an engine that isn't the one that was built, for loading it runs native code; and another reference.

    Raises:
        GpusqError: The engine, the receipt or the model isn't what the manifest says, or they contradict each other.
    """
    # The reference may lack its dense weights: whoever runs it says how they are made.
    model = [name for name in _model_files(manifest) if name == MODEL or (folder / name).exists()]
    _require_as_listed(folder, manifest, [engine.engine_file, RECEIPT, *model])
    if not any(entry.path == engine.engine_file and entry.digest == engine.engine_digest for entry in manifest.files):
        raise _not_as_built(folder, [f"{engine.engine_file}: the receipt's digest differs from the manifest's"])


def _require_model(folder: Path, manifest: Manifest) -> None:
    """Refuse a model that isn't the one that was built, or whose dense weights are still to be made."""
    require_dense(folder)
    _require_as_listed(folder, manifest, _model_files(manifest))


def _model_files(manifest: Manifest) -> list[str]:
    """The model, and what holds its weights where that is the case."""
    return [MODEL, *(entry.path for entry in manifest.files if entry.path in {EXTERNAL_DATA, DENSE})]


def _require_as_listed(folder: Path, manifest: Manifest, names: Sequence[str]) -> None:
    listed = tuple(entry for entry in manifest.files if entry.path in names)
    known = {entry.path for entry in listed}
    faults = [f"{name} isn't in the manifest" for name in names if name not in known]
    faults += damaged_files(folder, msgspec.structs.replace(manifest, files=listed))
    if faults:
        raise _not_as_built(folder, faults)


def _not_as_built(folder: Path, faults: Sequence[str]) -> GpusqError:
    return GpusqError(
        "; ".join(faults),
        place=str(folder),
        hint="copy the bundle again from where it was made, or build it again from its checkpoint",
    )


def _weights_for(engine: BuiltEngine, folder: Path, manifest: Manifest) -> Path | None:
    """The model that an engine without weights takes them from; None for an engine that has its own.

    Raises:
        GpusqError: The model's weights don't fit the engine.
    """
    if not _options_of(engine, manifest).strip:
        return None
    require_dense(folder)
    require_same_sparsity(folder / MODEL, manifest.sparsity)
    return folder / MODEL


def _options_of(engine: BuiltEngine, manifest: Manifest) -> EngineOptions:
    return manifest.engine if engine.options is None else engine.options


def _engine_for_this_gpu(receipt: Receipt, manifest: Manifest, backend: str) -> BuiltEngine:
    """The backend's engine for the GPU that answers here; its only one where none answers.

    One that was built for this kind of GPU goes before one that was built for others too.
    """
    engines = [engine for engine in receipt.engines if engine.backend == backend]
    gpu = find_gpu()
    if isinstance(gpu, Gpu):
        exact = [engine for engine in engines if engine.compute_capability == gpu.compute_capability]
        fitting = exact or [engine for engine in engines if _runs_on_newer(engine, manifest, gpu)]
        if not fitting:
            built = ", ".join(f"{engine.target} ({engine.compute_capability})" for engine in engines)
            raise GpusqError(
                f"the bundle has no engine for this GPU, a {gpu.name} ({gpu.compute_capability}): only for {built}",
                place=f"--runtime {backend}",
                hint="gpusq-build BUNDLE --target NAME builds one",
            )
        engines = fitting
    if len(engines) == 1:
        return engines[0]
    raise GpusqError(
        f"the bundle has {len(engines)} engines for {backend}: {', '.join(engine.engine_file for engine in engines)}",
        place=f"GPU here: {gpu}",
        hint="name the engine of this GPU instead of the bundle",
    )


def _runs_on_newer(engine: BuiltEngine, manifest: Manifest, gpu: Gpu) -> bool:
    """True for an engine of any GPU since Ampere, on another such one."""
    if _options_of(engine, manifest).hardware != "ampere-plus":
        return False
    return min(_capability(engine.compute_capability), _capability(gpu.compute_capability)) >= _AMPERE


def _capability(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
