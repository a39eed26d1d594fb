"""The exported graph computes what torch computes, and the same checkpoint gives the same bytes."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import planning
import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import Checkpoint, load_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.frontend.export.names import INPUT_NAME, Names
from gpusq_deploy.frontend.export.onnx_export import (
    OPSETS,
    example_input,
    export_float_model,
    reference_outputs,
)
from gpusq_deploy.graph.files import save_model, scratch_folder
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.passes.quantize import Quantize

Forward = Callable[[torch.nn.Module, torch.Tensor], Any]


class Small(torch.nn.Module):
    """A convolution, and a forward that each test chooses."""

    gpusq_preprocessing: Any = {  # noqa: RUF012 - users write a plain class attribute too
        "channels": 3,
        "height": 8,
        "width": 8,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
    }

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.chosen = forward
        self.conv = torch.nn.Conv2d(3, 4, 2, stride=2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.chosen(self, x)


def checkpoint(forward: Forward) -> Checkpoint:
    torch.manual_seed(0)
    module = Small(forward).eval().requires_grad_(requires_grad=False)
    arch = ArchSpec(source="factory", name="tests:small")
    return Checkpoint(
        file="small.pt",
        digest="",
        format="state dict",
        arch=arch,
        module=module,
        preprocessing=preprocessing_of(arch, module),
    )


def convolved(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    conv: Any = module.get_submodule("conv")
    answer: torch.Tensor = conv(x)
    return answer


def agrees_with_torch(source: Checkpoint, model: ir.Model, batch: int) -> None:
    feed = array_from_tensor(example_input(source, batch))
    expected = reference_outputs(source, feed)
    got = list(tiny_models.run_model(model, {INPUT_NAME: feed}).values())
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_graph_answers_as_torch_for_batches_that_it_was_not_traced_with(batch: int) -> None:
    exported = tiny_models.exported_vit()
    agrees_with_torch(exported.checkpoint, exported.raw, batch)


@pytest.mark.slow
def test_a_fixed_batch_is_in_the_graph() -> None:
    exported = tiny_models.exported_vit(static=True)
    agrees_with_torch(exported.checkpoint, exported.raw, 4)
    assert exported.raw.graph.inputs[0].shape == ir.Shape([4, 3, 32, 32])


@pytest.mark.slow
def test_a_grey_model_takes_one_channel() -> None:
    exported = tiny_models.exported_vit(channels=1)
    agrees_with_torch(exported.checkpoint, exported.raw, 3)


@pytest.mark.slow
def test_the_border_has_the_promised_names_and_shapes() -> None:
    graph = tiny_models.exported_vit().raw.graph
    assert [(str(value.name), str(value.shape)) for value in graph.inputs] == [("input", "[batch,3,32,32]")]
    assert [(str(value.name), str(value.shape)) for value in graph.outputs] == [("output", "[batch,64]")]


def identity(_: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x


def two(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return convolved(module, x), torch.relu(x)


def twice_the_same(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (convolved(module, x),) * 2


def with_its_input(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x, convolved(module, x), x


def dictionary(module: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"b": convolved(module, x), "a": 2 * x}


def inner(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = convolved(module, x)
    return [torch.relu(y), y]


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclass
class Described:
    mask: torch.Tensor
    add: torch.Tensor


def nested(module: torch.nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """With a key that the input has too, one that isn't a name, and what a model leaves out."""
    return {"logits": convolved(module, x), "none": None, "boxes": [x + 1, 2 * x], "input": x - 1}


def described(module: torch.nn.Module, x: torch.Tensor) -> Described:
    """A dataclass that nobody registered; `add` is what the exporter calls a sum."""
    return Described(mask=convolved(module, x + 1), add=torch.relu(x))


def paired(module: torch.nn.Module, x: torch.Tensor) -> Pair:
    return Pair(x, convolved(module, x))


