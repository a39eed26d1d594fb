"""The guard speaks where arrays were prepared wrongly, and is silent where they weren't."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import photographs
import pytest
from PIL import Image

from gpusq_deploy.artifacts.arch import UNDECLARED, Preprocessing
from gpusq_deploy.artifacts.calibration import CalibrationTable, TensorRange
from gpusq_deploy.calibration.input_checks import (
    InputStatistics,
    few_warnings,
    input_warnings,
    range_warnings,
    sameness_warnings,
    statistics_of,
)
from gpusq_deploy.graph.layers import GraphLayer

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INCEPTION = ((0.5,) * 3, (0.5,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PLAIN = ((0.0,) * 3, (1.0,) * 3)
Batch = npt.NDArray[np.float32]


def declared(mean_std: Any) -> Preprocessing:
    mean, std = mean_std
    return Preprocessing(channels=3, height=32, width=32, mean=mean, std=std, origin="test")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Real photographs as [N, 3, 32, 32] in 0…1."""
    folder = photographs.write_photographs(
        tmp_path_factory.mktemp("photos"), ("astronaut", "coffee", "china.jpg"), crops=2
    )
    images = [Image.open(path).convert("RGB").resize((32, 32)) for path in sorted(folder.iterdir())]
    planes = [np.moveaxis(np.asarray(image, np.float32) / 255, 2, 0) for image in images]
    return np.stack(planes).astype(np.float32)


def normalised(pixels: Batch, mean_std: Any) -> Batch:
    mean, std = (np.array(values, np.float32)[:, None, None] for values in mean_std)
    return np.asarray((pixels - mean) / std, np.float32)


def warnings_for(batch: Batch, mean_std: Any) -> tuple[str, ...]:
    return input_warnings(statistics_of(batch), declared(mean_std))


@pytest.mark.parametrize("mean_std", [IMAGENET, INCEPTION, CLIP, PLAIN], ids=["imagenet", "inception", "clip", "plain"])
def test_photographs_that_are_normalised_as_declared_pass(pixels: Batch, mean_std: Any) -> None:
    assert warnings_for(normalised(pixels, mean_std), mean_std) == ()


@pytest.mark.parametrize(
    ("used", "model", "cause"),
    [
        (PLAIN, IMAGENET, "never normalised"),
        (PLAIN, INCEPTION, "never normalised"),
        (IMAGENET, INCEPTION, "another model's mean and std"),
        (IMAGENET, PLAIN, "another model's mean and std"),
        (INCEPTION, IMAGENET, "another mean and std, or has little contrast"),
        (CLIP, PLAIN, "another model's mean and std"),
    ],
)
def test_another_normalisation_is_told(pixels: Batch, used: Any, model: Any, cause: str) -> None:
    (warning,) = warnings_for(normalised(pixels, used), model)
    assert cause in warning
    assert "the calibration data spans" in warning


@pytest.mark.parametrize("model", [IMAGENET, INCEPTION, CLIP, PLAIN])
def test_pixels_up_to_255_are_told(pixels: Batch, model: Any) -> None:
    (warning,) = warnings_for(pixels * 255, model)
    assert "0…255" in warning


def test_a_small_overshoot_of_resizing_passes(pixels: Batch) -> None:
    batch = normalised(pixels * 1.1 - 0.05, IMAGENET)
    assert warnings_for(batch, IMAGENET) == ()


def test_statistics_are_those_of_the_values(pixels: Batch) -> None:
    batch = normalised(pixels, IMAGENET)
    seen = statistics_of(batch)
    planes = batch.transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64)
    assert seen.count == planes.shape[1]
    assert seen.minimum == tuple(min(plane) for plane in planes.tolist())
    assert seen.maximum == tuple(max(plane) for plane in planes.tolist())
    # In units of 1/1024.
    assert seen.mean() == pytest.approx(planes.mean(axis=1), abs=1e-3)
    assert seen.deviation() == pytest.approx(planes.std(axis=1), abs=1e-3)


def test_parts_add_up_to_the_whole_exactly(pixels: Batch) -> None:
    batch = normalised(pixels, CLIP)
    whole = statistics_of(batch)
    parts = [statistics_of(batch[index : index + 1]) for index in (3, 0, 5, 1, 4, 2)]
    summed: InputStatistics = parts[0]
    for part in parts[1:]:
        summed = summed.plus(part)
    assert summed == whole


