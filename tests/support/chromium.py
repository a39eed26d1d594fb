"""A real browser: headless Chromium, where the machine has one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")

Theme = Literal["light", "dark"]
_SETTINGS: dict[Theme, str] = {"dark": "preferredColorScheme=0", "light": "preferredColorScheme=1"}
_QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
)
# A new window is never narrower than about 500 pixels, so a page is looked at through a frame of the width in question.
# What the frame's page takes is told by the frame's document, for the page itself has no script.
_FRAME = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe width="{width}" height="{height}" src="{page}"></iframe>
<script>
onload = () => {{
  const page = frames[0].document, root = page.documentElement;
  const told = {{
    width: root.scrollWidth, title: page.title, scripts: page.scripts.length,
    text: page.body.innerText, data: page.getElementById("data").textContent,
  }};
  const place = document.createElement("pre");
  place.id = "told";
  place.textContent = JSON.stringify(told);
  document.body.append(place);
}};
</script>
"""


class Looked(NamedTuple):
    """What came of a page: the frame's DOM, lines of the browser's console, and a screenshot."""

    dom: str
    console: tuple[str, ...]
    screenshot: bytes


def look(page: Path, *, width: int, theme: Theme, height: int = 2000) -> Looked:
    """Open a page in a new browser, `width` pixels wide."""
    with tempfile.TemporaryDirectory() as scratch:
        frame, shot = Path(scratch) / "frame.html", Path(scratch) / "shot.png"
        frame.write_text(_FRAME.format(width=width, height=height, page=page.resolve().as_uri()))
        window = (f"--window-size={max(width, 600)},{height}", f"--blink-settings={_SETTINGS[theme]}")
        taken = _run(scratch, *window, f"--screenshot={shot}", frame.as_uri())
        dumped = _run(scratch, *window, "--dump-dom", frame.as_uri())
        console = tuple(line for line in (taken.stderr + dumped.stderr).splitlines() if ":CONSOLE" in line)
        return Looked(dumped.stdout, console, shot.read_bytes())


def _run(scratch: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(dir=scratch) as profile:
        command = [BROWSER, *_QUIET, f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
