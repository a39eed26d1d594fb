"""One float graph through the stages that gpusq-build takes it through, by one recipe after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from gpusq_deploy.artifacts import (
    AMAX,
    Calibrator,
    FloatPrecision,
    QuantPlan,
    Recipe,
    SparsityRecord,
    Verification,
)
from gpusq_deploy.calibration import DataSource, ModelFacts, Observations, calibrated, calibrators_for
from gpusq_deploy.compile.compare_graphs import Pair
from gpusq_deploy.compile.verify import verify
from gpusq_deploy.graph import (
    CastToFloatType,
    Moved,
    Quantize,
    keep_fp32,
    run_passes,
    save_model,
    scratch_model,
    weighted_layers,
)
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import (
    ActivationSites,
    Int8OutputRequest,
    Int8Outputs,
    PlanRequest,
    QuantRequest,
    decide,
    find_fp16_overflow,
    layers_to_quantize,
    make_plan,
    observations_needed,
    plan_inputs,
)
from gpusq_deploy.sparsity import graph_sparsity


def ignore(*_said: object) -> None:
    """Results alone go to stdout."""


QUIET = Reporter(say=ignore, progress=ignore)


class Quantized(NamedTuple):
    """A graph with Q/DQ in its float type, its plan, and the tensors that smoothing changed."""

    model: ir.Model
    plan: QuantPlan
    moved: Mapping[str, Moved | None]


@dataclass(kw_only=True, slots=True)
class Quantizer:
    """A float graph and the samples that it is calibrated on.

    Attributes:
        model: The canonical float graph; left as it is.
        samples: To calibrate on.
        float_type: Of what isn't quantised.
        usual: The calibrator of rules that name none.
        record: Which layers are 2:4 and to run sparse; None: none is.
        seen: What was looked at for earlier recipes.
    """

    model: ir.Model
    samples: DataSource
    float_type: FloatPrecision = "fp16"
    usual: Calibrator = AMAX
    record: SparsityRecord | None = None
    seen: Observations = field(default_factory=Observations)

    def request(self, recipe: Recipe, wish: Int8OutputRequest | None = None) -> QuantRequest:
        """What a recipe asks of the graph, and a command of the outputs of its sparse layers."""
        layers = layers_to_quantize(weighted_layers(self.model), recipe)
        stored = graph_sparsity(self.model, source="", recipe=recipe, record=self.record)
        return QuantRequest(
            layers=layers,
            recipe=recipe,
            calibrators=calibrators_for(layers, recipe, usual=self.usual),
            float_type=self.float_type,
            outputs=Int8Outputs(wish=wish, sparsity=stored),
        )

    def observe(self, request: QuantRequest) -> None:
        """Look at what no earlier request has looked at."""
        if lacking := self.seen.lacking(observations_needed(self.model, request)):
            found = calibrated(self.model, lacking, self.samples, ModelFacts(file=""), QUIET)
            self.seen = self.seen.joined(found)

    def quantized(self, recipe: Recipe, wish: Int8OutputRequest | None = None) -> Quantized:
        """Observe what is lacking, smooth, decide, and rewrite.

        Raises:
            GpusqError: See `make_plan`.
        """
        request = self.request(recipe, wish)
        self.observe(request)
        inputs = plan_inputs(self.model, request, self.seen, QUIET)
        asked = PlanRequest(recipe=recipe, quantize=True, sparse=self.record is not None, float_type=self.float_type)
        wide = find_fp16_overflow(inputs, self.seen, self.float_type, QUIET)
        assert request.outputs is not None, "every request has them"
        stored = request.outputs.sparsity

        def planned(placements: ActivationSites) -> QuantPlan:
            return make_plan(
                inputs.layers, asked, table=inputs.table, sparsity=stored, placements=placements, wide=wide
            )

        plan, rounded = decide(planned, inputs, recipe, self.seen, self.samples, QUIET)
        steps = (Quantize(plan, rounded), keep_fp32(plan), CastToFloatType(self.float_type))
        return Quantized(model=run_passes(inputs.model, steps), plan=plan, moved=inputs.moved)

    def compared(self, built: Quantized, file: Path, unseen: DataSource) -> Verification:
        """Write a built graph to a file, and compare it with the float graph, both run by ONNX Runtime."""
        save_model(built.model, file)
        with scratch_model(self.model) as reference:
            return verify(Pair(reference=reference, built=file, moved=built.moved), unseen, held_out=True)
