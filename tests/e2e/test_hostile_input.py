"""Hostile, damaged and strange files through every command that reads them: exit 5, one sentence, nothing left."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import Finished, run_main

from gpusq_deploy.cli.bench import main as bench
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.calibrate import main as calibrate
from gpusq_deploy.cli.compress import main as compress
from gpusq_deploy.cli.validate import main as validate

pytestmark = pytest.mark.slow

# As the `dense` fixture, whose weights are saved here without their description.
ARCH = ("--arch", "timm:vit_tiny_patch16_224")
ARGUMENTS = ("img_size=32", "patch_size=8", "embed_dim=64", "depth=2", "num_heads=1", "num_classes=64")
SPEC = (*ARCH, *(word for argument in ARGUMENTS for word in ("--arch-arg", argument)))
State = dict[str, torch.Tensor]
QKV = "blocks.1.attn.qkv.weight"


@pytest.fixture
def state(dense: Path) -> State:
    held: State = torch.load(dense, weights_only=True)["state_dict"]
    return held


def refused(done: Finished, *words: str) -> None:
    """Exit 5: what, where and what to do, one line each, and no more."""
    assert done.code == 5, done.err
    assert (done.out, "Traceback" in done.err) == ("", False)
    start = done.err.index("error: ")
    assert [line[:7] for line in done.err[start:].splitlines()] == ["error: ", "  where", "  try: "], done.err
    for word in words:
        assert word in done.err


def refused_by_all(path: Path, folder: Path, *words: str, options: tuple[str, ...] = SPEC) -> None:
    """By every command that loads a model; what stood in the folder stands there, and nothing else."""
    before = sorted(folder.rglob("*"))
    out = folder / "out"
    refused(run_main(build, path, *options, "--out", out), *words)
    refused(run_main(compress, path, *options, "--data", folder, "--out", out), *words)
    refused(run_main(calibrate, path, *options, "--calib", "random", "--out", out), *words)
    refused(run_main(validate, path, *options), *words)
    assert sorted(folder.rglob("*")) == before


def test_every_length_of_a_truncated_file(tmp_path: Path, state: State) -> None:
    small = {name: tensor for name, tensor in state.items() if tensor.numel() < 100}
    writers: dict[str, Any] = {".pt": torch.save, ".safetensors": safetensors.torch.save_file}
    for suffix, save in writers.items():
        path = tmp_path / f"model{suffix}"
        save(small, path)
        data = path.read_bytes()
        for length in [*range(64), *range(64, len(data), len(data) // 60), len(data) - 1]:
            path.write_bytes(data[:length])
            refused(run_main(build, path, *SPEC, "--out", tmp_path / "out"))
            assert list(tmp_path.iterdir()) == [path]
        path.unlink()


def test_a_flipped_byte_in_a_weight_is_found_by_the_archive_s_checksum(tmp_path: Path, state: State) -> None:
    path = tmp_path / "model.pt"
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    place = data.index(state[QKV].numpy().tobytes()) + 1000
    data[place] ^= 0x10
    path.write_bytes(data)
    refused(run_main(build, path, *SPEC, "--out", tmp_path / "out"), "checksum", "data/")


def as_type(state: State, dtype: torch.dtype) -> State:
    return {**state, QKV: state[QKV].abs().to(dtype)}


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_of_types_that_no_model_computes_in(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    path = tmp_path / "model.pt"
    torch.save(as_type(state, dtype), path)
    before = sorted(tmp_path.rglob("*"))
    refused(run_main(build, path, *SPEC, "--out", tmp_path / "out"), QKV, str(dtype))
    refused(run_main(validate, path, *SPEC), QKV, str(dtype))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_numbers(tmp_path: Path, state: State, bad: float) -> None:
    state[QKV][5, 7] = bad
    torch.save(state, tmp_path / "model.pt")
    refused_by_all(tmp_path / "model.pt", tmp_path, "1 of 12288 weights are NaN", QKV)


def test_a_shape_mismatch_names_the_three_nearest_keys(tmp_path: Path, state: State) -> None:
    state["blocks.0.attn.qkv.weight"] = torch.zeros(64, 64)
    torch.save(state, tmp_path / "model.pt")
    refused_by_all(
        tmp_path / "model.pt",
        tmp_path,
        "blocks.0.attn.qkv.weight is [64, 64], expected [192, 64]",
        "of that shape the file has blocks.1.attn.qkv.weight",
    )
    del state["blocks.0.attn.qkv.weight"]
    state |= {f"blocks.0.attn.{name}.weight": torch.zeros(64, 64) for name in ("q", "k", "v")}
    torch.save(state, tmp_path / "model.pt")
    refused_by_all(
        tmp_path / "model.pt", tmp_path, "blocks.0.attn.qkv.weight (the file has blocks.0.attn.", ".q.weight", ".k."
    )


def test_unknown_architectures_with_near_ones(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "model.pt")
    for spec, near in (
        ("timm:swin_tinny_patch4_window7_224", "swin_tiny_patch4_window7_224"),
        ("torchvision:vit_b16", "vit_b_16"),
        ("tim:vit_tiny_patch16_224", "did you mean timm:vit_tiny_patch16_224?"),
        ("torchvison:swin_t", "did you mean torchvision:swin_t?"),
    ):
        refused_by_all(tmp_path / "model.pt", tmp_path, near, options=("--arch", spec))


def stored_twice(path: Path) -> None:
    """Two index entries for the same bytes: together larger than the file, and nothing is compressed."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
        archive.writestr("model/data/0", bytes(1 << 16))
        entry = archive.infolist()[1]
        for index in range(1, 3000):
            again = zipfile.ZipInfo(f"model/data/{index}")
            again.file_size, again.compress_size, again.CRC = entry.file_size, entry.compress_size, entry.CRC
            again.header_offset = entry.header_offset
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
        archive.writestr("model/data/0", bytes(100_000_000))


