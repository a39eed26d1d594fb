"""Nodes and kernels of two engines are matched though their names and fusions differ."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import bundles
import pytest

from gpusq_deploy.artifacts.receipt import BuiltEngine, BuiltLayer, EngineLayer, EngineTensor
from gpusq_deploy.benchmarks.bundles.kernel_changes import KernelChange, kernel_changes, kernel_lines
from gpusq_deploy.benchmarks.bundles.kernel_match import KernelGroup, covered, match_kernels
from gpusq_deploy.benchmarks.bundles.matched import Matched
from gpusq_deploy.benchmarks.bundles.node_match import match_layers, match_nodes
from gpusq_deploy.benchmarks.bundles.sides import EngineSide, Graph, engine_side
from gpusq_deploy.bundle.files import Bundle, read_bundle
from gpusq_deploy.engines.layer_classes import totals
from gpusq_deploy.graph.nodes import NodeFact

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "data" / "kernel-changes.txt"


def block(number: int, *, name: str = "node{n}_{op}", module: str = "blocks.{n}") -> list[NodeFact]:
    """A block's nodes as two exporters would name them: `name` says how, `module` what torch calls it."""
    inner = (
        ("LayerNormalization", "norm1", ()),
        ("MatMul", "attn.qkv", (192, 64)),
        ("Add", "attn.qkv", ()),
        ("MatMul", "attn", ()),
        ("Softmax", "attn", ()),
        ("MatMul", "attn", ()),
        ("MatMul", "attn.proj", (64, 64)),
        ("Add", "attn.proj", ()),
        ("Add", "", ()),
        ("MatMul", "mlp.fc1", (256, 64)),
        ("Gelu", "mlp.act", ()),
        ("MatMul", "mlp.fc2", (64, 256)),
    )
    whole = module.format(n=number)
    return [
        NodeFact(
            name=name.format(n=number, op=f"{operator}{place}"),
            operator=operator,
            module=f"{whole}.{inside}".rstrip(".") if module else "",
            sizes=sizes,
            layer=f"{whole}.{inside}" if sizes else "",
        )
        for place, (operator, inside, sizes) in enumerate(inner)
    ]


def tensor(dtype: str) -> EngineTensor:
    return EngineTensor(name="t", shape=(-1, 64), dtype=dtype)


def kernel(
    name: str, kind: str, nodes: Sequence[str] = (), *, reads: str = "Half", writes: str = "Half", tactic: str = ""
) -> EngineLayer:
    weight = (EngineTensor(name="w", shape=(64, 64), dtype=reads),) if kind == "gemm" else ()
    return EngineLayer(
        name=name,
        kind=kind,
        inputs=(tensor(reads),),
        constants=weight,
        outputs=(tensor(writes),),
        tactic=tactic,
        onnx_nodes=tuple(nodes),
    )


def fused(nodes: Sequence[NodeFact], *, tag: str = "0", dtype: str = "Half") -> list[EngineLayer]:
    """A block's kernels with fused attention."""
    names = [node.name for node in nodes]
    return [
        kernel(f"__myl_Norm_myl{tag}_0", "kgen", names[:1], writes=dtype),
        kernel(f"qkv_myl{tag}_1", "gemm", names[1:3], reads=dtype),
        kernel(f"_gemm_mha_v2_myl{tag}_2", "kgen", names[3:6]),
        kernel(f"__myl_Move_myl{tag}_3", "kgen", writes=dtype),
        kernel(f"proj_myl{tag}_4", "gemm", names[6:9], reads=dtype),
        kernel(f"fc1_myl{tag}_5", "gemm", names[9:11], reads=dtype),
        kernel(f"fc2_myl{tag}_6", "gemm", names[11:], reads=dtype),
        kernel("signal", "signal"),
    ]


def broken(nodes: Sequence[NodeFact], *, tag: str = "0") -> list[EngineLayer]:
    """The same with attention in three kernels."""
    names = [node.name for node in nodes]
    whole = fused(nodes, tag=tag)
    parts = [
        kernel(f"scores_myl{tag}_20", "gemm", names[3:4]),
        kernel(f"__myl_Soft_myl{tag}_21", "kgen", names[3:5]),
        kernel(f"mix_myl{tag}_22", "gemm", names[5:6]),
    ]
    return [*whole[:2], *parts, *whole[3:]]


