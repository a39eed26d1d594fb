from __future__ import annotations

import shlex
from importlib import resources

import pytest

from gpusq_deploy.engines.targets import (
    GemmNeed,
    Target,
    check_request,
    find_target,
    load_targets,
    padding_notes,
    skipped_target,
    target_from_toml,
    unique_targets,
)
from gpusq_deploy.errors import GpusqError

CAPABILITIES = {
    "a100": "8.0",
    "gb10": "12.1",
    "h100": "9.0",
    "l4": "8.9",
    "l40s": "8.9",
    "orin": "8.7",
    "rtx30": "8.6",
    "rtx40": "8.9",
    "rtx50": "12.0",
}


def need(*, precision: str = "int8", sparse: bool = False, n: int = 384, k: int = 384) -> GemmNeed:
    if precision not in ("int8", "fp16"):
        raise AssertionError(precision)
    return GemmNeed(layer="fc1", n=n, k=k, precision="int8" if precision == "int8" else "fp16", sparse=sparse)


def text_of(name: str) -> str:
    return (resources.files("gpusq_deploy.engines") / "targets" / f"{name}.toml").read_text(encoding="utf-8")


def test_the_known_targets() -> None:
    assert {target.name: target.compute_capability for target in load_targets()} == CAPABILITIES


def test_every_target_says_what_isnt_known() -> None:
    assert all(target.unknowns for target in load_targets())


def test_peaks_are_those_of_the_fastest_gpu_or_the_bound_isnt_one() -> None:
    # Memory of A100 80 GB SXM, L4 and L40S by NVIDIA's data sheets. A target that nothing is compared for has none.
    peaks = {target.name: target.peaks for target in load_targets() if target.peaks is not None}
    bandwidths = {"a100": 2039, "h100": 4800, "l4": 300, "l40s": 864}
    assert {name: peak.gigabytes_per_second for name, peak in peaks.items()} == bandwidths
    # h100's are for the GPU suite, which holds them against what it measures.
    assert all("tensorrt-rtx" in find_target(name).ahead_of_time for name in peaks if name != "h100")
    assert peaks["a100"].microseconds_to_move(2039 * 10**3) == pytest.approx(1)


@pytest.mark.parametrize("name", ["orin", "h100"])
def test_rtx_never_builds_for_orin_or_hopper(name: str) -> None:
    target = find_target(name)
    assert target.ahead_of_time == ()
    assert target.on_device == ("tensorrt",)


@pytest.mark.parametrize(
    ("alias", "name"), [("SM87", "orin"), ("h200", "h100"), ("Orin-Nano", "orin"), ("sm89", "rtx40")]
)
def test_aliases_in_any_case(alias: str, name: str) -> None:
    assert find_target(alias).name == name


def test_a_near_miss_is_guessed() -> None:
    with pytest.raises(GpusqError, match="unknown target 'orim'") as caught:
        find_target("orim")
    assert str(caught.value.hint).startswith("did you mean orin? known targets: a100, gb10,")


def test_a_far_miss_isnt() -> None:
    with pytest.raises(GpusqError) as caught:
        find_target("abacus")
    assert str(caught.value.hint).startswith("known targets: ")


def test_duplicates_are_refused() -> None:
    orin = find_target("orin")
    with pytest.raises(GpusqError, match="the target name 'orin' is used twice"):
        unique_targets([orin, orin])


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('name = "orin"', 'name = "orin"\ncolour = "green"', "colour"),
        ('name = "orin"', "name = 3", "name"),
        ('"8.7"', '"87"', "compute_capability must look like"),
        ('on_device = ["tensorrt"]', "on_device = []", "no backend builds"),
        ('on_device = ["tensorrt"]', 'on_device = ["abacus"]', "abacus"),
        ('name = "orin"', "name = ", "TOML|Invalid value"),
    ],
)
def test_a_bad_file_is_refused(old: str, new: str, match: str) -> None:
    text = text_of("orin")
    assert old in text
    with pytest.raises(GpusqError, match=match) as caught:
        target_from_toml(text.replace(old, new), place="orin.toml")
    assert caught.value.place == "orin.toml"


def test_all_problems_of_a_request_are_told_at_once() -> None:
    dense = Target(
        name="old",
        gpus="an old one",
        compute_capability="7.5",
        ahead_of_time=("tensorrt-rtx",),
        on_device=(),
        runtime_versions={},
        releases={},
        dtypes=("fp16",),
        sparse_dtypes=(),
        alignments=find_target("a100").alignments,
        unknowns=(),
    )
    assert check_request(dense, [need(), need(precision="fp16"), need(precision="fp16", sparse=True)]) == [
        "fc1: old has no int8 tensor cores; it has fp16",
        "fc1: old has no 2:4 sparse fp16 kernels; sparse types: none",
    ]
    assert check_request(find_target("orin"), [need(sparse=True)]) == []


def test_sizes_that_are_padded_are_noted() -> None:
    orin = find_target("orin")
    assert padding_notes(orin, [need(), need(precision="fp16", n=10), need(n=1000, k=384)]) == [
        "fc1: INT8 wants K a multiple of 16 and N of 16; K=384 N=1000 will be padded"
    ]
    assert padding_notes(orin, [need(sparse=True, k=96)]) == [
        "fc1: sparse INT8 wants K a multiple of 64 and N of 16; K=96 N=384 will be padded"
    ]


def test_a_skipped_target_says_how_to_finish() -> None:
    skipped = skipped_target(find_target("orin"), bundle="out", reasons=["one", "two"])
    assert (skipped.reason, skipped.command) == ("one; two", "gpusq-build out --target orin")
    skipped = skipped_target(find_target("orin"), bundle="my model.gpusq", reasons=["one"])
    assert shlex.split(skipped.command) == ["gpusq-build", "my model.gpusq", "--target", "orin"]
