"""Names of the kernels that a profiler saw, from its file: the strongest evidence of what an engine ran."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpusq_deploy.errors import GpusqError

COPIES = "[CUDA mem"


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelTrace:
    """What a profiler saw. `launches` are those of all `inferences` together, by kernel name, none of them 0."""

    launches: Mapping[str, int]
    inferences: int

    @property
    def uneven(self) -> tuple[str, ...]:
        """Kernels whose launches are no multiple of the inferences: the count is wrong, or a name changed meanwhile."""
        return tuple(name for name, count in self.launches.items() if count % self.inferences)


def read_kernel_names(path: Path, inferences: int) -> KernelTrace:
    """The kernels of a trace.

    Args:
        path: CSV with a column `Name` (`nsys stats --report cuda_gpu_trace --format csv`, a row for each launch; or
            `cuda_gpu_kern_sum`, with a column `Instances`), or one name a line.
        inferences: How many inferences were traced.

    Returns:
        Every name with its launches, none left out but copies between host and device.

    Raises:
        GpusqError: The file can't be read, or names no kernel or fewer launches than inferences.
    """
    counts = _counts(profile_text(path))
    launched = sum(counts.values())
    if launched < inferences:
        raise GpusqError(
            f"{launched} launches can't be {inferences} inferences" if launched else "the file names no kernel",
            place=str(path),
            hint="nsys stats --report cuda_gpu_trace --format csv gives such a file",
        )
    return KernelTrace(launches=counts, inferences=inferences)


def profile_text(path: Path) -> str:
    """A profiler's file.

    Raises:
        GpusqError: It can't be read.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise GpusqError(f"cannot read the profile: {error.strerror}", place=str(path)) from error
    except UnicodeDecodeError as error:
        raise GpusqError("the profile is not UTF-8 text", place=str(path)) from error


def table_of(text: str) -> list[dict[str, str]] | None:
    """The rows below nsys' headings, by column, "" where a row is short; None where no line names the column `Name`."""
    lines = [line for line in text.splitlines() if line.strip()]
    start = next((place for place, line in enumerate(lines) if "Name" in next(csv.reader([line]))), None)
    return None if start is None else list(csv.DictReader(lines[start:], restval=""))


def _counts(text: str) -> Counter[str]:
    rows = table_of(text)
    found: Counter[str] = Counter()
    if rows is None:
        found.update(line.strip() for line in text.splitlines())
    else:
        for row in rows:
            launches = row.get("Instances") or "1"
            found[row["Name"].strip()] += int(launches) if launches.isdecimal() else 1
    return Counter({name: count for name, count in found.items() if name and count and not name.startswith(COPIES)})
