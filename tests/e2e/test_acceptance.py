"""gpusq-build --min-sqnr and --min-agreement: a build that isn't good enough fails and leaves its evidence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import Finished, run_main

from gpusq_deploy.bundle.files import damaged_files, read_bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.inspect import main as inspect
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.slow


def built(sparse: Path, photos: Path, out: Path, *more: object) -> Finished:
    return run_main(build, sparse, "--int8", "--calib", photos, "--target", "orin", "--out", out, *more)


def test_a_build_below_its_limit_fails_keeps_the_old_bundle_and_leaves_the_evidence(
    sparse: Path, photos: Path, tmp_path: Path
) -> None:
    out, failed = tmp_path / "m.gpusq", tmp_path / "m.gpusq.failed"
    held = built(sparse, photos, out, "--min-sqnr", 5, "--min-agreement", 0.1)
    assert held.code == 0
    assert "verified --min-sqnr 5 and --min-agreement 0.1 reached" in " ".join(held.out.split())
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert not failed.exists()

    for limit in ("200", "250"):  # the second replaces the evidence of the first
        done = built(sparse, photos, out, "--force", "--min-sqnr", limit)
        assert done.code == 5
        assert f"is below --min-sqnr {limit}" in done.err
        assert str(failed) in done.err
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gpusq", "m.gpusq.failed"]

    evidence = read_bundle(failed)
    assert list(damaged_files(failed, evidence.manifest)) == []
    assert evidence.receipt.engines == ()
    assert evidence.manifest.options.min_sqnr == 250
    (said,) = evidence.receipt.shortfalls
    assert said.endswith("is below --min-sqnr 250")
    assert evidence.receipt.verification is not None
    modules = [block.module for block in evidence.receipt.verification.blocks]
    assert modules == ["patch_embed.proj", "blocks.0", "blocks.1", "head"]

    shown = run_main(inspect, failed)
    assert "drift behind each block" in shown.out
    assert "most noise" in shown.out
    assert "refused" in shown.out
    assert "compared: SQNR" in shown.out
    again = run_main(build, failed, "--target", "orin")
    assert again.code == 5
    assert "evidence of a refused build" in again.err


def test_an_agreement_that_is_just_reached_is_enough(sparse: Path, photos: Path, bundle: Path, tmp_path: Path) -> None:
    verification = read_bundle(bundle).receipt.verification
    assert verification is not None
    assert verification.top1_agreement is not None
    limit = ("--sparse", "--min-agreement", verification.top1_agreement)
    done = built(sparse, photos, tmp_path / "m.gpusq", *limit, "--json")
    assert done.code == 0
    assert done.json()["verification"]["top1_agreement"] == verification.top1_agreement
    assert done.json()["shortfalls"] == []


def test_a_head_of_zeros_is_warned_about_and_reaches_no_limit(sparse: Path, photos: Path, tmp_path: Path) -> None:
    """As timm initialises some: 300 dB and full agreement, of which nothing follows."""
    original, source = load_checkpoint(sparse), tmp_path / "zero.pt"
    torch.nn.init.zeros_(original.module.get_submodule("head").get_parameter("weight"))
    save_checkpoint(source, original.module, arch=original.arch, preprocessing=original.preprocessing)
    done = built(source, photos, tmp_path / "m.gpusq", "--json")
    assert done.code == 0
    assert done.json()["verification"]["constant"]
    (warning,) = done.json()["warnings"]
    assert "proves nothing" in warning
    assert f"warning: {warning}" in done.err
    shown = " ".join(run_main(inspect, tmp_path / "m.gpusq").out.split())
    assert "no figures: the output is the same for all samples" in shown
    assert f"warning: {warning}" in shown
    for limit in (("--min-sqnr", 20), ("--min-agreement", 0.9)):
        refused = built(source, photos, tmp_path / "no.gpusq", "--force", *limit)
        assert refused.code == 5
        assert f"{limit[0]} can't be judged" in " ".join(refused.err.split())
        assert not (tmp_path / "no.gpusq").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--min-sqnr", "5"), "real samples"),
        (("--min-agreement", "0.5", "--calib", "random"), "real samples"),
        (("--min-sqnr", "5", "--calib", "PHOTOS", "--bf16"), "--bf16"),
        (("--min-sqnr", "nan", "--calib", "PHOTOS"), "decibels"),
        (("--min-agreement", "90", "--calib", "PHOTOS"), "from 0 to 1"),
        (("--min-agreement", "nan", "--calib", "PHOTOS"), "from 0 to 1"),
    ],
)
def test_a_limit_that_means_nothing_is_a_usage_error(
    sparse: Path, photos: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    given = [str(photos) if option == "PHOTOS" else option for option in options]
    done = run_main(build, sparse, "--int8", *given, "--out", tmp_path / "m.gpusq")
    assert done.code == 2
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_takes_no_limit(bundle: Path) -> None:
    done = run_main(build, bundle, "--target", "orin", "--min-sqnr", 20)
    assert done.code == 2
    assert "--min-sqnr" in done.err
