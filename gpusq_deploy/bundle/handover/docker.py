"""Images for servers and Jetsons, which build the engine where they are first started: an engine is tied to its GPU.

Tags are those that public projects use: tensorrt:26.08-py3 has TensorRT 11.2.1, l4t-tensorrt:r10.3.0-devel
is JetPack 6's. JetPack 7.2.2 takes NVIDIA's images for servers with ARM, from TensorRT 11.4.1.
"""

from __future__ import annotations

from gpusq_deploy.bundle.handover.examples import python_example
from gpusq_deploy.bundle.handover.model import HandedModel, Handover
from gpusq_deploy.bundle.handover.rendering import rendered
from gpusq_deploy.bundle.handover.trtexec import trtexec_script

# TensorRT's release in an image's default, and the newest ONNX opset that its parser takes: see engines/releases.py.
_SERVER = {"image": "nvcr.io/nvidia/tensorrt:26.08-py3", "tensorrt": "11.2.1", "cuda": 13}
_JETSON = {"image": "nvcr.io/nvidia/l4t-tensorrt:r10.3.0-devel", "tensorrt": "10.3", "cuda": 12}
_JETSON_OPSET = 20


def docker_files(model: HandedModel) -> Handover:
    """Dockerfiles and what they copy: the model, the script that builds its engine, and the Python program."""
    remarks = (*model.doubts, *_remarks(model))
    files = {
        **python_example(model),
        "trtexec.sh": trtexec_script(model, model.options),
        "start.sh": rendered("start.sh", model=model),
        "Dockerfile.server": rendered("Dockerfile", model=model, jetson=False, **_SERVER),
        "Dockerfile.jetson": rendered("Dockerfile", model=model, jetson=True, **_JETSON),
        "README.md": rendered("docker.md", model=model, remarks=remarks),
    }
    return Handover(kind="docker", files=files, copies={file: file for file in model.model_files}, remarks=remarks)


def _remarks(model: HandedModel) -> tuple[str, ...]:
    remarks = ["no image was built or started by the authors"]
    if model.engines:
        names = ", ".join(engine.engine_file for engine in model.engines)
        remarks.append(
            f"{names} is left out: the image builds an engine for its own GPU and TensorRT when it is started"
        )
    why = model.unloadable(model.options)
    if why:
        remarks.append(
            f"infer.py can't load the engine that trtexec.sh builds: {why}; take that flag out of trtexec.sh"
        )
    if model.opset > _JETSON_OPSET:
        remarks.append(
            f"opset {model.opset} is too new for Dockerfile.jetson's TensorRT {_JETSON['tensorrt']}: build with "
            f"--opset {_JETSON_OPSET}"
        )
    return tuple(remarks)
