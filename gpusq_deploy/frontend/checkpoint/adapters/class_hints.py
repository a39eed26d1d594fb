"""What to do about files that hold objects of other libraries' classes, which loading would import."""

from __future__ import annotations

# By the beginning of the class's name.
_HINTS = {
    "torchao.": "quantised by torchao: save weight.dequantize() of each layer, or the weights from before quantize_()",
    "deepspeed.": "a shard of DeepSpeed: python zero_to_fp32.py FOLDER OUT, with the script that it left in the folder",
    "torch.distributed.": "parts of a sharded model: save a full state dict, get_model_state_dict with "
    "full_state_dict=True, or tensor.full_tensor() of each",
    "collections.defaultdict": "torch.ao.pruning's sparsifiers keep one: call sparsifier.squash_mask() and save the "
    "model's state_dict() alone, or --allow-pickle",
    "peft.": "adapters of PEFT: model.merge_and_unload(), and save its state_dict()",
    "bitsandbytes.": "quantised by bitsandbytes: model.dequantize(), and save its state_dict()",
    "optimum.quanto.": "quantised by quanto: save layer.weight.dequantize(), or the weights from before freeze()",
    "compressed_tensors.": "of compressed-tensors: ModelCompressor.decompress_model, and save the state_dict()",
    "nncf.": "of NNCF: nncf.strip(model), and save its state_dict()",
    "brevitas.": "of Brevitas: save the state_dict() alone, whose float weights are read",
    "modelopt.": "of NVIDIA ModelOpt: save with mto.save(), or the state_dict() alone",
    "pytorch_quantization.": "of pytorch-quantization: save the state_dict() alone",
}


def class_hint(name: str) -> str:
    """The conversion of the library that a class belongs to; empty where it is of none that is known."""
    return next((hint for start, hint in _HINTS.items() if name.startswith(start)), "")
