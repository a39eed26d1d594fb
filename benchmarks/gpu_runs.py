"""What the GPU suite is asked, on which GPU, and how it times: what its parts share. Unverified on a GPU so far."""

from __future__ import annotations

import fnmatch
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray

from gpusq_deploy.benchmarks.gpu_results import Outcome
from gpusq_deploy.benchmarks.gpu_yardstick import Kernels, kernels_of, torch_problem
from gpusq_deploy.engines.api import BackendName, find_api
from gpusq_deploy.engines.gpu import Gpu, find_gpu
from gpusq_deploy.engines.plan_file import same_minor
from gpusq_deploy.engines.runtimes import why_not
from gpusq_deploy.engines.session import Session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.targets import Target, find_target, load_targets
from gpusq_deploy.wording import one_line

WARMUP, ITERATIONS = 10, 50
TIME_IS_UP = "the time was up"
ONLY_BUILT = "only built, as --build-only asked"
AHEAD: BackendName = "tensorrt-rtx"
BACKENDS: tuple[BackendName, ...] = (AHEAD, "tensorrt")

Array = NDArray[Any]


_T = TypeVar("_T")


class Failure(NamedTuple):
    """Why a step gave nothing."""

    why: str

    @property
    def outcome(self) -> Outcome:
        """As the report has it."""
        return Outcome(why_not=f"failed: {self.why}")


class Suite(NamedTuple):
    """What is asked: where things lie, for which GPU, which part of it, from when until when (`time.monotonic`)."""

    folder: Path
    target: Target
    only: str
    build_only: bool
    start: float
    deadline: float

    def wants(self, name: str) -> bool:
        """Whether a case or a model is asked for."""
        return fnmatch.fnmatchcase(name, self.only)

    def refusal(self, backend: BackendName) -> str:
        """Why nothing can be run on a backend now; empty where it can."""
        return ONLY_BUILT if self.build_only else self.unable(backend) or self.late

    def unable(self, backend: BackendName) -> str:
        """Why this machine can't run a backend's plans for the target; empty where it can."""
        reason = why_not(backend)
        if reason is not None:
            return f"{backend} can't run plans here: {reason}"
        gpu = find_gpu()
        if isinstance(gpu, Gpu) and gpu.compute_capability != self.target.compute_capability:
            return f"this GPU is a {gpu.name} ({gpu.compute_capability}), not a {self.target.name}"
        return ""

    def unbuildable(self, backend: BackendName) -> str:
        """Why a backend can't build for the target on this machine; empty where it can."""
        if backend != AHEAD:
            return self.unable(backend)
        if not self.ahead:
            return f"{self.not_built('')}, tensorrt does on the device"
        api = find_api(AHEAD)
        return api if isinstance(api, str) else ""

    @property
    def late(self) -> str:
        """That nothing is started any more; empty while there is time."""
        return TIME_IS_UP if time.monotonic() > self.deadline else ""

    @property
    def ahead(self) -> bool:
        """Whether the target's plans are built on any machine."""
        return AHEAD in self.target.ahead_of_time

    def not_built(self, what: str) -> str:
        """Why a plan of `AHEAD` isn't there, and what makes it."""
        if not self.ahead:
            return f"{AHEAD} builds no plan for {self.target.name} ahead of time"
        return f"{what} wasn't built: --build-only does"


def target_here() -> Target:
    """The target that this machine's GPU is, a100 where there is no GPU or none of ours.

    Raises:
        GpusqError: Several targets have its compute capability, and its name tells none or several of them.
    """
    gpu = find_gpu()
    if not isinstance(gpu, Gpu):
        return find_target("a100")
    able = [target for target in load_targets() if target.compute_capability == gpu.compute_capability]
    if not able:
        return find_target("a100")
    named = able if len(able) == 1 else [target for target in able if _is_one(gpu.name, target)]
    if len(named) != 1:
        raise GpusqError(
            f"this GPU is a {gpu.name} ({gpu.compute_capability}), which could be any of several targets",
            hint=f"--target: one of {', '.join(target.name for target in able)}",
        )
    return named[0]


def _is_one(name: str, target: Target) -> bool:
    """True where a GPU's name has the words of one of the target's products; "RTX 40" stands for "RTX 4090" too."""
    products = (
        ".*".join(rf"(?<!\w){re.escape(word)}(\d\d)?(?!\w)" for word in product.split())
        for product in target.gpus.split(",")
    )
    return any(re.search(product, name, re.IGNORECASE) for product in products)


def measured(session: Session, feeds: Mapping[str, Array], *, error: float | None) -> Outcome:
    """Samples of an engine after warm-ups, and the kernels of one inference."""
    take = session.timer(feeds)
    for _ in range(WARMUP):
        take()
    samples = tuple(take() for _ in range(ITERATIONS))
    ran = Kernels((), ()) if torch_problem() else attempt(lambda: kernels_of(take))
    if isinstance(ran, Failure):
        say(f"no kernels are seen: {ran.why}")
        ran = Kernels((), ())
    return Outcome(samples_ms=samples, error=error, kernels=ran.names, kernels_us=ran.microseconds)


def attempt(run: Callable[[], _T]) -> _T | Failure:
    """What a step gives, or why it failed: one failure is one line of the report, not the end of the suite."""
    try:
        return run()
    except GpusqError as error:
        return Failure(error.what)
    # A driver's, a library's or our own mistake: the minutes before it must not be lost.
    except Exception as error:
        say(traceback.format_exc())
        return Failure(f"{type(error).__name__}: {one_line(error)[:200]}")


def outcome_of(run: Callable[[], Outcome]) -> Outcome:
    """What came of running something, its failure too."""
    found = attempt(run)
    return found.outcome if isinstance(found, Failure) else found


def build_or_say(build: Callable[[], object]) -> None:
    """Build; a failure is said, and met again when what it was for is to run."""
    failed = attempt(build)
    if isinstance(failed, Failure):
        say(f"  failed: {failed.why}")


def built_here(backend: BackendName, version: str) -> bool:
    """False for a plan that another version built, which the installed one can't run; where none is, it may stay.

    TensorRT-RTX runs plans of its minor version, TensorRT those of its own alone.
    """
    api = find_api(backend)
    if isinstance(api, str):
        return True
    return same_minor(api.__version__, version) if backend == AHEAD else api.__version__ == version


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr)
