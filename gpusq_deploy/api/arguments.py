"""What the functions of the API take, as the rooms below want it: paths, architectures, targets, batches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import Reporter

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import ArchArgument, ArchSpec, BatchRange
    from gpusq_deploy.engines import Target

# What names a file or a folder.
PathLike = str | os.PathLike[str]
DEFAULT_TARGET = "a100"
DEFAULT_BATCH = "1:8:32"
# No batch size has more digits: builders count in 32 bits.
BATCH_DIGITS = 9


def path_of(given: PathLike | None) -> Path | None:
    """What was named, if anything."""
    return None if given is None else Path(given)


def spec_of(
    model: Path, arch: ArchSpec | str | None, arguments: Mapping[str, ArchArgument] | Sequence[str] = ()
) -> ArchSpec | None:
    """The architecture that was named; None where the checkpoint is to describe itself.

    Arguments alone go with the class that the config.json of a saved model names.

    Raises:
        GpusqError: Not an architecture, or arguments of none.
    """
    if arch is None and not arguments:
        return None
    from gpusq_deploy.artifacts import ArchSpec
    from gpusq_deploy.frontend import arch_from_text, saved_folder

    if arch is None:
        saved = saved_folder(model)
        if saved is None:
            raise GpusqError("--arch-arg needs --arch", place=str(model), hint="name the architecture too")
        arch = f"{saved.arch.source}:{saved.arch.name}"
    words = words_of(arguments)
    if isinstance(arch, str):
        return arch_from_text(arch, words)
    given = arch_from_text(f"{arch.source}:{arch.name}", words).arguments
    return ArchSpec(source=arch.source, name=arch.name, arguments={**arch.arguments, **given})


def words_of(arguments: Mapping[str, ArchArgument] | Sequence[str]) -> Sequence[str]:
    """Arguments of an architecture as `K=V`."""
    if isinstance(arguments, Mapping):
        return [f"{name}={value!r}" for name, value in arguments.items()]
    return arguments


def targets_of(names: Sequence[str | Target] | None) -> tuple[Target, ...]:
    """The targets, each once; the default one where nothing was said of them.

    Raises:
        GpusqError: An unknown name.
    """
    from gpusq_deploy.engines import find_target

    names = (DEFAULT_TARGET,) if names is None else names
    found = [find_target(name) if isinstance(name, str) else name for name in names]
    return tuple({target.name: target for target in found}.values())


def say_default_target(names: Sequence[str | Target] | None, reporter: Reporter) -> None:
    """Tell which target it is where none was named."""
    if names is None:
        reporter.say(f"no --target: building for {DEFAULT_TARGET}")


def batch_ranges(batch: BatchRange | int | str | Sequence[BatchRange | int | str]) -> tuple[BatchRange, ...]:
    """Ranges of batch sizes, from `MIN:OPT:MAX` or one size.

    Raises:
        GpusqError: Neither, out of order, or named twice.
    """
    several = (batch,) if isinstance(batch, str) or not isinstance(batch, Sequence) else batch
    found = tuple(_batch_range(one) for one in several)
    if not found:
        raise GpusqError("no range of batch sizes", place="--batch", hint="give one, such as 1:8:32")
    if len(set(found)) != len(found):
        raise GpusqError("a range is named twice", place="--batch")
    return found


def whole_range(ranges: Sequence[BatchRange]) -> BatchRange:
    """The range that holds all of them, tuned for the first."""
    from gpusq_deploy.artifacts import BatchRange

    return BatchRange(
        minimum=min(batch.minimum for batch in ranges),
        optimum=ranges[0].optimum,
        maximum=max(batch.maximum for batch in ranges),
    )


def _batch_range(batch: BatchRange | int | str) -> BatchRange:
    from gpusq_deploy.artifacts import BatchRange

    if isinstance(batch, BatchRange):
        return batch
    parts = str(batch).split(":")
    if len(parts) not in (1, 3) or not all(part.isdecimal() and len(part) <= BATCH_DIGITS for part in parts):
        raise GpusqError(f"{str(batch)!r} is not MIN:OPT:MAX", place="--batch")
    sizes = [int(part) for part in parts] * (3 if len(parts) == 1 else 1)
    try:
        return BatchRange(minimum=sizes[0], optimum=sizes[1], maximum=sizes[2])
    except ValueError as error:
        raise GpusqError(str(error), place="--batch") from error
