"""What gpusq-inspect and gpusq-compare write for a browser and for Model Explorer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import bundles
import pytest
from commands import run_main
from pages import Page

from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.bundle.report.html.report import report_page
from gpusq_deploy.cli.compare import main as compare
from gpusq_deploy.cli.inspect import main as inspect


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "m.gpusq")


def test_html_is_the_report_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    done = run_main(inspect, bundle, "--html", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert f"wrote {tmp_path / 'page.html'}" in done.err
    assert (tmp_path / "page.html").read_text("utf-8") == report_page(read_bundle(bundle))


@pytest.mark.parametrize(("main", "bundles_named"), [(inspect, 1), (compare, 2)])
def test_somebody_else_s_file_is_left_alone(
    bundle: Path, tmp_path: Path, main: Callable[[], None], bundles_named: int
) -> None:
    notes = tmp_path / "notes.html"
    notes.write_text("mine")
    done = run_main(main, *[bundle] * bundles_named, "--html", notes)
    assert done.code == 5
    assert "it was left alone" in done.err
    assert notes.read_text() == "mine"


def test_runs_need_a_page_and_must_be_runs(bundle: Path, tmp_path: Path) -> None:
    assert run_main(inspect, bundle, "--runs", tmp_path / "runs.json").code == 2
    for place in (tmp_path / "missing.json", bundle / "plan.json"):
        done = run_main(inspect, bundle, "--html", tmp_path / "page.html", "--runs", place)
        assert (done.code, str(place) in done.err) == (5, True)
    assert not (tmp_path / "page.html").exists()


def test_two_bundles_are_compared_on_a_page(bundle: Path, tmp_path: Path) -> None:
    done = run_main(compare, bundle, bundle, "--html", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert Page((tmp_path / "page.html").read_text("utf-8")).data["verdict"] == "same"


def test_node_data_lies_in_the_folder_that_was_named(bundle: Path, tmp_path: Path) -> None:
    done = run_main(inspect, bundle, "--model-explorer", tmp_path / "figures")
    assert done.code == 0, done.err
    (file,) = (tmp_path / "figures").iterdir()
    assert json.loads(file.read_text())["name"] == "gpusq precision, as planned"


def test_a_bundle_with_an_older_report_or_none_is_valid(bundle: Path) -> None:
    assert not (bundle / "report.html").exists()
    assert run_main(inspect, bundle).code == 0
