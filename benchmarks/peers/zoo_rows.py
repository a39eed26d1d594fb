"""What is measured of a model of the zoo."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from PIL import Image

import gpusq_deploy
from gpusq_deploy.benchmarks.accuracy.bootstrap import Statistic, paired_intervals
from gpusq_deploy.benchmarks.peers.zoo_cards import Card, Variant
from gpusq_deploy.benchmarks.peers.zoo_models import file_of
from gpusq_deploy.benchmarks.peers.zoo_words import character_errors, ctc_text
from gpusq_deploy.calibration import sample_from_image
from gpusq_deploy.frontend import array_from_tensor

_DRAWS = 2000
_BATCH = 32
_THEIRS = "azcrawlerpy"
_SIZE = (32, 128)  # the widest of the four that they read at, and the one that the zoo builds

Array = npt.NDArray[Any]
Row = dict[str, Any]


def built(card: Card, work: Path) -> dict[str, Path]:
    """The bundles that are there, by variant."""
    found = {variant: work / file for variant, file in card.files().items()}
    return {variant: path for variant, path in found.items() if path.exists()}


def evaluation_of(card: Card, work: Path) -> Path:
    """Where the evaluation of a model is kept."""
    return work / f"{card.key}.eval.json"


def sizes(card: Card, work: Path) -> Row:
    """Bytes of the checkpoint in float32 and of each bundle's model.onnx, and its SQNR as the build found it."""
    bundles = built(card, work)
    receipts = {variant: gpusq_deploy.open_bundle(path).receipt.verification for variant, path in bundles.items()}
    dense = work / f"{card.key}.pt"
    return {
        "bytes": {
            **({"float": dense.stat().st_size} if dense.exists() else {}),
            **{variant: (path / "model.onnx").stat().st_size for variant, path in bundles.items()},
        },
        "sqnr_db": {variant: None if found is None else found.sqnr_db for variant, found in receipts.items()},
    }


def of_evaluation(card: Card, found: Row, work: Path) -> Row:
    """Scores out of gpusq-eval's JSON, and the cosine of features where it kept these."""
    variants = evaluated(card, found)
    first, *others = found["subjects"]
    wanted = [score["measure"] for score in first["scores"] if score["measure"] in card.measures]
    scores = {
        measure: {
            name: {key: value for key, value in score.items() if key != "measure" and value is not None}
            for name, subject in zip(("float", *variants), (first, *others), strict=True)
            for score in subject["scores"]
            if score["measure"] == measure
        }
        for measure in wanted
    }
    row: Row = {"n": found["images"], "scores": scores}
    if card.task == "retrieval":
        row["cosine"] = dict(zip(variants, _cosines(work / f"{card.key}.jsonl"), strict=True))
    return row


def of_compression(card: Card, work: Path) -> Row:
    """What gpusq-compress found of its own 2:4 models, which are float, on the images that it held out."""
    kept = work / f"{card.key}-24.json"
    if not (work / f"{card.key}-24.pt").exists() or not kept.exists():
        return {}
    found: Row = json.loads(kept.read_text("utf-8"))
    scores = found["held_out"]
    return {
        "compressed": {
            "n": found["held_out_images"],
            "measure": scores["measure"],
            "float": scores["dense"],
            "2:4 INT8, second-order": scores["pruned"],
            "2:4 INT8, reconstruction": scores["recovered"],
        }
    }


def evaluated(card: Card, found: Row) -> list[Variant]:
    """The variants that gpusq-eval's JSON has, in its order, which is the card's."""
    names = {Path(subject["name"]).name for subject in found["subjects"]}
    return [variant for variant, file in card.files().items() if file in names]


def _cosines(predictions: Path) -> Iterator[float]:
    """Mean cosine of each other model's features with the first's; one model's lines follow another's."""
    vectors: dict[str, dict[int, Array]] = {}
    for line in predictions.read_text("utf-8").splitlines()[1:]:
        held = json.loads(line)
        vector = np.frombuffer(base64.b64decode(held["prediction"]["vector"]), "<f4").astype(np.float64)
        vectors.setdefault(held["subject"], {})[held["index"]] = vector
    first, *others = ([found[index] for index in sorted(found)] for found in vectors.values())
    for other in others:
        yield float(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, other, strict=True)]))


