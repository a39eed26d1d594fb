"""The equations of one kernel, each against a number made by hand, and against kernels that somebody timed."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from gpusq_deploy.engines.prediction.constants import load_fitted
from gpusq_deploy.engines.prediction.devices import Device, find_device
from gpusq_deploy.engines.prediction.roofline import Constants, time_of
from gpusq_deploy.engines.prediction.work import Work

# Nothing but the roofline: no launch, no tile, no feed, no cycle limits it.
IDEAL = Constants(
    ceiling=1.0,
    fp16_feed=1e12,
    int8_feed=1e12,
    softmax=1e12,
    tile_exponent=0.0,
    dram_share=1.0,
    chip_bytes=1e12,
    launch_us=0.0,
)
# 1 FLOP and 2 INT8 operations a microsecond, 1 byte a microsecond, no cache, one SM.
SLOW = Device(
    name="slow",
    target="none",
    gpu="made up",
    sms=1,
    gigahertz=1.0,
    fp16_tflops=1e-6,
    int8_tops=2e-6,
    gigabytes_per_second=1e-3,
    l2_megabytes=0.0,
    source="made up",
)
PRODUCT = Work(role="gemm", precision="fp16", m=256, n=128, k=64, flops=2 * 256 * 128 * 64)


def test_a_product_takes_its_flops_at_peak() -> None:
    assert time_of(PRODUCT, SLOW, IDEAL).busy == pytest.approx(2 * 256 * 128 * 64)
    assert time_of(replace(PRODUCT, precision="int8"), SLOW, IDEAL).busy == pytest.approx(256 * 128 * 64)


def test_two_to_four_halves_a_product_and_stores_less() -> None:
    dense = replace(PRODUCT, weight_bytes=64, flops=0)
    assert time_of(replace(PRODUCT, sparse=True), SLOW, IDEAL).tensor == pytest.approx(256 * 128 * 64)
    assert time_of(replace(dense, sparse=True), SLOW, IDEAL).memory == pytest.approx(64 * 9 / 16)
    assert time_of(replace(dense, sparse=True, precision="int8"), SLOW, IDEAL).memory == pytest.approx(64 * 5 / 8)


def test_a_tile_on_one_of_four_sms_takes_as_long_as_on_its_own() -> None:
    """Small tiles are made so bad that the largest is taken: one tile, and three SMs with nothing to do."""
    four = msgspec.structs.replace(SLOW, sms=4)
    only_large = msgspec.structs.replace(IDEAL, tile_exponent=100.0)
    assert time_of(PRODUCT, four, only_large).tensor == pytest.approx(4 * time_of(PRODUCT, SLOW, only_large).tensor)
    # With small tiles that are as good, all four have some.
    assert time_of(PRODUCT, four, IDEAL).tensor == pytest.approx(time_of(PRODUCT, SLOW, IDEAL).tensor)


def test_what_half_of_the_cache_holds_never_goes_to_memory() -> None:
    moved = Work(role="other", moved_bytes=3_000_000)
    cached = msgspec.structs.replace(SLOW, l2_megabytes=2.0)
    assert time_of(moved, SLOW, IDEAL).memory == pytest.approx(3_000_000)
    assert time_of(moved, cached, IDEAL).memory == pytest.approx(2_000_000)
    assert time_of(replace(moved, moved_bytes=900_000), cached, IDEAL).memory == pytest.approx(0, abs=1e-3)


def test_attention_pads_its_windows() -> None:
    window = Work(role="attention", precision="fp16", m=49, n=49, k=32, count=1, flops=4 * 49 * 49 * 32)
    assert time_of(window, SLOW, IDEAL).tensor == pytest.approx(4 * 64 * 64 * 32)


def test_attention_waits_for_its_softmax() -> None:
    """A thousand scores a microsecond: one a cycle, at 1 GHz."""
    window = Work(role="attention", precision="fp16", m=64, n=64, k=32, count=2)
    slow = msgspec.structs.replace(IDEAL, softmax=1.0)
    flops = replace(window, flops=1)
    assert time_of(flops, SLOW, slow).tensor == pytest.approx(1 + 2 * 64 * 64 / 1000)


def test_a_kernel_takes_longer_than_either_of_its_terms_and_less_than_both() -> None:
    both = replace(PRODUCT, moved_bytes=PRODUCT.flops)
    time = time_of(both, SLOW, IDEAL)
    assert time.tensor == pytest.approx(time.memory)
    assert time.busy == pytest.approx(time.tensor * 2 ** (1 / 3))


# ViT-B, batch 64, TensorRT 10.11, RTX PRO 6000, by Nsight: ldu-nvidia/profiling_blackwell, reports/
# vit_fp16_vs_nvfp4_trt_10_11.md. Not among what the constants are fitted to. Microseconds.
ROWS, C = 64 * 197, 768


def _gemm(n: int, k: int) -> Work:
    return Work(
        role="gemm",
        precision="fp16",
        m=ROWS,
        n=n,
        k=k,
        flops=2 * ROWS * n * k,
        weight_bytes=2 * n * k,
        moved_bytes=2 * ROWS * (n + k),
    )


@pytest.mark.parametrize(
    ("work", "measured"),
    [
        (_gemm(4 * C, C), 188.3),
        (_gemm(C, 4 * C), 168.4),
        (_gemm(3 * C, C), 126.0),
        (_gemm(C, C), 47.5),
        (
            Work(
                role="attention",
                precision="fp16",
                m=197,
                n=197,
                k=64,
                count=64 * 12,
                flops=4 * 64 * 12 * 197 * 197 * 64,
                moved_bytes=8 * ROWS * C,
            ),
            44.5,
        ),
    ],
    ids=["fc1", "fc2", "qkv", "proj", "attention"],
)
def test_kernels_that_somebody_timed(work: Work, measured: float) -> None:
    predicted = time_of(work, find_device("rtx-pro-6000"), load_fitted().constants).busy
    assert predicted == pytest.approx(measured, rel=0.3)
