"""What is known about the GPUs that a bundle can be built for: capabilities as data, one TOML file per GPU.

A target's file says what it can do, which builder makes its engines and where, and what nobody here has verified.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources

import msgspec

from gpusq_deploy.artifacts import Precision, SkippedTarget, Value, value_from_toml
from gpusq_deploy.engines.api import BackendName
from gpusq_deploy.errors import GpusqError


def _nothing_known() -> dict[BackendName, tuple[str, ...]]:
    return {}


class Alignments(Value):
    """GEMM sizes that the tensor cores take without padding: K and N must be multiples of these."""

    int8_k: int
    int8_n: int
    sparse_int8_k: int
    sparse_int8_n: int


class Peaks(Value):
    """Peak rates of the fastest of a target's GPUs, dense: what no kernel exceeds.

    Attributes:
        fp16_tflops: FP16 and BF16 tensor cores, 10^12 FLOPs a second.
        int8_tops: INT8 tensor cores, 10^12 operations a second.
        gigabytes_per_second: Memory, 10^9 bytes a second.
        source: Which GPU, and where the numbers come from.
    """

    fp16_tflops: float
    int8_tops: float
    gigabytes_per_second: float
    source: str

    def microseconds_to_move(self, count: int) -> float:
        """Of so many bytes, each once."""
        return count / (self.gigabytes_per_second * 1e3)

    def microseconds_for(self, flops: Mapping[str, int]) -> float:
        """Of products, by type. FP32 products count as FP16 ones, which they are slower than.

        INT4 weights multiply as FP16. FP8 counts as FP16 too: no peak is recorded, and its layers aren't compared.
        """
        return sum(
            count / ((self.int8_tops if kind == "int8" else self.fp16_tflops) * 1e6) for kind, count in flops.items()
        )


class Target(Value):
    """One kind of GPU.

    Attributes:
        name: How it is asked for: `--target NAME`.
        aliases: Other names for it.
        gpus: The products, in words.
        compute_capability: NVIDIA's number, such as "8.6".
        ahead_of_time: Backends that build its engine on any machine.
        on_device: Backends that build its engine on the device itself.
        runtime_versions: Versions of each backend known to run on it, with where they come from.
        releases: The same as rows of engines/releases.py, by their versions: what its builders can be asked, and the
            ONNX opsets that they take.
        dtypes: GEMM types its tensor cores multiply.
        sparse_dtypes: GEMM types that they multiply with 2:4 sparse weights.
        alignments: Sizes that need no padding.
        sparse_int8_outputs: By backend, what its sparse INT8 kernels for this GPU write, in the builder's words, as far
            as their names tell; left out where nothing is known.
        peaks: Its peak rates; None where they aren't known, or where nothing is estimated by them.
        unknowns: What has not been verified, one sentence each.
    """

    name: str
    aliases: tuple[str, ...] = ()
    gpus: str
    compute_capability: str
    ahead_of_time: tuple[BackendName, ...]
    on_device: tuple[BackendName, ...]
    runtime_versions: dict[BackendName, str]
    releases: dict[BackendName, tuple[str, ...]]
    dtypes: tuple[str, ...]
    sparse_dtypes: tuple[str, ...]
    alignments: Alignments
    sparse_int8_outputs: dict[BackendName, tuple[str, ...]] = msgspec.field(default_factory=_nothing_known)
    peaks: Peaks | None = None
    unknowns: tuple[str, ...]

    def __post_init__(self) -> None:
        major, dot, minor = self.compute_capability.partition(".")
        if not (major.isdigit() and dot and minor.isdigit()):
            raise ValueError(f"compute_capability must look like 8.6, not {self.compute_capability!r}")
        if not (self.ahead_of_time or self.on_device):
            raise ValueError("no backend builds for this target")


class GemmNeed(Value):
    """What one layer asks of a target. N and K are its GEMM's."""

    layer: str
    n: int
    k: int
    precision: Precision
    sparse: bool


@lru_cache(maxsize=1)
def load_targets() -> tuple[Target, ...]:
    """Every target that this package knows, by name in alphabetical order.

    Raises:
        GpusqError: A target file is damaged, or two claim one name.
    """
    folder = resources.files("gpusq_deploy.engines") / "targets"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return unique_targets([target_from_toml(file.read_text(encoding="utf-8"), place=str(file)) for file in files])


def target_from_toml(text: str, *, place: str) -> Target:
    """One target from the text of its TOML file; unknown keys are errors.

    Raises:
        GpusqError: Not TOML, a missing or unknown key, or a wrong value.
    """
    return value_from_toml(text, Target, place=place, what="a target file")


def unique_targets(targets: Sequence[Target]) -> tuple[Target, ...]:
    """The same targets, by name, after a check that no name or alias means two of them."""
    owners: dict[str, str] = {}
    for target in targets:
        for name in (target.name, *target.aliases):
            if name in owners:
                raise GpusqError(
                    f"the target name {name!r} is used twice", place=f"targets {owners[name]} and {target.name}"
                )
            owners[name] = target.name
    return tuple(sorted(targets, key=lambda target: target.name))


def find_target(name: str) -> Target:
    """The target of this name or alias, whatever its case.

    Raises:
        GpusqError: There is none; the hint names what looks alike.
    """
    known = {alias: target for target in load_targets() for alias in (target.name, *target.aliases)}
    found = known.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        names = ", ".join(target.name for target in load_targets())
        raise GpusqError(f"unknown target {name!r}", place="--target", hint=f"{guess}known targets: {names}")
    return found


def check_request(target: Target, needs: Sequence[GemmNeed]) -> list[str]:
    """Every way in which GEMMs ask for what the target can't do, one sentence each; empty where they fit."""
    return [problem for need in needs for problem in _problems(target, need)]


def padding_notes(target: Target, needs: Sequence[GemmNeed]) -> list[str]:
    """INT8 layers whose sizes the target's tensor cores can only take padded: slower, not wrong."""
    return [note for need in needs if need.precision == "int8" for note in _padding(target.alignments, need)]


def skipped_target(
    target: Target, *, bundle: str, reasons: Sequence[str], options: Sequence[str] = ()
) -> SkippedTarget:
    """The record of a target that got no engine here, with the command that makes it on the device."""
    words = ["gpusq-build", bundle, "--target", target.name]
    words += [word for option in options for word in ("--engine-option", option)]
    return SkippedTarget(target=target.name, reason="; ".join(reasons), command=shlex.join(words))


def _problems(target: Target, need: GemmNeed) -> Iterator[str]:
    if need.precision not in target.dtypes:
        yield f"{need.layer}: {target.name} has no {need.precision} tensor cores; it has {', '.join(target.dtypes)}"
    if need.sparse and need.precision not in target.sparse_dtypes:
        has = ", ".join(target.sparse_dtypes) or "none"
        yield f"{need.layer}: {target.name} has no 2:4 sparse {need.precision} kernels; sparse types: {has}"


def _padding(aligned: Alignments, need: GemmNeed) -> Iterator[str]:
    k, n = (aligned.sparse_int8_k, aligned.sparse_int8_n) if need.sparse else (aligned.int8_k, aligned.int8_n)
    if need.k % k or need.n % n:
        kind = "sparse INT8" if need.sparse else "INT8"
        yield f"{need.layer}: {kind} wants K a multiple of {k} and N of {n}; K={need.k} N={need.n} will be padded"
