"""From a bundle to what others deploy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import ExportKind, ExportRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A folder that gpusq-export wrote, and what it holds.

    Attributes:
        folder: Where it is.
        record: Its files, and in `remarks` what doesn't apply or must be known.
    """

    folder: Path
    record: ExportRecord


def export(  # noqa: PLR0913 - one argument for each option of gpusq-export
    bundle: PathLike,
    to: ExportKind,
    *,
    out: PathLike | None = None,
    name: str | None = None,
    labels: PathLike | Sequence[str] | None = None,
    cpu: bool = False,
    force: bool = False,
) -> Exported:
    """Write a folder that runs a bundle's model without this package, as gpusq-export does.

    Args:
        bundle: The bundle.
        to: `"triton"`: a model repository; `"trtexec"`: the commands that build its engines; `"onnx"`: the model with
            programs in Python and C++; `"docker"`: images for servers and Jetsons.
        out: The folder; beside the bundle, with its name and `-triton` or the like.
        name: What the model is called; as the bundle.
        labels: Names of its classes in order, or a file with one in each line; those of a transformers config.
        cpu: Triton is to serve it on the CPU.
        force: Replace an exported folder that is there.

    Returns:
        Where it is and what it holds.

    Raises:
        GpusqError: A bad or damaged bundle, labels that don't fit, a type that Triton lacks, or a folder that exists or
            can't be written.
    """
    from gpusq_deploy.bundle import handed_model, handover_for, read_bundle, require_export_place, write_handover

    opened = read_bundle(Path(bundle))
    place = opened.path.resolve().with_name(f"{opened.path.resolve().stem}-{to}") if out is None else Path(out)
    require_export_place(place, force=force)
    model = handed_model(opened, name=name, labels=_labels(labels))
    record = write_handover(handover_for(model, to, cpu=cpu), opened, model, place, force=force)
    return Exported(folder=place, record=record)


def _labels(given: PathLike | Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    if isinstance(given, Sequence) and not isinstance(given, str):
        return tuple(given)
    path = Path(given)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GpusqError(
            f"cannot read the labels: {getattr(error, 'strerror', None) or 'not UTF-8'}",
            place=str(path),
            hint="one name in each line",
        ) from error
    return tuple(line.strip() for line in lines if line.strip())
