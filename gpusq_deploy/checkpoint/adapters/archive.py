"""Zip archives that torch writes, before anything is read out of them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from gpusq_deploy.errors import GpusqError


def require_stored(path: Path) -> None:
    """Refuse an archive that would grow when it is read. torch compresses nothing, so its entries never do.

    Raises:
        GpusqError: An entry is compressed, or the entries together are larger than the file.
        zipfile.BadZipFile: The archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or total > path.stat().st_size:
        raise GpusqError(
            f"the archive would grow to {total:,} bytes from {path.stat().st_size:,}: torch writes no such file",
            place=f"{path}, entry {packed[0]}" if packed else str(path),
            hint="if you trust it, unpack it and pack it again without compression (zip -0)",
        )
