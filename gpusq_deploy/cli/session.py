"""How the command that runs was asked to speak: set while its arguments are parsed, read where it ends."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True)
class CommandSession:
    """One command per process, so there is one of these.

    Attributes:
        json: Whether stdout is to be one JSON object, also where the command fails.
        quiet: Whether progress and remarks are left out.
        verbose: Whether libraries' warnings are shown, and the traceback of every error.
        debug: Whether the traceback of a bug is shown, and no file written: GPUSQ_DEBUG=1.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    def begin(self) -> None:
        """Forget what an earlier command of this process was asked."""
        self.json = self.quiet = self.verbose = False
        self.debug = os.environ.get("GPUSQ_DEBUG", "") not in {"", "0"}


session = CommandSession()


def filter_advice(action: Literal["ignore", "default"]) -> None:
    """What libraries advise their programmers is for --verbose; filters that make errors of it stay."""
    if any(kept == "error" for kept, *_ in warnings.filters):
        return
    for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, UserWarning):
        warnings.filterwarnings(action, category=kind)
