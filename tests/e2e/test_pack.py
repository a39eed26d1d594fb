"""`--pack`: the bundle tells its packed size, does without its dense weights, and no difference passes unseen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from gpusq_deploy.artifacts.base import digest_of_file
from gpusq_deploy.cli.bench import main as bench
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.validate import main as validate
from gpusq_deploy.graph.values import array_of
from gpusq_deploy.sparsity.compressed_file import DENSE, PACKED

from commands import Finished, run_main  # isort: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packing(sparse: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    out = tmp_path_factory.mktemp("packed") / "packed.gpusq"
    options = ("--int8", "--sparse", "--pack", "--calib", photos, "--target", "a100")
    return out, run_main(build, sparse, *options, "--out", out, "--json")


@pytest.fixture
def packed(packing: tuple[Path, Finished], tmp_path: Path) -> Path:
    """A copy, to damage."""
    path, done = packing
    assert done.code == 0, done.err
    return shutil.copytree(path, tmp_path / "packed.gpusq")


def weights_of(model: Path) -> dict[str, npt.NDArray[Any]]:
    return {name: array_of(value) for name, value in ir.load(model).graph.initializers.items()}


def without_dense(bundle: Path) -> bytes:
    data = (bundle / DENSE).read_bytes()
    (bundle / DENSE).unlink()
    return data


def test_the_sizes_are_told_and_the_weights_are_those_of_a_build_without(
    packing: tuple[Path, Finished], bundle: Path
) -> None:
    path, done = packing
    told = done.json()["packed"]
    # Two blocks of width 64: qkv, proj, fc1 and fc2 hold 12 * 64 * 64 weights each.
    dense = 2 * 12 * 64 * 64
    assert (told["weights"], told["int8_bytes"], told["packed_bytes"]) == (8, dense, dense * 5 // 8)
    assert (told["of_int8"], told["times_smaller"]) == (0.625, 6.4)
    assert "0.625 of dense INT8" in done.err
    got, expected = weights_of(path / "model.onnx"), weights_of(bundle / "model.onnx")
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_dense_weights_that_were_left_out_come_back_byte_for_byte(packed: Path) -> None:
    data = without_dense(packed)
    for command in (validate, bench):
        done = run_main(command, packed)
        assert done.code == 5
        assert f"gpusq-build {packed} --unpack" in done.err
    assert run_main(build, packed, "--unpack").code == 0
    assert (packed / DENSE).read_bytes() == data
    assert run_main(validate, packed, "--json").json()["findings"] == []


def test_a_further_engine_unpacks_first(packed: Path) -> None:
    data = without_dense(packed)
    done = run_main(build, packed, "--target", "orin")
    assert done.code == 6, done.err
    assert (packed / DENSE).read_bytes() == data
    assert run_main(validate, packed).code == 0


def test_another_code_is_found_though_every_digest_was_made_to_fit(packed: Path) -> None:
    path = packed / DENSE
    codes = bytearray(path.read_bytes())
    place = next(index for index, code in enumerate(codes) if code not in {0, 1})
    codes[place] = 1
    path.write_bytes(codes)
    manifest = json.loads((packed / "manifest.json").read_text("utf-8"))
    (entry,) = (file for file in manifest["files"] if file["path"] == DENSE)
    entry["digest"] = digest_of_file(path)
    (packed / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    done = run_main(validate, packed, "--json")
    assert done.code == 1
    assert [finding["rule"] for finding in done.json()["findings"]] == ["packed"]
    assert "other INT8 weights" in done.json()["findings"][0]["what"]


def test_a_damaged_packed_file_is_found_and_not_unpacked(packed: Path) -> None:
    data = bytearray((packed / PACKED).read_bytes())
    data[-100] ^= 1
    (packed / PACKED).write_bytes(data)
    done = run_main(validate, packed, "--json")
    assert done.code == 1
    assert {finding["rule"] for finding in done.json()["findings"]} == {"digest", "packed"}
    dense = (packed / DENSE).read_bytes()
    assert run_main(build, packed, "--unpack").code == 5
    assert (packed / DENSE).read_bytes() == dense


@pytest.mark.parametrize("options", [(), ("--int8",), ("--sparse",)])
def test_pack_alone_is_refused(sparse: Path, options: tuple[str, ...]) -> None:
    done = run_main(build, sparse, "--pack", *options)
    assert done.code == 2
    assert "--pack needs --int8 --sparse" in done.err


def test_a_dry_run_says_that_weights_would_be_unpacked(packed: Path) -> None:
    without_dense(packed)
    for options in (("--unpack",), ("--target", "orin")):
        done = run_main(build, packed, *options, "--dry-run", "--json")
        assert done.code == 0, done.err
        assert done.json()["unpacked"] == 8
        assert "8 weights into weights.dense" in run_main(build, packed, *options, "--dry-run").out
    assert not (packed / DENSE).exists()


def test_unpack_is_for_a_bundle_that_is_packed(sparse: Path, bundle: Path) -> None:
    assert run_main(build, sparse, "--unpack").code == 2
    done = run_main(build, bundle, "--unpack")
    assert done.code == 5
    assert "cannot read the packed weights" in done.err
