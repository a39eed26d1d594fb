"""Options of the whole test run."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Before torch is imported: several processes share the cores, and torch's threads otherwise spin while they wait for
# each other, which makes training several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The machine may be busy: no test depends on how long it takes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what the golden tests got over their files")
