"""Predictions on disk: what is written is read again, a torn line is cut off, and nobody's file is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gpusq_deploy.benchmarks.accuracy.classification import ClassRecord
from gpusq_deploy.benchmarks.accuracy.retrieval import VectorRecord
from gpusq_deploy.benchmarks.accuracy.store import data_digest, opened_store
from gpusq_deploy.errors import GpusqError

RECORDS = {3: ClassRecord(classes=(1, 0), target=1), 7: ClassRecord(classes=(0, 1), target=1)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.jsonl"
    with opened_store(path, "data") as store:
        store.add("model", RECORDS)
    return path


def test_what_was_added_is_known(file: Path) -> None:
    with opened_store(file, "data") as store:
        assert store.of("model", ClassRecord) == RECORDS
        assert store.of("another", ClassRecord) == {}
        assert store.of("model", VectorRecord) == {}
    with opened_store(file, "other data") as store:
        assert store.of("model", ClassRecord) == {}


def test_bytes_survive(tmp_path: Path) -> None:
    record = VectorRecord(vector=bytes(range(256)), target=0)
    with opened_store(tmp_path / "v.jsonl", "data") as store:
        store.add("model", {0: record})
    with opened_store(tmp_path / "v.jsonl", "data") as store:
        assert store.of("model", VectorRecord) == {0: record}


def test_every_cut_of_the_file_loses_at_most_the_line_that_was_cut(file: Path) -> None:
    whole = file.read_bytes()
    header = whole.index(b"\n") + 1
    for size in range(header, len(whole)):
        file.write_bytes(whole[:size])
        with opened_store(file, "data") as store:
            known = store.of("model", ClassRecord)
            assert len(known) == whole[:size].count(b"\n") - 1
            store.add("model", {index: each for index, each in RECORDS.items() if index not in known})
        with opened_store(file, "data") as store:
            assert store.of("model", ClassRecord) == RECORDS


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine\n")
    with pytest.raises(GpusqError, match="something else than predictions"), opened_store(path, "data"):
        pass
    assert path.read_text() == "mine\n"


def test_a_damaged_line_is_named(file: Path) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{]", *lines[1:]]) + "\n")
    with pytest.raises(GpusqError, match="not a prediction") as caught, opened_store(file, "data"):
        pass
    assert caught.value.place == f"{file}, line 2"
    assert "{]" in file.read_text()


def test_two_runs_do_not_write_one_file(file: Path) -> None:
    with opened_store(file, "data"), pytest.raises(GpusqError, match="another run"), opened_store(file, "data"):
        pass


def test_the_lines_are_json(file: Path) -> None:
    header, first, _ = map(json.loads, file.read_text().splitlines())
    assert header == {"schema": "gpusq.predictions/1"}
    assert first == {"subject": "model", "data": "data", "index": 3, "prediction": {"classes": [1, 0], "target": 1}}


def test_the_digest_of_data_is_of_its_files_and_of_no_name(tmp_path: Path) -> None:
    folder, predictions = tmp_path / "photos", tmp_path / "photos" / "predictions.jsonl"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "0.png").write_bytes(b"0")
    first = data_digest(str(folder), predictions, "told")
    predictions.write_text("grows")
    assert data_digest(str(folder), predictions, "told") == first
    assert data_digest(str(folder), predictions, "else") != first
    moved = folder.rename(tmp_path / "moved")
    assert data_digest(str(moved), moved / "predictions.jsonl", "told") == first
    os.utime(moved / "cat" / "0.png", (0, 0))
    assert data_digest(str(moved), moved / "predictions.jsonl", "told") != first


def test_a_factory_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="a factory's samples"):
        data_digest("package.module:factory", tmp_path / "p.jsonl")