def engine(layers: Sequence[EngineLayer], nodes: Sequence[NodeFact], *, sparse: bool = False) -> BuiltEngine:
    found = [
        BuiltLayer(
            layer=node.layer,
            node=node.name,
            asked="fp16",
            precision="fp16",
            engine_layers=tuple(one.name for one in layers if node.name in one.onnx_nodes and one.kind == "gemm"),
            sparse_asked=sparse,
            sparse_weights_valid=sparse,
            sparse_executed="unknown",
            reason="r",
        )
        for node in nodes
        if node.layer
    ]
    return BuiltEngine(
        target="a100",
        backend="tensorrt-rtx",
        backend_version="1",
        source="s",
        gpus="A100",
        compute_capability="8.0",
        engine_file="p",
        engine_bytes=10,
        engine_digest="d",
        build_seconds=1.0,
        executed=False,
        totals=totals(layers),
        layers=tuple(found),
        engine_layers=tuple(layers),
    )


def side(
    bundle: Bundle, layers: Sequence[EngineLayer], nodes: Sequence[NodeFact], *, sparse: bool = False
) -> EngineSide:
    return engine_side(bundle, engine(layers, nodes, sparse=sparse), Graph(nodes=tuple(nodes)))


def changed(base: EngineSide, head: EngineSide, same: dict[str, str]) -> tuple[KernelChange, ...]:
    return kernel_changes("a100", base, head, same, sized=True)


@pytest.fixture
def plain(tmp_path: Path) -> Bundle:
    return read_bundle(bundles.write(tmp_path / "plain"))


def test_nodes_of_one_model_are_matched_whatever_they_are_called() -> None:
    base = [*block(0), *block(1)]
    for name, module in (("node{n}_{op}", "model.blocks.{n}"), ("/blocks/{n}/{op}", ""), ("n{n}{op}", "blocks.{n}")):
        head = [*block(0, name=name, module=module), *block(1, name=name, module=module)]
        found = match_nodes(base, head)
        assert found == {theirs.name: ours.name for ours, theirs in zip(base, head, strict=True)}
    renamed = [*block(0, module="model.blocks.{n}"), *block(1, module="model.blocks.{n}")]
    layers = match_layers(base, renamed, match_nodes(base, renamed))
    assert layers["model.blocks.1.mlp.fc2"] == "blocks.1.mlp.fc2"
    assert len(layers) == 8


def test_what_a_quantiser_adds_is_no_part_of_the_model() -> None:
    base = block(0)
    head = [node for one in block(0, name="q{n}{op}") for node in (NodeFact(f"{one.name}_q", "QuantizeLinear"), one)]
    assert len(match_nodes(base, head)) == len(base)


def test_an_added_block_shifts_names_and_still_finds_its_place() -> None:
    """The exporter numbers nodes through, so one name means another node: the module tells."""
    base = [*block(0), *block(2)]
    head = [*block(0), *block(1), *block(2)]
    found = match_nodes(base, head)
    assert set(found) == {node.name for node in base}
    shifted = [*block(0), *block(1, module="added.{n}"), *block(2)]
    assert not {node.name for node in block(1)} & set(match_nodes(base, shifted))


def test_what_is_numbered_through_is_found_by_its_module() -> None:
    """A head of the size of a projection, behind a block that was added: its number has changed, not its module."""
    head = NodeFact(name="node_12", operator="MatMul", module="head", sizes=(64, 64), layer="head")
    found = match_nodes([*block(0), head], [*block(0), *block(1), head._replace(name="node_24")])
    assert found["node_24"] == "node_12"
    assert len(found) == 13


def test_of_many_equal_blocks_none_slips_by_one_where_an_operator_is_missing() -> None:
    """Against the truth: nothing but the order tells 24 blocks apart."""
    base = [node for number in range(24) for node in block(number, name="a{n}_{op}", module="")]
    head = [node for number in range(24) for node in block(number, name="b{n}_{op}", module="")]
    lost = {"b3_Softmax4", "b11_Add8", "b12_MatMul9"}
    found = match_nodes(base, [node for node in head if node.name not in lost])
    assert found == {node.name: f"a{node.name[1:]}" for node in head if node.name not in lost}


