"""Weights in files that other tools made (tests/support/weight_producers.py), and what must come of them.

What a library's model answers, its quantisers off, is the reference: what we read must answer the same.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, cast

import producers
import pytest
import torch
import weight_producers
from commands import run_main

from gpusq_deploy.bundle.validation import validate
from gpusq_deploy.cli.validate import main as command
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint
from gpusq_deploy.frontend.checkpoint.weights import weights_in_file

FIXTURES = Path(__file__).resolve().parents[4] / "fixtures" / "weights"
PRUNED = ("blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2")
READ = (
    "modelopt_sparse",
    "modelopt_exported",
    "modelopt_sparse_qat",
    "peft_lora",
    "quanto",
    "brevitas",
    "compressed_tensors_float",
)
# The tool that is named, and a word of its own conversion.
REFUSED = {
    "peft_adapter": ("PEFT", "merge_and_unload"),
    "peft_dora": ("PEFT", "merge_and_unload"),
    "loralib": ("loralib", "model.eval()"),
    "torchao_int8": ("torchao", "dequantize()"),
    "quanto_frozen": ("Hugging Face quanto", "dequantize()"),
    "compressed_tensors": ("compressed-tensors", "dequantize()"),
    "nncf_compressed": ("NNCF", "nncf.strip"),
    "bitsandbytes": ("bitsandbytes", "dequantize()"),
}


def told(name: str) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((FIXTURES / f"{name}.json").read_text()))


@pytest.mark.parametrize("name", READ)
def test_the_model_answers_what_its_library_s_model_answers(name: str) -> None:
    loaded = load_checkpoint(FIXTURES / f"{name}.pt", arch=producers.SPEC)
    with torch.no_grad():
        answers = loaded.module(producers.images())
    torch.testing.assert_close(answers, torch.tensor(told(name)["answers"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["modelopt_sparse", "modelopt_exported", "modelopt_sparse_qat"])
@pytest.mark.parametrize("arch", [None, producers.SPEC])
def test_modelopt_s_24_is_recorded_before_and_after_its_export(name: str, arch: Any) -> None:
    result = validate(FIXTURES / f"{name}.pt", arch=arch)
    assert result.findings == ()
    assert {layer.layer for layer in result.sparsity.layers if layer.expected} == set(PRUNED)
    assert {layer.diagnosis for layer in result.sparsity.layers if layer.expected} == {"valid"}


def test_ranges_beside_masks_are_those_of_the_pruned_weights() -> None:
    loaded = load_checkpoint(FIXTURES / "modelopt_sparse_qat.pt", arch=producers.SPEC)
    assert set(loaded.ranges) == {"patch_embed.proj", *PRUNED, "head"}
    assert not [remark for remark in loaded.remarks if "clipped" in remark]


def test_nncf_s_weights_are_the_float_ones_and_its_hooks_are_told() -> None:
    loaded = load_checkpoint(FIXTURES / "nncf.pt", arch=producers.SPEC)
    weight = f"{weight_producers.QKV}.weight"
    assert torch.equal(loaded.module.state_dict()[weight], producers.model().state_dict()[weight])
    assert [remark for remark in loaded.remarks if remark.startswith("NNCF: not used, 92 tensors")]


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_isn_t_read_names_its_tool_and_that_tool_s_conversion(name: str) -> None:
    producer, conversion = REFUSED[name]
    with pytest.raises(GpusqError) as caught:
        load_checkpoint(FIXTURES / f"{name}.pt", arch=producers.SPEC)
    assert producer.split()[-1].lower() in str(caught.value).lower()
    assert conversion in str(caught.value.hint)
    assert "img_size" not in str(caught.value)
    with pytest.raises(GpusqError):
        weights_in_file(FIXTURES / f"{name}.pt", None)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("arch", [None, producers.SPEC])
def test_a_form_that_isn_t_read_is_a_finding(name: str, arch: Any) -> None:
    result = validate(FIXTURES / f"{name}.pt", arch=arch)
    (finding,) = result.findings
    assert finding.rule == "not-read"
    assert REFUSED[name][1] in finding.hint
    assert result.account is not None
    assert REFUSED[name][0] in result.account.producers[0]
    assert len(result.account.unused) == 1


@pytest.mark.parametrize("name", [*READ, *REFUSED, "nncf"])
def test_the_command_says_what_the_file_is_and_who_wrote_it(name: str) -> None:
    done = run_main(command, FIXTURES / f"{name}.pt")
    lines = done.out.splitlines()
    assert lines[0].startswith("file: file of torch.save")
    written = next(line for line in lines if line.startswith("written by: "))
    library = told(name)["library"].split()[0].removeprefix("nvidia-").removeprefix("optimum-")
    # Scales beside float weights are nobody's but quanto's or compressed-tensors'.
    assert library.lower() in written.lower()
    assert any(line.startswith("used: weights: ") for line in lines) == (name not in REFUSED)
    account = run_main(command, FIXTURES / f"{name}.pt", "--json").json()["file"]
    assert f"written by: {', '.join(account['producers'])}" == written
    assert [f"not used: {line.removeprefix('not used, ')}" for line in account["unused"]] == [
        line for line in lines if line.startswith("not used: ")
    ]


def test_lora_without_its_scale_is_refused_and_named(tmp_path: Path) -> None:
    content = torch.load(FIXTURES / "peft_lora.pt")
    torch.save(content["model"], tmp_path / "m.pt")
    with pytest.raises(GpusqError, match=r"3 low-rank adapters.*lora_alpha"):
        load_checkpoint(tmp_path / "m.pt", arch=producers.SPEC)
    for name in list(content["model"]):
        if ".lora_B." in name:
            content["model"][name].zero_()
    torch.save(content["model"], tmp_path / "m.pt")
    loaded = load_checkpoint(tmp_path / "m.pt", arch=producers.SPEC)
    assert [remark for remark in loaded.remarks if "adapters are zero" in remark]
    weight = f"{weight_producers.QKV}.weight"
    assert torch.equal(loaded.module.state_dict()[weight], producers.model().state_dict()[weight])


@pytest.mark.parametrize(
    ("files", "words", "conversion"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "PEFT", "merge_and_unload"),
        (["zero_to_fp32.py", "latest"], "DeepSpeed", "zero_to_fp32.py"),
        ([".metadata", "__0_0.distcp"], "torch.distributed.checkpoint", "dcp_to_torch"),
    ],
)
def test_a_folder_of_shards_or_of_an_adapter_is_named(
    tmp_path: Path, files: list[str], words: str, conversion: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    for call in (lambda: load_checkpoint(tmp_path, arch=producers.SPEC), lambda: validate(tmp_path)):
        with pytest.raises(GpusqError, match=words) as caught:
            call()
        assert conversion in str(caught.value.hint)


def test_a_shard_of_zero_3_is_named(tmp_path: Path) -> None:
    """As deepspeed's engine writes `zero_pp_rank_0_mp_rank_00_model_states.pt`: it needs CUDA to be made."""
    state = {name: torch.empty(0) for name in producers.model().state_dict()}
    content = {"module": state, "param_shapes": [{name: torch.Size([4]) for name in state}], "ds_version": "0.17.2"}
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(GpusqError, match="ZeRO-3") as caught:
        load_checkpoint(tmp_path / "m.pt", arch=producers.SPEC)
    assert "zero_to_fp32.py" in str(caught.value.hint)
    content = {"optimizer_state_dict": {"zero_stage": 3, "partition_count": 2}, "ds_version": "0.17.2"}
    torch.save(content, tmp_path / "m.pt")
    assert validate(tmp_path / "m.pt").findings[0].rule == "not-read"


@pytest.mark.slow
@pytest.mark.parametrize("kind", weight_producers.MAKERS)
def test_the_kept_files_are_what_the_library_makes_today(kind: str, tmp_path: Path) -> None:
    module = {"compressed-tensors": "compressed_tensors", "quanto": "optimum"}.get(kind, kind)
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{kind} isn't installed: only the kept files are read")
    weight_producers.MAKERS[kind](tmp_path)
    for path in tmp_path.glob("*.pt"):
        made, kept = validate(path), validate(FIXTURES / path.name)
        assert [finding.rule for finding in made.findings] == [finding.rule for finding in kept.findings]
    shutil.rmtree(tmp_path)
