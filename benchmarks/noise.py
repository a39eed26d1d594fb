"""What effects a machine can see: one model against itself, kept for later verdicts."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import numpy as np

from gpusq_deploy.artifacts import Value
from gpusq_deploy.benchmarks.gate import GateResult, log_ratios
from gpusq_deploy.benchmarks.gate_batches import Clock
from gpusq_deploy.benchmarks.sequential import FIRST_LOOK, REGRESSED_ERROR, Differences, averages, looks

CALIBRATION_PAIRS = 20
_POWER = 0.99
_NORMAL = NormalDist()


class NoiseBatch(Value):
    """One batch size: spread and centre of a pair's log ratio; 0 is the centre on a machine that treats both alike."""

    batch: int
    spread: float
    centre: float


class MachineNoise(Value):
    """What an A/A comparison found on one machine: pairs that were taken, seconds of one, and the load average.

    `pairing` is what makes up a pair's ratio; older files were made turn by turn, which spreads more.
    """

    schema: Literal["gpusq.noise/1"] = "gpusq.noise/1"
    created: str
    cpu: str
    cores: int
    gpu: str | None
    runtime: str
    threads: int | None
    model: str
    pairs: int
    pair_seconds: float
    load: float | None
    batches: tuple[NoiseBatch, ...]
    clock: Clock = "wall time"
    pairing: str = "turn by turn"

    def smallest_effect(self, batch: int, seconds: float, families: int = 0) -> float | None:
        """How far beyond the budget a head must be, as a share, to be called regressed in 99 % of gates in that time.

            (Φ⁻¹(1 - alpha_k) + Φ⁻¹(0.99)) · spread / √pairs        at the last look k that the time allows

        None: the time isn't enough for the first look, or the batch size wasn't measured. `families` batch sizes share
        the errors; 0: those that were calibrated.
        """
        spreads = [entry.spread for entry in self.batches if entry.batch == batch]
        allowed = int(seconds / self.pair_seconds)
        if not spreads or allowed < FIRST_LOOK:
            return None
        last = None
        for look in looks():
            if look.pairs > allowed:
                break
            last = look
        assert last is not None, "the first look was allowed"
        level = REGRESSED_ERROR * last.share / (families or len(self.batches))
        z = _NORMAL.inv_cdf(1 - level) + _NORMAL.inv_cdf(_POWER)
        return math.expm1(z * spreads[0] / math.sqrt(last.pairs))


def noise_of(result: GateResult) -> MachineNoise:
    """The noise that a gate of one model against itself found."""
    runs = result.base
    loads = [load for load in result.loads if load is not None]
    return MachineNoise(
        created=runs.created,
        cpu=runs.environment.cpu,
        cores=runs.environment.cores,
        gpu=runs.environment.gpu,
        runtime=runs.runtime.name,
        threads=runs.runtime.threads,
        model=runs.model,
        pairs=len(result.pair_seconds),
        pair_seconds=float(np.median(result.pair_seconds)),
        load=float(np.mean(loads)) if loads else None,
        batches=tuple(_batch(batch, log_ratios(result, batch)) for batch in runs.batches),
        clock=result.batches[0].clock,
        pairing=_pairing(result),
    )


def unlike(noise: MachineNoise, result: GateResult) -> tuple[str, ...]:
    """Why the noise says nothing about a gate: another machine, runtime or number of threads."""
    runs = result.base
    facts = {
        "CPU": (noise.cpu, runs.environment.cpu),
        "cores": (noise.cores, runs.environment.cores),
        "GPU": (noise.gpu, runs.environment.gpu),
        "runtime": (noise.runtime, runs.runtime.name),
        "threads": (noise.threads, runs.runtime.threads),
        "clock": (noise.clock, result.batches[0].clock),
        "pairs": (noise.pairing, _pairing(result)),
    }
    return tuple(
        f"{name}: {theirs} calibrated, {ours} here" for name, (theirs, ours) in facts.items() if theirs != ours
    )


def _pairing(result: GateResult) -> str:
    shared = bool(result.cores) and None not in result.cores
    return f"A B B A{' on a shared core' if shared else ''}"


def spread_of(differences: Differences) -> float:
    """Spread of one pair's log ratio, of the kind that the signed-rank test feels: outliers hardly count.

    The standard error of the middle of all averages is half the width of their signed-rank interval of ± one standard
    error; times √n that of one pair.
    """
    count = differences.size
    walsh = averages(differences)
    deviation = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    low, high = (walsh.size / 2 - deviation, walsh.size / 2 + deviation)
    edges = walsh[[max(0, math.floor(low)), min(walsh.size - 1, math.ceil(high) - 1)]]
    return float(edges[1] - edges[0]) / 2 * math.sqrt(count)


def _batch(batch: int, differences: Differences) -> NoiseBatch:
    centre = float(np.median(averages(differences)))
    return NoiseBatch(batch=batch, spread=spread_of(differences), centre=centre)
