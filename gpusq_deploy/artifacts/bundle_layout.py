"""Names of the files in a bundle."""

from __future__ import annotations

MANIFEST = "manifest.json"


MODEL = "model.onnx"


PLAN = "plan.json"


CALIBRATION = "calibration.json"


RECEIPT = "receipt.json"


ENGINES = "engines"


REPORT = "report.html"