def chained(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return convolved(module, convolved(module, x)[:, :3])


def talkative(_: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, str]:
    return x, "text"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (convolved, ["output"]),
        (identity, ["output"]),
        (two, ["output_0", "output_1"]),
        (twice_the_same, ["output_0", "output_1"]),
        (with_its_input, ["output_0", "output_1", "output_2"]),
        (dictionary, ["b", "a"]),
        (nested, ["logits", "boxes_0", "boxes_1", "input_2"]),
        (described, ["mask", "add"]),
        (paired, ["first", "second"]),
        (inner, ["output_0", "output_1"]),
    ],
)
def test_outputs_are_named_or_numbered_and_each_is_torchs(forward: Forward, names: list[str]) -> None:
    source = checkpoint(forward)
    model = run_passes(export_float_model(source, batch=tiny_models.DYNAMIC), [Clean()])
    assert [str(value.name) for value in model.graph.outputs] == names
    assert [str(value.name) for value in model.graph.inputs] == ["input"]
    agrees_with_torch(source, model, 3)
    half = run_passes(model, [CastToFloatType("fp16")])
    assert list(tiny_models.run_model(half, {"input": array_from_tensor(example_input(source, 3))})) == names


@pytest.mark.slow
def test_the_user_names_what_the_graph_takes_and_answers() -> None:
    source = checkpoint(two)
    model = export_float_model(source, batch=tiny_models.DYNAMIC, names=Names(input="image", outputs=("a", "b.c")))
    assert [str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)] == ["image", "a", "b.c"]
    feed = array_from_tensor(example_input(source, 3))
    got = tiny_models.run_model(model, {"image": feed})
    np.testing.assert_allclose(got["b.c"], np.maximum(feed, 0))
    assert "forward" not in vars(source.module)
    for names, what in ((Names(outputs=("a",)), "2 outputs, and 1 name"), (Names(input="a b"), "not a name: 'a b'")):
        with pytest.raises(GpusqError, match=what):
            export_float_model(source, batch=tiny_models.DYNAMIC, names=names)


class Masked(Small):
    """A forward with more than an image."""

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - as users write
        if mask is None:
            raise ValueError("mask is needed")
        return self.conv(images * mask)


class Scaled(Small):
    """A forward that can do without more."""

    def forward(self, images: torch.Tensor, scale: float = 2.0) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - as users write
        return self.conv(images * scale)


def checkpoint_of(kind: type[Small]) -> Checkpoint:
    return replace(checkpoint(convolved), module=kind(convolved).eval().requires_grad_(requires_grad=False))


@pytest.mark.slow
def test_further_inputs_may_have_defaults_and_the_input_has_the_forwards_name() -> None:
    source = checkpoint_of(Scaled)
    model = export_float_model(source, batch=tiny_models.DYNAMIC)
    assert [str(value.name) for value in model.graph.inputs] == ["images"]
    feed = array_from_tensor(example_input(source, 3))
    np.testing.assert_allclose(
        tiny_models.run_model(model, {"images": feed})["output"], reference_outputs(source, feed)[0], atol=1e-5
    )
    with pytest.raises(GpusqError, match="mask is needed") as caught:
        export_float_model(checkpoint_of(Masked), batch=tiny_models.DYNAMIC)
    assert str(caught.value.hint).startswith("its forward also takes mask: name a factory")


def windowed(_: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Five axes: [N, windows, heads, length, channels]."""
    parts = x.reshape(-1, 3, 2, 4, 8).permute(0, 2, 1, 3, 4)
    mask = (torch.arange(8).reshape(2, 1, 1, 4) % 3 > 0).expand(2, 3, 4, 4)
    return torch.nn.functional.scaled_dot_product_attention(parts, parts.flip(1), parts, attn_mask=mask)


def single_headed(_: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    tokens = x.flatten(2)
    return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("forward", [windowed, single_headed])
def test_attention_over_other_than_four_axes_is_exported(forward: Forward) -> None:
    source = checkpoint(forward)
    model = run_passes(export_float_model(source, batch=tiny_models.DYNAMIC), [Clean()])
    agrees_with_torch(source, model, 3)


@pytest.mark.slow
def test_a_module_that_is_used_twice_is_two_layers() -> None:
    source = checkpoint(chained)
    layers = weighted_layers(run_passes(export_float_model(source, batch=tiny_models.DYNAMIC), [Clean()]))
    assert len({layer.layer for layer in layers}) == 2
    assert all(layer.layer.startswith("conv/") for layer in layers)


def forking(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return convolved(module, x) if float(x.sum()) > 0 else x


def crashing(_: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    raise LookupError(f"no table for {list(x.shape)}")


@pytest.mark.slow
@pytest.mark.parametrize("forward", [forking, crashing])
def test_a_model_that_cannot_be_exported_is_refused_with_advice(forward: Forward) -> None:
    with pytest.raises(GpusqError, match=r"can't export the model for float32 \[2, ") as caught:
        export_float_model(checkpoint(forward), batch=tiny_models.DYNAMIC)
    assert caught.value.place == "tests:small"
    assert "--batch" in str(caught.value.hint)


def telling(_: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    raise GpusqError(f"takes no {list(x.shape)[1:]}", place="the model", hint="give it another size")


@pytest.mark.slow
def test_what_a_model_of_ours_says_itself_isnt_hidden() -> None:
    with pytest.raises(GpusqError) as caught:
        export_float_model(checkpoint(telling), batch=tiny_models.DYNAMIC)
    told = caught.value
    assert (told.what, told.place, told.hint) == ("takes no [3, 8, 8]", "the model", "give it another size")


def split_constant(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    ones, twos = torch.cat([torch.ones(4), 2 * torch.ones(4)]).chunk(2)
    return convolved(module, x).flatten(1)[:, :4] * ones + twos


def test_libraries_remarks_on_themselves_are_not_the_users(caplog: pytest.LogCaptureFixture) -> None:
    """onnxscript logs each node of several outputs that it doesn't fold."""
    export_float_model(checkpoint(split_constant), batch=tiny_models.DYNAMIC)
    assert [record for record in caplog.records if record.name.startswith("onnxscript") and record.levelno >= 30] == []


def test_an_output_that_is_no_tensor_is_refused() -> None:
    source = checkpoint(talkative)
    with pytest.raises(GpusqError, match="isn't a tensor"):
        reference_outputs(source, np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[-1] + 1, 0, -1])
