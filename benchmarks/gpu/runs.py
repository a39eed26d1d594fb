"""What the GPU suite's steps share: where things lie, until when, and how a plan is opened and timed."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from numpy.typing import NDArray

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.artifacts.receipt import EngineLayer
from gpusq_deploy.benchmarks.gpu.kernels import kernels_of, torch_problem
from gpusq_deploy.benchmarks.gpu.values import BuiltKernel, Fact, Finding, Way, Ways
from gpusq_deploy.benchmarks.reference import LEAST_DB
from gpusq_deploy.engines.backend_choice import open_session
from gpusq_deploy.engines.gpu import Gpu, find_gpu
from gpusq_deploy.engines.session import Session, TensorSpec
from gpusq_deploy.engines.targets import Target, load_targets
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.numerics.error import sqnr_db
from gpusq_deploy.text import one_line

WARMUP, ITERATIONS = 10, 50
TIME_IS_UP = "the time was up"
_POLL_SECONDS = 0.2
# After one of these the process can't use the device any more.
_STICKY = ("CUDA failed", "CUDA error", "illegal memory access", "unspecified launch failure", "misaligned address")

Array = NDArray[Any]


class Ground(NamedTuple):
    """Where a step works: the kit, a folder for what is made here, and until when (`time.monotonic`)."""

    kit: Path
    work: Path
    deadline: float

    @property
    def late(self) -> bool:
        """Whether nothing is started any more."""
        return time.monotonic() > self.deadline

    @property
    def ways(self) -> Ways:
        """What the first step found; nothing before it has."""
        path = self.work / "ways.json"
        return read_value(path, Ways) if path.exists() else Ways(why_not="the first step found no way")

    def wait_for(self, *paths: Path) -> Path | None:
        """The first of some files that is there, waited for until the time is up."""
        while True:
            found = next((path for path in paths if path.exists()), None)
            if found is not None or self.late:
                return found
            time.sleep(_POLL_SECONDS)


class Engine:
    """A plan on the GPU, launched as a CUDA graph where its way can and it can be captured, else by its stream.

    `launch` says which, and `uncaptured` why it isn't a graph though it was to be one.
    """

    def __init__(self, plan: Path, way: Way) -> None:
        """Open it.

        Raises:
            GpusqError: It can't be opened.
        """
        self._plan, self._way = plan, way
        self.launch, self.uncaptured = "graph" if way.graph else "stream", ""
        self._session = self._open()

    @property
    def input(self) -> TensorSpec:
        """The first input."""
        return self._session.inputs[0]

    def checked(self, x: Array, wanted: Array, finding: Finding) -> Finding:
        """Run, compare with what ONNX Runtime answered, and time it; what is wrong says so beside its samples.

        Raises:
            GpusqError: It failed.
        """
        feeds = {self.input.name: x}
        (got,) = self.run(feeds).values()
        decibels = float(sqnr_db(wanted, got))
        finding = with_facts(finding, sqnr_db=decibels, launch=self.launch)
        if not decibels >= LEAST_DB:
            finding = refused(finding, f"its outputs are wrong: {decibels:.1f} dB to ONNX Runtime's")
        return self.timed(feeds, finding)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Infer once; see `Session.run`."""
        try:
            return self._session.run(feeds)
        except GpusqError as error:
            if self.launch != "graph" or is_sticky(error.what):
                raise
            self.uncaptured = error.what
        self.close()
        self.launch = "stream"
        self._session = self._open()
        return self._session.run(feeds)

    def timed(self, feeds: Mapping[str, Array], finding: Finding) -> Finding:
        """The finding with samples after warm-ups, and the kernels of one inference."""
        take = self._session.timer(feeds)
        for _ in range(WARMUP):
            take()
        samples = tuple(take() for _ in range(ITERATIONS))
        finding = msgspec.structs.replace(finding, samples_ms=samples)
        if self.uncaptured:
            finding = with_facts(finding, uncaptured=self.uncaptured)
        return with_kernels(finding, take) if self._way.names else finding

    def timer(self, x: Array) -> Callable[[], float]:
        """What runs one inference and answers its milliseconds."""
        return self._session.timer({self.input.name: x})

    def close(self) -> None:
        """Give the device back. After a CUDA error nothing can be freed; what it spoilt has been told."""
        with contextlib.suppress(GpusqError):
            self._session.close()

    def _open(self) -> Session:
        return open_session(self._plan, self._way.backend, cuda_graph=self.launch == "graph")


def with_facts(finding: Finding, **facts: Fact) -> Finding:
    """The finding with further facts."""
    return msgspec.structs.replace(finding, facts={**finding.facts, **facts})


def refused(finding: Finding, reason: str) -> Finding:
    """The finding as one that wasn't run."""
    return msgspec.structs.replace(finding, why_not=reason)


def with_kernels(finding: Finding, run: Callable[[], object]) -> Finding:
    """The finding with the kernels that one call launches; where no profiler can look, with its reason."""
    try:
        seen = torch_problem() or kernels_of(run)
    # The profiler's own: samples are kept without it.
    except Exception as error:
        seen = f"{type(error).__name__}: {one_line(error)}"
    if isinstance(seen, str):
        return with_facts(finding, kernels=f"not seen: {seen}")
    return msgspec.structs.replace(finding, kernels=seen.names, kernels_us=seen.microseconds)


def built_kernels(layers: tuple[EngineLayer, ...]) -> tuple[BuiltKernel, ...]:
    """The builder's list, as a finding has it."""
    return tuple(
        BuiltKernel(
            name=layer.name,
            kind=layer.kind,
            inputs=tuple(tensor.dtype for tensor in layer.inputs),
            outputs=tuple(tensor.dtype for tensor in layer.outputs),
            tactic=layer.tactic,
        )
        for layer in layers
    )


def no_gpu() -> str:
    """Why nothing runs on a GPU here; empty where one answers."""
    found = find_gpu()
    return "" if isinstance(found, Gpu) else f"no GPU: {found.reason}"


def target_here() -> Target:
    """A target of this GPU's compute capability, for the builder's messages; the first of all where there is none."""
    found = find_gpu()
    here = found.compute_capability if isinstance(found, Gpu) else ""
    return next((target for target in load_targets() if target.compute_capability == here), load_targets()[0])


def why(error: Exception) -> str:
    """A failure as one line of the report; the traceback of what isn't ours goes to the log."""
    if isinstance(error, GpusqError):
        return error.what
    traceback.print_exception(error)
    return f"{type(error).__name__}: {one_line(error)[:2000]}"


def is_sticky(reason: str) -> bool:
    """Whether a failure leaves the process without its device."""
    return any(words in reason for words in _STICKY)
