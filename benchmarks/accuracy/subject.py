"""What is evaluated: a bundle, a checkpoint or an ONNX file, as one module from images to the task's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

from gpusq_deploy.artifacts import (
    MANIFEST,
    MODEL,
    ArchSpec,
    Manifest,
    Preprocessing,
    digest_of_bytes,
    digest_of_file,
    json_from_value,
    read_value,
)
from gpusq_deploy.benchmarks.subject import find_subject
from gpusq_deploy.bundle import is_ours
from gpusq_deploy.calibration import SessionModule
from gpusq_deploy.engines import Session, open_session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import (
    digest_of_onnx,
    kind_of,
    load_checkpoint,
    module_from_arch,
    preprocessing_of_onnx,
    skeleton_from_arch,
)


class ModelFacts(NamedTuple):
    """What a model says of itself.

    `config` is a transformers model's, `names` its classes'; `headless`: it has no classifier.
    """

    config: Any = None
    names: Mapping[int, str] = {}
    headless: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One model. `preprocessing` is None of an ONNX file that nobody describes; `open` loads it."""

    name: str
    kind: Literal["bundle", "checkpoint", "ONNX model"]
    runtime: str
    digest: str
    preprocessing: Preprocessing | None
    facts: ModelFacts
    sample_shape: tuple[int, ...]
    open: Callable[[], torch.nn.Module]


def find_subjects(
    paths: Sequence[Path], runtime: str, arch: ArchSpec | None, state_dict: str | None
) -> tuple[Subject, ...]:
    """Look at every model.

    An ONNX file outside a bundle takes images as `arch` declares, or a preprocessor_config.json beside it, or as the
    first other model of the same input does.

    Raises:
        GpusqError: Not a model, or it isn't known how an image becomes its input.
    """
    found = [_subject(path, runtime, arch, state_dict) for path in paths]
    return tuple(_described(subject, found) for subject in found)


def _described(subject: Subject, others: Sequence[Subject]) -> Subject:
    if subject.preprocessing is not None:
        return _require_fit(subject, subject.preprocessing)
    for other in others:
        if other.preprocessing is not None and _fits(other.preprocessing, subject):
            opened = _opener(subject, other.facts.config)
            return replace(subject, preprocessing=other.preprocessing, facts=other.facts, open=opened)
    raise GpusqError(
        f"an ONNX file doesn't say how an image becomes its input {list(subject.sample_shape)}",
        place=subject.name,
        hint="give --arch, whose preprocessing is taken; put a preprocessor_config.json beside the file; or give the "
        "checkpoint or the bundle of the same model too",
    )


def _opener(subject: Subject, config: Any) -> Callable[[], torch.nn.Module]:
    """Loads an ONNX file's model with the config of another, which says what the answer means."""

    def opened() -> torch.nn.Module:
        module: Any = subject.open()
        module.config = config
        found: torch.nn.Module = module
        return found

    return opened


def _require_fit(subject: Subject, declared: Preprocessing) -> Subject:
    if not declared.is_image:
        raise GpusqError(
            f"the model's input {list(declared.sample_shape)} is no image",
            place=subject.name,
            hint="evaluation has images",
        )
    if not declared.is_declared:
        raise GpusqError(
            f"nothing says how an image becomes the model's input: {declared.origin}",
            place=subject.name,
            hint="build it with preprocessing: docs/checkpoints.md says where that comes from",
        )
    if not _fits(declared, subject):
        raise GpusqError(
            f"its input is {list(subject.sample_shape)}, the declared preprocessing makes "
            f"{list(declared.sample_shape)}",
            place=subject.name,
            hint="give the --arch and --arch-arg that the file was exported with",
        )
    return subject


def _fits(declared: Preprocessing, subject: Subject) -> bool:
    shape = subject.sample_shape
    if len(shape) != len(declared.sample_shape):
        return False
    return all(want in (-1, got) for got, want in zip(declared.sample_shape, shape, strict=True))


