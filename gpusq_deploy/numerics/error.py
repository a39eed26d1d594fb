"""How far two outputs are apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def sqnr_db(reference: Array, got: Array) -> float:
    """Signal to quantisation noise: 10·log10(Σ ref² / Σ (ref - got)²), in dB; infinite where they are equal."""
    ref = reference.astype(np.float64)
    noise = float(np.sum((ref - got.astype(np.float64)) ** 2))
    signal = float(np.sum(ref**2))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def cosine(reference: Array, got: Array) -> float:
    """Cosine between the two, each seen as one long vector; 0 where one of them is all zero."""
    a = reference.astype(np.float64).ravel()
    b = got.astype(np.float64).ravel()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


def top1_agreement(reference: Array, got: Array) -> float:
    """Share of samples [N, classes] whose largest logit is the same class."""
    same = np.asarray(np.argmax(reference, axis=-1) == np.argmax(got, axis=-1), dtype=np.float64)
    return float(same.mean())
