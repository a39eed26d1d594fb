"""What to do about files that hold objects of other libraries' classes, which loading would import."""

from __future__ import annotations

# By the beginning of the class's name: whose it is, and the conversion.
_KNOWN = {
    "torchao.": ("torchao", "save weight.dequantize() of each layer, or the weights from before quantize_()"),
    "deepspeed.": ("DeepSpeed", "python zero_to_fp32.py FOLDER OUT, with the script that it left in the folder"),
    "torch.distributed.": (
        "torch.distributed, of a sharded model",
        "save a full state dict: get_model_state_dict with full_state_dict=True, or tensor.full_tensor() of each",
    ),
    "peft.": ("PEFT", "call model.merge_and_unload() and save its state_dict()"),
    "bitsandbytes.": ("bitsandbytes", "call model.dequantize() and save its state_dict()"),
    "optimum.quanto.": ("Hugging Face quanto", "save layer.weight.dequantize(), or the weights from before freeze()"),
    "compressed_tensors.": (
        "compressed-tensors",
        "call ModelCompressor.decompress_model and save the model's state_dict()",
    ),
    "nncf.": ("NNCF", "call nncf.strip(model) and save its state_dict()"),
    "brevitas.": ("Brevitas", "save the model's state_dict() alone, whose float weights are read"),
    "modelopt.": ("NVIDIA ModelOpt", "save with mto.save(), or the model's state_dict() alone"),
    "pytorch_quantization.": ("pytorch-quantization", "save the model's state_dict() alone"),
}


# Of a class that is nobody's own, but that a tool's files hold.
DEFAULTDICT = (
    "torch.ao.pruning's sparsifiers keep such: call sparsifier.squash_mask() and save the model's state_dict() alone"
)


def class_conversion(name: str) -> tuple[str, str] | None:
    """The library that a class belongs to, and its own conversion; None where it is of none that is known."""
    return next((known for start, known in _KNOWN.items() if name.startswith(start)), None)
