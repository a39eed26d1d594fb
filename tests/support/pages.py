"""A bundle with an engine, as values, and a page taken apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import bundles
import msgspec

from gpusq_deploy.artifacts.plan import LayerDecision, Precision
from gpusq_deploy.artifacts.receipt import (
    BuiltEngine,
    BuiltLayer,
    Drift,
    EngineLayer,
    EngineTensor,
    EngineTotals,
    Receipt,
    Verification,
    YesNoUnknown,
)
from gpusq_deploy.artifacts.sparsity import LayerSparsity, SparsityReport
from gpusq_deploy.bundle.files import Bundle, read_bundle

LAYERS = ("stem", "blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2")


def decision(layer: str, *, precision: Precision = "int8", sparse: bool = True) -> LayerDecision:
    return LayerDecision(
        layer=layer,
        node=f"/{layer}/MatMul",
        kind="linear",
        n=64,
        k=64,
        macs=4096,
        precision=precision,
        precision_reason="by a rule",
        sparse=sparse,
        sparse_reason="2:4 weights",
    )


def built_layer(layer: str, *, precision: Precision = "int8", ran: YesNoUnknown = "unknown") -> BuiltLayer:
    return BuiltLayer(
        layer=layer,
        node=f"/{layer}/MatMul",
        asked="int8",
        precision=precision,
        engine_layers=(f"kernel of {layer}",),
        sparse_asked=True,
        sparse_weights_valid=True,
        sparse_executed=ran,
        reason="built so",
        shape=(64, 64),
    )


def engine(layers: Sequence[BuiltLayer]) -> BuiltEngine:
    tensor = EngineTensor(name="x", shape=(1, 64), dtype="Int8")
    return BuiltEngine(
        target="a100",
        backend="tensorrt-rtx",
        backend_version="1.7",
        source="a test",
        gpus="A100",
        compute_capability="8.0",
        engine_file="engines/a100.plan",
        engine_bytes=10,
        engine_digest="sha256:e",
        build_seconds=1.0,
        executed=False,
        totals=EngineTotals(kernels=5, gemms={"int8": 5}, attention_fused=0),
        layers=tuple(layers),
        engine_layers=tuple(
            EngineLayer(
                name=f"kernel of {layer.layer}",
                kind="gemm",
                inputs=(tensor,),
                constants=(),
                outputs=(tensor,),
                tactic="",
                onnx_nodes=(layer.node,),
            )
            for layer in layers
        ),
    )


def drift(module: str, sqnr_db: float) -> Drift:
    return Drift(module=module, tensor=f"{module}.out", sqnr_db=sqnr_db, median_sqnr_db=sqnr_db, cosine=0.999)


VERIFICATION = Verification(
    images=16,
    held_out=True,
    sqnr_db=31.5,
    cosine=0.9999,
    top1_agreement=1.0,
    note="16 samples",
    blocks=(drift("stem", 45.0), drift("blocks.0", 35.0), drift("blocks.1", 25.0)),
    layers=(drift("blocks.1.fc1", 33.0), drift("blocks.1.fc2", 8.0)),
    layer_images=8,
)


def bundle(
    folder: Path, *, names: Sequence[str] = LAYERS, ran: YesNoUnknown = "unknown", precision: Precision = "int8"
) -> Bundle:
    """Five sparse INT8 layers with an engine for an A100, which has the last of them in `precision`."""
    whole = read_bundle(bundles.write(folder / "m.gpusq"))
    (state,) = whole.manifest.sparsity.layers
    plan = msgspec.structs.replace(whole.plan, layers=tuple(map(decision, names)), sparse_asked=True)
    made = [built_layer(name, ran=ran) for name in names[:-1]] + [built_layer(names[-1], precision=precision, ran=ran)]
    receipt = Receipt(model_digest="sha256:m", verification=VERIFICATION, engines=(engine(made),))
    sparsity = SparsityReport(source="test", layers=tuple(_state(state, name) for name in names))
    manifest = msgspec.structs.replace(whole.manifest, sparsity=sparsity)
    return replace(whole, plan=plan, receipt=receipt, manifest=manifest)


def changed(whole: Bundle, **receipt: Any) -> Bundle:
    """The bundle with other fields in its receipt."""
    return replace(whole, receipt=msgspec.structs.replace(whole.receipt, **receipt))


def _state(state: LayerSparsity, layer: str) -> LayerSparsity:
    return msgspec.structs.replace(state, layer=layer, n=64, k=64, macs=4096)


@dataclass
class Page(HTMLParser):
    """What a browser would find in a page: its elements in order with their attributes, and its visible text."""

    html: str
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list[tuple[str, dict[str, str | None]]])
    words: list[str] = field(default_factory=list[str])
    scripts: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        super().__init__()
        self._inside, self._joined = "", False
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._joined = tag == "wbr"
        self._inside = self._inside if self._joined else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style" and data.strip():
            before = self.words.pop() if self._joined else ""
            self.words.append(before + " ".join(data.split()))
        self._joined = False

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def data(self) -> Any:
        (script,) = self.scripts
        return json.loads(script)

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(name)) is not None]

    def tags(self, *names: str) -> list[str]:
        return [tag for tag, _ in self.elements if tag in names]