@pytest.mark.parametrize("bomb", [stored_twice, compressed])
@pytest.mark.parametrize("name", ["model.pt", "model.pt2"])
def test_zip_bombs(tmp_path: Path, bomb: Callable[[Path], None], name: str) -> None:
    bomb(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 1 << 20
    refused_by_all(tmp_path / name, tmp_path, "would grow to 1")


def test_an_npz_bomb(tmp_path: Path, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 MB of zeros in 300 kB; nothing of it is unpacked."""

    def unpacked(*_: object) -> None:
        pytest.fail("it is unpacked")

    start = io.BytesIO()
    np.save(start, np.zeros((0, 3, 32, 32), np.float32))
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as entry:
        entry.write(start.getvalue().replace(b"(0, 3,", b"(25600, 3,"))
        for _ in range(300):
            entry.write(bytes(1 << 20))
    monkeypatch.setattr(shutil, "copyfileobj", unpacked)
    refused(run_main(build, dense, "--int8", "--calib", path, "--out", tmp_path / "out"), "would grow to 314,", "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def header(content: object, *, size: int | None = None, data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


@pytest.mark.parametrize(
    "data",
    [
        header({}, size=2**63),
        header({}, size=2**40),
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, data=bytes(64)),
        header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}}, data=bytes(16)),
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, data=bytes(16)),
        header({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, data=bytes(16)),
        header({"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}, data=bytes(16)),
        struct.pack("<Q", 50_000) + b"[" * 50_000,
        struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    ],
)
def test_safetensors_headers_that_lie(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    refused_by_all(tmp_path / "model.safetensors", tmp_path, "not a safetensors file, or damaged")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.pt2", "model.onnx"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00text that is not UTF-8 \xc3\x28", b"PK\x03\x04", b"\x80\x02"])
def test_empty_and_foreign_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(run_main(validate, tmp_path / name))
    if not name.endswith(".onnx"):
        refused_by_all(tmp_path / name, tmp_path)
    else:
        refused(run_main(bench, tmp_path / name, "--runtime", "onnxruntime"))


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("loop.pt", "pipe.pt"):
        refused_by_all(tmp_path / name, tmp_path)
    refused(run_main(build, tmp_path / "folder.safetensors", *SPEC, "--out", tmp_path / "out"))
    refused(run_main(build, tmp_path / "folder.safetensors", "--target", "a100"), "not a bundle")
    refused(run_main(compress, tmp_path / "folder.safetensors", *SPEC, "--data", tmp_path), "not a file")


@pytest.mark.parametrize("content", [b"\xc3\x28", b"a = " + b"[" * 100_000, b"\0", b"a = 1" + b"0" * 10_000])
def test_texts_that_are_no_recipe(tmp_path: Path, dense: Path, content: bytes) -> None:
    (tmp_path / "r.toml").write_bytes(content)
    options = ("--int8", "--calib", "random", "--recipe", tmp_path / "r.toml", "--out", tmp_path / "out")
    refused(run_main(build, dense, *options), "r.toml")
    refused(run_main(validate, dense, "--recipe", tmp_path / "r.toml"), "r.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["r.toml"]


@pytest.mark.parametrize(
    "content",
    [
        b"TRT-8601-EntropyCalibration2\ninput: \xc3\x28",
        b"TRT-8601-EntropyCalibration2\n",
        b"TRT-\n" * 10,
        b"{" * 100_000,
        b"[" * 100_000,
        b"\0",
    ],
)
def test_texts_that_are_no_ranges(tmp_path: Path, dense: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    done = run_main(build, dense, "--int8", "--ranges", tmp_path / "r", "--out", tmp_path / "out")
    refused(done, f"{tmp_path}/r")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
