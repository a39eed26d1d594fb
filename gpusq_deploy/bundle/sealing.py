"""The last files of a bundle that is being made: the report, and the manifest with every file's digest."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gpusq_deploy.artifacts import MANIFEST, REPORT, BundleFile, Manifest, digest_of_file
from gpusq_deploy.bundle.files import files_in, read_bundle, write_value
from gpusq_deploy.bundle.report.html.report import report_page


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the report over all other files, then the manifest.

    Args:
        folder: A bundle that is complete but for these two.
        manifest: Without files.
    """
    (folder / REPORT).unlink(missing_ok=True)
    listed = msgspec.structs.replace(manifest, files=files_in(folder))
    write_value(folder, MANIFEST, listed)
    page = folder / REPORT
    page.write_text(report_page(read_bundle(folder)), "utf-8")
    entry = BundleFile(path=REPORT, size=page.stat().st_size, digest=digest_of_file(page))
    files = tuple(sorted((*listed.files, entry), key=lambda file: file.path))
    write_value(folder, MANIFEST, msgspec.structs.replace(listed, files=files))
