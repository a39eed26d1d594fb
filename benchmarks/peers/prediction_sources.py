"""Who published the measurements that the predictor is fitted to and tested with: what was timed, where, with what."""

from __future__ import annotations

import msgspec

from gpusq_deploy.benchmarks.peers.prediction_shapes import Software
from gpusq_deploy.engines.prediction.devices import Device

_GITHUB = "https://github.com"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One publication.

    Attributes:
        title, address: Where it is.
        what: Who ran the model, and how it was timed.
        clocks: Clocks and power mode, as far as it says.
        software: Whose fusions the kernels are counted by.
    """

    title: str
    address: str
    what: str
    clocks: str
    software: Software


_FT_CLOCKS = "A100: memory 1215 MHz (the 40 GB card), SMs 1410 MHz; T4: 5000 and 1590 MHz; A10: not stated"
_TIMM_CLOCKS = "not stated: the card's own boost"

SOURCES = {
    "ft-vit": Source(
        title="NVIDIA FasterTransformer, docs/vit_guide.md, INT8 vs. FP16 speedup on ViT (C++)",
        address=f"{_GITHUB}/NVIDIA/FasterTransformer/blob/df4a7534/docs/vit_guide.md",
        what="FasterTransformer measured, CUDA 11.4; INT8 is its mode 2",
        clocks=_FT_CLOCKS,
        software="fastertransformer",
    ),
    "ft-swin": Source(
        title="NVIDIA FasterTransformer, docs/swin_guide.md, INT8 vs. FP16 speedup on Swin-V1 (C++)",
        address=f"{_GITHUB}/NVIDIA/FasterTransformer/blob/df4a7534/docs/swin_guide.md",
        what="FasterTransformer measured, CUDA 11.4",
        clocks=_FT_CLOCKS,
        software="fastertransformer",
    ),
    "aitemplate": Source(
        title="AITemplate, examples/04_vit, reference speed",
        address=f"{_GITHUB}/facebookincubator/AITemplate/blob/main/examples/04_vit",
        what="AITemplate measured, CUDA 11.6.2: fused like TensorRT's engines",
        clocks="not stated; A100-40GB",
        software="tensorrt",
    ),
    "onnxsim": Source(
        title="onnxsim, scripts/nvidia/README.md, ViT-B/16 (INT8: only-linear, FP16 remainder)",
        address=f"{_GITHUB}/onnxsim/onnxsim/blob/5208cea8/scripts/nvidia/README.md",
        what="TensorRT 10.3 measured, trtexec --noDataTransfers, mean GPU time",
        clocks="MAXN_SUPER, JetPack 6, L4T R36.4.7",
        software="tensorrt",
    ),
    "onnxsim-mlp": Source(
        title="onnxsim, scripts/nvidia/README.md, 2:4 sparsity: six pairs of Linear layers, 197 and 2048 rows",
        address=f"{_GITHUB}/onnxsim/onnxsim/blob/5208cea8/scripts/nvidia/README.md",
        what="TensorRT 10.3 measured, median GPU time",
        clocks="MAXN_SUPER, JetPack 6, L4T R36.4.7",
        software="tensorrt",
    ),
    "blackwell-1014": Source(
        title="ldu-nvidia/profiling_blackwell, README.md, TensorRT 10.14.1; the GPU: its reports",
        address=f"{_GITHUB}/ldu-nvidia/profiling_blackwell",
        what="TensorRT 10.14.1 measured, trtexec, GPU compute",
        clocks="not stated",
        software="tensorrt",
    ),
    "blackwell-1016": Source(
        title="ldu-nvidia/profiling_blackwell, README.md, TensorRT 10.16.0; the GPU: its reports",
        address=f"{_GITHUB}/ldu-nvidia/profiling_blackwell",
        what="TensorRT 10.16.0 measured, trtexec, GPU compute",
        clocks="not stated",
        software="tensorrt",
    ),
    "timm-4090": Source(
        title="timm, results/benchmark-infer-amp-nchw-pt291-cu128-4090-dynamo.csv",
        address=f"{_GITHUB}/huggingface/pytorch-image-models/tree/aa4b5850/results",
        what="PyTorch 2.9.1 torch.compile measured, autocast FP16",
        clocks=_TIMM_CLOCKS,
        software="compile",
    ),
    "timm-5090": Source(
        title="timm, results/benchmark-infer-amp-nchw-pt291-cu130-5090-dynamo.csv",
        address=f"{_GITHUB}/huggingface/pytorch-image-models/tree/aa4b5850/results",
        what="PyTorch 2.9.1 torch.compile measured, autocast FP16",
        clocks=_TIMM_CLOCKS,
        software="compile",
    ),
    "timm-pro6000": Source(
        title="timm, results/benchmark-infer-amp-nchw-pt291-cu130-pro6000maxq-dynamo.csv",
        address=f"{_GITHUB}/huggingface/pytorch-image-models/tree/aa4b5850/results",
        what="PyTorch 2.9.1 torch.compile measured, autocast FP16",
        clocks="not stated; 300 W",
        software="compile",
    ),
    "nanoowl": Source(
        title="NVIDIA-AI-IOT/nanoowl, README.md, frames a second of OWL-ViT at 768 pixels",
        address=f"{_GITHUB}/NVIDIA-AI-IOT/nanoowl/blob/00f03879/README.md",
        what="TensorRT FP16 image encoder inside a whole detector: its time is less than the frame's",
        clocks="not stated; Jetson AGX Orin",
        software="tensorrt",
    ),
    "clip-trt": Source(
        title="arunmadhusud/tensorrt_models, CLIP_TRT/README.md, ViT-L/14 image encoder",
        address=f"{_GITHUB}/arunmadhusud/tensorrt_models/blob/main/CLIP_TRT/README.md",
        what="TensorRT 10.9 measured",
        clocks="not stated; T4",
        software="tensorrt",
    ),
    "modelopt-167": Source(
        title="NVIDIA Model-Optimizer, issue 167, CLIP ViT-L/14, batch 8, FP16",
        address=f"{_GITHUB}/NVIDIA/Model-Optimizer/issues/167",
        what="TensorRT measured, trtexec, median; its INT8 is slower and has a float32 remainder",
        clocks="not stated; T4 of a cloud",
        software="tensorrt",
    ),
}

# No target of ours: Turing has no sparse tensor cores, and under load its 70 W don't sustain the clock.
T4 = Device(
    name="t4",
    target="none",
    gpu="T4 at 1590 MHz",
    sms=40,
    gigahertz=1.59,
    fp16_tflops=65,
    int8_tops=130,
    gigabytes_per_second=320,
    l2_megabytes=4,
    source="NVIDIA T4 data sheet; Turing architecture whitepaper",
)
