"""How passes are run, and what Clean takes away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models

import gpusq_deploy
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.passes.base import Pass, run_passes
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.values import NAME_SCOPES

W = np.ones((4, 4), np.float32)
TEXT = "g (float[B,4] x) => (float[B,4] y) { [fc] h = MatMul(x, w) [r] y = Relu(h) }"


def bytes_of(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


@dataclass(frozen=True, slots=True)
class Harmless:
    name: ClassVar[str] = "harmless"

    def run(self, model: ir.Model) -> int:
        del model
        return 0


@dataclass(frozen=True, slots=True)
class TwoNames:
    """Gives two nodes one name."""

    name: ClassVar[str] = "two-names"

    def run(self, model: ir.Model) -> int:
        model.graph[1].name = model.graph[0].name
        return 1


@dataclass(frozen=True, slots=True)
class Declines:
    name: ClassVar[str] = "declines"

    def run(self, model: ir.Model) -> int:
        raise GpusqError("not this one", place=str(model.graph[0].name))


def test_a_pass_that_breaks_an_invariant_is_reported_with_those_before_it() -> None:
    model = tiny_models.graph(TEXT, w=W)
    with pytest.raises(AssertionError, match=r"TwoNames\(\) broke the graph \(ran: harmless, two-names\)"):
        run_passes(model, [Harmless(), TwoNames(), Harmless()])


def test_a_pass_that_declines_stops_the_run_with_its_reason() -> None:
    with pytest.raises(GpusqError, match="not this one") as caught:
        run_passes(tiny_models.graph(TEXT, w=W), [Declines()])
    assert caught.value.place == "fc"


@pytest.mark.parametrize("step", [Clean(), TwoNames(), Declines()])
def test_the_input_is_left_as_it_is(step: Pass) -> None:
    model = tiny_models.graph(TEXT, w=W)
    model.graph[0].doc_string = "/home/me/model.py"
    before = bytes_of(model)
    with contextlib.suppress(AssertionError, GpusqError):
        run_passes(model, [step])
    assert bytes_of(model) == before


@pytest.mark.slow
def test_no_pass_changes_the_exported_graph() -> None:
    exported = tiny_models.exported_vit()
    before = bytes_of(exported.raw)
    run_passes(exported.raw, [Clean()])
    assert bytes_of(exported.raw) == before


def test_the_caller_hears_of_every_pass() -> None:
    heard: list[tuple[str, int]] = []
    run_passes(
        tiny_models.graph(TEXT, w=W),
        [Harmless(), Harmless()],
        after=lambda step, model, changes: heard.append((step.name, changes + len(model.graph))),
    )
    assert heard == [("harmless", 2), ("harmless", 2)]


def strings(message: Any) -> Iterator[str]:
    """Every text in a protobuf message, at any depth; tensors' raw numbers are left out."""
    for field, value in message.ListFields():
        for item in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
            if field.message_type is not None:
                yield from strings(item)
            elif field.cpp_type == field.CPPTYPE_STRING and field.type != field.TYPE_BYTES:
                yield item


@pytest.mark.slow
def test_nothing_that_clean_leaves_names_a_path_or_a_line_of_code() -> None:
    exported = tiny_models.exported_vit()
    left = list(strings(ir.to_proto(exported.model)))
    assert any("stack_trace" in text for text in strings(ir.to_proto(exported.raw)))  # the exporter did write some
    assert [text for text in left if "/" in text or ".py" in text or "stack_trace" in text] == []
    data = bytes_of(exported.model)
    for folder in (Path(gpusq_deploy.__file__).parent.parent, Path(np.__file__).parent.parent, Path.home()):
        assert str(folder).encode() not in data
    assert b"site-packages" not in data


@pytest.mark.slow
def test_clean_keeps_the_names_of_modules() -> None:
    model = tiny_models.exported_vit().model
    assert any("blocks.0.mlp.fc1" in node.metadata_props.get(NAME_SCOPES, "") for node in model.graph)


@pytest.mark.slow
def test_cleaning_again_changes_nothing() -> None:
    again = tiny_models.exported_vit().model.clone()
    before = bytes_of(again)
    assert Clean().run(again) == 0
    assert bytes_of(again) == before


@pytest.mark.slow
def test_a_clean_graph_computes_the_same() -> None:
    exported = tiny_models.exported_vit()
    feeds = {"input": tiny_models.images(3)}
    # Equal to the bit: both have the same operators on the same numbers in the same shapes, on one thread.
    np.testing.assert_array_equal(
        tiny_models.run_model(exported.raw, feeds)["output"], tiny_models.run_model(exported.model, feeds)["output"]
    )


def test_constants_identities_and_unused_nodes_go() -> None:
    text = """g (float[B,4] x) => (float[B,4] y) {
      c = Constant<value = float[4] {1, 2, 3, 4}>()
      i = Identity(x)
      unused = Relu(i)
      h = Add(i, c)
      y = Relu(h)
    }"""
    model = tiny_models.graph(text)
    after = run_passes(model, [Clean()])
    assert [node.op_type for node in after.graph] == ["Add", "Relu"]
    assert len({node.name for node in after.graph}) == 2
    assert all(node.name for node in after.graph)
    assert Clean().run(after) == 0
    np.testing.assert_array_equal(
        tiny_models.run_model(after, {"x": W})["y"], tiny_models.run_model(model, {"x": W})["y"]
    )


def test_doc_strings_and_other_metadata_go_everywhere() -> None:
    model = tiny_models.graph(TEXT, w=W)
    holders = [model, model.graph, *model.graph, *model.graph.inputs, model.graph[0].outputs[0]]
    for holder in holders:
        holder.doc_string = "/home/me/doc.py"
        holder.metadata_props["pkg.torch.onnx.stack_trace"] = "/home/me/model.py line 7"
    assert b"/home/me" not in bytes_of(run_passes(model, [Clean()]))
