"""What can be said about an engine without loading it.

TensorRT-RTX 1.7 engines begin with `vtrt` and hold, little-endian: at byte 16 their size in bytes (64 bits), at byte
24 the version that built them (four bytes), at byte 32 a bit for each GPU architecture that they were built for, from
SM75. That was seen in engines built here for every architecture. No other header is taken for granted: what isn't
recognised is left to the runtime.

An engine holds native code. Check a bundle's digests before loading one; this is no protection.
"""

from __future__ import annotations

import struct

from gpusq_deploy.engines.api import BackendName
from gpusq_deploy.errors import GpusqError

_RTX_MAGIC = b"vtrt"
_SIZE_AT, _VERSION_AT, _GPUS_AT = 16, 24, 32
_LEAST = 64
# What other files begin with, for the ones that are likely to be taken for an engine.
_STRANGERS = {
    b"PK\x03\x04": "a zip archive, such as a torch checkpoint",
    b"\x08": "an ONNX model",
    b"{": "JSON",
    b"\x7fELF": "a program or library",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer: the file itself wasn't fetched",
}
_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def check_engine_header(engine_bytes: bytes, backend: BackendName, *, place: str) -> None:
    """Refuse what is certainly not a whole engine of this backend.

    Args:
        engine_bytes: The whole file.
        backend: Who is to run it.
        place: The file, for the error.

    Raises:
        GpusqError: Empty, too short, cut off, a file of another kind, or an engine of the other backend.
    """
    hint = "copy the file again, or make it again with gpusq-build"
    if len(engine_bytes) < _LEAST:
        what = "is empty" if not engine_bytes else f"has only {len(engine_bytes)} bytes"
        raise GpusqError(f"not an engine: the file {what}", place=place, hint=hint)
    for start, kind in _STRANGERS.items():
        if engine_bytes.startswith(start):
            raise GpusqError(f"not an engine: the file looks like {kind}", place=place, hint=hint)
    if not engine_bytes.startswith(_RTX_MAGIC):
        return
    if backend != "tensorrt-rtx":
        raise GpusqError(
            f"this is an engine for tensorrt-rtx, not for {backend}", place=place, hint="use --runtime tensorrt-rtx"
        )
    (declared,) = struct.unpack_from("<Q", engine_bytes, _SIZE_AT)
    if declared != len(engine_bytes):
        raise GpusqError(
            f"the engine is damaged: it holds {len(engine_bytes)} of {declared} bytes", place=place, hint=hint
        )


def engine_misfits(engine_bytes: bytes, *, version: str, capability: str | None) -> tuple[str, ...]:
    """Why a TensorRT-RTX engine may not run here: another minor version, other GPUs; nothing is known of other engines.

    Whether it runs all the same is the runtime's to say: it knows GPUs that the header has no bit for, such as SM 9.0.

    Args:
        engine_bytes: A whole engine, which `check_engine_header` has passed.
        version: The installed backend's version.
        capability: The GPU's compute capability, such as "8.6"; None where it isn't known.
    """
    if not engine_bytes.startswith(_RTX_MAGIC):
        return ()
    problems: list[str] = []
    built = engine_version(engine_bytes)
    if not same_minor(built, version):
        problems.append(f"it was built by tensorrt-rtx {built}, and {version} is installed")
    gpus = engine_capabilities(engine_bytes)
    if capability is not None and gpus and capability not in gpus:
        problems.append(f"it was built for compute capability {', '.join(gpus)}, and this GPU has {capability}")
    return tuple(problems)


def same_minor(one: str, other: str) -> bool:
    """Whether two versions of TensorRT-RTX run each other's engines: their first two numbers are the same."""
    return one.split(".")[:2] == other.split(".")[:2]


def engine_version(engine_bytes: bytes) -> str:
    """The version that built a TensorRT-RTX plan, such as 1.7.1.116."""
    return ".".join(str(part) for part in engine_bytes[_VERSION_AT : _VERSION_AT + 4])


def engine_capabilities(engine_bytes: bytes) -> tuple[str, ...]:
    """The compute capabilities that a TensorRT-RTX engine was built for; none where it says nothing that is known."""
    (bits,) = struct.unpack_from("<Q", engine_bytes, _GPUS_AT)
    if bits >> len(_CAPABILITIES):
        return ()
    return tuple(capability for index, capability in enumerate(_CAPABILITIES) if bits >> index & 1)
