"""gpusq-calibrate by one process and by several, and builds from what it wrote."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_main

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.artifacts.calibration import CalibrationTable
from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.calibrate import main as calibrate

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("calibrator", ["amax", "output-error"])
def test_two_ranks_write_the_same_bytes_as_one_process(
    dense: Path, photos: Path, tmp_path: Path, calibrator: str
) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    options = ("--calib", str(photos), "--calibrator", calibrator)
    done = run_main(calibrate, dense, *options, "--out", one, "--json")
    assert done.code == 0, done.err
    assert done.json()["images"] == 20
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "gpusq_deploy", "calibrate", str(dense), *options, "--out", str(two)]
    ranks = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ranks.returncode == 0, ranks.stderr
    assert ranks.stdout.count("10 ranges") == 1, "one rank speaks for all"
    assert one.read_bytes() == two.read_bytes()


def test_when_one_rank_fails_all_end_and_nothing_is_written(dense: Path, photos: Path, tmp_path: Path) -> None:
    """Of eleven images two are kept apart, and three damaged ones are all met by the second rank; the first waits."""
    data = tmp_path / "data"
    data.mkdir()
    for index, photo in enumerate(sorted(photos.iterdir())[:11]):
        damaged = index in (2, 4, 7)
        (data / f"{index:02d}.png").write_bytes(b"damaged" if damaged else photo.read_bytes())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--calib", str(data), "--out", str(tmp_path / "out.json")]
    ranks = subprocess.run(
        [*launcher, "-m", "gpusq_deploy", "calibrate", str(dense), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ranks.returncode != 0
    assert "samples can't be read" in ranks.stderr
    assert "exitcode: 5" in ranks.stderr or "exitcode  : 5" in ranks.stderr
    assert "forcefully exiting" not in ranks.stderr
    assert not (tmp_path / "out.json").exists()


def ranges_of(table: CalibrationTable | None) -> dict[str, tuple[float, str]]:
    """amax and its origin by layer: what the user sees of a table. Tensors are called as in the form that is built."""
    assert table is not None
    return {entry.layer: (entry.amax, entry.origin) for entry in table.ranges}


def test_a_build_finds_the_ranges_that_gpusq_calibrate_finds(dense: Path, photos: Path, tmp_path: Path) -> None:
    """Equal to the bit: both run one graph with the same outputs, one sample on one thread at a time.

    The default recipe smooths, so its ranges differ.
    """
    ranges = tmp_path / "ranges.json"
    assert run_main(calibrate, dense, "--calib", photos, "--calibrator", "mse", "--out", ranges).code == 0
    found = read_value(ranges, CalibrationTable)
    assert all(entry.origin.startswith("mse over 20 samples") for entry in found.ranges)
    common = ("--int8", "--recipe", "plain_wi8_ai8", "--calib", photos)
    own = run_main(build, dense, *common, "--calibrator", "mse", "--out", tmp_path / "own")
    assert own.code == 0, own.err
    assert ranges_of(read_bundle(tmp_path / "own").calibration) == ranges_of(found)
    stored = run_main(build, dense, *common, "--ranges", ranges, "--out", tmp_path / "stored")
    assert stored.code == 0, stored.err
    assert ranges_of(read_bundle(tmp_path / "stored").calibration) == ranges_of(found)
    # One plan on one float graph, rewritten twice by the same process.
    assert (tmp_path / "own/model.onnx").read_bytes() == (tmp_path / "stored/model.onnx").read_bytes()


def test_ranges_of_another_checkpoint_are_refused(dense: Path, sparse: Path, photos: Path, tmp_path: Path) -> None:
    ranges = tmp_path / "ranges.json"
    assert run_main(calibrate, dense, "--calib", photos, "--out", ranges).code == 0
    done = run_main(build, sparse, "--int8", "--ranges", ranges, "--out", tmp_path / "out")
    assert done.code == 5
    assert "another checkpoint" in done.err


def test_an_array_that_was_never_normalised_is_told_and_recorded(dense: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (12, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "data.npz", images=pixels)
    ranges = tmp_path / "ranges.json"
    done = run_main(calibrate, dense, "--calib", tmp_path / "data.npz", "--out", ranges, "--json")
    assert done.code == 0, done.err
    assert "warning: the calibration data spans" in done.err
    (warning,) = read_value(ranges, CalibrationTable).warnings
    assert "0…255" in warning
    assert done.json()["warnings"] == [warning]


def test_a_file_that_is_there_is_not_replaced_unless_asked(dense: Path, tmp_path: Path) -> None:
    ranges = tmp_path / "ranges.json"
    ranges.write_text("mine")
    done = run_main(calibrate, dense, "--calib", "random", "--out", ranges)
    assert (done.code, ranges.read_text()) == (5, "mine")
    assert run_main(calibrate, dense, "--calib", "random", "--out", ranges, "--force").code == 0
    assert read_value(ranges, CalibrationTable).synthetic
    assert [path.name for path in tmp_path.iterdir()] == ["ranges.json"]


@pytest.mark.parametrize(
    "options",
    [
        ("--calibrator", "mse", "--calib", "random"),
        ("--int8", "--calibrator", "mse"),
        ("--int8", "--calib", "random", "--calibrator", "mse", "--ranges", "ranges.json"),
        ("--int8", "--calib", "random", "--calibrator", "median"),
    ],
)
def test_options_that_would_change_nothing_are_refused(dense: Path, options: tuple[str, ...]) -> None:
    assert run_main(build, dense, *options).code == 2


def test_the_checkpoint_itself_is_not_written_over(dense: Path, tmp_path: Path) -> None:
    source = tmp_path / "dense.pt"
    source.write_bytes(dense.read_bytes())
    done = run_main(calibrate, source, "--calib", "random", "--out", source, "--force")
    assert (done.code, "the old file is kept" in done.err) == (5, True), done.err
    assert source.read_bytes() == dense.read_bytes()


class Undeclared(torch.nn.Module):
    """Two products on images of 3 x 8 x 6, which no attribute describes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(144, 16), torch.nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, 8, 6] to [n, 4]."""
        answer: torch.Tensor = self.fc2(torch.relu(self.fc1(images.flatten(1))))
        return answer


def test_prepared_arrays_need_no_declared_preprocessing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package: Any = types.ModuleType("undeclared_models")
    package.make = Undeclared
    monkeypatch.setitem(sys.modules, "undeclared_models", package)
    torch.manual_seed(0)
    model, data, out = tmp_path / "m.pt", tmp_path / "data.npy", tmp_path / "m.json"
    torch.save(Undeclared().state_dict(), model)
    array = np.random.default_rng(0).standard_normal((12, 3, 8, 6)).astype(np.float32)
    np.save(data, array)
    arch = ("--arch", "undeclared_models:make")
    images = run_main(calibrate, model, *arch, "--calib", photos, "--out", out)
    assert (images.code, "declares no preprocessing" in images.err) == (5, True), images.err
    assert "gpusq_preprocessing" in images.err
    assert "--calib FILE.npy" in images.err
    done = run_main(calibrate, model, *arch, "--calib", data, "--out", out)
    assert done.code == 0, done.err
    assert "the input is taken to be 3 x 8 x 6" in done.err
    # A quarter of so few samples is kept apart, spread over all; the input is the first layer's.
    found = {entry.layer: entry.amax for entry in read_value(out, CalibrationTable).ranges}
    assert found["fc1"] == pytest.approx(float(np.abs(np.delete(array, [0, 4, 8], axis=0)).max()))
    built = run_main(build, model, *arch, "--int8", "--calib", data, "--out", tmp_path / "m.gpusq")
    assert built.code == 0, built.err
    manifest = read_bundle(tmp_path / "m.gpusq").manifest
    assert manifest.preprocessing.origin.startswith("none is declared")
    assert any("the input is taken to be 3 x 8 x 6" in note for note in manifest.notes)


def test_a_missing_output_folder_is_told_with_the_command_that_makes_it(dense: Path, tmp_path: Path) -> None:
    done = run_main(calibrate, dense, "--calib", "random", "--out", tmp_path / "a" / "m.json")
    assert (done.code, f"mkdir -p {tmp_path / 'a'}" in done.err) == (5, True), done.err


def test_a_single_image_is_warned_of(dense: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(sorted(photos.iterdir())[0].read_bytes())
    done = run_main(calibrate, dense, "--calib", tmp_path / "one", "--out", tmp_path / "m.json", "--json")
    assert done.code == 0, done.err
    warning = "calibrated on only 1 sample: larger values of other inputs are clipped; give a few dozen typical images"
    assert f"warning: {warning}" in done.err
    assert warning in done.json()["warnings"]
