"""Damage for files: cut, flipped, dropped, repeated and foreign bytes; in a file, or in an entry of an archive."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hypothesis import strategies as st

Kind = Literal["cut", "flip", "drop", "repeat", "insert"]
KINDS: tuple[Kind, ...] = ("cut", "flip", "drop", "repeat", "insert")


@dataclass(frozen=True, slots=True)
class Edit:
    """One damage: at `place`, a share of the file from its start or, negative, from its end; of `size` bytes."""

    kind: Kind
    place: float
    size: int
    content: bytes

    def __call__(self, data: bytes) -> bytes:
        """The data with this damage."""
        start = int(abs(self.place) * len(data))
        start = start if self.place >= 0 else max(0, len(data) - start)
        piece = data[start : start + self.size]
        if self.kind == "cut":
            return data[:start]
        inside = {
            "flip": bytes(byte ^ 1 << self.size % 8 for byte in piece[:4]) + piece[4:],
            "drop": b"",
            "repeat": piece * 2,
            "insert": self.content + piece,
        }[self.kind]
        return data[:start] + inside + data[start + self.size :]


# Headers lie at the start, indexes of archives at the end: both are hit more often than what is between.
_PLACES = st.one_of(st.floats(0, 1), st.floats(0, 0.02), st.floats(0, 0.001), st.floats(-0.05, 0, exclude_max=True))
# What parsers trip over, beside any bytes.
_CONTENTS = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from(
        [b"\xff" * 8, b"\0" * 8, b"[" * 3000, b"{" * 3000, b'"', b"\xc3\x28", b"NaN", b"1e999", b"-1", b"PK\x05\x06"]
    ),
)
EDITS = st.lists(
    st.builds(Edit, st.sampled_from(KINDS), _PLACES, st.integers(1, 64), _CONTENTS), min_size=1, max_size=4
)


def overwritten_and_cut(content: bytes, data: st.DataObject) -> bytes:
    """Up to four bytes changed to any, and the end left out."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(0, len(changed)))])


def damaged(data: bytes, edits: Sequence[Edit]) -> bytes:
    """All edits, one after another."""
    for edit in edits:
        data = edit(data)
    return data


def damaged_inside(data: bytes, edits: Sequence[Edit], entry: int) -> bytes:
    """A zip archive in which one entry is damaged, with an index and checksums that are right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    chosen = sorted(entries)[entry % len(entries)]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, damaged(content, edits) if name == chosen else content)
    return out.getvalue()
