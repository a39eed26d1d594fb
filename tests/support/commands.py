"""Run a command as its entry point does, in this process: same exit codes, same streams, no new interpreter."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Stdout, which must be one JSON document."""
        return json.loads(self.out)


def run_main(main: Callable[[], object], *arguments: object, debug: bool = True) -> Finished:
    """Call an entry point with arguments. A bug is exit code 70; `debug` puts its traceback on stderr."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    argv = ["gpusq", *(str(argument) for argument in arguments)]
    told = mock.patch.dict(os.environ, {"GPUSQ_DEBUG": "1" if debug else ""})
    with told, mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Finished(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())
