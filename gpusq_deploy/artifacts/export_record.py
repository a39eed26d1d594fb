"""What gpusq-export wrote: from which bundle, for whom, and each file."""

from __future__ import annotations

from typing import Literal

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.manifest import BundleFile

ExportKind = Literal["triton", "trtexec", "onnx", "docker"]
# The record's name in the folder that it describes.
EXPORT = "gpusq-export.json"


class ExportRecord(Value):
    """One exported folder.

    Attributes:
        kind: What it is for.
        bundle: The bundle's folder, by its name.
        model_digest: Of its model.onnx.
        files: Every file but the record.
        remarks: What doesn't apply, is left out, or must be known before it is used; one sentence each.
    """

    schema: Literal["gpusq.export/1"] = "gpusq.export/1"
    kind: ExportKind
    bundle: str
    model_digest: str
    files: tuple[BundleFile, ...]
    remarks: tuple[str, ...] = ()
