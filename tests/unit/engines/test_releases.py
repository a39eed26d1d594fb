"""The table of releases against the installed TensorRT-RTX, and against TensorRT's stubs."""

from __future__ import annotations

import importlib.util
import re
import types
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import onnx.parser
import pytest

from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.engines.api import BackendName, find_api
from gpusq_deploy.engines.build_log import BuildLog
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.option_text import OPTION_NAMES, options_from_text, texts_from_options
from gpusq_deploy.engines.releases import (
    RELEASES,
    opset_problem,
    option_problems,
    release_here,
    release_of,
    releases_for,
    wanted_flags,
)
from gpusq_deploy.engines.targets import Target, find_target, load_targets
from gpusq_deploy.engines.timing_cache import cache_file, read_cache, write_cache
from gpusq_deploy.errors import GpusqError

STUBS = Path(__file__).resolve().parents[3] / ".venv" / "stubs" / "tensorrt_bindings" / "tensorrt.pyi"
EVERYTHING = EngineOptions(
    strip=True,
    weight_streaming=True,
    version_compatible=True,
    timing_cache="caches",
    editable_cache=True,
    error_on_cache_miss=True,
)
VERSIONS = [row.version for row in RELEASES if row.backend == "tensorrt"]
BATCH = BatchRange(minimum=1, optimum=8, maximum=32)
RTX = release_of("tensorrt-rtx", "1.7.1.116")

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)


def members(name: str) -> set[str]:
    """An enumeration's members in the stubs, which are those of 10.13."""
    if not STUBS.is_file():
        pytest.skip("tensorrt-stubs aren't installed here; make install puts them beside the virtual environment")
    body = re.split(r"^class ", STUBS.read_text(), flags=re.MULTILINE)
    text = next(part for part in body if part.startswith(f"{name}:"))
    return set(re.findall(rf"^    ([A-Z0-9_]+): typing.ClassVar\[{name}\]", text, flags=re.MULTILINE))


def test_flags_of_every_10_are_in_the_stubs_of_10_13() -> None:
    flags, levels = members("BuilderFlag"), members("HardwareCompatibilityLevel")
    rows = [row for row in RELEASES if row.backend == "tensorrt" and row.version.startswith("10.")]
    assert len(rows) == 6
    for row in rows:
        assert set(row.flags) <= flags
        assert set(row.hardware) <= levels
    assert set(release_of("tensorrt", "10.13").hardware) == levels - {"NONE"}
    assert "STRONGLY_TYPED" in members("NetworkDefinitionCreationFlag")


@needs_rtx
def test_rtxs_row_is_what_its_module_says() -> None:
    api = find_api("tensorrt-rtx")
    assert not isinstance(api, str)
    assert set(RTX.flags) <= set(api.BuilderFlag.__members__)
    assert "STRONGLY_TYPED" in api.NetworkDefinitionCreationFlag.__members__


@needs_rtx
def test_rtxs_parser_takes_attention() -> None:
    api = find_api("tensorrt-rtx")
    assert not isinstance(api, str)
    log = BuildLog()
    logger = log.as_logger(api)
    network = api.Builder(logger).create_network(0)
    text = "g (float16[4,2,64,32] x) => (float16[4,2,64,32] y) { y = Attention(x, x, x) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]>\n{text}')
    assert api.OnnxParser(network, logger).parse(model.SerializeToString())


@pytest.mark.parametrize(
    ("version", "row"),
    [
        ("8.6", "10.3"),
        ("10.3.0", "10.3"),
        ("10.7", "10.4"),
        ("10.8.0", "10.8"),
        ("10.13.3.9", "10.9"),
        ("10.15", "10.14"),
        ("10.16.1", "10.16"),
        ("11.5", "11.4"),
    ],
)
def test_a_row_holds_until_the_next(version: str, row: str) -> None:
    assert release_of("tensorrt", version).version == row


def test_what_each_release_cant_do() -> None:
    problems = {f"{row.backend} {row.version}": option_problems(EVERYTHING, row, driver=False) for row in RELEASES}
    assert problems["tensorrt 10.3"] == ["editable-cache: tensorrt 10.3 has no builder flag EDITABLE_TIMING_CACHE"]
    assert all(problems[f"tensorrt {version}"] == [] for version in ("10.8", "10.9", "10.14", "10.16", "11.4"))
    words = " ".join(problems["tensorrt-rtx 1.7"])
    assert all(part in words for part in ("VERSION_COMPATIBLE", "needs a CUDA driver", "times nothing"))
    assert len(problems["tensorrt-rtx 1.7"]) == 3


def test_stripping_on_rtx_needs_a_driver_and_nothing_else() -> None:
    strip = EngineOptions(strip=True)
    assert option_problems(strip, RTX, driver=True) == []
    assert len(option_problems(strip, RTX, driver=False)) == 1


