"""Every value that is written to a file comes back equal, and damaged text is a GpusqError."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from numpy_scalars import scalars_in

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.artifacts.base import (
    Value,
    builtins_from_value,
    digest_of_bytes,
    json_from_value,
    read_value,
    value_from_json,
)
from gpusq_deploy.artifacts.calibration import CalibrationTable, TensorRange
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.plan import ActivationQuantization, LayerDecision, QuantPlan
from gpusq_deploy.artifacts.sparsity import GroupViolation, LayerSparsity, SparsityReport
from gpusq_deploy.errors import GpusqError

amounts = st.floats(0, allow_nan=False, allow_infinity=False)
names = st.text(max_size=12)
ranges = st.builds(TensorRange, tensor=names, layer=names, amax=amounts, origin=names)
tables = st.builds(
    CalibrationTable,
    source=names,
    digest=names,
    images=st.integers(0, 2**40),
    observer=names,
    synthetic=st.booleans(),
    skipped=st.lists(names, max_size=3).map(tuple),
    ranges=st.lists(ranges, max_size=4).map(tuple),
)
arguments = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), names, st.lists(st.integers(-9, 9), max_size=3)
)
specs = st.builds(
    ArchSpec,
    source=st.sampled_from(["timm", "torchvision", "transformers", "factory"]),
    name=names,
    arguments=st.dictionaries(names, arguments, max_size=3),
)


# What is left out, Hypothesis draws from the field's type; floats must be ones that JSON has.
activations = st.builds(ActivationQuantization, amax=amounts, scale=amounts)
decisions = st.builds(LayerDecision, activation=st.none() | activations)
plans = st.builds(QuantPlan, layers=st.lists(decisions, max_size=3).map(tuple))
violations = st.builds(GroupViolation, values=st.lists(amounts, max_size=4).map(tuple))
states = st.builds(LayerSparsity, first=st.none() | violations, zero_fraction=amounts)
reports = st.builds(SparsityReport, layers=st.lists(states, max_size=3).map(tuple))


@given(value=st.one_of(tables, specs))
def test_values_come_back_equal_and_as_the_same_bytes(value: Value) -> None:
    data = json_from_value(value)
    back = value_from_json(data, type(value), place="here")
    assert back == value
    assert json_from_value(back) == data


@settings(max_examples=30)
@given(plan=plans, report=reports)
def test_plans_and_reports_come_back_equal(plan: QuantPlan, report: SparsityReport) -> None:
    assert value_from_json(json_from_value(plan), QuantPlan, place="here") == plan
    assert value_from_json(json_from_value(report), SparsityReport, place="here") == report


@given(data=st.binary(max_size=200))
def test_no_bytes_make_the_reader_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(GpusqError):
        value_from_json(data, CalibrationTable, place="here")


@given(table=tables, place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_damaged_byte_is_refused_or_read(table: CalibrationTable, place: int, byte: int) -> None:
    data = bytearray(json_from_value(table))
    data[place % len(data)] = byte
    with contextlib.suppress(GpusqError):
        value_from_json(bytes(data), CalibrationTable, place="here")


def table() -> CalibrationTable:
    entry = TensorRange(tensor="x", layer="fc", amax=1.5, origin="amax over 3 samples")
    return CalibrationTable(source="photos", digest="sha256:0", images=3, observer="amax", ranges=(entry,))


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("schema", "gpusq.calibration/2"),
        ("images", "three"),
        ("images", 3.5),
        ("surplus", 1),
        ("ranges", [{"tensor": "x", "layer": "fc", "amax": -1.0, "origin": ""}]),
        ("ranges", [{"tensor": "x", "layer": "fc", "amax": None, "origin": ""}]),
        ("ranges", [{"tensor": "x", "layer": "fc", "amax": 1e999, "origin": ""}]),
        ("source", None),
    ],
)
def test_a_wrong_field_is_refused_with_its_place(field: str, content: object) -> None:
    changed = {**json.loads(json_from_value(table())), field: content}
    with pytest.raises(GpusqError, match="not a valid CalibrationTable") as caught:
        value_from_json(json.dumps(changed).encode(), CalibrationTable, place="calibration.json")
    assert caught.value.place == "calibration.json"
    assert caught.value.hint is not None


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(GpusqError):
        value_from_json(b'{"surplus":' + b"[" * 100_000, CalibrationTable, place="here")


def test_a_missing_field_is_named() -> None:
    changed = json.loads(json_from_value(table()))
    del changed["observer"]
    with pytest.raises(GpusqError, match="observer"):
        value_from_json(json.dumps(changed).encode(), CalibrationTable, place="here")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(GpusqError, match="cannot read") as caught:
            read_value(path, CalibrationTable)
        assert caught.value.place == str(path)


def test_values_are_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        setattr(table(), "images", 4)  # noqa: B010 - the checker would refuse the assignment that is tested
    constructor: Any = BatchRange
    with pytest.raises(TypeError):
        constructor(1, 2, 3)


def test_equal_dictionaries_in_another_order_give_equal_bytes() -> None:
    forward = ArchSpec(source="timm", name="x", arguments={"a": 1, "b": 2})
    backward = ArchSpec(source="timm", name="x", arguments={"b": 2, "a": 1})
    assert json_from_value(forward) == json_from_value(backward)


@pytest.mark.parametrize("amax", [math.nan, math.inf, -0.5])
def test_a_range_that_is_no_range_is_refused(amax: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        TensorRange(tensor="x", layer="fc", amax=amax, origin="")


@given(sizes=st.tuples(st.integers(-2, 6), st.integers(-2, 6), st.integers(-2, 6)))
def test_batch_ranges_are_ordered_or_refused(sizes: tuple[int, int, int]) -> None:
    low, middle, high = sizes
    if 1 <= low <= middle <= high:
        batch = BatchRange(minimum=low, optimum=middle, maximum=high)
        assert batch.static == (len(set(sizes)) == 1)
        assert str(batch) == f"{low}:{middle}:{high}"
    else:
        with pytest.raises(ValueError, match="1 <= MIN"):
            BatchRange(minimum=low, optimum=middle, maximum=high)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 4},
        {"height": 0},
        {"mean": (0.0,)},
        {"std": (1.0, 1.0, 0.0)},
        {"std": (1.0, 1.0)},
        {"crop_fraction": 0.0},
        {"crop_fraction": 1.5},
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "channels": 3,
        "height": 8,
        "width": 8,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "origin": "here",
    }
    Preprocessing(**good)
    with pytest.raises(ValueError, match=r"not an input|entries each|must be positive"):
        Preprocessing(**{**good, **change})
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**good, **change}, Preprocessing)


def test_an_error_says_what_where_and_what_to_do() -> None:
    assert str(GpusqError("it broke", place="fc", hint="mend it")) == "it broke\n  where: fc\n  try:   mend it"
    assert str(GpusqError("it broke")) == "it broke"


def test_a_digest_is_sha256_of_the_bytes() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest_of_bytes(b"") == f"sha256:{empty}"


@given(value=st.one_of(tables, plans, reports))
def test_numbers_may_be_numpys_scalars(value: Value) -> None:
    assert json_from_value(scalars_in(value)) == json_from_value(value)
    assert builtins_from_value(scalars_in(value)) == builtins_from_value(value)


def test_what_has_no_json_form_is_still_refused() -> None:
    with pytest.raises(NotImplementedError, match="object has no JSON form"):
        builtins_from_value([object()])
