"""Kernel timings on disk: one file per device, backend version and configuration, never shared across them.

Timings hold for the GPU, the TensorRT version and the settings that they were taken with. TensorRT checks the first two
when it reads a cache and not the third, so the file's name holds all three and a build can't meet another's timings.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from gpusq_deploy.artifacts import digest_of_bytes, json_from_value, write_whole
from gpusq_deploy.engines.api import BackendName
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.errors import GpusqError

_DIGITS = 16


def cache_file(folder: Path, backend: BackendName, version: str, device: str, settings: BuildSettings) -> Path:
    """Where the timings of one device, version and configuration lie.

    Args:
        folder: All caches together.
        backend: Who builds.
        version: Its version.
        device: The GPU's name.
        settings: What is built. Where caches lie and whether a miss is an error is no part of the configuration.
    """
    options = msgspec.structs.replace(
        settings.options, timing_cache=None, error_on_cache_miss=False, editable_cache=False
    )
    config = json_from_value(msgspec.structs.replace(settings, options=options))
    digest = digest_of_bytes(config).removeprefix("sha256:")[:_DIGITS]
    words = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word) for word in (backend, version, device))
    return folder / f"{words}-{digest}.timing"


def read_cache(path: Path, *, required: bool) -> bytes:
    """The cache's content; empty where there is none yet, which starts a new one.

    Args:
        path: See `cache_file`.
        required: Whether kernels that the cache lacks are an error.

    Raises:
        GpusqError: It can't be read, or is required and isn't there.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        if not required:
            return b""
        raise GpusqError(
            "error-on-cache-miss needs timings, and there are none for this device, version and configuration",
            place=str(path),
            hint="build once without error-on-cache-miss",
        ) from error
    except OSError as error:
        raise GpusqError(f"cannot read the timing cache: {error.strerror}", place=str(path)) from error


def write_cache(path: Path, content: bytes) -> None:
    """Replace the cache whole.

    Raises:
        GpusqError: The disk refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise GpusqError(f"cannot write the timing cache: {error.strerror}", place=str(path)) from error
