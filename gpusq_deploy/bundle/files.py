"""The bundle on disk: written beside its final name, checked by digest, replaced whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import msgspec

from gpusq_deploy.artifacts import (
    CALIBRATION,
    MANIFEST,
    PLAN,
    RECEIPT,
    BundleFile,
    CalibrationTable,
    Manifest,
    QuantPlan,
    Receipt,
    Value,
    digest_of_file,
    json_from_value,
    read_value,
    require_folder,
    require_input,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import is_bundle


class FolderKind(NamedTuple):
    """What --force may replace: a folder whose file `marker` has a schema that begins so; `noun` is said of it."""

    schema: str
    marker: str
    noun: str


_BUNDLE = FolderKind("gpusq.bundle/", MANIFEST, "bundle")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle that was read. `calibration` is None where nothing was quantised."""

    path: Path
    manifest: Manifest
    plan: QuantPlan
    receipt: Receipt
    calibration: CalibrationTable | None


def read_bundle(path: Path) -> Bundle:
    """Read a bundle's descriptions; the model and the engines stay on disk.

    Raises:
        GpusqError: Nothing is there, it isn't a bundle, or one of its files is missing or damaged.
    """
    require_input(path)
    if not is_bundle(path):
        raise GpusqError("not a bundle: it has no manifest.json", place=str(path), hint="make one with gpusq-build")
    calibration = path / CALIBRATION
    return Bundle(
        path=path,
        manifest=read_value(path / MANIFEST, Manifest),
        plan=read_value(path / PLAN, QuantPlan),
        receipt=read_value(path / RECEIPT, Receipt),
        calibration=read_value(calibration, CalibrationTable) if calibration.exists() else None,
    )


def damaged_files(path: Path, manifest: Manifest) -> Iterator[str]:
    """Files that aren't what the manifest says, one sentence each."""
    for entry in manifest.files:
        file = path / entry.path
        if not file.is_file():
            yield f"{entry.path} is missing"
        elif file.stat().st_size != entry.size or digest_of_file(file) != entry.digest:
            yield f"{entry.path} is not the file that was built: its digest differs from the manifest's"


def require_whole(bundle: Bundle, *, but: str | None = None) -> None:
    """Refuse a bundle with a damaged file.

    Args:
        bundle: The bundle.
        but: A file that needn't be whole.

    Raises:
        GpusqError: Names every such file.
    """
    files = tuple(entry for entry in bundle.manifest.files if entry.path != but)
    faults = list(damaged_files(bundle.path, msgspec.structs.replace(bundle.manifest, files=files)))
    if faults:
        raise GpusqError("; ".join(faults), place=str(bundle.path), hint="build the bundle again from its checkpoint")


def require_accepted(bundle: Bundle) -> None:
    """Refuse what is no bundle to deploy.

    Raises:
        GpusqError: It is the evidence of a build that was refused.
    """
    if bundle.receipt.shortfalls:
        raise GpusqError(
            f"this bundle is the evidence of a refused build: {'; '.join(bundle.receipt.shortfalls)}",
            place=str(bundle.path),
            hint="build it again from its checkpoint, with another recipe or another limit",
        )


def require_place(out: Path, *, force: bool, kind: FolderKind = _BUNDLE) -> None:
    """Refuse, before any work, a place where a folder of ours can't go.

    Args:
        out: The place.
        force: Whether a folder of the same kind may be replaced.
        kind: Which kind it is.

    Raises:
        GpusqError: The parent folder is missing, something is there already, or it isn't ours to replace.
    """
    require_folder(out)
    if not os.path.lexists(out):
        return
    if not force:
        raise GpusqError("the output exists already", place=str(out), hint="--force replaces it; --out names another")
    if out.is_symlink() or not is_ours(out, kind):
        raise GpusqError(
            f"the output exists and is not a {kind.noun}, so --force will not replace it",
            place=str(out),
            hint="choose another --out",
        )


def is_ours(path: Path, kind: FolderKind = _BUNDLE) -> bool:
    """Stricter than `is_bundle`, for what --force deletes: other tools write a manifest.json too."""
    try:
        content = json.loads((path / kind.marker).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and str(cast("dict[str, object]", content).get("schema")).startswith(kind.schema)


@contextmanager
def new_bundle(out: Path, *, force: bool) -> Generator[Path, None, None]:
    """A folder to fill; it becomes the bundle `out` when the block ends well; see `new_folder`."""
    with new_folder(out, force=force) as folder:
        yield folder


@contextmanager
def new_folder(out: Path, *, force: bool, kind: FolderKind = _BUNDLE) -> Generator[Path, None, None]:
    """A folder to fill; it becomes `out` when the block ends well and vanishes when it doesn't.

    Raises:
        GpusqError: See `require_place`; or the disk refused.
    """
    require_place(out, force=force, kind=kind)
    target = out.absolute()
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise GpusqError(f"cannot write the {kind.noun}: {error.strerror}", place=str(target.parent)) from error
    try:
        folder.chmod(0o755)
        yield folder
        require_place(out, force=force, kind=kind)
        _replace(folder, target)
    except OSError as error:
        raise GpusqError(
            f"cannot write the {kind.noun}: {error.strerror}", place=str(error.filename or target)
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep_beside(folder: Path, place: Path) -> None:
    """Rename a folder from `new_bundle` to another name than the bundle's; it replaces what stands there."""
    _replace(folder, place.absolute())


def write_value(folder: Path, name: str, value: Value) -> None:
    """Write one description into a bundle that is being made."""
    (folder / name).write_bytes(json_from_value(value))


def files_in(folder: Path) -> tuple[BundleFile, ...]:
    """Every file below a folder with size and digest, sorted by path; the manifest itself is left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return tuple(
        BundleFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, digest=digest_of_file(path))
        for path in paths
    )


def _replace(folder: Path, target: Path) -> None:
    """Two renames: a kill between them leaves the old bundle beside `target`, under a name that says so."""
    if not target.exists():
        folder.rename(target)
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
