"""`import gpusq_deploy` costs nothing, and what it exports is there."""

from __future__ import annotations

import subprocess
import sys

import pytest
from api_surface import public_names

import gpusq_deploy

LIGHT = {"gpusq_deploy", "lazy_loader"}


def test_every_exported_name_is_there() -> None:
    names = public_names()
    assert len(names) == len(set(names))
    assert {name for name in names if not hasattr(gpusq_deploy, name)} == set()
    assert {*names} <= {*dir(gpusq_deploy)}


@pytest.mark.slow
def test_to_import_the_package_imports_nothing_else() -> None:
    """Of other distributions, and of its own rooms; of the API's functions neither torch nor numpy."""
    script = (
        "import sys, lazy_loader\n"
        "before = {*sys.modules}\n"
        "import gpusq_deploy\n"
        "print(*sorted({*sys.modules} - before - {*sys.stdlib_module_names}))\n"
        "from gpusq_deploy import build, check, open_bundle\n"
        "print(*sorted({'torch', 'numpy', 'onnx', 'onnxruntime', 'PIL', 'click', 'rich'} & {*sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "gpusq_deploy\n\n"
