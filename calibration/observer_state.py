"""What calibration has seen so far: maxima and whole-number sums, so that parts add up exactly, in any order.

One process adds the samples' tallies up; under torchrun every rank sends its own to the others. Either way the sum
is the same, to the last bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from gpusq_deploy.artifacts import Value
from gpusq_deploy.calibration.histogram import BINS, Counts, Histogram
from gpusq_deploy.calibration.input_checks import InputStatistics
from gpusq_deploy.errors import GpusqError


@dataclass(kw_only=True, slots=True)
class ObserverState:
    """Of some samples: largest magnitudes and counts by tensor, digests and failures by sample, the input's statistics.

    The state grows with the number of tensors; beyond that, 32 bytes of digest are kept for each sample.
    """

    amax: dict[str, float] = field(default_factory=dict[str, float])
    counts: dict[str, Counts] = field(default_factory=dict[str, Counts])
    samples: dict[int, bytes] = field(default_factory=dict[int, bytes])
    skipped: dict[int, str] = field(default_factory=dict[int, str])
    inputs: InputStatistics | None = None

    def absorb(self, other: ObserverState) -> None:
        """Add what another tally saw of other samples.

        Raises:
            ValueError: A sample is in both.
        """
        both = (self.samples.keys() | self.skipped.keys()) & (other.samples.keys() | other.skipped.keys())
        if both:
            raise ValueError(f"sample {min(both)} was seen twice")
        for name, amax in other.amax.items():
            self.amax[name] = max(self.amax.get(name, 0.0), amax)
        for name, counts in other.counts.items():
            self.counts[name] = self.counts[name] + counts if name in self.counts else counts
        self.samples.update(other.samples)
        self.skipped.update(other.skipped)
        if self.inputs is not None and other.inputs is not None:
            self.inputs = self.inputs.plus(other.inputs)
        else:
            self.inputs = self.inputs or other.inputs

    def digest(self) -> str:
        """SHA-256 of the samples' SHA-256s, in the order of their numbers; empty where there are none."""
        if not self.samples:
            return ""
        ordered = b"".join(self.samples[index] for index in sorted(self.samples))
        return f"sha256:{hashlib.sha256(ordered).hexdigest()}"

    @property
    def different(self) -> int:
        """How many samples differ from one another."""
        return len(set(self.samples.values()))

    def histogram(self, tensor: str) -> Histogram:
        """The counts of one tensor."""
        return Histogram(counts=self.counts[tensor], amax=self.amax[tensor])


class _Inputs(Value):
    """`InputStatistics`; the sums as text, for they outgrow 64 bits."""

    count: int
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    total: tuple[str, ...]
    squares: tuple[str, ...]
    samples: int
    flat: int


class _Message(Value):
    """A tally on its way to another process; counts are little-endian int64."""

    about: str
    amax: dict[str, float]
    counts: dict[str, bytes]
    samples: dict[int, bytes]
    skipped: dict[int, str]
    inputs: _Inputs | None


def bytes_from_tally(tally: ObserverState, *, about: str) -> bytes:
    """MessagePack. `about` names the work: tallies of different work don't add up."""
    inputs = tally.inputs
    message = _Message(
        about=about,
        amax=tally.amax,
        counts={name: counts.astype("<i8").tobytes() for name, counts in tally.counts.items()},
        samples=tally.samples,
        skipped=tally.skipped,
        inputs=None
        if inputs is None
        else _Inputs(
            count=inputs.count,
            minimum=inputs.minimum,
            maximum=inputs.maximum,
            total=tuple(map(str, inputs.total)),
            squares=tuple(map(str, inputs.squares)),
            samples=inputs.samples,
            flat=inputs.flat,
        ),
    )
    return msgspec.msgpack.encode(message)


def tally_from_bytes(data: bytes, *, about: str) -> ObserverState:
    """The tally that another process sent.

    Raises:
        GpusqError: It was calibrating another model, recipe or data.
    """
    message = msgspec.msgpack.decode(data, type=_Message)
    if message.about != about:
        raise GpusqError(
            "the ranks calibrate different models, recipes or data",
            place=f"{about} and {message.about}",
            hint="give every rank the same files and options, and data whose order doesn't change",
        )
    return ObserverState(
        amax=message.amax,
        counts=_counts(message.counts),
        samples=message.samples,
        skipped=message.skipped,
        inputs=None if message.inputs is None else _statistics(message.inputs),
    )


def _counts(sent: Mapping[str, bytes]) -> dict[str, Counts]:
    return {name: np.frombuffer(data, dtype="<i8", count=BINS).astype(np.int64) for name, data in sent.items()}


def _statistics(sent: _Inputs) -> InputStatistics:
    return InputStatistics(
        count=sent.count,
        minimum=sent.minimum,
        maximum=sent.maximum,
        total=tuple(map(int, sent.total)),
        squares=tuple(map(int, sent.squares)),
        samples=sent.samples,
        flat=sent.flat,
    )
