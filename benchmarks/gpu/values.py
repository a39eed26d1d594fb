"""What the GPU suite finds: one kind of value for every step, and all of them in one report."""

from __future__ import annotations

import statistics
from typing import Literal, get_args

import msgspec

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.runs import Environment
from gpusq_deploy.engines.layer_classes import sparse_tactic

StepName = Literal["possible", "models", "products", "torch", "tests"]
STEPS: tuple[StepName, ...] = get_args(StepName)
Fact = str | int | float | None


class BuiltKernel(Value):
    """One kernel as the builder lists it; element types in the builder's words."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tactic: str


class Finding(Value):
    """What came of one thing that was tried.

    Attributes:
        step: Whose.
        name: What was tried, in words that are unique within the step.
        facts: What is known of it, by name; a step's own words, see its module.
        samples_ms: Every sample, milliseconds of one inference; empty where it wasn't timed.
        kernels: Names of one inference's kernels, as a profiler saw them; empty where none could look.
        kernels_us: How long each of them ran, microseconds.
        built: The kernels that the builder lists.
        why_not: Why it wasn't run, or failed; empty where it ran.
    """

    step: StepName
    name: str
    facts: dict[str, Fact] = msgspec.field(default_factory=dict[str, Fact])
    samples_ms: tuple[float, ...] = ()
    kernels: tuple[str, ...] = ()
    kernels_us: tuple[float, ...] = ()
    built: tuple[BuiltKernel, ...] = ()
    why_not: str = ""

    @property
    def right(self) -> bool:
        """Whether it ran, and its outputs were right."""
        return bool(self.samples_ms) and not self.why_not

    @property
    def median_ms(self) -> float | None:
        """Median of the samples."""
        return statistics.median(self.samples_ms) if self.samples_ms else None

    @property
    def total_us(self) -> float | None:
        """How long all kernels ran together, gaps between them not counted; None where no profiler looked."""
        return sum(self.kernels_us) if self.kernels_us else None

    @property
    def sparse_kernels(self) -> int | None:
        """How many of the kernels are sparse, by their names; None where no profiler looked."""
        return sum(sparse_tactic(kernel)[0] == "yes" for kernel in self.kernels) if self.kernels else None

    def number(self, fact: str) -> float | None:
        """A fact that is a number; None where it isn't known."""
        found = self.facts.get(fact)
        return float(found) if isinstance(found, int | float) else None


class Way(Value):
    """How plans are built that run on this GPU: whose builder, and for which capability in tensorrt-rtx's words.

    `capability` is empty where none is named, and None where the builder takes the GPU that it is on. `graph` and
    `names` tell whether CUDA graphs and a profiler's names of their kernels were seen to work, so that later steps try
    neither where it killed a process.
    """

    backend: Literal["tensorrt", "tensorrt-rtx"]
    capability: str | None = None
    graph: bool = False
    names: bool = False

    @property
    def name(self) -> str:
        """Such as `tensorrt-rtx CURRENT`."""
        return self.backend if self.capability is None else f"{self.backend} {self.capability or 'none named'}"


class Ways(Value):
    """What the first step found: ways whose results are right, the best of each builder first."""

    ways: tuple[Way, ...] = ()
    why_not: str = ""


class GpuReport(Value):
    """Everything that one run of the suite found, and what it couldn't.

    `pretended` tells that there was no GPU, so that nothing in it is a measurement.
    """

    schema: Literal["gpusq.gpu-report/1"] = "gpusq.gpu-report/1"
    created: str
    environment: Environment
    compute_capability: str | None
    pretended: bool
    ways: Ways
    seconds: dict[StepName, float]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def of(self, step: StepName) -> tuple[Finding, ...]:
        """One step's findings."""
        return tuple(finding for finding in self.findings if finding.step == step)
