"""Names of the kernels that a profiler saw, from its file: the strongest evidence of what an engine ran."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from gpusq_deploy.errors import GpusqError

_COPIES = ("[CUDA mem", "[CUDA memcpy", "[CUDA memset")


def read_kernel_names(path: Path, inferences: int) -> tuple[str, ...]:
    """The kernels of one inference.

    Args:
        path: CSV with a column `Name` (`nsys stats --report cuda_gpu_trace --format csv`, a row for each launch; or
            `cuda_gpu_kern_sum`, with a column `Instances`), or one name a line.
        inferences: How many inferences were traced; each kernel's launches are divided by it, rounded down.

    Returns:
        Names, as often as one inference launches them; copies between host and device are left out.

    Raises:
        GpusqError: The file can't be read, or names no kernel.
    """
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise GpusqError(f"cannot read the kernels: {error.strerror}", place=str(path)) from error
    except UnicodeDecodeError as error:
        raise GpusqError("the kernels are not UTF-8 text", place=str(path)) from error
    counts = _counts(lines)
    names = tuple(name for name, count in counts.items() for _ in range(count // inferences))
    if not names:
        raise GpusqError(
            f"no kernel was launched in each of {inferences} inferences" if counts else "the file names no kernel",
            place=str(path),
            hint="nsys stats --report cuda_gpu_trace --format csv gives such a file",
        )
    return names


def _counts(lines: list[str]) -> Counter[str]:
    start = next((index for index, line in enumerate(lines) if "Name" in next(csv.reader([line]))), None)
    found: Counter[str] = Counter()
    if start is None:
        found.update(line.strip() for line in lines)
    else:
        for row in csv.DictReader(lines[start:]):
            launches = row.get("Instances") or "1"
            found[(row.get("Name") or "").strip()] += int(launches) if launches.isdecimal() else 1
    return Counter({name: count for name, count in found.items() if name and not name.startswith(_COPIES)})
