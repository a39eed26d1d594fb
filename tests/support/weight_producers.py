"""Make the files of tests/fixtures/weights with the libraries that write such weights.

`python tests/support/weight_producers.py KIND DIR`: KIND is a key of `MAKERS`, whose library must be installed. Beside
a file lies what the library itself says: its version, and what its model answers to `producers.images()` with every
quantiser off. They are in the extra `producers` of setup.cfg; no test needs them, so the files are kept.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import producers
import torch

QKV = "blocks.0.attn.qkv"


def answers(module: torch.nn.Module) -> list[list[float]]:
    """[4, 4]: the classes of the seeded images."""
    with torch.no_grad():
        logits: torch.Tensor = module.eval()(producers.images())
    return [[float(value) for value in row] for row in logits]


def write(path: Path, content: object, library: str, module: torch.nn.Module | None = None) -> None:
    """The file, and beside it its library's version and what its model answers."""
    torch.save(content, path)
    told = {
        "library": f"{library} {importlib.metadata.version(library)}",
        "answers": None if module is None else answers(module),
    }
    path.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")


def make_modelopt(folder: Path) -> None:
    """2:4 before its export (a state dict and `mto.save`), after it, and with QAT's quantisers beside the masks."""
    mts: Any = importlib.import_module("modelopt.torch.sparsity")
    mtq: Any = importlib.import_module("modelopt.torch.quantization")
    mto: Any = importlib.import_module("modelopt.torch.opt")
    sparse = mts.sparsify(producers.model(), "sparse_magnitude")
    write(folder / "modelopt_sparse.pt", sparse.state_dict(), "nvidia-modelopt", sparse)
    exported = mts.export(mts.sparsify(producers.model(), "sparse_magnitude"))
    mto.save(exported, folder / "exported.tmp")
    write(folder / "modelopt_exported.pt", torch.load(folder / "exported.tmp"), "nvidia-modelopt", exported)
    (folder / "exported.tmp").unlink()

    def calibrate(module: torch.nn.Module) -> None:
        module(producers.images())

    both = mtq.quantize(sparse, mtq.INT8_DEFAULT_CFG, calibrate)
    state = {name: tensor.clone() for name, tensor in both.state_dict().items()}
    mtq.disable_quantizer(both, "*")
    write(folder / "modelopt_sparse_qat.pt", state, "nvidia-modelopt", both)


def make_peft(folder: Path) -> None:
    """LoRA with a trained head and its config, without the config, DoRA, and an adapter alone."""
    peft: Any = importlib.import_module("peft")
    torch.manual_seed(3)
    config = peft.LoraConfig(
        target_modules=["qkv", "proj"], r=2, lora_alpha=3, init_lora_weights=False, modules_to_save=["head"]
    )
    model = peft.get_peft_model(producers.model(), config)
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.add_(0.1)
    plain = {key: value for key, value in dataclasses.asdict(config).items() if isinstance(value, (int, bool))}
    write(folder / "peft_lora.pt", {"model": model.state_dict(), "peft_config": plain}, "peft", model)
    write(folder / "peft_adapter.pt", peft.get_peft_model_state_dict(model), "peft")
    dora = peft.LoraConfig(target_modules=["qkv"], r=2, use_dora=True, init_lora_weights=False)
    write(folder / "peft_dora.pt", peft.get_peft_model(producers.model(), dora).state_dict(), "peft")


def make_loralib(folder: Path) -> None:
    """A Linear with factors that were trained."""
    loralib: Any = importlib.import_module("loralib")
    torch.manual_seed(3)
    model: Any = producers.model()
    layer = loralib.Linear(16, 48, r=2, lora_alpha=3)
    layer.load_state_dict(model.get_submodule(QKV).state_dict(), strict=False)
    torch.nn.init.normal_(layer.lora_B)
    model.blocks[0].attn.qkv = layer
    write(folder / "loralib.pt", model.state_dict(), "loralib")