def test_a_group_is_the_same_however_nodes_are_named() -> None:
    """Against the names as they are: renaming at random changes no group."""
    draw = random.Random(0)
    nodes = [*block(0), *block(1)]
    layers = [*fused(nodes[:12]), *broken(nodes[12:], tag="1")]
    base = [*fused(nodes[:12]), *fused(nodes[12:], tag="1")]
    groups: list[tuple[KernelGroup, ...]] = []
    for _ in range(5):
        names = {node.name: f"x{draw.random()}" for node in nodes}
        theirs = {names[node.name]: node._replace(name=names[node.name]) for node in nodes}
        renamed = [
            kernel(one.name, one.kind, [names[name] for name in one.onnx_nodes])
            for one in layers
            if one.kind != "signal"
        ]
        ours = [one for one in base if one.kind != "signal"]
        covers = (covered(ours, {node.name: node for node in nodes}), covered(renamed, theirs))
        same = match_nodes(nodes, list(theirs.values()))
        groups.append(match_kernels(ours, renamed, covers, same))
    assert all(group == groups[0] for group in groups)
    sizes = [(len(group.base), len(group.head)) for group in groups[0]]
    assert sizes.count((1, 3)) == 1
    assert set(sizes) == {(1, 1), (1, 3)}


def test_an_engine_is_the_same_as_itself(plain: Bundle) -> None:
    nodes = block(0)
    ours = side(plain, fused(nodes), nodes)
    other = block(0, name="/b{n}/{op}", module="m.{n}")
    assert changed(ours, ours, match_nodes(nodes, nodes)) == ()
    assert changed(ours, side(plain, fused(other, tag="9"), other), match_nodes(nodes, other)) == ()


def test_attention_in_pieces_is_told_by_its_module_and_comes_first(plain: Bundle) -> None:
    nodes = [*block(0), *block(1)]
    base = side(plain, [*fused(nodes[:12]), *fused(nodes[12:], tag="1")], nodes)
    head = side(plain, [*broken(nodes[:12]), *broken(nodes[12:], tag="1")], nodes)
    same = match_nodes(nodes, nodes)
    found = changed(base, head, same)
    assert [change.modules[0] for change in found] == ["blocks.0.attn", "blocks.1.attn"]
    assert [change.attention_lost for change in found] == [1, 1]
    (line,) = kernel_lines(found)
    said = "attention no longer fused, 1 kernel -> 3 kernels in 2 places (blocks.0.attn, blocks.1.attn)"
    assert line == f"kernel  engine a100: {said}"
    (back,) = kernel_lines(changed(head, base, same))
    assert "attention is fused now, 3 kernels -> 1 kernel" in back


def test_types_sparsity_and_lone_kernels_are_told(plain: Bundle, pytestconfig: pytest.Config) -> None:
    nodes, other = [*block(0), *block(1)], block(0, name="/layers.{n}/{op}", module="model.layers.{n}")
    base = side(plain, [*fused(nodes[:12]), *fused(nodes[12:], tag="1")], nodes)
    head = side(plain, [*fused(other, dtype="Int8"), kernel("__myl_Tran_myl0_9", "kgen")], other, sparse=True)
    found = changed(base, head, match_nodes(nodes, other))
    got = "\n".join([*kernel_lines(found), "", *kernel_lines(found, whole=True)]) + "\n"
    if pytestconfig.getoption("--update-golden"):
        GOLDEN.write_text(got)
    assert got == GOLDEN.read_text(), "if that is meant, run this with --update-golden"


def test_a_new_layer_of_an_old_name_is_told_apart(plain: Bundle) -> None:
    graphs = (Graph(nodes=()), Graph(nodes=()))
    both = Matched(base=plain, head=plain, graphs=graphs, nodes={}, layers={"b": "a"})
    assert [both.as_base(name) for name in ("b", "a", "c")] == ["a", "a of head", "c"]
