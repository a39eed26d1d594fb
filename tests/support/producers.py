"""Make the files of tests/fixtures with the libraries that write such files.

`python tests/support/producers.py KIND DIR`: KIND is `modelopt` (needs nvidia-modelopt) or `pt2e` (needs torchao).
Beside a file lies what the library itself says of it. The libraries' pins don't go together, so the files are kept.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.frontend.checkpoint.architecture import module_from_arch

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
    pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86: Any = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    program: Any = torch.export.export(model(), (images(),)).module()
    prepared = pt2e.prepare_pt2e(program, quantizer)
    with torch.no_grad():
        prepared(images())
    final = torch.export.export(pt2e.convert_pt2e(prepared), (images(),))
    for node in final.graph.nodes:
        for field in ("stack_trace", "from_node"):  # paths of the machine that made it, and bulk
            node.meta.pop(field, None)
    torch.export.save(final, folder / "pt2e_x86.pt2")


if __name__ == "__main__":
    {"modelopt": make_modelopt, "pt2e": make_pt2e}[sys.argv[1]](Path(sys.argv[2]))
