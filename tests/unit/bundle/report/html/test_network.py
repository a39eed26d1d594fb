"""The picture: layers in blocks, by what was compared, or else by their names."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest

from gpusq_deploy.bundle.report.html.network import block_of, network

ANCHORS = {name: f"row-{place}" for place, name in enumerate(pages.LAYERS)}


@pytest.mark.parametrize(
    ("layer", "blocks", "block"),
    [
        ("blocks.3.attn.qkv", (), "blocks.3"),
        ("layers.1.blocks.0.mlp.fc1", (), "layers.1.blocks.0"),
        ("blocks.3.mlp.0", ("blocks.3",), "blocks.3"),
        ("layers.1.downsample.reduction", ("layers.1.blocks.0",), ""),
        ("head", (), ""),
        ("head.0", (), ""),
    ],
)
def test_the_block_around_a_layer(layer: str, blocks: tuple[str, ...], block: str) -> None:
    assert block_of(layer, dict.fromkeys(blocks)) == block


def test_columns_hold_their_layers_with_precision_sparsity_and_error(tmp_path: Path) -> None:
    bundle = pages.bundle(tmp_path, precision="fp16", ran="no")
    columns = network(bundle.plan, bundle.receipt.engines[0], bundle.receipt.verification, ANCHORS)
    assert [(column.name, len(column.cells)) for column in columns] == [("", 1), ("blocks.0", 2), ("blocks.1", 2)]
    assert [column.decibels for column in columns[1:]] == ["35.0 dB", "25.0 dB"]
    assert [column.decibels_class for column in columns[1:]] == ["e-1", "e-2"]
    assert columns[2].mark == "most noise"
    last = columns[2].cells[1]
    assert last == ("fc2", "row-4", "FP16 ≠ INT8", "p-wrong", "2:4 ✗", "s-no", "8.0 dB", "e-4")
    assert columns[1].cells[0].decibels == ""


def test_a_plan_without_an_engine_shows_what_is_planned(tmp_path: Path) -> None:
    columns = network(pages.bundle(tmp_path).plan, None, None, ANCHORS)
    assert [column.name for column in columns] == ["", "blocks.0", "blocks.1"]
    assert {cell.sparse for column in columns for cell in column.cells} == {"2:4 ?"}
