"""Kernel names from what profilers write."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpusq_deploy.engines.kernel_names import read_kernel_names
from gpusq_deploy.errors import GpusqError

TRACE = """Processing trace.sqlite with cuda_gpu_trace.py...
Start (ns),Duration (ns),GrdX,Device,Strm,Name
1,10,1,A100,7,"void gemm<int, 4>(float*, int)"
2,10,1,A100,7,sm80_xmma_sparse_gemm_i8
3,10,,A100,7,[CUDA memcpy Host-to-Device]
4,10,1,A100,7,"void gemm<int, 4>(float*, int)"
5,10,1,A100,7,sm80_xmma_sparse_gemm_i8
6,10,1,A100,7,once
"""
SUM = """Time (%),Total Time (ns),Instances,Name
60.0,600,8,"a<1, 2>"
40.0,400,3,b
"""


@pytest.mark.parametrize(
    ("text", "inferences", "found", "uneven"),
    [
        (TRACE, 1, {"void gemm<int, 4>(float*, int)": 2, "sm80_xmma_sparse_gemm_i8": 2, "once": 1}, ()),
        (TRACE, 2, {"void gemm<int, 4>(float*, int)": 2, "sm80_xmma_sparse_gemm_i8": 2, "once": 1}, ("once",)),
        (SUM, 4, {"a<1, 2>": 8, "b": 3}, ("b",)),
        ("one\n\ntwo\none\n", 1, {"one": 2, "two": 1}, ()),
    ],
)
def test_every_launch_counts(
    tmp_path: Path, text: str, inferences: int, found: dict[str, int], uneven: tuple[str, ...]
) -> None:
    path = tmp_path / "kernels"
    path.write_text(text)
    trace = read_kernel_names(path, inferences)
    assert (trace.launches, trace.inferences, trace.uneven) == (found, inferences, uneven)


@pytest.mark.parametrize(
    ("content", "inferences", "said"),
    [
        (b"", 1, "names no kernel"),
        (b"Name\n", 1, "names no kernel"),
        (b"one\n", 5, "1 launches can't be 5 inferences"),
        (b"\xff\xfe\x00", 1, "not UTF-8"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, content: bytes, inferences: int, said: str) -> None:
    path = tmp_path / "kernels"
    path.write_bytes(content)
    with pytest.raises(GpusqError, match=said):
        read_kernel_names(path, inferences)
    with pytest.raises(GpusqError, match="cannot read"):
        read_kernel_names(tmp_path / "absent", 1)
