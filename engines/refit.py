"""Give an engine without weights the weights of its model. Unverified: loading one needs a GPU.

An engine that was built with `strip` holds no weights. Its sparse kernels skip half of each group of four whatever
stands there, so weights that aren't 2:4 where the engine's were would give wrong results or fail late: they are checked
first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.engines.api import Api
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    import tensorrt as trt


def refit_engine(engine: trt.ICudaEngine, model: Path, api: Api, logger: trt.ILogger) -> None:
    """Put an ONNX model's weights into an engine, by the names that both keep.

    Raises:
        GpusqError: The engine can't be refitted, a weight is missing or unknown, or doesn't fit.
    """
    if not engine.refittable:
        raise GpusqError(
            "the engine holds no weights and can't take any",
            place=str(model),
            hint="build it again with --engine-option strip",
        )
    refitter = api.Refitter(engine, logger)
    parser = api.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(model)):
        said = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise GpusqError(f"the model's weights don't fit the engine: {said or 'no reason was given'}", place=str(model))
    missing = refitter.get_missing_weights()
    if missing:
        raise GpusqError(
            f"the model lacks {len(missing)} weights of the engine: {', '.join(missing[:5])}", place=str(model)
        )
    if not refitter.refit_cuda_engine():
        raise GpusqError("the engine refused the model's weights", place=str(model))
