"""What `--dry-run` prints: the build that would be, and the engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpusq_deploy.artifacts import SkippedTarget
from gpusq_deploy.bundle import print_pairs, print_rows, result_console
from gpusq_deploy.cli.common import echo_json
from gpusq_deploy.engines import BackendChoice, choose_backend
from gpusq_deploy.text import counted

if TYPE_CHECKING:
    from gpusq_deploy.compile import Preview
    from gpusq_deploy.engines import Target

_Backend = BackendChoice | SkippedTarget


def preview_json(found: Preview) -> dict[str, Any]:
    """The same as `print_preview`, for scripts."""
    request = found.request
    return {
        "dry_run": True,
        "bundle": str(request.out),
        "source": str(request.model),
        "arch": found.arch,
        "recipe": found.recipe,
        "remainder": request.float_type,
        "batch": str(request.batch),
        "opset": request.opset,
        "calibration_samples": found.calibration,
        "verification_samples": found.verification,
        "engines": backends_json(request.targets, found.backends),
        "layers": [
            {
                "layer": layer.layer,
                "n": layer.n,
                "k": layer.k,
                "precision": layer.precision,
                "sparse": layer.sparse,
                "reason": layer.reason,
            }
            for layer in found.layers
        ],
        "unknown": list(found.unknown),
    }


def print_preview(found: Preview) -> None:
    """What would be built, layer by layer, on stdout."""
    console, request = result_console(), found.request
    rows = [
        (layer.layer, f"{layer.n} x {layer.k}", layer.precision, "yes" if layer.sparse else "no", layer.reason)
        for layer in found.layers
    ]
    print_rows(
        console,
        f"{request.out} (dry run: nothing was written)",
        ("layer", "N x K", "type", "2:4", "why"),
        rows,
        prose=("why",),
    )
    counts = Counter(layer.precision for layer in found.layers)
    said = ", ".join(f"{count} {precision}" for precision, count in counts.most_common())
    sparse = sum(layer.sparse for layer in found.layers)
    print_pairs(
        console,
        "",
        [
            ("layers", f"{len(found.layers)} weighted: {said}; {sparse} with 2:4 weights"),
            ("batch", str(request.batch)),
            *_data_rows(found),
            *_backend_rows(request.targets, found.backends),
            *(("unknown", sentence) for sentence in found.unknown),
        ],
    )


def print_backends(targets: Sequence[Target], *, bundle: str, as_json: bool) -> None:
    """Who would build a bundle's further engines."""
    backends = [choose_backend(target, bundle=bundle) for target in targets]
    if as_json:
        echo_json({"dry_run": True, "bundle": bundle, "engines": backends_json(targets, backends)})
    else:
        print_pairs(result_console(), f"{bundle} (dry run: nothing was written)", [*_backend_rows(targets, backends)])


def backends_json(targets: Sequence[Target], backends: Sequence[_Backend]) -> list[dict[str, Any]]:
    """Each target with who builds its engine here; null where nobody does, with the command for the device."""
    return [
        {
            "target": target.name,
            "backend": found.name if isinstance(found, BackendChoice) else None,
            "reason": found.reason,
            "command": found.command if isinstance(found, SkippedTarget) else None,
        }
        for target, found in zip(targets, backends, strict=True)
    ]


def _backend_rows(targets: Sequence[Target], backends: Sequence[_Backend]) -> list[tuple[str, str]]:
    if not targets:
        return [("engine", "none: the bundle would hold the ONNX model alone (--target none)")]
    return [
        (f"engine {target.name}", f"by {found.reason}")
        if isinstance(found, BackendChoice)
        else (f"no engine {target.name}", f"{found.reason}; on the device: {found.command}")
        for target, found in zip(targets, backends, strict=True)
    ]


def _data_rows(found: Preview) -> list[tuple[str, str]]:
    rows = [("verification", f"on {counted(found.verification, 'sample')}")]
    if found.calibration is not None:
        rows.insert(0, ("calibration", f"on {counted(found.calibration, 'sample')} of {found.request.calib}"))
    return rows
