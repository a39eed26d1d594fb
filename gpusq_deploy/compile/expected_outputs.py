"""What the model's producer answers: from a file, or by running in torch the quantisers that the checkpoint records."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gpusq_deploy.calibration import Batches, CalibrationInputs, spread_evenly
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import (
    Checkpoint,
    InputQuantizer,
    WeightGrid,
    named_modules,
    reference_outputs,
    symmetric_quantizer,
)
from gpusq_deploy.progress import Reporter

_SAMPLES = 8
# Of the samples at once, as they are run through the built graph: sums in another order round otherwise.
_BATCH = 4
_LARGEST_FILE = 4 << 30
# Of an input's values, beyond the recorded range: then the layer sees little but saturated codes.
_MOST_SATURATED = 0.5
_SYNTHETIC_SLACK = 100.0
_FORM = "an .npz of an array `input` [N, C, H, W] float32, and one array per output, in the model's order"

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedOutputs:
    """Inputs [N, …] and what the producer's model answers, in the order of the model's outputs.

    `source` says who answered.
    """

    source: str
    inputs: npt.NDArray[np.float32]
    outputs: tuple[Array, ...]


def expected_outputs(
    request: BuildRequest, checkpoint: Checkpoint, data: CalibrationInputs, reporter: Reporter
) -> tuple[ExpectedOutputs, ...]:
    """What the built graph is held against beside the float graph.

    Raises:
        GpusqError: The file isn't of that form; or a recorded range is far from what its layer reads.
    """
    found: list[ExpectedOutputs] = []
    if request.expect_outputs is not None:
        found.append(read_expected(request.expect_outputs))
    record = checkpoint.quantizers
    emulated = record.producer and checkpoint.ranges and {*record.types.values()} <= {"fp8"}  # others aren't run here
    if request.quantize and emulated and not data.given:
        samples = spread_evenly(data.verify, _SAMPLES)
        inputs = np.concatenate(list(Batches(source=samples, size=1)))
        reporter.say(f"running {record.producer}'s quantisers in torch on {len(inputs)} samples of {samples.name}")
        found.append(_fake_quantized(checkpoint, inputs, synthetic=data.verify.synthetic))
    return tuple(found)


def read_expected(path: Path) -> ExpectedOutputs:
    """Inputs and a producer's outputs out of an .npz: nothing in it is unpickled.

    Raises:
        GpusqError: Not such a file, or arrays that don't go together.
    """
    arrays = _arrays(path)
    first = "input" if "input" in arrays else next(iter(arrays), "")
    inputs = arrays.pop(first, np.zeros(0))
    outputs = tuple(arrays.values())
    if not outputs or inputs.ndim < 2 or inputs.dtype != np.float32 or not len(inputs):
        held = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "nothing else"
        raise GpusqError(
            f"the input is {inputs.dtype}{list(inputs.shape)}; beside it {held}", place=str(path), hint=f"give {_FORM}"
        )
    bad = [name for name, array in arrays.items() if not _finite(array) or len(array) != len(inputs)]
    if bad or not _finite(inputs):
        raise GpusqError(
            f"not finite, or not of {len(inputs)} samples: {', '.join(bad) or first}",
            place=str(path),
            hint=f"give {_FORM}",
        )
    return ExpectedOutputs(source=path.name, inputs=inputs, outputs=outputs)


def _arrays(path: Path) -> dict[str, Array]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise GpusqError("too large for expected outputs", place=str(path), hint="a few dozen samples are enough")
        # By its stream: numpy leaves the file open where what it holds is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (
        OSError,
        ValueError,
        zipfile.BadZipFile,
        EOFError,
        AttributeError,
        TypeError,
        zlib.error,
        RuntimeError,
    ) as error:
        raise GpusqError(f"not an .npz that can be read: {error}", place=str(path), hint=f"give {_FORM}") from error


def _finite(array: Array) -> bool:
    return array.ndim > 0 and array.dtype.kind in "fiub" and bool(np.isfinite(array).all())


def _fake_quantized(checkpoint: Checkpoint, inputs: npt.NDArray[np.float32], *, synthetic: bool) -> ExpectedOutputs:
    """The answers of the module with its recorded quantisers, as its producer ran it."""
    with _quantizers(checkpoint, synthetic=synthetic):
        answers = [reference_outputs(checkpoint, inputs[at : at + _BATCH]) for at in range(0, len(inputs), _BATCH)]
    outputs = tuple(np.concatenate([_sample(answer[place]) for answer in answers]) for place in range(len(answers[0])))
    source = f"{checkpoint.quantizers.producer}'s quantisers, run in torch"
    return ExpectedOutputs(source=source, inputs=inputs, outputs=outputs)


def _sample(answer: Array) -> Array:
    return answer if answer.ndim else answer.reshape(1)


class _Quantized(NamedTuple):
    """A module with quantisers: its name, itself, its input's quantiser, its range in the build, and its grid."""

    name: str
    module: Any
    quantizer: InputQuantizer
    amax: float
    grid: WeightGrid | None


