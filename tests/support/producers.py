"""Make the files of tests/fixtures with the libraries that write such files.

`python tests/support/producers.py KIND DIR`: KIND is a key of KINDS; what begins with `modelopt` needs nvidia-modelopt,
with `pt2e` torchao: `pip install -e '.[producers]'`.
Beside a file lies what the library itself says of it. No test needs the libraries, so the files are kept.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.frontend.checkpoint.architecture import module_from_arch
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor

SPEC = ArchSpec(
    source="timm",
    name="vit_tiny_patch16_224",
    arguments={"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 4},
)


def model() -> torch.nn.Module:
    """A seeded ViT of one block; the same on every machine."""
    torch.manual_seed(0)
    module = module_from_arch(SPEC)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    return module


def images() -> torch.Tensor:
    """Seeded noise, [4, 3, 16, 16]."""
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def make_modelopt(folder: Path) -> None:
    """`mto.save` of INT8 (head disabled, as a QAT run might leave it), SmoothQuant's state dict, and amax as told."""
    mtq: Any = importlib.import_module("modelopt.torch.quantization")
    mto: Any = importlib.import_module("modelopt.torch.opt")

    def calibrate(module: torch.nn.Module) -> None:
        with torch.no_grad():
            module(images())

    quantized = mtq.quantize(copy.deepcopy(model()), mtq.INT8_DEFAULT_CFG, calibrate)
    mtq.disable_quantizer(quantized, "head*")
    mto.save(quantized, folder / "modelopt_int8.pt")
    told = {
        name.removesuffix(".input_quantizer"): float(child.amax)
        for name, child in quantized.named_modules()
        if name.endswith(".input_quantizer") and child.is_enabled
    }
    (folder / "modelopt_int8.json").write_text(json.dumps(told, indent=1) + "\n")
    smooth = mtq.quantize(copy.deepcopy(model()), mtq.INT8_SMOOTHQUANT_CFG, calibrate)
    torch.save(smooth.state_dict(), folder / "modelopt_smoothquant.pt")


def make_pt2e(folder: Path) -> None:
    """A program quantised for x86: uint8 inputs with zero points, INT8 weights per channel, folded."""
    x86: Any = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    torch.export.save(bare(quantized_program(model(), quantizer)), folder / "pt2e_x86.pt2")


# Of 32 channels, which is enough for INT8 by every recipe.
WIDER = ArchSpec(
    source="timm",
    name="vit_tiny_patch16_224",
    arguments={
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 2,
        "num_classes": 4,
    },
)


def wider_model() -> torch.nn.Module:
    """A seeded ViT of one block that every recipe quantises whole."""
    torch.manual_seed(0)
    return seeded(module_from_arch(WIDER))


