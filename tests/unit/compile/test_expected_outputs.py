"""Files of a producer's inputs and outputs: nothing in them is unpickled, and what doesn't fit is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpusq_deploy.compile.expected_outputs import read_expected
from gpusq_deploy.errors import GpusqError

INPUT = np.ones((2, 3, 4, 4), np.float32)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_the_input_and_every_output_in_order_are_read(tmp_path: Path) -> None:
    found = read_expected(saved(tmp_path / "e.npz", logits=np.zeros((2, 5)), boxes=np.zeros((2, 7, 4)), input=INPUT))
    assert [array.shape for array in found.outputs] == [(2, 5), (2, 7, 4)]
    assert found.inputs.shape == INPUT.shape


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"input": INPUT}, "beside it nothing else"),
        ({"input": INPUT.astype(np.float64), "out": np.zeros((2, 5))}, "the input is float64"),
        ({"input": INPUT, "out": np.zeros((3, 5))}, "not of 2 samples: out"),
        ({"input": INPUT, "out": np.full((2, 5), np.nan)}, "not finite"),
        ({"input": INPUT, "out": np.array([{}, {}], dtype=object)}, "allow_pickle"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(GpusqError, match=words) as caught:
        read_expected(saved(tmp_path / "e.npz", **arrays))
    assert "give an .npz" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\x93NUMPY"])
def test_damage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(GpusqError, match=r"not an \.npz"):
        read_expected(tmp_path / "e.npz")
