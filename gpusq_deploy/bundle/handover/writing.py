"""An exported folder on disk: whole or not at all, with a record of what it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from gpusq_deploy.artifacts import EXPORT, ExportKind, ExportRecord
from gpusq_deploy.bundle.files import Bundle, FolderKind, files_in, new_folder, require_place, write_value
from gpusq_deploy.bundle.handover.docker import docker_files
from gpusq_deploy.bundle.handover.examples import examples
from gpusq_deploy.bundle.handover.model import HandedModel, Handover
from gpusq_deploy.bundle.handover.triton import triton_repository
from gpusq_deploy.bundle.handover.trtexec import trtexec_commands
from gpusq_deploy.errors import GpusqError

FOLDER = FolderKind("gpusq.export/", EXPORT, "folder of gpusq-export")
_KINDS: Mapping[ExportKind, Callable[[HandedModel], Handover]] = {
    "triton": triton_repository,
    "trtexec": trtexec_commands,
    "onnx": examples,
    "docker": docker_files,
}


def require_export_place(out: Path, *, force: bool) -> None:
    """Refuse, before any work, a place where an export can't go; see `require_place`."""
    require_place(out, force=force, kind=FOLDER)


def handover_for(model: HandedModel, kind: ExportKind, *, cpu: bool = False) -> Handover:
    """What a model becomes for one kind of deployment.

    Args:
        model: The model.
        kind: Which.
        cpu: Triton is to serve it on the CPU.

    Raises:
        GpusqError: `cpu` of another kind, or see `triton_repository`.
    """
    if not cpu:
        return _KINDS[kind](model)
    if kind != "triton":
        raise GpusqError("--cpu goes with --to triton alone", place="--cpu", hint="leave it out")
    return triton_repository(model, cpu=True)


def write_handover(handover: Handover, bundle: Bundle, model: HandedModel, out: Path, *, force: bool) -> ExportRecord:
    """Write a folder.

    Raises:
        GpusqError: Something is there that `force` may not replace, or the disk refused.
    """
    with new_folder(out, force=force, kind=FOLDER) as folder:
        for name, content in handover.files.items():
            path = _made(folder / name)
            path.write_bytes(content)
            if path.suffix == ".sh":
                path.chmod(0o755)
        for name, source in handover.copies.items():
            shutil.copyfile(bundle.path / source, _made(folder / name))
        record = ExportRecord(
            kind=handover.kind,
            bundle=model.bundle,
            model_digest=model.digest,
            files=files_in(folder),
            remarks=handover.remarks,
        )
        write_value(folder, EXPORT, record)
    return record


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
