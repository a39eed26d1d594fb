"""What a checkpoint's file is, who wrote it, and what of it is read: told from what was read of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gpusq_deploy.artifacts import FileAccount
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.exported_program import LAYOUT as PROGRAM
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.files import SELF_DESCRIBING
from gpusq_deploy.frontend.checkpoint.pretrained_folder import saved_by
from gpusq_deploy.text import counted, some

# Remarks on what isn't read, as adapters and `own_weights` word them.
_UNUSED = re.compile(r"(?:.*[:;] )?(?:not used|not taken|left out|.* not taken)\b.*")


def account_of(file: Path, reading: Reading) -> FileAccount:
    """The account of a file whose weights could be read.

    Args:
        file: The file with the weights.
        reading: What was read of it.
    """
    unused = [remark for remark in reading.remarks if remark in reading.unused or _UNUSED.fullmatch(remark)]
    return FileAccount(
        form=_form(file, reading.layout),
        producers=tuple(_producers(file, reading)),
        used=tuple(_used(reading)),
        unused=tuple(unused),
    )


def form_of(file: Path) -> str:
    """What a file is, where nothing could be read of it."""
    return "safetensors file" if file.suffix == ".safetensors" else "file of torch.save"


def _form(file: Path, layout: str) -> str:
    if layout == PROGRAM:
        return "archive of torch.export, whose program and weights are read"
    if layout == SELF_DESCRIBING:
        return f"{form_of(file)}, {SELF_DESCRIBING}"
    return f"{form_of(file)}, {layout}"


def _producers(file: Path, reading: Reading) -> Iterator[str]:
    """Those that adapters saw, then those that recorded something, each once."""
    said: list[str] = []
    recorded = [origin.partition(",")[0] for origin in reading.origins.values()]
    methods = [reading.sparsity.method] if reading.sparsity is not None and not reading.producers else []
    libraries = [library for library in [_library(file)] if library]
    for producer in (*reading.producers, *recorded, *methods, *libraries):
        if not any(producer in other for other in said):
            said.append(producer)
            yield producer


def _library(file: Path) -> str:
    try:
        return saved_by(file)
    except GpusqError:  # a config that merely lies beside the file
        return ""


def _used(reading: Reading) -> Iterator[str]:
    numbers = sum(tensor.numel() for tensor in reading.state.values())
    yield f"weights: {counted(len(reading.state), 'tensor')}, {numbers:,} numbers"
    if reading.sparsity is not None:
        layers = reading.sparsity.layers
        yield f"2:4 of {counted(len(layers), 'layer')}, as {reading.sparsity.method} recorded: {some(layers)}"
    for origin, count in Counter(reading.origins.values()).items():
        yield f"ranges of {counted(count, 'layer')}: {origin}"
