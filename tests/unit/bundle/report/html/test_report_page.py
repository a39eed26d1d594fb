"""A bundle's page: what it says, that it needs nothing else, and that no name of a layer becomes markup."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pages
import pytest
from pages import Page

from gpusq_deploy.artifacts.base import json_from_value
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.receipt import SkippedTarget
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.report.html.page import save_page
from gpusq_deploy.bundle.report.html.report import report_page
from gpusq_deploy.engines.kernel_times import MeasuredKernels
from gpusq_deploy.engines.prediction.constants import load_fitted
from gpusq_deploy.engines.prediction.devices import load_devices
from gpusq_deploy.engines.prediction.roofline import time_of
from gpusq_deploy.engines.prediction.work import work_of
from gpusq_deploy.errors import GpusqError

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return pages.bundle(tmp_path)


@pytest.fixture
def page(bundle: Bundle) -> Page:
    return Page(report_page(bundle))


def test_it_loads_nothing_and_runs_nothing(page: Page) -> None:
    sources = page.attributes("src") + page.attributes("href") + page.attributes("srcset")
    assert sources
    assert all(source.startswith("#") or source == "data:," for source in sources)
    assert [attributes for tag, attributes in page.elements if tag == "script"] == [
        {"type": "application/json", "id": "data"}
    ]
    assert "url(" not in page.html
    assert "@import" not in page.html
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_no_name_becomes_markup(tmp_path: Path) -> None:
    hostile = pages.bundle(tmp_path, names=(*pages.LAYERS[:-1], EVIL))
    source = msgspec.structs.replace(hostile.manifest.source, file=EVIL)
    hostile = replace(hostile, manifest=msgspec.structs.replace(hostile.manifest, source=source))
    (tmp_path / "plain").mkdir()
    page, plain = Page(report_page(hostile)), Page(report_page(pages.bundle(tmp_path / "plain")))
    assert [tag for tag, _ in page.elements].count("img") == 0
    assert page.tags("script") == plain.tags("script")
    assert EVIL in page.text.replace("alert(1) ", "alert(1)")
    assert page.data["plan"]["layers"][-1]["layer"] == EVIL


def test_equal_bundles_give_equal_bytes_wherever_they_lie_and_whenever_they_were_built(bundle: Bundle) -> None:
    engines = tuple(msgspec.structs.replace(engine, build_seconds=77.0) for engine in bundle.receipt.engines)
    later = msgspec.structs.replace(bundle.manifest, created="2033-03-03T00:00:00+00:00")
    other = pages.changed(replace(bundle, path=Path("/elsewhere"), manifest=later), engines=engines)
    assert report_page(other) == report_page(bundle)


def test_the_json_in_it_is_the_plan_and_the_receipt(bundle: Bundle, page: Page) -> None:
    assert page.data["schema"] == "gpusq.report/1"
    assert page.data["plan"] == json.loads(json_from_value(bundle.plan))
    receipt = json.loads(json_from_value(bundle.receipt))
    (engine,) = page.data["receipt"]["engines"]
    assert engine["layers"] == receipt["engines"][0]["layers"]
    assert page.data["receipt"]["verification"] == receipt["verification"]


def test_headings_tables_and_links_are_sound(page: Page) -> None:
    levels = [int(tag[1]) for tag in page.tags("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(page.tags("caption")) == len(page.tags("table")) > 3
    names = page.attributes("id")
    assert len(names) == len(set(names))
    assert {link[1:] for link in page.attributes("href") if link != "data:,"} <= set(names)
    wide = [attributes for _, attributes in page.elements if attributes.get("class") == "scroll"]
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in wide)


def test_every_layer_has_its_chain_and_every_block_its_error(page: Page) -> None:
    for name in pages.LAYERS:
        assert name in page.words
    assert page.words.count("stem") >= 2  # in the picture and in the table
    for figure in ("45.0 dB", "35.0 dB", "25.0 dB", "8.0 dB", "most noise"):
        assert figure in page.words
    assert {"2:4 ?", "INT8"} <= set(page.words)


def test_a_layer_that_is_not_what_was_asked_stands_out(tmp_path: Path) -> None:
    page = Page(report_page(pages.bundle(tmp_path, precision="fp16")))
    assert "FP16 ≠ INT8" in page.words
    assert "a100: 4 of 5 layers as asked, 80.0% of the weighted layers' FLOPs; not: blocks.1.fc2" in page.text
    assert "Precision, a100, blocks.1.fc2: built so" in page.text


def test_measured_times_of_kernels_are_shown_where_they_are_known(bundle: Bundle, page: Page) -> None:
    assert "measured µs" not in page.words
    seen = MeasuredKernels(times={"kernel of stem": 1.25}, unknown="4 of 5 kernels: not in the profile")
    timed = Page(report_page(bundle, measured={"a100": seen}))
    assert "measured µs" in timed.words
    assert "1.2" in timed.words
    assert "Measured by the profiler: 1 kernel in 0.001 ms, most in kernel of stem 1.2 µs (100%)" in timed.text
    assert "Without a measurement: 4 of 5 kernels: not in the profile" in timed.text


def test_kernels_are_predicted_where_their_sizes_are_known(bundle: Bundle, page: Page) -> None:
    """Against the roofline of the same layer list, kernel by kernel."""
    (engine,) = bundle.receipt.engines
    device = next(device for device in load_devices() if device.target == engine.target)
    times = [time_of(work, device, load_fitted().constants).total for work in work_of(engine.engine_layers)]
    assert "predicted µs" in page.words
    assert all(f"{time:.1f}" in page.words for time in times)
    total = f"{len(times)} kernels in {sum(times) / 1e3:.3f} ms"
    assert f"Predicted for {device.gpu} at batch 1, not measured, products as if dense: {total}" in page.text
    dynamic = msgspec.structs.replace(bundle.manifest, batch=BatchRange(minimum=1, optimum=1, maximum=2))
    assert "predicted µs" not in Page(report_page(replace(bundle, manifest=dynamic))).words


def test_without_an_engine_it_says_why_and_shows_the_plan(bundle: Bundle) -> None:
    skipped = (SkippedTarget(target="orin", reason="no Orin here", command="gpusq-build m.gpusq --target orin"),)
    page = Page(report_page(pages.changed(bundle, engines=(), skipped=skipped, verification=None)))
    assert "As planned" in page.words
    assert "No engine for orin: no Orin here" in page.words
    assert "try: gpusq-build m.gpusq --target orin" in page.words
    assert "blocks.0" in page.words


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path, bundle: Bundle) -> None:
    target = tmp_path / "page.html"
    save_page(target, report_page(bundle))
    save_page(target, report_page(bundle))
    assert target.read_text("utf-8") == report_page(bundle)
    other = tmp_path / "notes.html"
    other.write_text("<p>mine</p>")
    with pytest.raises(GpusqError, match="it was left alone"):
        save_page(other, report_page(bundle))
    assert other.read_text() == "<p>mine</p>"
