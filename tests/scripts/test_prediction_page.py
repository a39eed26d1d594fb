"""The tables of docs/predict.md are those of the kept results."""

from __future__ import annotations

from pathlib import Path

from gpusq_deploy.benchmarks.peers.prediction_page import tables

PAGE = Path(__file__).parents[2] / "docs" / "predict.md"


def test_the_page_holds_the_tables() -> None:
    assert tables() in PAGE.read_text(encoding="utf-8")
