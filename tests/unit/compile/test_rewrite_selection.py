"""Which rewrites a model keeps: by what a stand-in for the compiler says, and by the compiler itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.receipt import GraphCost
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.compile.rewrite_selection import (
    CostProbe,
    RewriteSelection,
    all_rewrites,
    measured_rewrites,
    require_parsable,
    select_rewrites,
)
from gpusq_deploy.engines.parse_check import reason_in
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.passes.attention_scale import AttentionScale, scales_scores
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.passes.log import PassLog
from gpusq_deploy.graph.passes.pipelines import FASTER, SIMPLE
from gpusq_deploy.graph.values import NAME_SCOPES
from gpusq_deploy.progress import SILENT, Reporter

MARK = "done"


@dataclass(frozen=True, slots=True)
class First:
    """Leaves a trace in the graph, so that a measure can see that it ran."""

    name: ClassVar[str] = "first"

    def run(self, model: ir.Model) -> int:
        return leave(model, self.name)


@dataclass(frozen=True, slots=True)
class Second:
    name: ClassVar[str] = "second"

    def run(self, model: ir.Model) -> int:
        return leave(model, self.name)


@dataclass(frozen=True, slots=True)
class Idle:
    name: ClassVar[str] = "idle"

    def run(self, model: ir.Model) -> int:
        del model
        return 0


def leave(model: ir.Model, name: str) -> int:
    model.graph.metadata_props[name] = MARK
    return 3


def cost(kernels: int, moved: int = 1000) -> GraphCost:
    return GraphCost(batch=1, kernels=kernels, bytes_moved=moved, flops={})


def measure_by(costs: Mapping[frozenset[str], GraphCost]) -> Callable[[ir.Model], GraphCost]:
    def measure(model: ir.Model) -> GraphCost:
        return costs[frozenset(name for name, value in model.graph.metadata_props.items() if value == MARK)]

    return measure


BOTH, ONE, TWO, NONE = frozenset({"first", "second"}), frozenset({"first"}), frozenset({"second"}), frozenset[str]()


def chosen(costs: Mapping[frozenset[str], GraphCost]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    form = select_rewrites(
        tiny_models.exported_vit().model, (First(), Idle(), Second()), measure_by(costs), lambda _done, _total: None
    )
    assert {step.name for step in (*form.kept, *form.left_out)} == {"first", "second"}
    return tuple(step.name for step in form.kept), form.notes


@pytest.mark.parametrize(
    ("costs", "kept"),
    [
        ({BOTH: cost(10), TWO: cost(11), ONE: cost(12)}, ("first", "second")),
        ({BOTH: cost(10), TWO: cost(10), NONE: cost(11)}, ("second",)),
        ({BOTH: cost(10), TWO: cost(9), NONE: cost(9)}, ()),
        # As many kernels: bytes decide, from a hundredth on.
        ({BOTH: cost(10, 900), TWO: cost(10, 1000), ONE: cost(10, 905)}, ("first",)),
        # Fewer kernels, though each of the two alone does nothing.
        ({BOTH: cost(8), TWO: cost(10), ONE: cost(10)}, ("first", "second")),
    ],
)
def test_what_does_not_help_is_left_out(costs: Mapping[frozenset[str], GraphCost], kept: tuple[str, ...]) -> None:
    assert chosen(costs)[0] == kept


def test_each_choice_says_both_figures() -> None:
    _, notes = chosen({BOTH: cost(10), TWO: cost(14, 2_500_000), NONE: cost(10, 2_500_000), ONE: cost(10)})
    assert notes == (
        "graph rewrite first (3 places) applied: 10 kernels with it, 14 without; 0.0 and 2.5 MB moved",
        "graph rewrite second (3 places) left out: 10 kernels with it, 10 without; 0.0 and 0.0 MB moved",
    )


def test_without_a_compiler_all_are_kept_and_that_is_said() -> None:
    model = tiny_models.exported_vit().model
    form = select_rewrites(model, (First(), Idle()), "no compiler here", lambda _done, _total: None)
    assert form.kept == (First(),)
    (note,) = form.notes
    assert note == "graph rewrites applied, kernel counts not compared (no compiler here): first"


def test_a_form_that_cannot_be_compiled_is_not_chosen() -> None:
    def measure(model: ir.Model) -> GraphCost:
        if "first" not in model.graph.metadata_props:
            raise GpusqError("no kernel for it", place="here", hint="none")
        return cost(10)

    form = select_rewrites(tiny_models.exported_vit().model, (First(),), measure, lambda _done, _total: None)
    assert form.kept == (First(),)
    assert form.notes == (
        "graph rewrite first (3 places) applied; without it the model can't be compiled: no kernel for it",
    )


def test_where_nothing_compiles_all_are_kept() -> None:
    def measure(model: ir.Model) -> GraphCost:
        raise GpusqError(f"{len(model.graph)} nodes are too many", place="here", hint="none")

    form = select_rewrites(tiny_models.exported_vit().model, (First(), Second()), measure, lambda _done, _total: None)
    assert form.kept == (First(), Second())
    assert "are too many" in form.notes[0]


@dataclass(frozen=True, slots=True)
class Needy:
    """Finds something to do only behind First."""

    name: ClassVar[str] = "second"

    def run(self, model: ir.Model) -> int:
        return leave(model, self.name) if "first" in model.graph.metadata_props else 0


def test_what_another_rewrite_makes_room_for_is_named() -> None:
    costs = {BOTH: cost(8), NONE: cost(10), ONE: cost(9)}
    model = tiny_models.exported_vit().model
    form = select_rewrites(model, (First(), Needy()), measure_by(costs), lambda _done, _total: None)
    assert form.kept == (First(), Needy())
    assert form.notes[0].endswith("; without it second has nothing to rewrite")
    assert "no place" not in form.notes[1]


def test_what_is_needed_stays_whatever_it_costs() -> None:
    costs = {BOTH: cost(10), ONE: cost(10)}
    form = select_rewrites(
        tiny_models.exported_vit().model,
        (First(), Second()),
        measure_by(costs),
        lambda _done, _total: None,
        needed={"first": "numbers stay small"},
    )
    assert form.kept == (First(),)
    assert form.notes[0] == "graph rewrite first (3 places) applied: numbers stay small"


SCALED = """g (float[batch,2,4,8] q, float[batch,2,4,8] k) => (float[batch,2,4,4] y) {
    kt = Transpose <perm = [0,1,3,2]> (k)
    s = MatMul(q, kt)
    scaled = Mul(s, c)
    y = Softmax(scaled)
}"""


def test_a_scale_on_scores_is_seen_and_one_on_queries_is_not() -> None:
    scale = np.array(0.25, np.float32)
    assert scales_scores(tiny_models.graph(SCALED, c=scale))
    on_query = SCALED.replace("s = MatMul(q, kt)", "qs = Mul(q, c)").replace("Mul(s, c)", "MatMul(qs, kt)")
    assert not scales_scores(tiny_models.graph(on_query, c=scale))


def test_measured_rewrites_say_that_they_were_compared_only_where_they_were() -> None:
    said: list[str] = []
    reporter = Reporter(say=said.append, progress=lambda _label, _done, _total: None)
    simple = run_passes(tiny_models.exported_vit().model, SIMPLE)
    probe = CostProbe(target=find_target("a100"), batch=2, float_type="fp16")
    compared = measured_rewrites(simple, probe, reporter, PassLog())
    assert compared.notes[-1] == "graph rewrites compared by tensorrt-rtx for a100, fp16, batch 2, nothing timed"
    assert "left out" in compared.notes[0]
    assert changed_by(compared.model) == 1
    not_compared = measured_rewrites(simple, "not here", reporter, PassLog())
    assert len(not_compared.notes) == 1
    assert changed_by(not_compared.model) == 0


def test_all_rewrites_need_no_compiler_and_say_what_they_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written doesn't depend on whether, and in which version, a compiler is installed."""

    def never(name: str) -> None:
        pytest.fail(f"{name} was asked")

    monkeypatch.setattr("gpusq_deploy.compile.rewrite_selection.find_api", never)
    simple = run_passes(tiny_models.exported_vit().model, SIMPLE)
    log = PassLog()
    found = all_rewrites(simple, SILENT, log)
    assert found.notes == ("graph rewrite attention-scale (1 place) applied",)
    assert changed_by(found.model) == 0
    assert [record.name for record in log.records] == [step.name for step in FASTER]


