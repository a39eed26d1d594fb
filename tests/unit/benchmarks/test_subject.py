from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from commands import run_main

from gpusq_deploy.artifacts.base import json_from_value, read_value
from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions, Manifest
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.benchmarks import subject
from gpusq_deploy.bundle.files import files_in
from gpusq_deploy.cli.bench import main as bench
from gpusq_deploy.engines import backend_choice
from gpusq_deploy.engines.gpu import Gpu
from gpusq_deploy.errors import GpusqError

WriteBundle = Callable[..., Path]
RANGE = BatchRange(minimum=1, optimum=8, maximum=32)


@pytest.fixture
def only_rtx_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    let_only_rtx_run(monkeypatch)


def let_only_rtx_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> str | None:
        return None if name == "tensorrt-rtx" else f"{name} is not installed"

    monkeypatch.setattr(backend_choice, "why_not", refuse)


def test_an_onnx_file_runs_on_onnxruntime(tmp_path: Path) -> None:
    found = subject.find_subject(tmp_path / "vit.onnx", "auto")
    assert (found.name, found.choice.name, found.batch, found.default_batches) == (
        "vit.onnx",
        "onnxruntime",
        None,
        (1,),
    )
    assert "there is no engine" in found.choice.reason


def test_a_bundle_without_plans_runs_its_model(write_bundle: WriteBundle) -> None:
    folder = write_bundle(RANGE)
    found = subject.find_subject(folder, "auto")
    assert (found.path, found.name) == (folder / "model.onnx", "bundle/model.onnx")
    assert found.choice.name == "onnxruntime"
    assert found.default_batches == (1, 8)


def test_a_static_bundle_has_one_default_batch(write_bundle: WriteBundle) -> None:
    folder = write_bundle(BatchRange(minimum=4, optimum=4, maximum=4))
    assert subject.find_subject(folder, "onnxruntime").default_batches == (4,)


@pytest.mark.usefixtures("only_rtx_runs")
def test_auto_takes_the_backend_that_has_a_plan_and_can_run(write_bundle: WriteBundle) -> None:
    folder = write_bundle(RANGE, (("tensorrt", "orin.plan"), ("tensorrt-rtx", "rtx.plan")))
    found = subject.find_subject(folder, "auto")
    assert (found.path, found.choice.name) == (folder / "engines" / "rtx.plan", "tensorrt-rtx")
    assert found.choice.reason == "not tensorrt: tensorrt is not installed; tensorrt-rtx is installed and a GPU answers"


@pytest.mark.usefixtures("only_rtx_runs")
def test_auto_does_not_take_a_backend_without_its_plan(write_bundle: WriteBundle) -> None:
    found = subject.find_subject(write_bundle(RANGE, (("tensorrt", "orin.plan"),)), "auto")
    assert found.choice.name == "onnxruntime"
    assert "not tensorrt-rtx: there are engines of tensorrt only" in found.choice.reason


@pytest.mark.usefixtures("only_rtx_runs")
def test_two_plans_of_one_backend_need_a_name(write_bundle: WriteBundle) -> None:
    folder = write_bundle(RANGE, (("tensorrt-rtx", "a.plan"), ("tensorrt-rtx", "b.plan")))
    with pytest.raises(GpusqError, match=r"2 engines for tensorrt-rtx: engines/a\.plan, engines/b\.plan"):
        subject.find_subject(folder, "auto")


@pytest.mark.usefixtures("only_rtx_runs")
def test_of_two_plans_the_one_for_this_gpu_runs(write_bundle: WriteBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "find_gpu", lambda: Gpu("RTX 4090", "8.9"))
    folder = write_bundle(RANGE, (("tensorrt-rtx", "a100.plan", "8.0"), ("tensorrt-rtx", "rtx40.plan", "8.9")))
    assert subject.find_subject(folder, "auto").path == folder / "engines" / "rtx40.plan"