def _subject(path: Path, runtime: str, arch: ArchSpec | None, state_dict: str | None) -> Subject:
    kind = kind_of(path)
    if kind == "checkpoint":
        return _of_checkpoint(path, arch, state_dict)
    if kind == "bundle":
        return _of_bundle(path, runtime, arch)
    if path.name == MODEL and is_ours(path.resolve().parent):
        return replace(_of_bundle(path.resolve().parent, "onnxruntime", arch), name=str(path))
    return _of_onnx(path, runtime, arch)


def _of_checkpoint(path: Path, arch: ArchSpec | None, state_dict: str | None) -> Subject:
    checkpoint = load_checkpoint(path, arch=arch, state_dict=state_dict)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    told = f"{checkpoint.digest} {checkpoint.arch} {state_dict}".encode()
    return Subject(
        name=str(path),
        kind="checkpoint",
        runtime="torch",
        digest=digest_of_bytes(told),
        preprocessing=checkpoint.preprocessing,
        facts=_facts(checkpoint.module),
        sample_shape=checkpoint.preprocessing.sample_shape,
        open=lambda: checkpoint.module.eval().to(device),
    )


def _of_bundle(folder: Path, runtime: str, arch: ArchSpec | None) -> Subject:
    measured = find_subject(folder, runtime)
    manifest = read_value(folder / MANIFEST, Manifest)
    # What an ONNX file was exported from its user may name.
    source = arch if arch is not None and manifest.source.arch.source == "onnx" else manifest.source.arch
    facts = ModelFacts() if source.source in {"factory", "onnx"} else _facts(skeleton_from_arch(source))
    (shape,) = list(manifest.inputs.values())[:1]
    told = digest_of_file(folder / MANIFEST) + measured.name.rpartition("/")[2]
    return Subject(
        name=str(folder),
        kind="bundle",
        runtime=measured.choice.name,
        digest=digest_of_bytes(told.encode()),
        preprocessing=manifest.preprocessing,
        facts=facts,
        sample_shape=tuple(shape[1:]),
        open=lambda: SessionModule(
            open_session(measured.path, measured.choice.name, weights=measured.weights, host_code=measured.host_code),
            facts.config,
            measured.batch,
            str(folder),
        ),
    )


def _of_onnx(path: Path, runtime: str, arch: ArchSpec | None) -> Subject:
    measured = find_subject(path, runtime)
    session = open_session(path, measured.choice.name)
    shape = _require_one(session, str(path))
    module = None if arch is None else module_from_arch(arch)
    facts = ModelFacts() if module is None else _facts(module)
    return Subject(
        name=str(path),
        kind="ONNX model",
        runtime=measured.choice.name,
        digest=digest_of_onnx(path),
        preprocessing=preprocessing_of_onnx(path, arch, shape),
        facts=facts,
        sample_shape=shape,
        open=lambda: SessionModule(session, facts.config, None, str(path)),
    )


def _require_one(session: Session, place: str) -> tuple[int, ...]:
    """The shape of one sample."""
    if len(session.inputs) != 1:
        names = ", ".join(each.name for each in session.inputs)
        raise GpusqError(
            f"it takes {len(session.inputs)} inputs: {names}", place=place, hint="evaluation gives images alone"
        )
    return session.inputs[0].shape[1:]


def _facts(module: torch.nn.Module) -> ModelFacts:
    config: Any = getattr(module, "config", None)
    names = cast("Mapping[Any, str]", getattr(config, "id2label", None) or {})
    return ModelFacts(
        config=config,
        names={int(label): str(name) for label, name in names.items()},
        headless=getattr(module, "num_classes", None) == 0,
    )


def subject_key(subject: Subject) -> str:
    """Which predictions are its: the same file, run by the same runtime on the same preprocessing."""
    declared = b"" if subject.preprocessing is None else json_from_value(subject.preprocessing)
    return digest_of_bytes(f"{subject.digest} {subject.runtime} ".encode() + declared)
