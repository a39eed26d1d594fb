"""Folders that are called as the model's classes get the model's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from gpusq_deploy.benchmarks.accuracy.class_names import by_name
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import OpenedData
from gpusq_deploy.sparsity.training.data.folder import open_folder


@pytest.fixture
def opened(tmp_path: Path) -> OpenedData:
    for name in ("Tabby_cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    folder = open_folder(tmp_path)
    return OpenedData(entries=folder, classes=folder.classes)


def targets(data: OpenedData) -> list[int]:
    return [data.entries.entry(index).target for index in range(len(data.entries))]


def test_names_decide(opened: OpenedData) -> None:
    found = by_name(opened, {0: "dog", 1: "bird", 2: "tabby cat"})
    assert targets(found) == [2, 0]
    assert (found.entries.name, found.entries.labelled, len(found.entries)) == (opened.entries.name, True, 2)


@pytest.mark.parametrize(
    "names", [{}, {0: "dog", 1: "bird"}, {0: "dog", 1: "tabby cat", 2: "Dog"}, {0: "LABEL_0", 1: "LABEL_1"}]
)
def test_else_the_order_of_the_folders_does(opened: OpenedData, names: dict[int, str]) -> None:
    assert targets(by_name(opened, names)) == [0, 1]
