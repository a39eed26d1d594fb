"""Some hundreds of photographs out of Debian's packages, for what photographs are needed for and may not be kept here.

    python benchmarks/peers/debian_photographs.py FOLDER

Animals, buildings, landscapes and things of gcompris-qt-data, the samples of opencv-doc, and wallpapers: with Debian
12's versions 594 images. apt-get downloads the packages and dpkg-deb unpacks them; nothing is installed. Drawings are
left out by their few colours. The files are named by their content, so that their order is no package's. Each package's
copyright file has the licences.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

_PACKAGES = (
    "gcompris-qt-data",
    "gnome-backgrounds",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "mate-backgrounds",
    "opencv-doc",
    "plasma-workspace-wallpapers",
    "ukui-wallpapers",
)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_SHORTEST, _LONGEST = 180, 900
_COLOURS = 6000  # of 128 x 128 pixels
_OPAQUE = 0.98


def unpacked(folder: Path) -> list[Path]:
    """The files of all packages."""
    subprocess.run(["apt-get", "download", *_PACKAGES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for package in list(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package.name, package.stem], cwd=folder, check=True)
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def contents(path: Path) -> Iterator[bytes]:
    """The images in a file: itself, or what one of Qt's resource files holds."""
    if path.suffix.lower() in _SUFFIXES:
        yield path.read_bytes()
    elif path.suffix == ".rcc":
        whole = path.read_bytes()
        for found in re.finditer(rb"RIFF(....)WEBP", whole, re.DOTALL):
            yield whole[found.start() : found.start() + 8 + int.from_bytes(found.group(1), "little")]
        for found in re.finditer(rb"\xff\xd8\xff", whole):
            yield whole[found.start() :]


def photograph(content: bytes) -> Image.Image | None:
    """An image of enough pixels, colours and opacity, at most 900 pixels long; else None."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            whole = image.convert("RGBA")
    except Exception:  # Pillow raises whatever its decoders do; a resource file holds other things too
        return None
    opaque = float((np.asarray(whole)[..., 3] > 250).mean())
    if min(whole.size) < _SHORTEST or opaque < _OPAQUE:
        return None
    colour = whole.convert("RGB")
    colour.thumbnail((_LONGEST, _LONGEST))
    seen = np.asarray(colour.resize((128, 128))).reshape(-1, 3)
    return colour if len(np.unique(seen, axis=0)) >= _COLOURS else None


def main() -> None:
    """Write each once."""
    parser = argparse.ArgumentParser(description="Collect photographs out of Debian's packages.")
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for path in unpacked(Path(folder)):
            for found in filter(None, map(photograph, contents(path))):
                name = hashlib.md5(found.resize((8, 8)).tobytes(), usedforsecurity=False).hexdigest()[:10]
                found.save(out / f"{name}.jpg", quality=95)
    print(f"{len(list(out.iterdir()))} photographs in {out}")


if __name__ == "__main__":
    main()
