"""WebDataset shards: tar files in which the members of one sample share a name up to its first dot.

A sample has one image, and its class in a member `.cls` (a number in text) or under `label` or `class` in `.json`. The
archives are indexed once and read at random; nothing is unpacked.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
from PIL import Image

from gpusq_deploy.calibration import SUFFIXES
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.entries import Entry
from gpusq_deploy.text import one_line

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABELS = ("label", "class")


class _Member(NamedTuple):
    """Where bytes lie in a shard."""

    start: int
    size: int


class _Sample(NamedTuple):
    shard: Path
    key: str
    image: _Member
    label: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shards:
    """Samples of some shards, in the order of the shards."""

    name: str
    samples: tuple[_Sample, ...]

    @property
    def labelled(self) -> bool:
        """Whether every sample has a class."""
        return self.samples[0].label is not None

    def __len__(self) -> int:
        return len(self.samples)

    def entry(self, index: int) -> Entry:
        """Sample `index`.

        Raises:
            GpusqError: Its image can't be decoded; the shard and its name are told.
        """
        sample = self.samples[index]
        place = f"{sample.shard}, sample {sample.key}"
        try:
            with sample.shard.open("rb") as stream:
                image = Image.open(io.BytesIO(_bytes(stream, sample.image)))
                image.load()
        except Exception as error:  # Pillow's decoders raise what they like on damaged bytes
            raise GpusqError(
                f"not a readable image: {one_line(error)}", place=place, hint="write the shard again"
            ) from error
        return Entry(image, sample.label)


def names_shards(text: str) -> bool:
    """Whether `--data` names shards: a tar file, a range of them such as `train-{000..015}.tar`, or their folder."""
    return text.endswith(".tar") or (Path(text).is_dir() and bool(_in_folder(text)))


def open_shards(text: str) -> Shards:
    """Index shards.

    Args:
        text: See `names_shards`.

    Raises:
        GpusqError: A shard is missing or damaged, holds no image, or some samples have a class and others haven't.
    """
    shards = _in_folder(text) if Path(text).is_dir() else [Path(name) for name in _expanded(text)]
    samples = [sample for shard in shards for sample in _indexed(shard)]
    if not samples:
        raise GpusqError("the shards hold no image", place=text, hint=f"members such as 000.jpg; {_suffixes()}")
    missing = [sample for sample in samples if sample.label is None]
    if missing and len(missing) < len(samples):
        raise GpusqError(
            f"{len(missing)} of {len(samples)} samples have no class",
            place=f"{missing[0].shard}, sample {missing[0].key}",
            hint="give each a member .cls, or none of them to train without labels",
        )
    return Shards(name=text, samples=tuple(samples))


def _in_folder(text: str) -> list[Path]:
    return sorted(Path(text).glob("*.tar"))


def _expanded(text: str) -> Iterator[str]:
    """The names that `{000..015}` stands for."""
    found = _RANGE.search(text)
    if found is None:
        yield text
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{text[: found.start()]}{number:0{len(first)}d}{text[found.end() :]}")


def _indexed(shard: Path) -> list[_Sample]:
    members: dict[str, dict[str, _Member]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isfile():
                    key, suffix = _split(member.name)
                    members.setdefault(key, {})[suffix] = _Member(member.offset_data, member.size)
        with shard.open("rb") as stream:
            whole = shard.stat().st_size
            return [
                _Sample(shard, key, parts[suffix], _label(stream, parts, f"{shard}, sample {key}"))
                for key, parts in members.items()
                for suffix in _images(parts, whole, f"{shard}, sample {key}")
            ]
    except (OSError, tarfile.TarError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise GpusqError(
            f"the shard can't be read: {why}", place=str(shard), hint="write or copy it again, uncompressed"
        ) from error


def _split(name: str) -> tuple[str, str]:
    """`train/0001.seg.png` is the member `seg.png` of the sample `train/0001`."""
    folder, _, base = name.rpartition("/")
    key, _, suffix = base.partition(".")
    return f"{folder}/{key}" if folder else key, suffix.lower()


def _images(parts: dict[str, _Member], whole: int, place: str) -> list[str]:
    """The suffix of the sample's image, in a list; none where it has no image."""
    found = [suffix for suffix in parts if f".{suffix}" in SUFFIXES]
    if len(found) > 1:
        raise GpusqError(f"the sample has {len(found)} images, .{' and .'.join(found)}", place=place)
    if any(member.start + member.size > whole for member in parts.values()):
        raise GpusqError("the shard is cut short", place=place, hint="write or copy it again")
    return found


def _label(stream: io.BufferedReader, parts: dict[str, _Member], place: str) -> int | None:
    try:
        if "cls" in parts:
            return int(_bytes(stream, parts["cls"]))
        if "json" in parts:
            told = msgspec.json.decode(_bytes(stream, parts["json"]), type=dict[str, object])
            found = next((told[name] for name in _LABELS if name in told), None)
            return found if isinstance(found, int) else None
    except (ValueError, msgspec.DecodeError) as error:
        raise GpusqError(f"its class is no number: {one_line(error)}", place=place) from error
    return None


def _bytes(stream: io.BufferedReader, member: _Member) -> bytes:
    stream.seek(member.start)
    return stream.read(member.size)


def _suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))
