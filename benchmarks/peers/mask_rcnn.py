"""A full-size Mask R-CNN in parts beside torchvision's own, and what each step takes on this CPU in ONNX Runtime.

    python benchmarks/peers/mask_rcnn.py --json benchmarks/results/mask_rcnn.json

Swin-T with a feature pyramid, 800x1056, 1000 proposals, 100 detections, float32; seeded random weights, with louder
heads, so that there is something to find; one image of grain. Times are of ONNX Runtime on the CPU: the steps between
the parts take theirs with engines, too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.benchmarks.peers.family_models import fill_zeros
from gpusq_deploy.contrib.detectors.between import DETECTIONS, MASKS, PROPOSALS, write_between
from gpusq_deploy.contrib.detectors.mask_rcnn import MaskRcnn
from gpusq_deploy.contrib.detectors.parts import BoxPart, DensePart, MaskPart, Part
from gpusq_deploy.contrib.detectors.swin import mask_rcnn_swin
from gpusq_deploy.engines.ort import cpu_name, open_onnx
from gpusq_deploy.engines.session import Session, TensorSpec
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.frontend.export.onnx_export import export_float_model
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.pipelines import CANONICAL

SIZE = (800, 1056)
PARTS: dict[str, tuple[type[Part], int]] = {"dense": (DensePart, 1), "box": (BoxPart, 1000), "mask": (MaskPart, 100)}
REPEATS = 5


class Timed:
    """A session that keeps what each run took, in milliseconds."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner
        self.runtime, self.runtime_version, self.device = inner.runtime, inner.runtime_version, inner.device
        self.inputs: tuple[TensorSpec, ...] = inner.inputs
        self.outputs: tuple[TensorSpec, ...] = inner.outputs
        self.took: list[float] = []

    def run(self, feeds: Any) -> dict[str, npt.NDArray[Any]]:
        """As the session."""
        start = time.perf_counter()
        answer = self.inner.run(feeds)
        self.took.append(1e3 * (time.perf_counter() - start))
        return answer

    def timer(self, feeds: Any) -> Callable[[], float]:
        """As the session."""
        return self.inner.timer(feeds)

    def close(self) -> None:
        """As the session."""
        self.inner.close()


def main() -> None:
    """Export, detect, compare, time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    detector = loud_detector()
    image = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in PARTS:
            export(detector, part, folder / f"{part}.onnx")
        write_between(DensePart(detector, SIZE), folder)
        row = measured(detector, image, folder)
    print(json.dumps(row, indent=2))
    if options.json:
        options.json.write_text(json.dumps(row, indent=2) + "\n")


def loud_detector() -> Any:
    """Random heads give all regions the same scores; these don't."""
    torch.manual_seed(0)
    module: Any = mask_rcnn_swin(min_size=SIZE[0], max_size=SIZE[1]).eval().requires_grad_(requires_grad=False)
    fill_zeros(module, 0.02)
    module.rpn.head.cls_logits.weight.mul_(30)
    module.rpn.head.bbox_pred.weight.mul_(5)
    module.roi_heads.box_predictor.cls_score.weight.mul_(30)
    return module


def export(detector: Any, name: str, path: Path) -> None:
    """One part as a float graph."""
    build, batch = PARTS[name]
    part = build(detector, SIZE).eval()
    spec = ArchSpec(source="factory", name=f"gpusq_deploy.contrib.detectors.parts:{name}")
    checkpoint = Checkpoint(
        file=name, digest="", format="", arch=spec, module=part, preprocessing=preprocessing_of(spec, part)
    )
    ranged = BatchRange(minimum=1, optimum=batch, maximum=batch)
    save_model(run_passes(export_float_model(checkpoint, batch=ranged), CANONICAL), path)


def measured(detector: Any, image: torch.Tensor, folder: Path) -> dict[str, Any]:
    """Differences from torchvision, and medians of times."""
    with torch.no_grad():
        wanted: Any = detector([image])[0]
    dense, box, mask = (Timed(open_onnx(folder / f"{name}.onnx")) for name in PARTS)
    whole = MaskRcnn(dense=dense, box=box, mask=mask, between=folder)
    between = [Timed(session) for session in whole.between]
    whole.between = between
    given = array_from_tensor(detector.transform.normalize(image))
    found = whole.detect(given)
    for _ in range(REPEATS):
        whole.detect(given)
    steps = dict(zip((*PARTS, PROPOSALS, DETECTIONS, MASKS), (dense, box, mask, *between), strict=True))
    same = bool(np.array_equal(found.labels, array_from_tensor(wanted["labels"])))
    row: dict[str, Any] = {"size": SIZE, "device": cpu_name(), "detections": len(found.labels), "same_labels": same}
    if same:
        for name in ("boxes", "scores", "masks"):
            difference = np.abs(getattr(found, name) - array_from_tensor(wanted[name]))
            row[f"largest_difference_of_{name}"] = float(difference.max())
        row["mask_pixels_off_by_a_hundredth"] = float(
            np.mean(np.abs(found.masks - array_from_tensor(wanted["masks"])) > 1e-2)
        )
    row["median_ms"] = {name: round(float(np.median(step.took[1:])), 1) for name, step in steps.items()}
    return row


if __name__ == "__main__":
    main()
