"""The recipe: which layers become what, in words that read as sentences.

A recipe is a list of rules; the first that matches a layer decides. Grammar: docs/recipes.md.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from gpusq_deploy.artifacts.base import Value, builtins_from_value
from gpusq_deploy.artifacts.calibration import AMAX, Calibrator, CalibratorName
from gpusq_deploy.artifacts.plan import AttentionRole, LayerKind, ResidualRole
from gpusq_deploy.artifacts.recipe_base import RecipeChanges, with_base
from gpusq_deploy.errors import GpusqError

DEFAULT_RECIPE = "static_wi8_ai8"
FP8_RECIPE = "static_wf8_af8"
INT4_RECIPE = "weightonly_wi4_b32"
SHIPPED = (DEFAULT_RECIPE, "plain_wi8_ai8", "mixed_wi8_ai8", "fused_wi8_ai8", FP8_RECIPE, INT4_RECIPE)
_GRAMMAR = "the grammar is in docs/recipes.md"

# What a layer's rule can make of it, beside leaving it in the float type.
QuantizedPrecision = Literal["int8", "fp8", "int4"]
# The first ONNX opset that has DequantizeLinear for the type.
OPSETS: dict[QuantizedPrecision, int] = {"int8": 19, "fp8": 19, "int4": 21}
_BLOCK = 128

Placement = Literal["linear", "linear+qk", "linear+qkv", "full"]
ROLES_OF: dict[Placement, frozenset[AttentionRole]] = {
    "linear": frozenset(),
    "linear+qk": frozenset({"query", "key"}),
    "linear+qkv": frozenset({"query", "key", "value"}),
    "full": frozenset({"query", "key", "value", "softmax"}),
}
ResidualInputs = Literal["skip", "both"]
RESIDUAL_ROLES: dict[ResidualInputs, frozenset[ResidualRole]] = {
    "skip": frozenset({"residual"}),
    "both": frozenset({"residual", "branch"}),
}
# By benchmarks/peers/placements.py, in benchmarks/results/placements.json.
LINEAR_SQNR_DB = 28.0
FULL_SQNR_DB = 13.6
RESIDUAL_SQNR_DB: dict[ResidualInputs, float] = {"skip": 17.4, "both": 14.1}


def short_text(k: int, least: int) -> str:
    """Why so short a Linear stays float and dense."""
    return f"K = {k} is less than {least}, the K of one tensor-core instruction: nothing would be saved"


class Rule(Value):
    """One sentence: layers that `match` (shell patterns on the module's name) and are of `kind` become `precision`.

    By its `name` a recipe with this one as its base changes the rule.

    `sparse` says whether such layers are expected to be 2:4 when sparsity is asked for. A `required` rule that
    decides no layer is an error: it is most likely misspelt. `calibrator` says how the range of an INT8 or FP8 layer's
    input is chosen; None leaves that to the command, which takes the largest magnitude where it isn't told either.

    `int8` and `fp8` (E4M3) are for the weight and the input; `int4` is for the weight alone, with one scale for each
    `block` of inputs, 128 where it isn't said; such a layer multiplies in the float type.

    `smooth` moves range from the input's channels to the weight and centres them, where that costs no kernel;
    `headroom` widens the input's range by this share; `rounding` says how weights are rounded; `correct_bias` lets the
    bias take up the mean error that rounding the weights makes. Equations: docs/numerics.md.

    Of fewer than `least_k` inputs, a Linear stays float and dense; 0 sets no limit.

    `output` "int8" puts a quantiser behind the product of a Linear, in front of its bias, and gives its weight one
    scale: the one form that lets TensorRT-RTX write INT8. None leaves that to `--sparse-outputs`, "float" refuses it.
    """

    name: str | None = None
    match: str | tuple[str, ...] = "*"
    kind: Literal["any", "linear", "patch_embed", "conv"] = "any"
    precision: Literal["int8", "fp8", "int4", "float"] = "int8"
    block: Literal[32, 64, 128] | None = None
    sparse: bool = True
    required: bool = True
    calibrator: CalibratorName | None = None
    percentile: float | None = None
    smooth: bool = False
    headroom: float = 0.0
    rounding: Literal["nearest", "second-order"] = "nearest"
    correct_bias: bool = False
    output: Literal["float", "int8"] | None = None
    least_k: int = 0
    reason: str

    def __post_init__(self) -> None:
        if self.least_k < 0:
            raise ValueError(f"`least_k` is a number of inputs, unlike {self.least_k}")
        if not 0 <= self.headroom <= 1:
            raise ValueError(f"`headroom` is a share of the range, from 0 to 1, unlike {self.headroom}")
        self._require_precision_for_refinement()
        if self.output == "int8" and (self.precision != "int8" or self.kind not in {"any", "linear"}):
            raise ValueError('`output = "int8"` is for INT8 Linear layers')
        if self.calibrator is None and self.percentile is not None:
            raise ValueError('`percentile` needs `calibrator = "percentile"`')
        if self.calibrator is not None and not self.ranged:
            raise ValueError("`calibrator` is for FP8 and INT8 layers: the inputs of others need no range")
        if self.block is not None and self.precision != "int4":
            raise ValueError('`block` needs `precision = "int4"`: other weights have one scale for each channel')
        if self.precision == "fp8" and self.calibrator not in {None, "amax", "percentile"}:
            raise ValueError(f"`calibrator = {self.calibrator!r}` weighs INT8's steps; FP8 takes amax or percentile")
        self.calibrator_or(AMAX)

    def _require_precision_for_refinement(self) -> None:
        if not self.refined or self.precision == "int8":
            return
        rounded = self.correct_bias or self.rounding != "nearest"
        if self.smooth or (rounded and self.precision != "int4") or (self.headroom > 0 and self.precision != "fp8"):
            raise ValueError(
                "`smooth`, `headroom`, `rounding` and `correct_bias` are for INT8 layers; `headroom` for FP8 too, "
                "`rounding` and `correct_bias` for INT4 too"
            )

    def too_short(self, kind: LayerKind, k: int) -> str:
        """Why a layer of K inputs is too small for the rule; empty where it isn't."""
        return short_text(k, self.least_k) if kind == "linear" and k < self.least_k else ""

    @property
    def ranged(self) -> bool:
        """True where the inputs of the rule's layers need a range."""
        return self.precision in {"int8", "fp8"}

    @property
    def block_size(self) -> int:
        """How many inputs share a scale of an INT4 weight."""
        return _BLOCK if self.block is None else self.block

    @property
    def refined(self) -> bool:
        """True where more is asked for than ranges as they are found and weights rounded to nearest."""
        return self.smooth or self.headroom > 0 or self.correct_bias or self.rounding != "nearest"

    def calibrator_or(self, usual: Calibrator) -> Calibrator:
        """The rule's own calibrator, or the usual one."""
        return usual if self.calibrator is None else Calibrator(name=self.calibrator, percentile=self.percentile)

    def decides(self, layer: str, kind: LayerKind) -> bool:
        """True where the rule applies to a layer."""
        patterns = (self.match,) if isinstance(self.match, str) else self.match
        return self.kind in {"any", kind} and any(fnmatch.fnmatchcase(layer, pattern) for pattern in patterns)


class AttentionRule(Value):
    """What of the attentions whose module `match`es is INT8, beyond the Linear layers around them.

    `placement`: `linear` nothing; `linear+qk` query and key; `linear+qkv` the value too; `full` the softmax's output
    too. Measured costs stand in docs/recipes.md. `full` is refused unless `accept_loss` says that its cost is known.
    """

    placement: Placement
    match: str = "*"
    accept_loss: bool = False
    reason: str

    def __post_init__(self) -> None:
        if self.placement == "full" and not self.accept_loss:
            raise ValueError(
                '`placement = "full"` puts the output of softmax into INT8: on DINOv2 ViT-S/14 that leaves '
                f"{FULL_SQNR_DB:g} dB, where `linear` keeps {LINEAR_SQNR_DB:g}; `accept_loss = true` takes it"
            )
        if self.accept_loss and self.placement != "full":
            raise ValueError(f'`accept_loss` changes nothing for `placement = "{self.placement}"`')

    def decides(self, module: str) -> bool:
        """True where the rule applies to an attention."""
        return fnmatch.fnmatchcase(module, self.match)


class ResidualRule(Value):
    """Puts the inputs of the residual adds whose module `match`es into INT8: what `skip`s the block, or `both`.

    NVIDIA advises it. It is refused unless `accept_loss` says that its cost is known; docs/recipes.md has it.
    """

    inputs: ResidualInputs = "skip"
    match: str = "*"
    accept_loss: bool = False
    reason: str

    def __post_init__(self) -> None:
        if not self.accept_loss:
            raise ValueError(
                "`[residual]` quantises residual adds to INT8: on DINOv2 ViT-S/14 that leaves "
                f"{RESIDUAL_SQNR_DB[self.inputs]:g} dB, where residual adds in FP16 keep {LINEAR_SQNR_DB:g}; "
                "`accept_loss = true` accepts that"
            )

    def decides(self, module: str) -> bool:
        """True where the rule applies to a residual add."""
        return fnmatch.fnmatchcase(module, self.match)


class MixedRule(Value):
    """Linear layers that rules want in INT8 and that stay float, up to a share `flops` of all Linear layers' FLOPs.

    `first`: `accuracy` leaves out those whose noise sums to most; `kernels` begins with those that read attentions'
    results, which saves TensorRT a kernel each. `measure` says where noise is measured: in the residual `stream` that
    the layer works for, which calibration sees at no cost, or at the model's `output`, which takes runs of the model
    for each layer that could be left out.
    """

    flops: float
    first: Literal["accuracy", "kernels"] = "accuracy"
    measure: Literal["stream", "output"] = "stream"

    def __post_init__(self) -> None:
        if not 0 < self.flops < 1:
            raise ValueError(
                f"`flops` is a share of the Linear layers' FLOPs, above 0 and below 1, unlike {self.flops}"
            )


class Recipe(Value):
    """A named list of rules; the first that matches decides. Layers that none matches stay float and dense.

    `attention` says what of attentions is INT8, `residual` what of residual adds; nothing where there is none. `mixed`
    says how much of what the rules want in INT8 may stay float.
    """

    schema: Literal["gpusq.recipe/1"]
    name: str
    description: str
    rules: tuple[Rule, ...] = msgspec.field(name="rule")
    attention: AttentionRule | None = None
    residual: ResidualRule | None = None
    mixed: MixedRule | None = None

    def __post_init__(self) -> None:
        if (self.attention or self.residual or self.mixed) and "int8" not in self.precisions:
            raise ValueError("`[attention]`, `[residual]` and `[mixed]` are about INT8, and no rule makes a layer INT8")
        names = [rule.name for rule in self.rules if rule.name is not None]
        if len(set(names)) < len(names):
            raise ValueError("two rules have the same `name`")

    @property
    def precisions(self) -> frozenset[QuantizedPrecision]:
        """What its rules make of layers."""
        return frozenset(rule.precision for rule in self.rules if rule.precision != "float")

    def first_rule(self, layer: str, kind: LayerKind) -> Rule | None:
        """The first of its rules that matches."""
        return next((rule for rule in self.rules if rule.decides(layer, kind)), None)

    def rule_for(self, layer: str, kind: LayerKind) -> Rule | None:
        """The rule that applies: the first."""
        return self.first_rule(layer, kind)

    def reason_of(self, rule: Rule) -> str:
        """A rule's reason, and whose it is."""
        return f"recipe {self.name}: {rule.reason}"

    def expects_sparse(self, layer: str, kind: LayerKind, k: int) -> tuple[bool, str]:
        """Whether a layer of K inputs is to be 2:4, and why or why not."""
        rule = self.rule_for(layer, kind)
        if rule is None:
            return False, f"no rule of recipe {self.name} matches it"
        short = rule.too_short(kind, k)
        return rule.sparse and not short, short or self.reason_of(rule)


class _Layer(Protocol):
    @property
    def layer(self) -> str: ...

    @property
    def kind(self) -> LayerKind: ...


def load_recipe(path: Path | None) -> Recipe:
    """A recipe from a file, or a shipped one by its name; None is the default one. A file goes before a name.

    Raises:
        GpusqError: No such file, not TOML, or not a recipe; unknown keys are named; its bases form a circle.
    """
    name = DEFAULT_RECIPE if path is None else str(path)
    if path is None or (name in SHIPPED and not path.exists()):
        return _shipped(name)
    return _recipe_from_file(path, ())


def recipe_from_toml(text: str, *, place: str) -> Recipe:
    """Parse strictly; see `load_recipe`. A `base` is a shipped recipe, or a file below the working folder."""
    return _parsed(text, place, Path(), ())


def _shipped(name: str) -> Recipe:
    text = resources.files("gpusq_deploy.calibration").joinpath(f"recipes/{name}.toml").read_text("utf-8")
    return _parsed(text, name, Path(), ())


def _recipe_from_file(path: Path, above: tuple[Path, ...]) -> Recipe:
    """`above` are the files whose bases led here."""
    if path.resolve() in above:
        raise GpusqError("the recipe is its own base, by way of others", place=str(path), hint="name another `base`")
    try:
        return _parsed(path.read_text("utf-8"), str(path), path.parent, (*above, path.resolve()))
    except OSError as error:
        raise GpusqError(
            f"cannot read the recipe: {error.strerror}",
            place=str(path),
            hint=f"name a TOML file, or one of the shipped recipes: {', '.join(SHIPPED)}",
        ) from error
    except UnicodeDecodeError as error:
        raise GpusqError(f"the recipe is not UTF-8 text: {error}", place=str(path), hint=_GRAMMAR) from error


def _parsed(text: str, place: str, folder: Path, above: tuple[Path, ...]) -> Recipe:
    try:
        content: dict[str, Any] = msgspec.toml.decode(text)
    except (ValueError, RecursionError) as error:  # tomllib's own, and a number of more digits than Python reads
        raise GpusqError(f"not TOML: {error}", place=place, hint=_GRAMMAR) from error
    try:
        if "base" in content:
            content = _on_its_base(msgspec.convert(content, type=RecipeChanges), folder, above)
        return msgspec.convert(content, type=Recipe)
    except (msgspec.ValidationError, ValueError) as error:
        raise GpusqError(f"not a recipe: {error}", place=place, hint=_GRAMMAR) from error


def _on_its_base(changes: RecipeChanges, folder: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    shipped = changes.base in SHIPPED
    base = _shipped(changes.base) if shipped else _recipe_from_file(folder / changes.base, above)
    return with_base(changes, builtins_from_value(base))


def require_used_rules(recipe: Recipe, layers: Iterable[_Layer]) -> None:
    """Refuse a recipe with a required rule that decides nothing.

    Raises:
        GpusqError: Names each such rule.
    """
    used = {id(recipe.first_rule(layer.layer, layer.kind)) for layer in layers}
    idle = [rule for rule in recipe.rules if rule.required and id(rule) not in used]
    if idle:
        listed = "; ".join(f"match = {rule.match!r}, kind = {rule.kind!r}" for rule in idle)
        raise GpusqError(
            f"{len(idle)} rule(s) of the recipe decide no layer: {listed}",
            place=f"recipe {recipe.name}",
            hint="correct the pattern or the order (the first match decides), or set required = false",
        )
