"""Words with labels for free: drawn by Pillow in fonts that matplotlib ships, blurred, turned and noisy.

Words are those of scikit-learn's descriptions of its data sets, and numbers. Fonts and words to fit on are others than
those to judge on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import util
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_FACES = re.compile(r"(DejaVu(Sans|Serif|SansMono)(-\w+)?|STIXGeneral\w*|cm(b|r|ss|tt)10)\.ttf")
_WORD = re.compile(r"\b[A-Za-z]{4,10}\b")
_NUMBERS = 0.15
_SIZE, _MARGIN = 40, 12

Pixels = npt.NDArray[np.uint8]


def fonts(*, judged: bool) -> list[Path]:
    """Every other face of text that matplotlib ships, in alphabetical order.

    Raises:
        SystemExit: matplotlib isn't installed.
    """
    spec = util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("matplotlib isn't installed, whose fonts draw the words")
    folder = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    return sorted(path for path in folder.iterdir() if _FACES.fullmatch(path.name))[int(judged) :: 2]


def words(*, judged: bool) -> list[str]:
    """Every other word of the descriptions, as it stands there, in alphabetical order."""
    import sklearn

    folder = Path(sklearn.__file__).parent / "datasets" / "descr"
    texts = [path.read_text("utf-8") for path in sorted(folder.glob("*.rst"))]
    return sorted({word for text in texts for word in _WORD.findall(text)})[int(judged) :: 2]


def drawn(word: str, font: Path, rng: np.random.Generator) -> Pixels:
    """One crop, uint8 [h, w, 3], as wide as its word."""
    face = ImageFont.truetype(str(font), _SIZE)
    left, top, right, bottom = (int(side) for side in face.getbbox(word))
    size = (right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN)
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).text((_MARGIN - left, _MARGIN - top), word, fill=255, font=face)
    mask = mask.rotate(float(rng.uniform(-4, 4)), Image.Resampling.BICUBIC)
    mask = mask.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 3.5))))
    share = np.asarray(mask, np.float32)[:, :, None] / 255
    paper, ink = rng.uniform(60, 195, 3), rng.uniform(25, 110) * rng.choice((-1.0, 1.0))
    slope = np.linspace(-1, 1, size[0])[None, :, None] * rng.uniform(-30, 30, 3)
    noise = rng.normal(0, float(rng.uniform(0, 45)), (size[1], size[0], 3))
    crop: npt.NDArray[np.uint8] = np.clip(paper + slope + share * ink + noise, 0, 255).astype(np.uint8)
    return crop


def write_words(folder: Path, count: int, *, judged: bool) -> list[str]:
    """`count` crops as NNNN.png, and their words in labels.json beside the folder; the words, in order."""
    rng = np.random.default_rng(int(judged))
    faces, known = fonts(judged=judged), words(judged=judged)
    labels = list[str]()
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        number = rng.random() < _NUMBERS
        word = str(rng.integers(1000, 9_999_999)) if number else known[int(rng.integers(len(known)))]
        Image.fromarray(drawn(word, faces[index % len(faces)], rng)).save(folder / f"{index:04d}.png")
        labels.append(word)
    folder.with_suffix(".json").write_text(json.dumps(labels), "utf-8")
    return labels


def character_errors(wanted: str, read: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions."""
    row = list(range(len(read) + 1))
    for place, character in enumerate(wanted, 1):
        before, row = row, [place]
        for column, other in enumerate(read, 1):
            row.append(min(row[-1] + 1, before[column] + 1, before[column - 1] + (character != other)))
    return row[-1]


def ctc_text(logits: npt.NDArray[np.float32], alphabet: Sequence[str]) -> list[str]:
    """Greedy CTC of [N, steps, 1 + letters]: the likeliest of each step, repetitions once, without blanks (0)."""
    texts = list[str]()
    for steps in logits.argmax(axis=2):
        kept = [int(step) for place, step in enumerate(steps) if step and (place == 0 or step != steps[place - 1])]
        texts.append("".join(alphabet[step - 1] for step in kept))
    return texts