def test_an_opset_out_of_range_is_refused(opset: int) -> None:
    with pytest.raises(GpusqError, match="is not supported") as caught:
        export_float_model(checkpoint(convolved), batch=tiny_models.DYNAMIC, opset=opset)
    assert caught.value.place == "--opset"
    assert "19 to 23" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize("opset", list(OPSETS))
def test_every_opset_of_the_range_exports_and_says_so(opset: int) -> None:
    source = checkpoint(convolved)
    model = export_float_model(source, batch=BatchRange(minimum=1, optimum=2, maximum=2), opset=opset)
    assert model.opset_imports[""] == opset
    agrees_with_torch(source, model, 1)


def test_the_example_is_always_the_same() -> None:
    source = checkpoint(convolved)
    before = torch.random.get_rng_state()
    assert torch.equal(example_input(source, 2), example_input(source, 2))
    assert torch.equal(torch.random.get_rng_state(), before)


def compiled(path: Path, out: Path) -> str:
    """Digest of what the passes make of a checkpoint file; runs in the test and in a process of its own."""
    source = load_checkpoint(path, arch=tiny_models.vit_spec())
    model = run_passes(export_float_model(source, batch=tiny_models.DYNAMIC), [Clean()])
    ranges = planning.table({layer.input: 4.0 for layer in weighted_layers(model)})
    plan = planning.plan_for(model, ranges, float_type="fp16")
    save_model(run_passes(model, [Quantize(plan), CastToFloatType("fp16")]), out)
    return hashlib.sha256(out.read_bytes()).hexdigest()


ALONE = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("alone", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.compiled(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])))
"""


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    """Twice in one process, the second time after other exports; and in a process that hashes otherwise."""
    path = tiny_models.write_vit(tmp_path / "tiny.pt", biases=False)
    first = compiled(path, tmp_path / "one.onnx")
    export_float_model(checkpoint(convolved), batch=tiny_models.STATIC)
    assert compiled(path, tmp_path / "two.onnx") == first
    support = str(Path(tiny_models.__file__).parent)
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": support}
    answer = subprocess.run(
        [sys.executable, "-c", ALONE, __file__, str(path), str(tmp_path / "three.onnx")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[-1] == first


def large() -> Checkpoint:
    """160 kB of weights."""
    found = checkpoint(lambda module, x: module.get_submodule("wide")(x))
    found.module.wide = torch.nn.Linear(8, 5000)
    return found


@pytest.mark.slow
def test_a_full_scratch_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # the kernel refuses as a full disk does
    try:
        with pytest.raises(GpusqError, match="cannot write to the scratch folder") as caught:
            export_float_model(large(), batch=BatchRange(minimum=1, optimum=1, maximum=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value.place).startswith(str(tmp_path))
    assert "TMPDIR" in str(caught.value.hint)
    assert not Path(str(caught.value.place)).exists()


def test_no_scratch_folder_at_all_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(GpusqError, match="cannot write to the scratch folder: No such file"):
        scratch_folder()