def of_words(card: Card, work: Path) -> Row:
    """Exact words and character errors of all models, and how many readings the package's own code shares."""
    files = sorted((work / card.judged).glob("*.png"))
    labels: list[str] = json.loads((work / f"{card.judged}.json").read_text("utf-8"))
    theirs = their_code()
    alphabet: str = theirs.CHARSET
    read = {"float": ctc_text(_by_torch(card, work, files), alphabet)}
    plain = {"float": _by_their_code(theirs, file_of(card.package), files)}
    for variant, path in built(card, work).items():
        with gpusq_deploy.open_bundle(path).session("onnxruntime") as session:
            (answers,) = session.run(files).values()
        read[variant] = ctc_text(answers, alphabet)
        plain[variant] = _by_their_code(theirs, path / "model.onnx", files)
    errors = {
        name: np.array([character_errors(*pair) for pair in zip(labels, texts, strict=True)], np.float64)
        for name, texts in read.items()
    }
    return {
        "n": len(files),
        "scores": _word_scores(errors, np.array([len(label) for label in labels], np.float64)),
        "agreement": {
            name: {"n": len(texts), "agree": sum(a == b for a, b in zip(texts, plain[name], strict=True))}
            for name, texts in read.items()
        },
    }


def _word_scores(errors: dict[str, Array], lengths: Array) -> Row:
    """Both measures of each model, and of all but the first the difference from it with its interval."""
    names, statistics = list(errors), [_statistic(found, lengths) for found in errors.values()]
    measures = [statistic(np.ones_like(lengths)) for statistic in statistics]
    intervals = paired_intervals(statistics, len(lengths), draws=_DRAWS, seed=0)
    scores: Row = {}
    for place, measure in enumerate(("exact words", "character error rate")):
        scores[measure] = {names[0]: {"value": float(measures[0][place])}}
        for name, mine, interval in zip(names[1:], measures[1:], intervals, strict=True):
            low, high = interval[place]
            difference = float(mine[place] - measures[0][place])
            scores[measure][name] = {"value": float(mine[place]), "difference": difference, "low": low, "high": high}
    return scores


def _statistic(errors: Array, lengths: Array) -> Statistic:
    """The share of words without an error, and errors for each character, of words drawn so often."""

    def statistic(weights: Array) -> Array:
        return np.array([weights @ (errors == 0) / weights.sum(), weights @ errors / (weights @ lengths)])

    return statistic


def _by_torch(card: Card, work: Path, files: Sequence[Path]) -> Array:
    checkpoint = gpusq_deploy.load_checkpoint(work / f"{card.key}.pt", arch=card.arch)
    samples = np.stack([sample_from_image(Image.open(file), checkpoint.preprocessing) for file in files])
    with torch.no_grad():
        parts = [checkpoint.module(part) for part in torch.split(torch.from_numpy(samples), _BATCH)]
    return np.concatenate([array_from_tensor(part) for part in parts])


def their_code() -> ModuleType:
    """The recogniser of azcrawlerpy, without the browser that its packages import.

    Raises:
        SystemExit: It isn't installed.
    """
    spec = util.find_spec(_THEIRS)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{_THEIRS} isn't installed, whose own reading of words ours is compared with")
    root = Path(spec.submodule_search_locations[0])
    for name in (_THEIRS, f"{_THEIRS}.captcha", f"{_THEIRS}.captcha.text"):
        module = ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    return import_module(f"{_THEIRS}.captcha.text.recognizer")


def _by_their_code(theirs: Any, model: Path, files: Sequence[Path]) -> list[str]:
    """Their resizing and their CTC around ONNX Runtime as it comes."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    texts = list[str]()
    for start in range(0, len(files), _BATCH):
        crops = [Image.open(file) for file in files[start : start + _BATCH]]
        (answers,) = session.run(None, {name: np.stack([theirs.preprocess(crop, _SIZE) for crop in crops])})
        texts += [text for text, _ in theirs.ctc_decode(np.asarray(answers, np.float32))]
    return texts