@pytest.mark.usefixtures("only_rtx_runs")
def test_a_bundle_without_a_plan_for_this_gpu_is_refused(
    write_bundle: WriteBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "find_gpu", lambda: Gpu("RTX 4090", "8.9"))
    folder = write_bundle(RANGE, (("tensorrt-rtx", "a100.plan", "8.0"),))
    with pytest.raises(GpusqError, match=r"no engine for this GPU, a RTX 4090 \(8\.9\): only for .* \(8\.0\)"):
        subject.find_subject(folder, "auto")


@pytest.mark.usefixtures("only_rtx_runs")
@pytest.mark.parametrize(
    ("options", "capability", "found"),
    [
        (EngineOptions(hardware="ampere-plus"), "8.9", "a100.plan"),
        (EngineOptions(hardware="ampere-plus"), "12.0", "a100.plan"),
        (EngineOptions(hardware="ampere-plus"), "7.5", None),
        (EngineOptions(hardware="same-compute-capability"), "8.9", None),
        (EngineOptions(hardware="same-compute-capability"), "8.0", "a100.plan"),
        (None, "8.9", None),
    ],
)
def test_a_plan_for_newer_gpus_too_runs_on_them(
    write_bundle: WriteBundle,
    monkeypatch: pytest.MonkeyPatch,
    options: EngineOptions | None,
    capability: str,
    found: str | None,
) -> None:
    monkeypatch.setattr(subject, "find_gpu", lambda: Gpu("this GPU", capability))
    folder = write_bundle(RANGE, (("tensorrt-rtx", "a100.plan", "8.0"),), options=options)
    if found is None:
        with pytest.raises(GpusqError, match="no engine for this GPU"):
            subject.find_subject(folder, "auto")
    else:
        assert subject.find_subject(folder, "auto").path == folder / "engines" / found


@pytest.mark.usefixtures("only_rtx_runs")
def test_a_plan_for_this_very_gpu_goes_before_one_for_newer_ones_too(
    write_bundle: WriteBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "find_gpu", lambda: Gpu("RTX 4090", "8.9"))
    engines = (("tensorrt-rtx", "a100.plan", "8.0"), ("tensorrt-rtx", "rtx40.plan", "8.9"))
    folder = write_bundle(RANGE, engines, options=EngineOptions(hardware="ampere-plus"))
    assert subject.find_subject(folder, "auto").path == folder / "engines" / "rtx40.plan"


@pytest.mark.usefixtures("only_rtx_runs")
def test_a_plan_file_runs_on_what_can_run(tmp_path: Path) -> None:
    found = subject.find_subject(tmp_path / "orin.plan", "auto")
    assert (found.name, found.choice.name) == ("orin.plan", "tensorrt-rtx")


@pytest.mark.usefixtures("only_rtx_runs")
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("made_with", "built_with", "stripped"),
    [
        (EngineOptions(), EngineOptions(strip=True), True),
        (EngineOptions(strip=True), EngineOptions(), False),
        # A receipt that is older than the field.
        (EngineOptions(strip=True), None, True),
        (EngineOptions(), None, False),
    ],
)
def test_a_plan_without_weights_gets_them_by_what_its_own_builder_was_asked(
    write_bundle: WriteBundle,
    monkeypatch: pytest.MonkeyPatch,
    alone: bool,
    made_with: EngineOptions,
    built_with: EngineOptions | None,
    stripped: bool,
) -> None:
    checked: list[Path] = []

    def check(model: Path, _built: SparsityReport) -> None:
        checked.append(model)

    monkeypatch.setattr(subject, "require_same_sparsity", check)
    folder = write_bundle(RANGE, (("tensorrt-rtx", "rtx.plan"),), engine=made_with, options=built_with)
    found = subject.find_subject(folder / "engines" / "rtx.plan" if alone else folder, "auto")
    assert found.path == folder / "engines" / "rtx.plan"
    assert found.weights == (folder / "model.onnx" if stripped else None)
    assert found.reference == folder / "model.onnx"
    assert checked == ([folder / "model.onnx"] if stripped else [])


