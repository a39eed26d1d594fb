"""Is one worse than the other: two files of runs, or two bundles."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import some

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import Runs
    from gpusq_deploy.benchmarks import BundleComparison, Comparison, Comparisons

_NO_BUNDLE = "a folder without manifest.json"
_ENGINE_SUFFIXES = (".plan", ".engine")
_CHECKPOINTS = (".pt", ".pth", ".pt2", ".bin", ".ckpt", ".safetensors", ".tar")


def compare(
    base: Runs | PathLike,
    head: Runs | PathLike,
    *,
    max_regression: float = 0.03,
    steady: bool = False,
    html: PathLike | None = None,
) -> Comparison:
    """Is `head` slower than `base` by more than the budget? As gpusq-compare decides it.

    Args:
        base: What holds today: runs of `bench`, or a file that gpusq-bench wrote.
        head: What would replace it.
        max_regression: The budget as a share: 0.03 allows 3 % more latency.
        steady: Both are of one model: was the machine the same?
        html: Where to write the comparison as a page.

    Returns:
        The verdict, and one for each batch size with its reason; `exit_code` is gpusq-compare's.

    Raises:
        GpusqError: A file can't be read, or is no file of runs; or the page can't be written.
        ValueError: The budget is negative or not finite.
    """
    from gpusq_deploy import benchmarks
    from gpusq_deploy.bundle import require_page, save_page

    if html is not None:
        require_page(Path(html))
    both = _runs_of(base, head)
    comparison = benchmarks.compare(*both, max_regression, steady=steady)
    if html is not None:
        save_page(Path(html), benchmarks.comparison_page(comparison, *both))
    return comparison


def compare_models(
    models: Sequence[tuple[Runs | PathLike, Runs | PathLike]], *, max_regression: float = 0.03, steady: bool = False
) -> Comparisons:
    """`compare` of several models, decided together: p-values are adjusted over all of their batch sizes.

    Args:
        models: Base and head of each, see `compare`.
        max_regression: See `compare`.
        steady: See `compare`.

    Returns:
        The worst verdict, and each model's comparison; `exit_code` is gpusq-compare's.

    Raises:
        GpusqError: A file can't be read, or is no file of runs.
        ValueError: No models, or the budget is negative or not finite.
    """
    from gpusq_deploy import benchmarks

    read = [_runs_of(base, head) for base, head in models]
    names = _names([head for _, head in models], [runs.model for _, runs in read])
    named = [(name, base, head) for name, (base, head) in zip(names, read, strict=True)]
    return benchmarks.compare_named(named, max_regression, steady=steady)


def files_of_runs(base: PathLike, head: PathLike) -> tuple[tuple[Path, Path], ...]:
    """Two folders as pairs of their files of the same name, or two files as the pair that they are.

    Raises:
        GpusqError: The folders share no name, or one has a file that the other lacks.
    """
    folders = (Path(base), Path(head))
    if not all(folder.is_dir() for folder in folders) or any(_what_instead(folder) != _NO_BUNDLE for folder in folders):
        return (folders,)
    names = [{path.name for path in folder.glob("*.json")} for folder in folders]
    if names[0] != names[1]:
        lacking, missing = (
            (folders[0], names[1] - names[0]) if names[1] - names[0] else (folders[1], names[0] - names[1])
        )
        raise GpusqError(
            f"the other folder has files of runs that this one lacks: {some(sorted(missing))}",
            place=str(lacking),
            hint="measure both with the same models, or name the files to compare",
        )
    return tuple((folders[0] / name, folders[1] / name) for name in sorted(names[0])) or (folders,)


def compare_bundles(
    base: PathLike, head: PathLike, *, expect: PathLike | None = None, html: PathLike | None = None
) -> BundleComparison:
    """What changed from one bundle to another, without timing: layers and kernels, though their names differ.

    Args:
        base: A bundle's folder.
        head: The folder of what would replace it.
        expect: A TOML file of budgets (docs/benchmarking.md), which then decide the verdict.
        html: Where to write the comparison as a page.

    Raises:
        GpusqError: Not a bundle, or damaged; not a file of budgets; or the page can't be written.
    """
    from gpusq_deploy import benchmarks
    from gpusq_deploy.bundle import load_budgets, read_bundle, require_page, save_page

    if html is not None:
        require_page(Path(html))
    budgets = None if expect is None else load_budgets(Path(expect))
    both = (read_bundle(Path(base)), read_bundle(Path(head)))
    comparison = benchmarks.compare_bundles(*both, budgets)
    if html is not None:
        save_page(Path(html), benchmarks.bundle_comparison_page(comparison, *both))
    return comparison


def _names(heads: Sequence[Runs | PathLike], models: Sequence[str]) -> list[str]:
    """What several models are called: by model where that tells them apart, else by their heads' files."""
    from gpusq_deploy.artifacts import Runs

    files = [model if isinstance(head, Runs) else Path(head).name for head, model in zip(heads, models, strict=True)]
    paths = [model if isinstance(head, Runs) else str(head) for head, model in zip(heads, models, strict=True)]
    return next((list(names) for names in (models, files) if len(set(names)) == len(names)), paths)


