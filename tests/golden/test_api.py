"""The public API's signatures: one that changes does so on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest
from api_surface import signatures

API = Path(__file__).parent / "data" / "api.txt"


def test_no_public_signature_changes_unnoticed(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        API.write_text(signatures())
    assert signatures() == API.read_text(), "if that is meant, run pytest tests/golden/test_api.py --update-golden"