@pytest.mark.usefixtures("only_rtx_runs")
def test_a_plan_in_a_bundle_that_its_receipt_doesnt_know_is_refused(write_bundle: WriteBundle) -> None:
    folder = write_bundle(RANGE, (("tensorrt-rtx", "rtx.plan"),))
    with pytest.raises(GpusqError, match="whose receipt doesn't know it"):
        subject.find_subject(folder / "engines" / "other.plan", "auto")


def damage(folder: Path, what: str) -> None:
    plan, receipt, manifest = folder / "engines" / "rtx.plan", folder / "receipt.json", folder / "manifest.json"
    if what == "plan":
        plan.write_bytes(b"elsewhere")
    elif what == "receipt":
        receipt.write_text(receipt.read_text().replace('"gpus": "test"', '"gpus": "tess"'))
    elif what == "unlisted":
        listed = read_value(manifest, Manifest)
        files = tuple(entry for entry in listed.files if entry.path != "engines/rtx.plan")
        manifest.write_bytes(json_from_value(msgspec.structs.replace(listed, files=files)))
    else:
        # Someone was at the manifest too, but left the receipt as it was.
        plan.write_bytes(b"elsewhere")
        listed = read_value(manifest, Manifest)
        manifest.write_bytes(json_from_value(msgspec.structs.replace(listed, files=files_in(folder))))


@pytest.mark.usefixtures("only_rtx_runs")
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("plan", "engines/rtx.plan is not the file that was built"),
        ("receipt", "receipt.json is not the file that was built"),
        ("unlisted", "engines/rtx.plan isn't in the manifest"),
        ("both", "engines/rtx.plan: the receipt's digest differs from the manifest's"),
    ],
)
def test_a_plan_that_isnt_the_one_that_was_built_isnt_loaded(
    write_bundle: WriteBundle, alone: bool, what: str, said: str
) -> None:
    folder = write_bundle(RANGE, (("tensorrt-rtx", "rtx.plan"),))
    path = folder / "engines" / "rtx.plan" if alone else folder
    assert subject.find_subject(path, "auto").path == folder / "engines" / "rtx.plan"
    damage(folder, what)
    done = run_main(bench, path)
    assert (done.code, done.out) == (5, "")
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("runs", ["the model", "the engine"])
def test_a_model_that_isnt_the_one_that_was_built_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_bundle: WriteBundle, runs: str
) -> None:
    """Neither by itself nor as what an engine's answers are compared with."""
    if runs == "the engine":
        let_only_rtx_run(monkeypatch)
    folder = write_bundle(RANGE, (("tensorrt-rtx", "rtx.plan"),))
    found = subject.find_subject(folder, "auto" if runs == "the engine" else "onnxruntime")
    assert found.choice.name == ("tensorrt-rtx" if runs == "the engine" else "onnxruntime")
    (folder / "model.onnx").write_bytes(b"another")
    done = run_main(bench, folder, "--runtime", found.choice.name, "--json", tmp_path / "runs.json")
    assert (done.code, done.out) == (5, "")
    assert "model.onnx is not the file that was built" in done.err
    alone = run_main(bench, folder / "model.onnx")
    assert alone.code == 5
    assert "model.onnx is not the file that was built" in alone.err


@pytest.mark.parametrize("requested", ["auto", "onnxruntime"])
def test_a_plan_never_runs_on_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requested: str) -> None:
    def refuse(name: str) -> str:
        return f"{name} is not installed"

    monkeypatch.setattr(backend_choice, "why_not", refuse)
    with pytest.raises(GpusqError, match="an engine can't run on onnxruntime"):
        subject.find_subject(tmp_path / "orin.engine", requested)


def test_a_runtime_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="tensorrt can't run the model here: there is no engine"):
        subject.find_subject(tmp_path / "vit.onnx", "tensorrt")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="not a bundle"):
        subject.find_subject(tmp_path, "auto")


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="neither a bundle"):
        subject.find_subject(tmp_path / "model.pt", "auto")
