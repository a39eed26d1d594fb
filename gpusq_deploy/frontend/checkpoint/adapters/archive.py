"""Zip archives that torch writes, before anything is read out of them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from gpusq_deploy.errors import GpusqError

_PIECE = 1 << 20


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


def require_no_script(path: Path) -> None:
    """Refuse a TorchScript archive: beside weights it holds code, which torch.jit.load would run.

    Raises:
        GpusqError: It is one.
        zipfile.BadZipFile: The archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        weights = f"{path.stem}-weights.pt"
        raise GpusqError(
            "the file is a TorchScript archive, a program that torch.jit.save wrote, and no state dict",
            place=str(path),
            hint=f"save its weights alone: torch.save(torch.jit.load({path.name!r}).state_dict(), {weights!r}), "
            "and say with --arch what they are of",
        )


def require_intact(path: Path) -> None:
    """Compare every entry with its checksum: torch doesn't, and a flipped bit in a weight is a weight.

    An archive without a single right one was written with `torch.serialization.set_crc32_options(False)`.

    Raises:
        GpusqError: An entry is not what was written.
    """
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
        bad = [entry.filename for entry in entries if not _right(archive, entry)]
    if bad and len(bad) < len(entries):
        raise GpusqError(
            f"damaged: {len(bad)} of {len(entries)} entries differ from their checksums",
            place=f"{path}, entry {bad[0]}",
            hint="copy or download the file again, and compare its size or digest with the original's",
        )


def _right(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as stream:
            while stream.read(_PIECE):
                pass
    except Exception:  # a damaged entry can claim to be encrypted, or of a kind that zipfile doesn't know
        return False
    return True