def other_images() -> torch.Tensor:
    """Seeded noise that no quantiser was calibrated on, [4, 3, 16, 16]."""
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def answers(module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The module's logits; of an exported program, which knows no other mode, and of a module in eval mode."""
    with torch.no_grad():
        answer: Any = module(inputs)
    logits: torch.Tensor = getattr(answer, "logits", answer)
    return logits


def told(path: Path, module: torch.nn.Module) -> None:
    """Beside a file: inputs and the library's own fake-quantised outputs, as --expect-outputs takes them."""
    expected = array_from_tensor(answers(module, other_images()))
    np.savez(path.with_suffix(".npz"), input=array_from_tensor(other_images()), output=expected)


def torchvision_model() -> torch.nn.Module:
    """A seeded ViT of torchvision's, of one block: its attention is nn.MultiheadAttention, its norms nn.LayerNorm."""
    models: Any = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    module: Any = models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=4
    )
    module.gpusq_preprocessing = {"channels": 3, "height": 16, "width": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return seeded(module)


def transformers_model() -> torch.nn.Module:
    """A seeded ViT of transformers', of one block."""
    library: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    module: Any = library.ViTForImageClassification(
        library.ViTConfig(
            image_size=16,
            patch_size=8,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=4,
        )
    )
    module.gpusq_preprocessing = {"channels": 3, "height": 16, "width": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return seeded(module)


def mixed_model() -> torch.nn.Module:
    """A Linear, a ConvTranspose, a BatchNorm and a pooling in one."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 4, stride=4),
        torch.nn.BatchNorm2d(16),
        torch.nn.ConvTranspose2d(16, 16, 2, stride=2),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 4),
    )
    described: Any = module
    described.gpusq_preprocessing = {"channels": 3, "height": 16, "width": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return module.eval()


def seeded(module: torch.nn.Module) -> torch.nn.Module:
    """The module with weights that do something, in eval mode."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    return module.eval()


def _calibrate(module: torch.nn.Module) -> None:
    answers(module, images())


def quantized_by_modelopt(module: torch.nn.Module, config: str) -> Any:
    """A copy of the module that ModelOpt quantised by one of its own configurations."""
    mtq: Any = importlib.import_module("modelopt.torch.quantization")
    return mtq.quantize(copy.deepcopy(module), getattr(mtq, config), _calibrate)


def make_modelopt_kinds(folder: Path) -> None:
    """Files of ModelOpt, each with the library's own outputs beside it.

    `int8_torchvision`, `int8_transformers` and `int8_mixed` have ranges of norms and poolings too; `smooth` is
    SmoothQuant; `weights` INT8 weights alone; `fp8`, `int4` say what they are; `disabled` has quantisers of a block
    switched off; `wide` has grids of weights 1.7 times as wide as they are, as they stay when QAT shrinks them;
    `affine` has affine quantisers of inputs.
    """
    mtq: Any = importlib.import_module("modelopt.torch.quantization")
    mto: Any = importlib.import_module("modelopt.torch.opt")
    made = {
        "int8_torchvision": quantized_by_modelopt(torchvision_model(), "INT8_DEFAULT_CFG"),
        "int8_transformers": quantized_by_modelopt(transformers_model(), "INT8_DEFAULT_CFG"),
        "int8_mixed": quantized_by_modelopt(mixed_model(), "INT8_DEFAULT_CFG"),
        "smooth": quantized_by_modelopt(wider_model(), "INT8_SMOOTHQUANT_CFG"),
        "weights": quantized_by_modelopt(wider_model(), "INT8_WEIGHT_ONLY_CFG"),
        "fp8": quantized_by_modelopt(wider_model(), "FP8_DEFAULT_CFG"),
        "int4": quantized_by_modelopt(wider_model(), "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"),
        "disabled": quantized_by_modelopt(wider_model(), "INT8_DEFAULT_CFG"),
        "wide": quantized_by_modelopt(wider_model(), "INT8_DEFAULT_CFG"),
    }
    mtq.disable_quantizer(made["disabled"], "blocks.0.mlp*")
    for child in made["wide"].modules():
        if hasattr(child, "weight_quantizer") and child.weight_quantizer.is_enabled:
            child.weight_quantizer.amax = 1.7 * child.weight_quantizer.amax
    affine = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    affine["quant_cfg"].append(
        {"quantizer_name": "*blocks*input_quantizer", "cfg": {"num_bits": 8, "bias": {-1: None, "type": "static"}}}
    )
    made["affine"] = mtq.quantize(wider_model(), affine, _calibrate)
    for name, module in made.items():
        path = folder / f"modelopt_{name}.pt"
        mto.save(module, path)
        told(path, module)


def without_other_quantisers(module: Any) -> Any:
    """The module that ModelOpt quantised, with the quantisers of all but its Linear and Conv2d layers disabled."""
    for child in module.modules():
        quantizer = getattr(child, "input_quantizer", None)
        if quantizer is not None and not isinstance(child, torch.nn.Linear | torch.nn.Conv2d):
            quantizer.disable()
    return module


def make_modelopt_layers(folder: Path) -> None:
    """What the models of `int8_torchvision` and `int8_transformers` answer without the quantisers of their norms.

    The files themselves are made by `make_modelopt_kinds`, of the same weights and images.
    """
    for name, module in (("torchvision", torchvision_model()), ("transformers", transformers_model())):
        quantized = without_other_quantisers(quantized_by_modelopt(module, "INT8_DEFAULT_CFG"))
        told(folder / f"modelopt_int8_{name}_layers.npz", quantized)


def make_modelopt_offsets(folder: Path) -> None:
    """Affine quantisers of inputs with an offset for each channel, in the block."""
    mtq: Any = importlib.import_module("modelopt.torch.quantization")
    mto: Any = importlib.import_module("modelopt.torch.opt")
    config = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    bias = {-2: None, -3: None, "type": "static"}
    config["quant_cfg"].append({"quantizer_name": "*blocks*input_quantizer", "cfg": {"num_bits": 8, "bias": bias}})
    module = mtq.quantize(wider_model(), config, _calibrate)
    mto.save(module, folder / "modelopt_offsets.pt")
    told(folder / "modelopt_offsets.pt", module)


def make_modelopt_trained(folder: Path) -> None:
    """2:4 and INT8 by ModelOpt, and then trained: weights move away from the grid that they were calibrated on.

    Inputs are calibrated again behind the training, as ModelOpt's QAT examples do, so that their amax moves too.
    """
    mtq: Any = importlib.import_module("modelopt.torch.quantization")
    mts: Any = importlib.import_module("modelopt.torch.sparsity")
    mto: Any = importlib.import_module("modelopt.torch.opt")
    module = mts.sparsify(wider_model(), "sparse_magnitude")
    module = mtq.quantize(module, mtq.INT8_DEFAULT_CFG, _calibrate)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    dice = torch.Generator().manual_seed(3)
    module.train()
    for _ in range(8):
        inputs, labels = torch.randn(8, 3, 16, 16, generator=dice), torch.randint(0, 4, (8,), generator=dice)
        optimizer.zero_grad()
        loss: Any = torch.nn.functional.cross_entropy(module(inputs), labels)
        loss.backward()
        optimizer.step()
    module.eval()
    mtq.disable_quantizer(module, "*weight_quantizer")
    mtq.calibrate(module, "max", _calibrate)
    mtq.enable_quantizer(module, "*weight_quantizer")
    mto.save(module, folder / "modelopt_trained.pt")
    told(folder / "modelopt_trained.pt", module)


def make_pt2e_kinds(folder: Path) -> None:
    """Programs quantised for x86 and for XNNPACK, as they are converted and decomposed, and what they answer."""
    x86: Any = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    xnnpack: Any = importlib.import_module("torchao.testing.pt2e._xnnpack_quantizer")
    quantizers = {
        "x86": x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config()),
        "xnnpack": xnnpack.XNNPACKQuantizer().set_global(
            xnnpack.get_symmetric_quantization_config(is_per_channel=True)
        ),
    }
    for name, quantizer in quantizers.items():
        final = quantized_program(wider_model(), quantizer)
        told(folder / f"pt2e_{name}_wider.pt2", final.module())
        if name == "xnnpack":  # the other quantises nothing but layers
            told(folder / f"pt2e_{name}_layers.pt2", of_layers_alone(final.module()))
        torch.export.save(bare(final), folder / f"pt2e_{name}_wider.pt2")
        torch.export.save(bare(final.run_decompositions()), folder / f"pt2e_{name}_decomposed.pt2")


def quantized_program(module: torch.nn.Module, quantizer: Any) -> Any:
    """The module calibrated and converted by PT2E."""
    pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    program: Any = torch.export.export(module, (images(),)).module()
    prepared = pt2e.prepare_pt2e(program, quantizer)
    answers(prepared, images())
    return torch.export.export(pt2e.convert_pt2e(prepared), (images(),))


def make_torch_qat(folder: Path) -> None:
    """The state dict of torch's eager QAT, after it has seen data: weights, and observers behind modules."""
    quantization: Any = importlib.import_module("torch.ao.quantization")
    module: Any = wider_model().train()
    module.qconfig = quantization.get_default_qat_qconfig("x86")
    prepared = quantization.prepare_qat(module)
    prepared(images())
    prepared.apply(quantization.disable_observer)
    torch.save(prepared.eval().state_dict(), folder / "torch_qat.pt")
    told(folder / "torch_qat.pt", prepared)


def of_layers_alone(module: Any) -> Any:
    """The program without the quantisers of anything but weights and what Linear and Conv2d layers read."""
    layers = (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default)
    quantize: Any = torch.ops.quantized_decomposed.quantize_per_tensor.default
    for node in module.graph.nodes:
        source: Any = node.args[0] if node.args else None
        if getattr(source, "target", None) is not quantize:
            continue
        if not any(reader.target in layers and reader.args[0] is node for reader in node.users):
            node.replace_all_uses_with(source.args[0])
    module.recompile()
    return module


def bare(program: Any) -> Any:
    """The program without paths of the machine that made it, and without bulk."""
    for node in program.graph.nodes:
        for field in ("stack_trace", "from_node"):
            node.meta.pop(field, None)
    return program


KINDS = {
    "modelopt": make_modelopt,
    "pt2e": make_pt2e,
    "pt2e-kinds": make_pt2e_kinds,
    "torch-qat": make_torch_qat,
    "modelopt-kinds": make_modelopt_kinds,
    "modelopt-layers": make_modelopt_layers,
    "modelopt-offsets": make_modelopt_offsets,
    "modelopt-trained": make_modelopt_trained,
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2]))
