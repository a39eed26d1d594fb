"""How long one kernel takes: the roofline of Williams et al. (2009), with what bends it on tensor cores.

    time = launch + (tensor^3 + memory^3)^(1/3)

Two terms that overlap, so that the longer one rules; where they are alike a kernel takes a quarter longer than either.

    tensor = FLOPs / peak · (1 / ceiling + feed rate / feed) / useful                               products
    tensor = (padded FLOPs / peak · (1 / ceiling + feed rate / feed) + scores / softmax) / waves     fused attention

- feed rate is what an SM's tensor cores read in a cycle at peak: FLOPs a cycle and SM · bytes of an element, in units
  of 2048. A GPU with fast tensor cores (A100: 2, H100: 4) stays further below its peak than one with slow ones
  (GeForce: 0.5), and INT8, twice as fast on half the bytes, gains less than twofold. `feed` is how much of it arrives.
- useful is the share of the tiles that holds results: M · N / (waves · SMs · tile), with waves = ceil(tiles / SMs), for
  the tile that is best of six. A smaller tile is fed worse: (its M·N/(M+N) over that of 256x128) ^ tile exponent.
- an attention's queries and keys are padded to 16, and its blocks of 64 queries fill whole waves too. Of its scores,
  padded queries times keys, each SM takes `softmax` a cycle, while its tensor cores wait.
- 2:4 weights halve the FLOPs, and a product reads the activations and half of the weights: 3/4 of the feed.

    memory = (dram^3 + chip^3)^(1/3)
    dram = (weights + moved · (1 - hit)) / (bandwidth · share),    hit = min(1, L2 / (2 · moved))
    chip = moved / (bytes a cycle · SMs · clock)

What a kernel reads was written by the one before: as much of it as half of the L2 holds never goes to memory. A kernel
moves so many bytes a cycle in each SM whatever memory does. 2:4 weights are stored as 9/16 (FP16) or 5/8 (INT8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gpusq_deploy.artifacts import Value
from gpusq_deploy.engines.prediction.devices import Device
from gpusq_deploy.engines.prediction.work import Work

# Of M and N; what libraries of GEMMs have for Turing to Blackwell.
_TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
_LARGEST = 256 * 128 / (256 + 128)
_FEED_UNIT = 2048
_PADDED, _QUERIES = 16, 64
_SPARSE_FEED = 0.75
_SPARSE_BYTES = {"int8": 5 / 8}
_SPARSE_FP16_BYTES = 9 / 16

Bound = Literal["tensor cores", "memory", "launch"]


class Constants(Value):
    """What is fitted to published measurements, the same for every device.

    Attributes:
        ceiling: Share of peak that a product reaches where nothing else limits it.
        fp16_feed, int8_feed: How well tensor cores are fed; larger is better.
        softmax: Scores of fused attention that an SM takes in a cycle.
        tile_exponent: How much worse smaller tiles are fed.
        dram_share: Share of the memory's bandwidth that kernels reach.
        chip_bytes: Bytes that an SM moves in a cycle.
        launch_us: From the end of one kernel to the start of the next, and its ramp, microseconds.
    """

    ceiling: float
    fp16_feed: float
    int8_feed: float
    softmax: float
    tile_exponent: float
    dram_share: float
    chip_bytes: float
    launch_us: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkTime:
    """Microseconds of one kernel: its launch, what tensor cores and memory need, and both together without launch."""

    launch: float
    tensor: float
    memory: float
    busy: float

    @property
    def total(self) -> float:
        """From launch to end."""
        return self.launch + self.busy

    @property
    def bound(self) -> Bound:
        """The longest of the three."""
        if self.launch > self.busy:
            return "launch"
        return "tensor cores" if self.tensor > self.memory else "memory"


def time_of(work: Work, device: Device, constants: Constants) -> WorkTime:
    """What one kernel takes on a device, by the equations of this module."""
    tensor, memory = _tensor(work, device, constants), _memory(work, device, constants)
    return WorkTime(launch=constants.launch_us, tensor=tensor, memory=memory, busy=_either(tensor, memory))


def _either(one: float, other: float) -> float:
    return math.pow(one**3 + other**3, 1 / 3)


def _tensor(work: Work, device: Device, constants: Constants) -> float:
    if work.role == "other" or not work.flops:
        return 0.0
    int8 = work.precision == "int8"
    peak = device.peak(work.precision)
    rate = peak * 1e6 / (device.sms * device.gigahertz * 1e9) * (1 if int8 else 2) / _FEED_UNIT
    feed = rate / (constants.int8_feed if int8 else constants.fp16_feed)
    if work.role == "attention":
        full = _padded(work) / _wave_share(work.count * math.ceil(work.m / _QUERIES), device.sms)
        scores = work.count * work.m * (work.n or work.m) / (constants.softmax * device.sms * device.gigahertz * 1e3)
        return (work.flops / peak * (1 / constants.ceiling + feed) + scores) * full
    ideal = 0.5 / constants.ceiling + _SPARSE_FEED * feed if work.sparse else 1 / constants.ceiling + feed
    return work.flops / peak * ideal / _useful(work, device.sms, constants.tile_exponent)


def _padded(work: Work) -> float:
    sides = (work.m, work.n or work.m)
    return math.prod(math.ceil(side / _PADDED) * _PADDED / side for side in sides)


def _wave_share(blocks: int, sms: int) -> float:
    return blocks / (math.ceil(blocks / sms) * sms)


def _useful(work: Work, sms: int, exponent: float) -> float:
    return max(_tile_share(work, sms, tile) * _tile_quality(tile, exponent) for tile in _TILES)


def _tile_share(work: Work, sms: int, tile: tuple[int, int]) -> float:
    tiles = math.ceil(work.m / tile[0]) * math.ceil(work.n / tile[1]) * work.count
    held = work.m * work.n * work.count / (tiles * tile[0] * tile[1])
    return held * _wave_share(tiles, sms)


def _tile_quality(tile: tuple[int, int], exponent: float) -> float:
    return math.pow(tile[0] * tile[1] / (tile[0] + tile[1]) / _LARGEST, exponent)


def _memory(work: Work, device: Device, constants: Constants) -> float:
    stored = work.weight_bytes * (_SPARSE_BYTES.get(work.precision, _SPARSE_FP16_BYTES) if work.sparse else 1)
    hit = min(1.0, device.l2_megabytes * 1e6 / 2 / max(work.moved_bytes, 1))
    bandwidth = device.gigabytes_per_second * 1e3 * constants.dram_share
    dram = (stored + work.moved_bytes * (1 - hit)) / bandwidth
    chip = work.moved_bytes / (constants.chip_bytes * device.sms * device.gigahertz * 1e3)
    return _either(dram, chip)
