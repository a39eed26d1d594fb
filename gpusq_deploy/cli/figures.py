"""A comparison's figures as text."""

from __future__ import annotations

from gpusq_deploy.artifacts.receipt import PruningLoss, Verification


def figures_text(found: Verification | PruningLoss) -> str:
    """SQNR, cosine and top-1 agreement, as far as they mean anything."""
    if found.constant:
        return "nothing to see, for the output is constant"
    agreement = "" if found.top1_agreement is None else f", top-1 agreement {found.top1_agreement:.1%}"
    middle = "" if found.median_sqnr_db is None else f" (median of samples {found.median_sqnr_db:.1f})"
    return f"SQNR {found.sqnr_db:.1f} dB{middle}, cosine {found.cosine:.5f}{agreement}"
