"""What the GPU suite's report says, and what becomes of it. The report here is MADE UP: no GPU was asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.artifacts.runs import Environment
from gpusq_deploy.benchmarks.gpu import facts
from gpusq_deploy.benchmarks.gpu.facts import keep, kernel_files, sentences_after, with_tables
from gpusq_deploy.benchmarks.gpu.report import markdown_from_report, prediction_errors
from gpusq_deploy.benchmarks.gpu.values import BuiltKernel, Finding, GpuReport, Way, Ways
from gpusq_deploy.engines.kernel_names import read_kernel_names
from gpusq_deploy.engines.targets import find_target, target_from_toml
from gpusq_deploy.errors import GpusqError

ROOT = Path(__file__).resolve().parents[2]
SPARSE = "sm90_xmma_sparse_gemm_i8f16_i8i32_f32_tn_n_tilesize128x128x128_sptensor64x128x64"
SM80 = "plan from elsewhere, tensorrt-rtx SM80"


def made_up(*more: Finding, gpu: str | None = "NVIDIA H200") -> GpuReport:
    """As the suite writes it; every number is invented."""
    kernel = BuiltKernel(name="mm", kind="gemm", inputs=("Int8",), outputs=("Half",), tactic="__myelin_CASK_STUB")
    model = Finding(
        step="models",
        name="ViT-S INT8",
        facts={"way": "tensorrt-rtx CURRENT", "batch": 8, "predicted_us": 400.0, "sqnr_db": 41.0, "launch": "graph"},
        samples_ms=(0.5, 0.6, 0.7),
        kernels=("dense_gemm", SPARSE),
        kernels_us=(300.0, 250.0),
    )
    product = Finding(
        step="products",
        name="ViT-S qkv b8 2:4 fp16",
        facts={"way": "tensorrt-rtx CURRENT", "flops": 2 * 10**9, "writes": "Half", "error": 0.001},
        samples_ms=(0.1,),
        kernels=(SPARSE,),
        kernels_us=(20.0,),
        built=(kernel,),
    )
    return GpuReport(
        created="2026-12-01T00:00:00+00:00",
        environment=Environment(
            cpu="made up",
            cores=16,
            cpu_quota=None,
            os="made up",
            python="3.12.3",
            gpu=gpu,
            gpu_driver="580",
            clocks_locked=None,
        ),
        compute_capability="9.0" if gpu else None,
        pretended=gpu is None,
        ways=Ways(ways=(Way(backend="tensorrt-rtx", capability="CURRENT"),)),
        seconds={"possible": 30.0, "models": 100.0},
        findings=(model, product, *more),
        notes=("all of it made up",),
    )


def test_the_tables_have_what_was_measured() -> None:
    text = markdown_from_report(made_up())
    row = "| ViT-S INT8 | tensorrt-rtx CURRENT | 8 | graph | 0.6 | 1.333e+04 | 0.4 | 41 | 1 of 2 |"
    assert row in text
    assert (
        f"| ViT-S qkv b8 2:4 fp16 | tensorrt-rtx CURRENT | Half | 0.1 | 20 | 100 | 0.001 | 1 of 1 | {SPARSE} |" in text
    )
    assert f"- `{SPARSE}`: ViT-S INT8 (models), ViT-S qkv b8 2:4 fp16 (products)" in text
    assert "- measured over predicted time: 1.50 to 1.50, median 1.50 of 1" in text
    assert "Nothing: everything ran." in text


def test_what_is_wrong_counts_for_nothing_though_it_was_timed() -> None:
    wrong = Finding(
        step="models",
        name="ViT-S FP16",
        facts={"batch": 1, "predicted_us": 1.0},
        samples_ms=(0.5,),
        kernels=(SPARSE,),
        why_not="its outputs are wrong: 3.0 dB to ONNX Runtime's",
    )
    text = markdown_from_report(made_up(wrong))
    assert "| ViT-S FP16 |" not in text
    assert "its outputs are wrong: 3.0 dB to ONNX Runtime's: ViT-S FP16" in text
    assert prediction_errors(made_up(wrong)) == prediction_errors(made_up())
    assert kernel_files(made_up(wrong)) == kernel_files(made_up())


def test_what_didnt_run_is_told_by_its_reason() -> None:
    many = [Finding(step="torch", name=f"p{index}", why_not="the time was up") for index in range(5)]
    text = markdown_from_report(made_up(*many))
    assert "- 5: torch: the time was up: p0, p1, p2 and 2 more" in text
    assert "everything ran" not in text


def test_a_prediction_is_held_against_what_was_measured() -> None:
    assert prediction_errors(made_up()) == {"ViT-S INT8 b8": pytest.approx(1.5)}
    untimed = Finding(step="models", name="x", facts={"batch": 1, "predicted_us": 1.0}, why_not="failed: no")
    assert len(prediction_errors(made_up(untimed))) == 1


def test_a_targets_unknowns_become_what_was_seen() -> None:
    target = find_target("h100")
    runs = Finding(step="possible", name=SM80, samples_ms=(1.0,))
    refused = Finding(step="possible", name=SM80, why_not="failed: not for\nthis GPU")
    seen = "Seen on NVIDIA H200, 2026-12-01: "
    assert sentences_after(target, made_up(runs)) == (
        f"{seen}1 engine run of plans built by tensorrt-rtx CURRENT agreed with ONNX Runtime to 41 dB or better.",
        f"{seen}a tensorrt-rtx SM80 plan, built without the GPU, runs.",
        f"{seen}1 of 1 products with 2:4 weights ran on a kernel with a sparse name.",
    )
    assert "doesn't run: failed: not for this GPU." in sentences_after(target, made_up(refused))[1]
    empty = msgspec.structs.replace(made_up(), findings=())
    assert sentences_after(target, empty) == target.unknowns, "what wasn't asked stays unknown"


def test_a_report_is_kept_raw_in_the_docs_and_in_its_target_alone(tmp_path: Path) -> None:
    for folder in ("docs", "engines/targets"):
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / folder, tmp_path / folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    written = [path.relative_to(tmp_path).as_posix() for path in keep(made_up(), tmp_path)]
    raw, names, target_file = (
        "benchmarks/results/gpu/2026-12-01-H200",
        "ViT-S-INT8-tensorrt-rtx-CURRENT.txt",
        "h100.toml",
    )
    assert written == [f"{raw}.json", "docs/gpu.md", f"{raw}/{names}", f"engines/targets/{target_file}"]
    assert read_value(tmp_path / written[0], GpuReport) == made_up()
    trace = read_kernel_names(tmp_path / written[2], inferences=1)
    assert trace.launches == {"dense_gemm": 1, SPARSE: 1}, "as gpusq-inspect --kernels reads it"
    after = {path for path in before if path.read_bytes() != before[path]}
    assert after == {tmp_path / written[1], tmp_path / written[3]}
    target = target_from_toml((tmp_path / written[3]).read_text(), place="h100.toml")
    assert target.unknowns == sentences_after(find_target("h100"), made_up())
    assert msgspec.structs.replace(target, unknowns=()) == msgspec.structs.replace(find_target("h100"), unknowns=())
    again = (tmp_path / "docs/gpu.md").read_text()
    assert with_tables(again, made_up()) == again


def test_without_a_gpu_nothing_becomes_a_fact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "gpu.json"
    report.write_bytes(msgspec.json.encode(made_up(gpu=None)))
    monkeypatch.setattr("sys.argv", ["facts", str(report)])
    with pytest.raises(SystemExit) as ended:
        facts.main()
    assert ended.value.code == 5
    assert "nothing in this report was measured" in capsys.readouterr().err
    with pytest.raises(GpusqError, match="lacks the marks"):
        with_tables("no marks", made_up())