def _what_instead(path: Path) -> str:
    """What was given in place of a file of runs; empty for a file that may be one."""
    from gpusq_deploy.frontend import is_bundle, is_saved_folder

    if path.is_dir():
        saved = "a checkpoint" if is_saved_folder(path) else _NO_BUNDLE
        return "a bundle" if is_bundle(path) else saved
    if path.suffix in _ENGINE_SUFFIXES:
        return "an engine"
    if path.suffix == ".onnx":
        return "an ONNX model"
    return "a checkpoint" if path.suffix in _CHECKPOINTS else ""


def timing_commands(kinds: Sequence[tuple[Path, str]]) -> str:
    """What makes files of runs of two paths, whose kinds are known, and compares them."""
    if any(kind == _NO_BUNDLE for _, kind in kinds):
        return "give two bundles that gpusq-build made, or two files that gpusq-bench --json wrote"
    lines: list[str] = []
    files: list[str] = []
    for (path, kind), name in zip(kinds, ("base", "head"), strict=True):
        model = str(path)
        if kind == "a checkpoint":
            model = f"{name}.gpusq"
            lines.append(shlex.join(["gpusq-build", str(path), "--int8", "--calib", "IMAGES", "--out", model]))
        reference = ["--reference", "MODEL.onnx"] if kind == "an engine" and not _in_bundle(path) else []
        if kind:
            lines.append(shlex.join(["gpusq-bench", model, *reference, "--json", f"{name}.json"]))
        files.append(f"{name}.json" if kind else str(path))
    return " && ".join([*lines, shlex.join(["gpusq-compare", *files])])


def _runs_of(base: Runs | PathLike, head: Runs | PathLike) -> tuple[Runs, Runs]:
    from gpusq_deploy.artifacts import Runs, require_input

    given = [one if isinstance(one, Runs) else Path(one) for one in (base, head)]
    paths = [one for one in given if isinstance(one, Path)]
    for path in paths:
        require_input(path)
    kinds = [(path, _what_instead(path)) for path in paths]
    for path, kind in kinds:
        if kind:
            both = len(kinds) == 2
            raise GpusqError(
                f"{kind} isn't what gpusq-compare takes: files of runs, which gpusq-bench --json writes",
                place=str(path),
                hint=timing_commands(kinds) if both else f"gpusq_deploy.bench({str(path)!r}) makes runs of it",
            )
    return _read(given[0]), _read(given[1])


def _read(given: Runs | Path) -> Runs:
    from gpusq_deploy.artifacts import Runs, read_value

    return read_value(given, Runs) if isinstance(given, Path) else given


def _in_bundle(path: Path) -> bool:
    from gpusq_deploy.bundle import is_ours

    return is_ours(path.resolve().parent.parent)