@contextmanager
def _quantizers(checkpoint: Checkpoint, *, synthetic: bool) -> Generator[None]:
    """While active, the module's layers compute with fake-quantised inputs and weights."""
    layers = [*_quantized_modules(checkpoint)]
    kept = [(layer.module, layer.module.weight) for layer in layers if layer.grid is not None]
    hooks: list[Any] = []
    try:
        for layer in layers:
            hooks.append(layer.module.register_forward_pre_hook(_hook(layer, checkpoint.file, synthetic=synthetic)))
            if layer.grid is not None:
                rounded = layer.grid.quantized(layer.module.weight)
                layer.module.weight = torch.nn.Parameter(rounded, requires_grad=False)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, weight in kept:
            module.weight = weight


def _quantized_modules(checkpoint: Checkpoint) -> Iterator[_Quantized]:
    record, ranges = checkpoint.quantizers, checkpoint.ranges
    for name, child in named_modules(checkpoint.module):
        if (trained := record.trained(name, ranges)) is not None and name in ranges:
            quantizer = record.inputs.get(name, symmetric_quantizer(ranges[name], trained[0]))
            yield _Quantized(name, child, quantizer, ranges[name], record.grids.get(name))
        elif name in record.inputs and name not in ranges:
            yield _Quantized(name, child, record.inputs[name], 0.0, None)


def _hook(layer: _Quantized, file: str, *, synthetic: bool) -> Any:
    slack = _SYNTHETIC_SLACK if synthetic else 1.0

    def hook(_module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        values: torch.Tensor = given[0]
        _require_live(values, layer, file, slack)
        return (layer.quantizer.quantized(values), *given[1:])

    return hook


def _require_live(values: torch.Tensor, layer: _Quantized, file: str, slack: float) -> None:
    """Refuse a range that most of a layer's input is beyond: what it was found on wasn't this input."""
    beyond = float((values.abs() > slack * layer.amax).float().mean())
    if beyond > _MOST_SATURATED and layer.amax > 0:
        raise GpusqError(
            f"the recorded range of its input is {layer.amax:.3g}, and {beyond:.0%} of what it reads lies "
            f"{'far ' if slack > 1 else ''}beyond: up to {float(values.abs().max()):.3g}",
            place=f"{file}, layer {layer.name}",
            hint="calibrate again with --recalibrate --calib FOLDER, or quantise the model again",
        )


def outputs_in_order(found: ExpectedOutputs, names: Sequence[str], *, place: str) -> dict[str, Array]:
    """Expected outputs by the names of the graph's.

    Raises:
        GpusqError: There are more of them than the graph has outputs.
    """
    if len(found.outputs) > len(names):
        raise GpusqError(
            f"{len(found.outputs)} outputs are expected, and the model has {len(names)}",
            place=place,
            hint=f"give {_FORM}",
        )
    return dict(zip(names, found.outputs, strict=False))