UNPARSABLE = """g (float[batch, 4, 8, 8] input) => (float[batch, 4, 4, 4] y) {
  a = Relu(input)
  [down] y = Resize<mode = "cubic", antialias = 1>(a, , , sizes)
}"""


def unparsable() -> ir.Model:
    model = tiny_models.graph(UNPARSABLE, sizes=np.array([2, 4, 4, 4]))
    model.graph[1].metadata_props[NAME_SCOPES] = repr(["", "neck", "neck.down", "resize"])
    return run_passes(model, [Clean()])


def request_for(*targets: str) -> BuildRequest:
    return BuildRequest(
        model=Path("m.pt"),
        arch=None,
        quantize=True,
        sparse=False,
        float_type="fp16",
        recipe=None,
        calib=None,
        targets=[find_target(name) for name in targets],
        batch=BatchRange(minimum=1, optimum=2, maximum=4),
        opset=20,
        out=Path("m.gpusq"),
        force=False,
    )


def test_an_operator_that_no_asked_compiler_parses_is_refused_with_its_place() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform", exc_type=ImportError)
    with pytest.raises(GpusqError) as caught:
        require_parsable(unparsable(), request_for("a100", "orin"))
    error = caught.value
    what = (
        "tensorrt-rtx can't parse Resize, so no engine can be built for a100: Antialiasing is not supported currently"
    )
    assert (error.what, error.place) == (what, "neck.down, node down")
    assert "--target none" in str(error.hint)
    assert "leave out --target a100" in str(error.hint)
    assert tempfile.gettempdir() not in str(error)


