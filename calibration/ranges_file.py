"""A file of ranges that was found before, of whichever kind."""

from __future__ import annotations

from pathlib import Path

from gpusq_deploy.artifacts import CalibrationTable
from gpusq_deploy.calibration.named_ranges import LARGEST_FILE, TAKEN, NamedRanges, mapping_in, not_ranges, text_of_file
from gpusq_deploy.calibration.onnxruntime_table import table_in_flatbuffers, table_in_json, table_in_text
from gpusq_deploy.calibration.stored_ranges import read_table
from gpusq_deploy.calibration.tensorrt_cache import cache_in_text, is_tensorrt_cache
from gpusq_deploy.errors import GpusqError

_OURS = "gpusq.calibration/"


def read_ranges(path: Path, *, model: str) -> CalibrationTable | NamedRanges:
    """Ranges from a file, whose content tells its kind.

    Args:
        path: The file.
        model: Digest of the checkpoint that is being built: what gpusq-calibrate wrote must be of it.

    Raises:
        GpusqError: Not such a file: says what it is and what is taken. Or damaged, or without a range.
    """
    data = _content(path)
    if str(mapping_in(data).get("schema", "")).startswith(_OURS):
        return read_table(path, model=model)
    found = _named(path, data)
    if found is None:
        raise not_ranges(path, data)
    if not found.amax:
        first = next((f": {name}: {why}" for name, why in found.unusable.items()), "")
        raise GpusqError(
            f"the {found.kind} holds no range that can be used{first}",
            place=str(path),
            hint="calibrate again, with data",
        )
    return found


def _named(path: Path, data: bytes) -> NamedRanges | None:
    if path.suffix == ".flatbuffers":
        return table_in_flatbuffers(path, data)
    if (table := table_in_json(path, data)) is not None:
        return table
    text = text_of_file(path, data)
    return cache_in_text(path, text) if is_tensorrt_cache(text) else table_in_text(path, text)


def _content(path: Path) -> bytes:
    if path.is_dir():
        inside = (
            " (a bundle: its own ranges lie in its calibration.json)" if (path / "calibration.json").exists() else ""
        )
        raise GpusqError(f"a folder, not a file of ranges{inside}", place=str(path), hint=f"give {TAKEN}")
    try:
        if path.stat().st_size > LARGEST_FILE:
            with path.open("rb") as stream:
                raise not_ranges(path, stream.read(256))
        return path.read_bytes()
    except OSError as error:
        raise GpusqError(f"cannot read the ranges: {error.strerror}", place=str(path), hint=f"give {TAKEN}") from error
