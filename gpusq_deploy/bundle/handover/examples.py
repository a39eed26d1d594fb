"""The model by itself, and programs in Python and C++ that run it without this package."""

from __future__ import annotations

import msgspec

from gpusq_deploy.artifacts import builtins_from_value
from gpusq_deploy.bundle.handover.model import HandedModel, Handover
from gpusq_deploy.bundle.handover.rendering import rendered


def examples(model: HandedModel) -> Handover:
    """model.onnx, the engines, `infer.py`, and `cpp/` with its CMakeLists.txt."""
    declared = model.preprocessing
    facts = {"mean": declared.mean if declared else (), "std": declared.std if declared else ()}
    remarks = (*model.doubts, *_remarks(model))
    files = {
        **python_example(model),
        "cpp/CMakeLists.txt": rendered("CMakeLists.txt"),
        "cpp/main.cpp": rendered("main.cpp", model=model),
        "cpp/model.h": rendered("model.h", model=model, **facts),
        "README.md": rendered("examples.md", model=model, remarks=remarks, best=model.batch.minimum),
    }
    engines = {engine.engine_file: engine.engine_file for engine in model.engines}
    copies = {**{file: file for file in model.model_files}, **engines}
    return Handover(kind="onnx", files=files, copies=copies, remarks=remarks)


def python_example(model: HandedModel) -> dict[str, bytes]:
    """`infer.py` and what it reads."""
    facts = {
        "inputs": builtins_from_value(model.inputs),
        "outputs": builtins_from_value(model.outputs),
        "batch": builtins_from_value(model.batch),
        "preprocessing": None if model.preprocessing is None else builtins_from_value(model.preprocessing),
        "labels": model.labels,
    }
    encoded = msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n"
    return {"infer.py": rendered("infer.py"), "model.json": encoded}


def _remarks(model: HandedModel) -> tuple[str, ...]:
    remarks: list[str] = []
    if model.preprocessing is None:
        remarks.append("nothing in the bundle says how an image becomes the input: the programs take prepared samples")
    for engine in model.engines:
        needs = f"{engine.engine_file} needs {engine.backend} {engine.backend_version} and a GPU of compute capability"
        remarks.append(f"{needs} {engine.compute_capability}")
        why = model.unloadable(model.options_of(engine))
        if why:
            remarks.append(f"the programs can't load {engine.engine_file}, gpusq-run can: {why}")
    if not model.engines:
        remarks.append("the bundle has no engine: gpusq-export BUNDLE --to trtexec writes the commands that build one")
    return tuple(remarks)