def test_the_limit_on_tactics_came_with_10_4() -> None:
    """JetPack 6 has 10.3: without the table the build would end in an attribute that isn't there."""
    options = EngineOptions(tactics=4)
    problems = {version: option_problems(options, release_of("tensorrt", version), driver=True) for version in VERSIONS}
    assert problems["10.3"] == [
        "tactics=4: tensorrt 10.3 has no such limit; level=0...5 has a say in how many are tried"
    ]
    assert all(problems[version] == [] for version in VERSIONS if version != "10.3")
    here = release_here("tensorrt", pretended("10.8", (), (), limits=()))
    assert len(option_problems(options, here, driver=True)) == 1
    assert option_problems(options, RTX, driver=False) == []


@pytest.mark.parametrize(("version", "count"), [("10.3", 1), ("10.8", 1), ("10.9", 0), ("10.16", 0), ("11.4", 0)])
def test_hardware_levels(version: str, count: int) -> None:
    options = EngineOptions(hardware="same-compute-capability")
    assert len(option_problems(options, release_of("tensorrt", version), driver=True)) == count


def pretended(
    version: str, flags: Collection[str], levels: Collection[str], limits: Collection[str] = ("max_num_tactics",)
) -> Any:
    """An installed module, as far as it is asked what it can do."""
    flag, level = (types.SimpleNamespace(__members__=dict.fromkeys(names)) for names in (flags, levels))
    config = types.SimpleNamespace(**dict.fromkeys(limits))
    return types.SimpleNamespace(
        __version__=version, BuilderFlag=flag, HardwareCompatibilityLevel=level, IBuilderConfig=config
    )


EVERYWHERE = msgspec.structs.replace(EVERYTHING, hardware="same-compute-capability")


def test_tensorrt_10_13_can_do_what_its_own_stubs_say() -> None:
    api = pretended("10.13.3.9", members("BuilderFlag"), members("HardwareCompatibilityLevel"))
    here = release_here("tensorrt", api)
    assert option_problems(EVERYWHERE, here, driver=True) == []
    # The opset of BF16's and INT4's defaults.
    assert opset_problem(21, [here]) == ""
    assert opset_problem(25, [here]) == "opset 25: too new for tensorrt 10.13.3.9 (to 22)"


def test_the_module_goes_before_the_table() -> None:
    row = release_of("tensorrt", "10.5")
    more = pretended("10.5.0", [*row.flags, "EDITABLE_TIMING_CACHE"], ["NONE", "SAME_COMPUTE_CAPABILITY"])
    assert len(option_problems(EVERYWHERE, row, driver=True)) == 2
    assert option_problems(EVERYWHERE, release_here("tensorrt", more), driver=True) == []
    row = release_of("tensorrt", "10.16")
    fewer = pretended("10.16.1", [flag for flag in row.flags if flag != "STRIP_PLAN"], ["NONE", "AMPERE_PLUS"])
    assert option_problems(EVERYWHERE, row, driver=True) == []
    assert option_problems(EVERYWHERE, release_here("tensorrt", fewer), driver=True) == [
        "strip: tensorrt 10.16.1 has no builder flag STRIP_PLAN",
        "hardware=same-compute-capability: tensorrt 10.16.1 has ampere-plus",
    ]


@needs_rtx
def test_of_rtx_the_table_knows_what_its_module_names_and_cant_do() -> None:
    api = find_api("tensorrt-rtx")
    assert not isinstance(api, str)
    assert {flag for _, flag in wanted_flags(EVERYWHERE)} <= set(api.BuilderFlag.__members__)
    here = release_here("tensorrt-rtx", api)
    assert (here.flags, here.hardware) == (RTX.flags, ())
    later = pretended("1.9", [flag for flag in RTX.flags if flag != "WEIGHT_STREAMING"], ["NONE"])
    assert set(RTX.flags) - set(release_here("tensorrt-rtx", later).flags) == {"WEIGHT_STREAMING"}


@pytest.mark.parametrize("target", load_targets(), ids=lambda target: target.name)
def test_every_target_names_rows_of_the_table_for_each_of_its_backends(target: Target) -> None:
    backends: set[BackendName] = {*target.ahead_of_time, *target.on_device}
    assert set(target.releases) == set(target.runtime_versions) == backends
    assert all(releases_for(target, backend) for backend in backends)


def test_orin_has_both_jetpacks() -> None:
    opsets = [row.opset for row in releases_for(find_target("orin"), "tensorrt")]
    assert opsets == [20, 24]
    gone = msgspec.structs.replace(find_target("orin"), releases={"tensorrt": ("9.9",)})
    with pytest.raises(GpusqError, match=r"lacks one of tensorrt 9\.9"):
        releases_for(gone, "tensorrt")


@pytest.mark.parametrize(
    ("opset", "versions", "said"),
    [
        (20, ("10.3",), ""),
        (21, ("10.3",), "opset 21: too new for tensorrt 10.3 (to 20)"),
        (21, ("10.3", "11.4"), ""),
        (25, ("10.3", "11.4"), "too new for tensorrt 10.3 (to 20) or tensorrt 11.4 (to 24)"),
    ],
)
def test_an_opset_is_too_new_where_no_release_takes_it(opset: int, versions: tuple[str, ...], said: str) -> None:
    rows = [row for row in RELEASES if row.backend == "tensorrt" and row.version in versions]
    problem = opset_problem(opset, rows)
    assert (problem == "") == (said == "")
    assert said in problem