def test_a_target_that_is_built_elsewhere_is_not_asked_and_what_parses_passes() -> None:
    require_parsable(unparsable(), request_for("orin"))
    require_parsable(unparsable(), request_for())
    require_parsable(tiny_models.graph(SCALED, c=np.array(0.25, np.float32)), request_for("a100"))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ('(antialias == 0) && "Antialiasing is not supported."', "Antialiasing is not supported"),
        ("false", "it doesn't know the operator"),
        ("Assertion failed: x", "Assertion failed: x"),
    ],
)
def test_a_parsers_reason_is_told_without_its_condition(said: str, reason: str) -> None:
    assert reason_in(said) == reason


def changed_by(model: ir.Model) -> int:
    """Attentions that are still to be rewritten."""
    return AttentionScale().run(model.clone())


@pytest.mark.slow
def test_the_compiler_says_what_helps_a_swin_and_what_does_not_help_a_small_vit() -> None:
    probe = CostProbe(target=find_target("a100"), batch=2, float_type="fp16")
    heard: list[tuple[int, int]] = []

    def form_of(model: ir.Model) -> RewriteSelection:
        return select_rewrites(model, FASTER, probe.measure, lambda done, total: heard.append((done, total)))

    swin = run_passes(tiny_models.exported_swin(), SIMPLE)
    nodes = [node.name for node in swin.graph]
    form = form_of(swin)
    assert [step.name for step in form.kept] == ["attention-scale", "window-norm"]
    assert heard[-1] == (3, 3)
    assert [node.name for node in swin.graph] == nodes  # the graph that was compared is left as it is
    with_them, without = (probe.measure(run_passes(swin, steps)) for steps in (form.kept, ()))
    assert with_them.kernels < without.kernels

    vit = run_passes(tiny_models.exported_vit().model, SIMPLE)
    assert [step.name for step in form_of(vit).left_out] == ["attention-scale"]
    assert probe.measure(vit).kernels == probe.measure(run_passes(vit, FASTER)).kernels
