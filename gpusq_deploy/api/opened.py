"""A bundle to look into and to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.api.running import BundleSession
    from gpusq_deploy.artifacts import (
        BuiltEngine,
        BuiltLayer,
        CalibrationTable,
        Check,
        Manifest,
        QuantPlan,
        Receipt,
        Runs,
    )
    from gpusq_deploy.bundle import Bundle, LayerExplanation
    from gpusq_deploy.engines import MeasuredKernels, Target


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainedLayer:
    """Why a layer does or doesn't run in INT8 and on sparse tensor cores of a target.

    Attributes:
        layer: Its name in the checkpoint.
        target: The GPU.
        asked: The precision that was decided, and `asked_reason` why.
        built: The precision that the engine has it in; None where there is no engine, or it wasn't found in it.
        built_reason: What that rests on; empty without an engine.
        sparse: The chain valid, eligible, asked, built as, each link with its evidence and its remedy; None for a layer
            without a record of its 2:4 state.
    """

    layer: str
    target: str
    asked: str
    asked_reason: str
    built: str | None
    built_reason: str
    sparse: LayerExplanation | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenBundle:
    """A bundle's descriptions; its model and engines stay on disk.

    Attributes:
        bundle: What was read.
        measured: What a profiler saw of engines' kernels one by one, by target; `with_kernels` fills it.
    """

    bundle: Bundle
    measured: Mapping[str, MeasuredKernels] = field(default_factory=dict[str, "MeasuredKernels"])

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self.bundle.path

    @property
    def manifest(self) -> Manifest:
        """Digests, versions, options, preprocessing, 2:4 state."""
        return self.bundle.manifest

    @property
    def plan(self) -> QuantPlan:
        """Every decision about every layer, with its reason."""
        return self.bundle.plan

    @property
    def receipt(self) -> Receipt:
        """What was built, read back from the builder, and how near it is to the float model."""
        return self.bundle.receipt

    @property
    def calibration(self) -> CalibrationTable | None:
        """Activation ranges and where they come from; None where nothing was quantised."""
        return self.bundle.calibration

    def explain(self, target: str | Target | None = None) -> tuple[ExplainedLayer, ...]:
        """Why each layer does or doesn't run in INT8 and sparse.

        Args:
            target: A GPU, also one without an engine in the bundle; None: each that has one.

        Raises:
            GpusqError: An unknown target, or no engine and no target.
        """
        from gpusq_deploy.api.arguments import targets_of

        names = [engine.target for engine in self.receipt.engines] if target is None else [target]
        if not names:
            raise GpusqError(
                "the bundle has no engine to explain", place=str(self.path), hint="name a target, such as 'a100'"
            )
        return tuple(layer for found in targets_of(names) for layer in self._explained(found))

    def warnings(self) -> tuple[str, ...]:
        """Why the bundle's figures should not be trusted, or it should not be deployed; empty where nothing says so."""
        from gpusq_deploy.bundle import bundle_doubts

        return bundle_doubts(self.manifest, self.receipt)

    def check(self, expectations: PathLike) -> tuple[Check, ...]:
        """Hold the receipt against a TOML file of expectations (docs/receipts.md), in the file's order.

        Args:
            expectations: The file.

        Returns:
            One for each expectation; `held` says whether it holds.

        Raises:
            GpusqError: It can't be read, or isn't such a file.
        """
        from gpusq_deploy.bundle import check_receipt, load_expectations

        return check_receipt(load_expectations(Path(expectations)), self.receipt, self.plan)

    def with_kernels(self, kernels: PathLike, *, inferences: int = 1, target: str | Target | None = None) -> OpenBundle:
        """The bundle with what a profiler saw on the GPU in the receipt; nothing is written.

        Args:
            kernels: A profiler's file (docs/receipts.md): the kernels' names tell what ran sparse, and their times, or
                those of trtexec's layers, stand in the page.
            inferences: How many inferences were traced.
            target: Whose engine was traced, where the bundle has several.

        Raises:
            GpusqError: The file can't be read, or it isn't clear which engine was traced.
        """
        import msgspec

        from gpusq_deploy.bundle import with_profile
        from gpusq_deploy.engines import measured_kernels, read_kernel_names, read_kernel_times

        chosen = self._traced(target)
        file = Path(kernels)
        times = read_kernel_times(file, inferences)
        measured = dict(self.measured)
        if times is not None:
            measured[chosen.target] = measured_kernels(chosen.engine_layers, times)
        if times is not None and times.names == "layers":
            return dataclasses.replace(self, measured=measured)
        seen = with_profile(chosen, read_kernel_names(file, inferences), profiler=f"the profiler, in {file.name}")
        engines = tuple(seen if engine is chosen else engine for engine in self.receipt.engines)
        receipt = msgspec.structs.replace(self.receipt, engines=engines)
        return OpenBundle(bundle=dataclasses.replace(self.bundle, receipt=receipt), measured=measured)

    def html(self, *, runs: Sequence[Runs | PathLike] = ()) -> str:
        """The bundle as one self-contained page: report.html, with what was measured where it is given.

        Args:
            runs: What `bench` measured of the bundle, or files that gpusq-bench wrote.

        Raises:
            GpusqError: A file can't be read.
        """
        from gpusq_deploy.benchmarks import latency_parts
        from gpusq_deploy.bundle import report_page

        return report_page(self.bundle, measured=self.measured, latency=latency_parts(_runs_of(runs), self.bundle))

    def kernel_times(self) -> tuple[str, ...]:
        """Sentences about what the engines' kernels are predicted to take, and what a profiler measured of them."""
        from gpusq_deploy.bundle import times_of_kernels

        return tuple(
            f"{engine.target}: {text}"
            for engine in self.receipt.engines
            for text in times_of_kernels(self.bundle, engine, self.measured.get(engine.target)).texts
        )

    def write_html(self, path: PathLike, *, runs: Sequence[Runs | PathLike] = ()) -> None:
        """Write `html` to a file, whole or not at all.

        Args:
            path: A new file, or an earlier page.
            runs: As in `html`.

        Raises:
            GpusqError: As in `html`; or something else lies there, or the disk refused.
        """
        from gpusq_deploy.bundle import require_page, save_page

        require_page(Path(path))
        save_page(Path(path), self.html(runs=runs))

    def write_node_data(self, folder: PathLike) -> tuple[Path, ...]:
        """Write figures of each node of model.onnx for google-ai-edge's Model Explorer.

        Args:
            folder: Made where it isn't there.

        Returns:
            The files, one for each figure: precision, 2:4, SQNR, predicted time.

        Raises:
            GpusqError: A file there is something else, or the disk refused.
        """
        from gpusq_deploy.bundle import write_node_data

        return write_node_data(self.bundle, Path(folder))

    def session(self, runtime: str = "auto") -> BundleSession:
        """Load the model to run it; a context manager.

        Args:
            runtime: `"tensorrt"`, `"tensorrt-rtx"`, `"onnxruntime"`, or `"auto"`: the fastest that can run it here.

        Raises:
            GpusqError: The runtime can't run it here, or a file isn't the one that was built.
        """
        from gpusq_deploy.api.running import open_bundle_session

        return open_bundle_session(self.bundle, runtime)

    def _traced(self, target: str | Target | None) -> BuiltEngine:
        from gpusq_deploy.api.arguments import targets_of

        engines = self.receipt.engines
        names = {found.name for found in targets_of(() if target is None else [target])}
        chosen = [engine for engine in engines if not names or engine.target in names]
        if len(chosen) != 1:
            built = ", ".join(engine.target for engine in engines) or "none"
            raise GpusqError(
                f"--kernels speaks of one engine; {len(chosen)} fit", place=str(self.path), hint=f"--target: of {built}"
            )
        return chosen[0]

    def _explained(self, target: Target) -> list[ExplainedLayer]:
        from gpusq_deploy.bundle import explain_layers

        engine = next((engine for engine in self.receipt.engines if engine.target == target.name), None)
        built: dict[str, BuiltLayer] = {} if engine is None else {layer.layer: layer for layer in engine.layers}
        decisions = self.plan.layers
        states = self.manifest.sparsity.layers
        sparse = {found.layer: found for found in explain_layers(states, target, decisions=decisions, engine=engine)}
        return [
            ExplainedLayer(
                layer=decision.layer,
                target=target.name,
                asked=decision.precision,
                asked_reason=decision.precision_reason,
                built=built[decision.layer].precision if decision.layer in built else None,
                built_reason=built[decision.layer].reason if decision.layer in built else "",
                sparse=sparse.get(decision.layer),
            )
            for decision in decisions
        ]


def _runs_of(given: Sequence[Runs | PathLike]) -> list[Runs]:
    from gpusq_deploy.artifacts import Runs, read_value, require_input

    for path in given:
        if not isinstance(path, Runs):
            require_input(Path(path))
    return [one if isinstance(one, Runs) else read_value(Path(one), Runs) for one in given]


def open_bundle(path: PathLike) -> OpenBundle:
    """Open a bundle to see what was decided, built and proven, and to run it.

    Args:
        path: The bundle's folder.

    Raises:
        GpusqError: Nothing is there, it isn't a bundle, or one of its descriptions is missing or damaged.
    """
    from gpusq_deploy.bundle import read_bundle

    return OpenBundle(bundle=read_bundle(Path(path)))