def test_every_flag_is_in_some_release() -> None:
    known = {flag for row in RELEASES for flag in row.flags}
    assert {flag for _, flag in wanted_flags(EVERYTHING)} <= known


def test_options_are_read() -> None:
    found = options_from_text(
        [
            "workspace=512",
            "shared-memory=48",
            "tactics=10",
            "level=3",
            "strip",
            "hardware=ampere-plus",
            "timing-cache=c",
        ]
    )
    assert found == EngineOptions(
        workspace_mib=512,
        shared_memory_kib=48,
        tactics=10,
        level=3,
        strip=True,
        hardware="ampere-plus",
        timing_cache="c",
    )
    later = options_from_text(["level=5"], base=found)
    assert (later.level, later.workspace_mib) == (5, 512)


def test_what_a_bundle_was_made_with_can_be_taken_back() -> None:
    base = EngineOptions(workspace_mib=64, strip=True, hardware="ampere-plus", profiles=(BATCH,))
    found = options_from_text(["strip=default", "workspace=default", "hardware=default"], base=base)
    assert found == EngineOptions(profiles=(BATCH,))
    # Of timing caches a bundle remembers nothing, so this is a folder.
    assert options_from_text(["timing-cache=default"]).timing_cache == "default"


@pytest.mark.parametrize(
    ("texts", "base"),
    [
        ([], []),
        (["strip", "workspace=64"], []),
        (["strip=default", "level=2"], ["strip", "level=3", "hardware=ampere-plus"]),
        (["workspace=default", "weight-streaming", "version-compatible"], ["workspace=7", "tactics=3"]),
    ],
)
def test_options_can_be_said_again(texts: list[str], base: list[str]) -> None:
    before = options_from_text(base)
    options = options_from_text(texts, base=before)
    again = texts_from_options(options, base=before)
    assert sorted(again) == sorted(texts)
    assert options_from_text(again, base=before) == options
    # What belongs to the machine isn't said on another.
    assert texts_from_options(msgspec.structs.replace(options, timing_cache="c"), base=before) == again


@pytest.mark.parametrize(
    ("texts", "parts"),
    [
        (
            ["levle=3", "strip=yes", "workspace"],
            ["did you mean level", "strip takes no value but default", "workspace needs a value"],
        ),
        (["level=9"], ["level must be 0 to 5"]),
        (["tactics=0"], ["tactics must be positive"]),
        (["level=high"], ["whole number, not 'high'"]),
        (["workspace=²"], ["whole number, not '²'"]),
        (["workspace=" + "9" * 5000], ["a smaller number than one of 5000 digits"]),
        (["workspace=8796093022208"], ["workspace must be positive, and 8796093022207 at most"]),
        (["shared-memory=9007199254740992"], ["9007199254740991 at most"]),
        (["tactics=2147483648"], ["2147483647 at most"]),
        (["tactics=9999999999999999999"], ["2147483647 at most"]),
        (["hardware=any"], ["'any'"]),
        (["editable-cache"], ["need timing-cache"]),
    ],
)
def test_wrong_options_are_told_at_once(texts: list[str], parts: list[str]) -> None:
    with pytest.raises(GpusqError) as caught:
        options_from_text(texts)
    assert all(part in caught.value.what for part in parts)
    assert str(caught.value.hint).endswith(", ".join(OPTION_NAMES))


def name_of(settings: BuildSettings, version: str = "10.3", device: str = "Orin (nvgpu)/64GB") -> str:
    return cache_file(Path("caches"), "tensorrt", version, device, settings).name


def test_a_cache_belongs_to_device_version_and_configuration() -> None:
    plain = BuildSettings(batch=BATCH)
    others = [
        name_of(plain, version="10.4"),
        name_of(plain, device="A100"),
        name_of(BuildSettings(batch=BATCH, sparse=True)),
        name_of(BuildSettings(batch=BATCH, options=EngineOptions(level=3))),
        name_of(BuildSettings(batch=BatchRange(minimum=1, optimum=8, maximum=16))),
    ]
    assert len({name_of(plain), *others}) == 6
    same = EngineOptions(timing_cache="elsewhere", error_on_cache_miss=True, editable_cache=True)
    assert name_of(BuildSettings(batch=BATCH, options=same)) == name_of(plain)
    assert "/" not in name_of(plain)
    assert " " not in name_of(plain)


def test_a_cache_is_kept_and_a_missing_one_is_an_error_where_it_is_required(tmp_path: Path) -> None:
    path = tmp_path / "caches" / "one.timing"
    assert read_cache(path, required=False) == b""
    with pytest.raises(GpusqError, match="there are none for this device"):
        read_cache(path, required=True)
    write_cache(path, b"timings")
    assert read_cache(path, required=True) == b"timings"
    assert [entry.name for entry in path.parent.iterdir()] == ["one.timing"]
    (tmp_path / "file").write_text("")
    with pytest.raises(GpusqError, match="cannot write the timing cache"):
        write_cache(tmp_path / "file" / "one.timing", b"")