def patches(layer: str = "patch_embed.proj", tensor: str = "input") -> GraphLayer:
    return GraphLayer(
        layer=layer, node="conv", kind="patch_embed", input=tensor, weight="w", channel_axis=0, n=8, k=192, macs=1
    )


def table(amax: float) -> CalibrationTable:
    entry = TensorRange(tensor="input", layer="patch_embed.proj", amax=amax, origin="")
    return CalibrationTable(source="", digest="", images=1, observer="amax", ranges=(entry,))


@pytest.mark.parametrize(("amax", "told"), [(2.64, 0), (4.0, 0), (1.4, 0), (255.0, 1), (1.0, 1), (0.0, 1)])
def test_a_patch_embedding_far_from_its_recorded_range_is_told(amax: float, told: int) -> None:
    warnings = range_warnings(table(amax), (patches(),), {"patch_embed.proj": 2.64})
    assert len(warnings) == told
    assert all("patch_embed.proj" in warning and "2.64" in warning for warning in warnings)


def test_without_a_recorded_range_there_is_nothing_to_compare() -> None:
    assert range_warnings(table(255), (patches(),), {}) == ()
    assert range_warnings(table(255), (patches(tensor="other"),), {"patch_embed.proj": 2.64}) == ()


@pytest.mark.parametrize(
    ("images", "synthetic", "told"),
    [(1, False, "on only 1 sample:"), (7, False, "on only 7 samples:"), (8, False, ""), (1, True, "")],
)
def test_a_handful_of_real_samples_is_told(images: int, synthetic: bool, told: str) -> None:
    found = few_warnings(
        CalibrationTable(source="x", digest="", images=images, observer="amax", synthetic=synthetic, ranges=())
    )
    assert len(found) == bool(told)
    assert all(told in warning for warning in found)


def test_data_of_a_model_that_declares_nothing_is_not_judged(pixels: Batch) -> None:
    assert warnings_for(pixels * 255, PLAIN)
    undeclared = Preprocessing(channels=3, height=32, width=32, mean=PLAIN[0], std=PLAIN[1], origin=UNDECLARED)
    assert input_warnings(statistics_of(pixels * 255), undeclared) == ()


def test_images_of_one_colour_are_told_as_such_and_not_as_badly_normalised(pixels: Batch) -> None:
    grey = normalised(np.full_like(pixels, 128 / 255), IMAGENET)
    assert input_warnings(statistics_of(grey), declared(IMAGENET)) == ()
    (told,) = sameness_warnings(statistics_of(grey), len(grey))
    assert told.startswith(f"{len(grey)} of {len(grey)} calibration samples are one colour")
    mixed = np.concatenate([grey[:1], normalised(pixels, IMAGENET)])
    assert len(sameness_warnings(statistics_of(mixed), len(mixed))) == 1
    assert sameness_warnings(statistics_of(normalised(pixels, IMAGENET)), len(pixels)) == ()


def test_the_same_few_samples_again_and_again_are_told() -> None:
    batch = np.random.default_rng(0).standard_normal((12, 3, 8, 8), dtype=np.float32)
    assert sameness_warnings(statistics_of(batch), 12) == ()
    assert sameness_warnings(statistics_of(batch[:3]), 3) == ()
    (told,) = sameness_warnings(statistics_of(batch), 1)
    assert told == "1 of 12 calibration samples is distinct: the others repeat it"


@pytest.mark.parametrize("shape", [(64,), (4, 64), (3, 4, 8, 8)])
def test_samples_of_any_number_of_axes_have_statistics(shape: tuple[int, ...]) -> None:
    batch = np.random.default_rng(0).standard_normal((9, *shape)).astype(np.float32)
    batch[3] = 1.5
    seen = statistics_of(batch)
    assert (seen.samples, seen.flat, len(seen.minimum)) == (9, 1, shape[0])


@pytest.mark.parametrize("model", [IMAGENET, CLIP])
def test_a_warning_is_two_lines_at_most(pixels: Batch, model: Any) -> None:
    for data in (pixels, pixels * 255, normalised(pixels * 3, INCEPTION), normalised(pixels / np.float32(3), IMAGENET)):
        for warning in warnings_for(data, model):
            assert len(warning) <= 230
