"""What `--dry-run` prints: the build that would be, and the engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpusq_deploy.artifacts import SkippedTarget
from gpusq_deploy.bundle import print_pairs, print_rows, result_console
from gpusq_deploy.engines import BackendChoice
from gpusq_deploy.sparsity import DENSE
from gpusq_deploy.text import counted

if TYPE_CHECKING:
    from gpusq_deploy.compile import Extension, Preview
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
    print_pairs(
        console,
        "",
        [
            (
                "layers",
                _counted([layer.precision for layer in found.layers], sum(layer.sparse for layer in found.layers)),
            ),
            ("batch", str(request.batch)),
            *_data_rows(found),
            *_backend_rows(request.targets, found.backends),
            *(("unknown", sentence) for sentence in found.unknown),
        ],
    )


def extension_json(found: Extension, targets: Sequence[Target]) -> dict[str, Any]:
    """The same as `print_extension`, for scripts."""
    bundle = found.bundle
    return {
        "dry_run": True,
        "bundle": str(bundle.path),
        "source": bundle.manifest.source.file,
        "arch": str(bundle.manifest.source.arch),
        "recipe": bundle.plan.recipe,
        "remainder": bundle.plan.float_type,
        "batch": str(bundle.manifest.batch),
        "opset": bundle.manifest.opset,
        "engines": backends_json(targets, found.backends),
        "replaced": _replaced(found, targets),
        "unpacked": found.unpacked,
    }


def print_extension(found: Extension, targets: Sequence[Target]) -> None:
    """What a bundle would be given, on stdout."""
    bundle, layers = found.bundle, found.bundle.plan.layers
    rows = [
        ("model", f"{bundle.manifest.source.file}, recipe {bundle.plan.recipe}"),
        ("layers", _counted([layer.precision for layer in layers], sum(layer.sparse for layer in layers))),
        ("batch", str(bundle.manifest.batch)),
    ]
    if found.unpacked is not None:
        rows.append(("unpacked", f"{counted(found.unpacked, 'weight')} into {DENSE}, bit for bit"))
    if targets:
        rows += _backend_rows(targets, found.backends)
    if replaced := _replaced(found, targets):
        rows.append(("replaced", f"{', '.join(replaced)}: what the bundle has for that"))
    print_pairs(result_console(), f"{bundle.path} (dry run: nothing was written)", rows)


def _replaced(found: Extension, targets: Sequence[Target]) -> list[str]:
    """Targets whose engine would take the place of one that is there."""
    there = {engine.target for engine in found.bundle.receipt.engines}
    built = zip(targets, found.backends, strict=True)
    return [target.name for target, who in built if isinstance(who, BackendChoice) and target.name in there]


def _counted(precisions: Sequence[str], sparse: int) -> str:
    """How many layers there are of each precision."""
    said = ", ".join(f"{count} {precision}" for precision, count in Counter(precisions).most_common())
    return f"{len(precisions)} weighted: {said}; {sparse} with 2:4 weights"


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
