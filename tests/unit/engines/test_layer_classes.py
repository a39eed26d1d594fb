from __future__ import annotations

from pathlib import Path

import pytest

from gpusq_deploy.artifacts.receipt import EngineLayer, EngineTensor, EngineTotals
from gpusq_deploy.engines.layer_classes import LayerClass, classify, sparse_tactic, totals, weights_of
from gpusq_deploy.engines.layer_list_parser import layers_from_log

DATA = Path(__file__).parent / "data"


def stored(name: str) -> tuple[EngineLayer, ...]:
    return layers_from_log([(DATA / name).read_text(encoding="utf-8")])


def tensor(dtype: str, *shape: int) -> EngineTensor:
    return EngineTensor(name="t", shape=shape, dtype=dtype)


def layer(
    name: str = "mm",
    kind: str = "gemm",
    *,
    inputs: tuple[EngineTensor, ...] = (),
    constants: tuple[EngineTensor, ...] = (),
    outputs: tuple[EngineTensor, ...] = (),
    tactic: str = "",
) -> EngineLayer:
    return EngineLayer(
        name=name, kind=kind, inputs=inputs, constants=constants, outputs=outputs, tactic=tactic, onnx_nodes=()
    )


def test_totals_of_a_stored_int8_vit() -> None:
    assert totals(stored("rtx-1.7-int8-vit.log")) == EngineTotals(
        kernels=10, gemms={"fp16": 1, "int8": 1}, attention_fused=1
    )


def test_totals_of_stored_mixed_graphs() -> None:
    found = totals(stored("rtx-1.7-mixed.log"))
    assert found.gemms == {"bf16": 1, "fp16": 7, "fp32": 1, "int8": 1}
    # Seventeen lines, of which two signals and two waits.
    assert found.kernels == 13


@pytest.mark.parametrize("name", ["__myl_CastMulCastFc_myl0_1", "__myl_CastMulFc_myl0_2"])
def test_dequantise_and_multiply_is_no_int8_gemm(name: str) -> None:
    trap = next(layer for layer in stored("rtx-1.7-mixed.log") if layer.name == name)
    assert "Int8" in {tensor.dtype for tensor in (*trap.inputs, *trap.constants)}
    assert classify(trap) == LayerClass("gemm", "fp16")


def test_a_cast_before_the_product_outweighs_int8_operands() -> None:
    hidden = layer(
        "__myl_CastMulCastFc",
        "runtime_fusion",
        inputs=(tensor("Int8", -1, 64),),
        constants=(tensor("Int8", 64, 64), tensor("Half", 1, 64)),
        outputs=(tensor("Half", -1, 64),),
    )
    assert classify(hidden) == LayerClass("gemm", "fp16")


def test_a_cast_after_the_product_doesnt() -> None:
    fused = layer(
        "__myl_FcMulAddCast", "runtime_fusion", inputs=(tensor("Int8", -1, 64),), constants=(tensor("Int8", 64, 64),)
    )
    assert classify(fused) == LayerClass("gemm", "int8")


def test_biases_and_scales_are_no_weights() -> None:
    gemm = layer(
        inputs=(tensor("Int8", -1, 64),),
        constants=(tensor("Half", 1, 64), tensor("Float", 1), tensor("Int8", 64, 64), tensor("Half", 1, 64, 1, 1)),
    )
    assert classify(gemm).precision == "int8"


def test_a_weight_at_batch_1_has_a_leading_one() -> None:
    gemm = layer(
        inputs=(tensor("Int8", 1, 17, 192),),
        constants=(tensor("Int8", 1, 192, 576), tensor("Float", 1), tensor("Half", 1, 1, 576)),
        outputs=(tensor("Half", 1, 17, 576),),
    )
    assert classify(gemm) == LayerClass("gemm", "int8")


def test_two_activations_must_both_be_int8() -> None:
    both = (tensor("Int8", 4, 64, 64), tensor("Int8", 4, 64, 64))
    assert classify(layer(inputs=both)).precision == "int8"
    assert classify(layer(inputs=(both[0], tensor("Half", 4, 64, 64)))).precision == "fp16"


def test_a_kernel_name_can_prove_int8() -> None:
    fused = layer(
        "__myl_FcAdd",
        "fusion",
        inputs=(tensor("Half", -1, 64), tensor("Int8", -1, 64)),
        tactic="sm80_xmma_gemm_i8f16_i8i32_f32_tn_n_tilesize128x128x64_by_fusion_tactic",
    )
    assert classify(fused) == LayerClass("gemm", "int8")


def test_other_types() -> None:
    assert classify(layer(inputs=(tensor("FP8", 8, 64),), constants=(tensor("FP8", 64, 64),))).precision == "fp8"
    assert classify(layer(inputs=(tensor("Int8", 8, 64),))).precision is None
    assert totals([layer()]).gemms == {"unknown": 1}


@pytest.mark.parametrize(
    ("name", "kind", "role"),
    [
        ("x", "signal", "sync"),
        ("x", "wait", "sync"),
        ("x", "shape_call", "other"),
        ("__myl_TranReplConcAdd", "kgen", "other"),
        ("__myl_ConcAdd", "runtime_fusion", "other"),
        ("__myl_ConvAdd", "fusion", "gemm"),
        ("_gemm_mha_v2_myl0_8", "kgen", "attention"),
        ("x", "CaskConvolution", "gemm"),
        ("x", "CaskGemmMatrixMultiply", "gemm"),
        ("x", "MatrixMultiply", "gemm"),
        ("x", "Reformat", "other"),
    ],
)
def test_roles(name: str, kind: str, role: str) -> None:
    assert classify(layer(name, kind)).role == role


def test_an_int8_attention_may_keep_a_half_bias() -> None:
    inputs = (tensor("Int8", 2, 49, 32),) * 3
    attention = layer("_gemm_mha_v2_1", "kgen", inputs=inputs, constants=(tensor("Half", 2, 49, 49),))
    assert classify(attention) == LayerClass("attention", "int8")


@pytest.mark.parametrize(
    ("tactic", "verdict"),
    [
        ("sm80_xmma_sparse_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x128_stage3_sptensor16x8x64_gelu", "yes"),
        ("sm86_xmma_sparse_conv_f16f16_f32", "yes"),
        ("ampere_sparse_fprop_i8", "yes"),
        ("", "unknown"),
        ("__myelin_CASK_STUB", "unknown"),
        ("__myl_FcAdd_0x63285d3cb7de29d7c3acbcf21fe44fc4", "unknown"),
        ("0x00000000000003e8", "unknown"),
        ("ampere_h16816gemm_256x128_ldg8_nn_v1", "no"),
        ("sm80_xmma_gemm_i8f16_i8i32_f32_tn_n_tilesize128x128x64", "no"),
    ],
)
def test_only_the_kernels_name_tells_whether_it_is_sparse(tactic: str, verdict: str) -> None:
    said, reason = sparse_tactic(tactic)
    assert said == verdict
    assert reason


def test_fp8_and_int4_in_a_stored_log() -> None:
    layers = stored("rtx-1.7-low-bit.log")
    # The patch embedding was asked for in FP8: with three channels it is dequantised and runs as halves.
    assert totals(layers).gemms == {"fp16": 1, "fp8": 1, "int4": 3, "int8": 1}
    packed = next(layer for layer in layers if classify(layer).precision == "int4")
    assert packed.name.startswith("__myl_ReplCastMulCastFc")
    assert {tensor.dtype for tensor in packed.inputs} == {"Half"}
    assert [tensor.dtype for tensor in weights_of(packed)] == ["Int4"]
