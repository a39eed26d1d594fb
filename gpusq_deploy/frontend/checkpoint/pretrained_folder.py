"""What transformers' `save_pretrained` leaves in a folder: weights, the model's config, and often its preprocessing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gpusq_deploy.artifacts import ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import with_article

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

_JSON_HINT = "copy the file again, or save the model again with save_pretrained"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedFolder:
    """One saved model.

    Attributes:
        weights: The file with the weights.
        arch: The architecture that config.json names, with that config.
        preprocessor: What preprocessor_config.json holds; None where there is none.
    """

    weights: Path
    arch: ArchSpec
    preprocessor: Mapping[str, Any] | None


def foreign_folder(folder: Path) -> tuple[str, str] | None:
    """What a folder of a known tool is, whose weights only that tool puts together, and how; None where it is none."""
    names = set(os.listdir(folder))
    if "adapter_config.json" in names:
        return (
            "a folder of PEFT: an adapter, without the weights that it belongs to",
            "load the base model with it: model.merge_and_unload().save_pretrained(folder)",
        )
    if "zero_to_fp32.py" in names or any(name.endswith("_optim_states.pt") for name in names):
        whole = "; of ZeRO 1 and 2, give mp_rank_00_model_states.pt"
        return "a folder of DeepSpeed: shards of all ranks", f"python zero_to_fp32.py FOLDER OUT, and give OUT{whole}"
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return (
            "a folder of torch.distributed.checkpoint: shards of all ranks",
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE, and give FILE",
        )
    return None


def is_saved_folder(path: Path) -> bool:
    """True for a folder with a config.json or with weights, as save_pretrained names them."""
    return os.path.isdir(path) and any((path / name).is_file() for name in (CONFIG, *_WEIGHTS, *_SHARDS))


def saved_folder(path: Path) -> SavedFolder | None:
    """What belongs to a folder, or to a file of weights beside its config; None where transformers saved neither.

    A config that merely lies beside a file and can't be read counts as none.

    Raises:
        GpusqError: The folder has no weights in one file, or its config can't be read or names no class.
    """
    if os.path.isdir(path):
        return _saved(path, weights=None) if (path / CONFIG).is_file() else None
    try:
        return _saved(path.parent, weights=path) if os.path.isfile(path.parent / CONFIG) else None
    except GpusqError:
        return None


def saved_by(file: Path) -> str:
    """`transformers 5.2.0` where a config beside the file, of the same save, says so; empty where none does.

    Raises:
        GpusqError: The config can't be read.
    """
    config = file.parent / CONFIG
    if file.name not in _WEIGHTS or not config.is_file():
        return ""
    version: object = _json(config).get("transformers_version")
    return f"transformers {version}" if isinstance(version, str) else ""


def weights_file(path: Path) -> Path:
    """The file itself, or the one with the weights in a folder.

    Raises:
        GpusqError: The folder has no weights, or has them in several files.
    """
    if not os.path.isdir(path):
        return path
    found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if found is not None:
        return found
    if any((path / name).is_file() for name in _SHARDS):
        raise GpusqError(
            "the weights are spread over several files",
            place=str(path),
            hint='save them in one: model.save_pretrained(folder, max_shard_size="100GB")',
        )
    foreign = foreign_folder(path)
    if foreign is not None:
        raise GpusqError(foreign[0], place=str(path), hint=foreign[1])
    raise GpusqError(
        "not a file, and no weights in the folder", place=str(path), hint=f"it needs {' or '.join(_WEIGHTS)}"
    )


def _saved(folder: Path, *, weights: Path | None) -> SavedFolder:
    arch = _arch(_json(folder / CONFIG), folder / CONFIG)
    return SavedFolder(weights=weights or weights_file(folder), arch=arch, preprocessor=_preprocessor(folder))


def _preprocessor(folder: Path) -> Mapping[str, Any] | None:
    """The image processor's settings: a file of their own, or within those of a processor of images and text."""
    own, shared = folder / PREPROCESSOR, folder / _PROCESSOR
    if own.is_file():
        return _json(own)
    within: Any = _json(shared).get("image_processor") if shared.is_file() else None
    return cast("dict[str, Any]", within) if isinstance(within, dict) else None


def preprocessor_beside(file: Path) -> Mapping[str, Any] | None:
    """What a preprocessor_config.json in a file's folder holds; None where there is none.

    Raises:
        GpusqError: It can't be read.
    """
    return _preprocessor(file.parent)


def config_argument(text: str) -> str:
    """The value of `--arch-arg config=`, a JSON file or JSON itself, as JSON with sorted keys.

    Raises:
        GpusqError: No such file, or it isn't a JSON object.
    """
    if not text.lstrip().startswith("{"):
        return _text(_json(Path(text)))
    return _text(parsed_config(text, place="--arch-arg config"))


def parsed_config(text: str, *, place: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        GpusqError: It is none.
    """
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GpusqError(f"not JSON: {error}", place=place, hint=_JSON_HINT) from error
    if not isinstance(content, dict):
        raise GpusqError(
            f"the JSON holds {with_article(type(content).__name__)}, not an object", place=place, hint=_JSON_HINT
        )
    return cast("dict[str, Any]", content)


def _arch(config: Mapping[str, Any], place: Path) -> ArchSpec:
    named: Any = config.get("architectures")
    if not (isinstance(named, list) and len(cast("list[object]", named)) == 1 and isinstance(named[0], str)):
        raise GpusqError(
            "the config doesn't name one class under 'architectures'",
            place=str(place),
            hint='save the model with save_pretrained, or add its entry: "architectures": ["ViTModel"], or --arch',
        )
    return ArchSpec(source="transformers", name=named[0], arguments={"config": _text(config)})


def _json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise GpusqError(f"cannot read the file: {reason}", place=str(path), hint=_JSON_HINT) from error
    return parsed_config(text, place=str(path))


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)
