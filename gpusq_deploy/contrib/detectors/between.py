"""The graphs between the parts, as files."""

from __future__ import annotations

from pathlib import Path

from gpusq_deploy.artifacts import written_whole
from gpusq_deploy.contrib.detectors.graphs import detections_graph, masks_graph, proposals_graph
from gpusq_deploy.contrib.detectors.parts import Part
from gpusq_deploy.contrib.detectors.settings import settings_of
from gpusq_deploy.graph import save_model

PROPOSALS, DETECTIONS, MASKS = "proposals.onnx", "detections.onnx", "masks.onnx"


def write_between(part: Part, folder: Path) -> None:
    """Write the three graphs, for the image size of the part: any of the three, for each holds the whole detector.

    Raises:
        OSError: The disk refused.
    """
    settings = settings_of(part)
    folder.mkdir(parents=True, exist_ok=True)
    models = {PROPOSALS: proposals_graph(settings), DETECTIONS: detections_graph(settings), MASKS: masks_graph()}
    for name, model in models.items():
        with written_whole(folder / name) as temporary:
            save_model(model, temporary)
