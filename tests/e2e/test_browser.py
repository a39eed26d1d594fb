"""Pages in a real browser: they render without an error, in both themes, on a telephone and on a desk."""

from __future__ import annotations

import html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest
from chromium import Theme, look, needs_chromium
from PIL import Image

from gpusq_deploy.bundle.report.html.report import report_page

EVIL = "</script><script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"

pytestmark = [pytest.mark.slow, needs_chromium]


def told(dom: str) -> dict[str, Any]:
    """What the frame found in the page."""
    found = re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[:2000]
    content: dict[str, Any] = json.loads(html.unescape(found[1]))
    return content


def background(screenshot: bytes) -> int:
    """How bright the corner is, 0...255."""
    return int(np.asarray(Image.open(io.BytesIO(screenshot)).convert("L"))[2, 2])


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_built_bundle_s_report_renders(bundle: Path, theme: Theme, width: int) -> None:
    looked = look(bundle / "report.html", width=width, theme=theme)
    assert looked.console == ()
    page = told(looked.dom)
    assert page["width"] <= width
    assert page["scripts"] == 1
    assert json.loads(page["data"])["schema"] == "gpusq.report/1"
    assert "blocks.0.mlp.fc1" in page["text"]
    assert (background(looked.screenshot) > 200) == (theme == "light")


def test_a_name_that_is_a_script_stays_a_name(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(report_page(pages.bundle(tmp_path, names=(*pages.LAYERS[:-1], EVIL))), "utf-8")
    # Without the policy, so that escaping alone has to hold.
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    unguarded, found = policy.subn("", page.read_text("utf-8"))
    assert found == 1
    page.write_text(unguarded, "utf-8")
    looked = look(page, width=1440, theme="light")
    assert looked.console == ()
    seen = told(looked.dom)
    assert seen["title"] == "m.pt: what was built"
    assert seen["scripts"] == 1
    assert json.loads(seen["data"])["plan"]["layers"][-1]["layer"] == EVIL
    assert EVIL in seen["text"]
