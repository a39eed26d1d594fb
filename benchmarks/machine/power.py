"""Energy of inferences: power while a model runs over and over, untimed, and that integrated over time.

Power is asked of a program of its own at an interval, which would disturb a timed inference. So these inferences are
not timed one by one, and those that are timed run without it.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from gpusq_deploy.benchmarks.machine.asking import ROOT, number_in
from gpusq_deploy.benchmarks.machine.jetson import INTERVAL_MS, TEGRASTATS, is_jetson, rails_in, total_mw
from gpusq_deploy.engines import find_bus
from gpusq_deploy.errors import GpusqError

_FEWEST = 5
_STOP_SECONDS = 5


class PowerSource(NamedTuple):
    """A program that prints one line for each interval, what it says of power, in W, and what that is the power of."""

    words: tuple[str, ...]
    watts: Callable[[str], float | None]
    said: str


class PowerSample(NamedTuple):
    """When a line came, by the monotonic clock in seconds, and its watts."""

    moment: float
    watts: float


def find_source(root: Path = ROOT) -> PowerSource:
    """Who tells the power here: tegrastats on a Jetson, else nvidia-smi.

    Raises:
        GpusqError: Nobody does.
    """
    if is_jetson(root):
        return PowerSource(TEGRASTATS, watts_of_rails, "the whole module, by tegrastats")
    bus = find_bus()
    if bus is None:
        raise GpusqError(
            "nothing here tells the power: this is no Jetson, and no NVIDIA GPU answers",
            place="--energy",
            hint="leave it out, or measure on the device",
        )
    query = ("nvidia-smi", "-i", bus, "--query-gpu=power.draw", "--format=csv,noheader,nounits")
    return PowerSource((*query, "-lms", str(INTERVAL_MS)), number_in, "the GPU's board, by nvidia-smi")


class PowerSampler:
    """Listens to a source while it is open."""

    def __init__(self, source: PowerSource) -> None:
        """Start the program.

        Raises:
            GpusqError: It can't be started.
        """
        self._source = source
        self._samples: list[PowerSample] = []
        try:
            self._process = subprocess.Popen(
                source.words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise GpusqError(f"cannot start {source.words[0]}: {error.strerror}", place="--energy") from error
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> PowerSampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def samples(self) -> tuple[PowerSample, ...]:
        """What was told so far."""
        return tuple(self._samples)

    def wait(self) -> None:
        """Until it has said something, or ended.

        Raises:
            GpusqError: It ended, or says nothing of power.
        """
        until = time.monotonic() + _STOP_SECONDS
        while not self._samples:
            if self._process.poll() is not None or time.monotonic() > until:
                raise GpusqError(
                    f"{self._source.words[0]} doesn't tell the power", place="--energy", hint="leave it out"
                )
            time.sleep(INTERVAL_MS / 1000)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            watts = self._source.watts(line.decode(errors="replace"))
            if watts is not None:
                self._samples.append(PowerSample(time.monotonic(), watts))


def joules(samples: Sequence[PowerSample], start: float, end: float) -> float:
    """Energy between two moments: the trapezoidal rule over samples within, whose ends are held to the moments.

    A sample is the power since the one before it, or at its moment, as the source does it: over many intervals the
    difference is one interval's at most.

    Raises:
        GpusqError: Fewer than five samples lie between the moments.
    """
    within = [sample for sample in samples if start <= sample.moment <= end]
    if len(within) < _FEWEST:
        raise GpusqError(
            f"the power was told {len(within)} times in {end - start:.1f} s, and {_FEWEST} are needed",
            place="--energy",
            hint="give more seconds",
        )
    held = [PowerSample(start, within[0].watts), *within, PowerSample(end, within[-1].watts)]
    return sum((later.moment - sooner.moment) * (sooner.watts + later.watts) / 2 for sooner, later in pairwise(held))


def watts_of_rails(line: str) -> float | None:
    """What a module draws at the moment of one of tegrastats' lines; None where the line tells no rail."""
    total = total_mw(rails_in(line.rstrip()))
    return None if total is None else total / 1000
