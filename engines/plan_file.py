"""What can be said about an engine plan without loading it.

TensorRT-RTX 1.7 plans begin with `vtrt` and hold their own size in bytes, as a 64-bit little-endian number at byte 16.
No other header is taken for granted: what isn't recognised is left to the runtime.

A plan holds native code. Check a bundle's digests before loading one; this is no protection.
"""

from __future__ import annotations

import struct

from gpusq_deploy.engines.api import BackendName
from gpusq_deploy.errors import GpusqError

_RTX_MAGIC = b"vtrt"
_SIZE_AT = 16
_LEAST = 64


def check_plan_header(plan: bytes, backend: BackendName, *, place: str) -> None:
    """Refuse what is certainly not a whole plan of this backend.

    Args:
        plan: The whole file.
        backend: Who is to run it.
        place: The file, for the error.

    Raises:
        GpusqError: Empty, too short, cut off, or a plan of the other backend.
    """
    hint = "copy the file again, or make it again with gpusq-build"
    if len(plan) < _LEAST:
        what = "is empty" if not plan else f"has only {len(plan)} bytes"
        raise GpusqError(f"not an engine plan: the file {what}", place=place, hint=hint)
    if not plan.startswith(_RTX_MAGIC):
        return
    if backend != "tensorrt-rtx":
        raise GpusqError(
            f"this is a plan for tensorrt-rtx, not for {backend}", place=place, hint="use --runtime tensorrt-rtx"
        )
    (declared,) = struct.unpack_from("<Q", plan, _SIZE_AT)
    if declared != len(plan):
        raise GpusqError(f"the plan is damaged: it holds {len(plan)} of {declared} bytes", place=place, hint=hint)