def make_torchao(folder: Path) -> None:
    """Weights of INT8 as tensors of torchao's own class."""
    quantization: Any = importlib.import_module("torchao.quantization")
    model = producers.model()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    write(folder / "torchao_int8.pt", model.state_dict(), "torchao", model)


def make_quanto(folder: Path) -> None:
    """Quantised by quanto, before and after its freeze."""
    quanto: Any = importlib.import_module("optimum.quanto")
    model = producers.model()
    quanto.quantize(model, weights=quanto.qint8, activations=quanto.qint8)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write(folder / "quanto.pt", state, "optimum-quanto", producers.model())
    quanto.freeze(model)
    write(folder / "quanto_frozen.pt", dict(model.state_dict()), "optimum-quanto")


def make_brevitas(folder: Path) -> None:
    """A QuantLinear that has seen data."""
    nn: Any = importlib.import_module("brevitas.nn")
    quant: Any = importlib.import_module("brevitas.quant")
    model: Any = producers.model()
    layer = nn.QuantLinear(16, 48, bias=True, weight_bit_width=8, input_quant=quant.Int8ActPerTensorFloat)
    layer.load_state_dict(model.get_submodule(QKV).state_dict(), strict=False)
    model.blocks[0].attn.qkv = layer
    model.train()(producers.images())
    write(folder / "brevitas.pt", model.state_dict(), "brevitas", producers.model())


def make_compressed_tensors(folder: Path) -> None:
    """Weights of INT8 per channel: float with scales beside them, and compressed."""
    library: Any = importlib.import_module("compressed_tensors")
    quantization: Any = importlib.import_module("compressed_tensors.quantization")
    weights = quantization.QuantizationArgs(num_bits=8, strategy="channel", symmetric=True)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    model = producers.model()
    quantization.apply_quantization_config(model, quantization.QuantizationConfig(config_groups={"all": scheme}))
    for child in model.modules():
        if isinstance(child, torch.nn.Linear):
            untyped: Any = child
            untyped.weight_scale.data.copy_(child.weight.data.abs().amax(1, keepdim=True) / 127)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write(folder / "compressed_tensors_float.pt", state, "compressed-tensors", producers.model())
    compressor = library.ModelCompressor.from_pretrained_model(model, quantization_format="int-quantized")
    compressor.compress_model(model)
    write(folder / "compressed_tensors.pt", dict(model.state_dict()), "compressed-tensors")


def make_nncf(folder: Path) -> None:
    """Quantised after training, and with weights compressed to INT8."""
    nncf: Any = importlib.import_module("nncf")
    quantized = nncf.quantize(producers.model(), nncf.Dataset([producers.images()]), fast_bias_correction=True)
    write(folder / "nncf.pt", quantized.state_dict(), "nncf")
    compressed = nncf.compress_weights(producers.model(), dataset=nncf.Dataset([producers.images()]))
    write(folder / "nncf_compressed.pt", compressed.state_dict(), "nncf")


def make_bitsandbytes(folder: Path) -> None:
    """A Linear4bit."""
    nn: Any = importlib.import_module("bitsandbytes.nn")
    model: Any = producers.model()
    model.blocks[0].attn.qkv = nn.Linear4bit(16, 48).to("cpu")
    write(folder / "bitsandbytes.pt", model.state_dict(), "bitsandbytes")


MAKERS: dict[str, Callable[[Path], None]] = {
    "modelopt": make_modelopt,
    "peft": make_peft,
    "loralib": make_loralib,
    "torchao": make_torchao,
    "quanto": make_quanto,
    "brevitas": make_brevitas,
    "compressed-tensors": make_compressed_tensors,
    "nncf": make_nncf,
    "bitsandbytes": make_bitsandbytes,
}


if __name__ == "__main__":
    MAKERS[sys.argv[1]](Path(sys.argv[2]))
