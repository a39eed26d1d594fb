"""A build's options: typed on disk, and read from the texts that 0.1 wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

import pytest

from gpusq_deploy.artifacts.base import json_from_value, read_value, value_from_json
from gpusq_deploy.artifacts.build_options import BuildOptionsRecord, build_options_from_0_1
from gpusq_deploy.artifacts.calibration import Calibrator
from gpusq_deploy.artifacts.manifest import Manifest
from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.errors import GpusqError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | None"

# gpusq-build of 0.1: --int8 --sparse --calib photos --calibrator percentile --min-sqnr 5 --sparse-outputs int8:30
# --target a100 --target orin; the model and the engine are left out.
OLD = Path(__file__).parents[2] / "fixtures" / "bundle-0.1"


def test_a_bundle_of_0_1_is_read() -> None:
    bundle = read_bundle(OLD)
    assert bundle.manifest.options == BuildOptionsRecord(
        int8=True,
        sparse=True,
        float_type="fp16",
        calib="photos",
        calibrator=Calibrator(name="percentile", percentile=99.99),
        sparse_outputs=30.0,
        rewrites="measured",
        min_sqnr=5.0,
        targets=("a100", "orin"),
    )
    assert bundle.plan.float_type == "fp16"
    (engine,) = bundle.receipt.engines
    listed = {entry.path: (entry.size, entry.digest) for entry in bundle.manifest.files}
    assert listed[engine.engine_file] == (engine.engine_bytes, engine.engine_digest)


@pytest.mark.parametrize("name", ["manifest", "plan", "receipt"])
def test_what_is_written_now_has_the_keys_of_0_1(name: str) -> None:
    bundle = read_bundle(OLD)
    written = json.loads(json_from_value({"manifest": bundle.manifest, "plan": bundle.plan}.get(name, bundle.receipt)))
    old = json.loads((OLD / f"{name}.json").read_text("utf-8"))
    assert set(_keys(old)) <= set(_keys(written))
    options = {
        ("recorded_ranges",),
        ("calibrator", "name"),
        ("calibrator", "percentile"),
        ("eval_data",),
        ("max_drop",),
    }
    image = {("preprocessing", "crop_mode"), ("preprocessing", "crop_offset")}
    new = {
        "manifest": {("options", *keys) for keys in options} | image,
        "receipt": {("accuracy",), ("cost", "times")},
        "plan": set[object](),
    }
    assert set(_keys(written)) - set(_keys(old)) == new[name]


def test_the_typed_form_is_read_back(tmp_path: Path) -> None:
    manifest = read_bundle(OLD).manifest
    (tmp_path / "manifest.json").write_bytes(json_from_value(manifest))
    assert read_value(tmp_path / "manifest.json", Manifest) == manifest
    assert json.loads(json_from_value(manifest))["options"]["min_sqnr"] == 5


@pytest.mark.parametrize(
    ("calib", "expected"),
    [
        ("none", {"calib": None}),
        ("photos", {"calib": "photos"}),
        ("recorded in the checkpoint", {"calib": None, "recorded_ranges": True}),
        (
            "recorded in the checkpoint; of layers that it records none of, photos",
            {"calib": "photos", "recorded_ranges": True},
        ),
    ],
)
def test_where_ranges_came_from(calib: str, expected: dict[str, object]) -> None:
    assert build_options_from_0_1({"calib": calib}) == expected


@pytest.mark.parametrize(("name", "text"), [("sparse", "perhaps"), ("min_sqnr", "much"), ("prune", "by hand")])
def test_texts_that_0_1_never_wrote_are_refused(name: str, text: str) -> None:
    content = json.loads((OLD / "manifest.json").read_text("utf-8"))
    content["options"][name] = text
    with pytest.raises(GpusqError, match="not a valid Manifest file") as caught:
        value_from_json(json.dumps(content).encode(), Manifest, place="manifest.json")
    assert caught.value.place == "manifest.json"


def _keys(content: Json, *path: str) -> list[tuple[str, ...]]:
    if isinstance(content, list):
        return [key for entry in content for key in _keys(entry, *path)]
    if not isinstance(content, dict):
        return [path]
    return [path, *(key for name, entry in content.items() for key in _keys(entry, *path, name))]
