"""Recipes: the first rule that matches decides, and whatever is wrong with one is said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from gpusq_deploy.artifacts.calibration import Calibrator
from gpusq_deploy.artifacts.plan import LayerKind
from gpusq_deploy.artifacts.recipe import (
    DEFAULT_RECIPE,
    FP8_RECIPE,
    INT4_RECIPE,
    RESIDUAL_SQNR_DB,
    SHIPPED,
    MixedRule,
    Recipe,
    Rule,
    load_recipe,
    recipe_from_toml,
    require_used_rules,
)
from gpusq_deploy.errors import GpusqError

HEAD = 'schema = "gpusq.recipe/1"\nname = "mine"\ndescription = "a test"\n'


@dataclass(frozen=True)
class Layer:
    layer: str
    kind: LayerKind = "linear"


def recipe(*rules: Rule) -> Recipe:
    return Recipe(schema="gpusq.recipe/1", name="mine", description="a test", rules=rules)


def reason(of: Recipe, layer: str, kind: LayerKind = "linear") -> str | None:
    rule = of.rule_for(layer, kind)
    return None if rule is None else rule.reason


def test_the_first_rule_that_matches_decides() -> None:
    mine = recipe(
        Rule(match="blocks.0.*", reason="first"), Rule(match="blocks.*", reason="second"), Rule(reason="rest")
    )
    assert reason(mine, "blocks.0.mlp.fc1") == "first"
    assert reason(mine, "blocks.1.mlp.fc1") == "second"
    assert reason(mine, "head") == "rest"


def test_a_rule_of_a_kind_leaves_the_others() -> None:
    mine = recipe(Rule(kind="conv", reason="convs"), Rule(kind="patch_embed", reason="patches"))
    assert [reason(mine, "x", kind) for kind in ("conv", "patch_embed", "linear")] == ["convs", "patches", None]


@pytest.mark.parametrize(
    ("pattern", "layer", "matches"),
    [
        ("*head*", "head", True),
        ("*head*", "Head", False),
        ("blocks.?.attn.*", "blocks.3.attn.qkv", True),
        ("blocks.?.attn.*", "blocks.11.attn.qkv", False),
        ("blocks.[0-2].*", "blocks.1.fc", True),
        ("blocks.[!0]*", "blocks.0.fc", False),
        ("fc", "mlp.fc", False),
        ("", "fc", False),
    ],
)
def test_patterns_are_those_of_the_shell_and_match_whole_names(pattern: str, layer: str, matches: bool) -> None:
    assert Rule(match=pattern, reason="").decides(layer, "linear") is matches


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (HEAD, "rule"),
        (HEAD + "[[rule]]\n", "reason"),
        (HEAD + '[[rule]]\nreason = "x"\nprecison = "int8"\n', "precison"),
        (HEAD + '[[rule]]\nreason = "x"\nprecision = "fp4"\n', "fp4"),
        (HEAD + '[[rule]]\nreason = "x"\nkind = "attention"\n', "attention"),
        (HEAD + '[[rule]]\nreason = "x"\nsparse = "yes"\n', "sparse"),
        (HEAD + "rules = []\n[[rule]]\nreason = 'x'\n", "rules"),
        (HEAD.replace("/1", "/2") + '[[rule]]\nreason = "x"\n', "recipe/2"),
        (HEAD.replace('schema = "gpusq.recipe/1"\n', "") + '[[rule]]\nreason = "x"\n', "schema"),
        ("", "schema|name"),
    ],
)
def test_what_is_no_recipe_is_refused_and_the_key_is_named(text: str, named: str) -> None:
    with pytest.raises(GpusqError, match=named) as caught:
        recipe_from_toml(text, place="mine.toml")
    assert caught.value.place == "mine.toml"
    assert "docs/recipes.md" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["name = ", "[[rule]", "a = 1\na = 2", "\x00"])
def test_what_is_no_toml_is_refused(text: str) -> None:
    with pytest.raises(GpusqError, match="not TOML"):
        recipe_from_toml(text, place="mine.toml")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes(HEAD.encode() + b'# caf\xe9\n[[rule]]\nreason = "x"\n')
    for path, what in ((latin, "not UTF-8"), (tmp_path, "cannot read"), (tmp_path / "none.toml", "cannot read")):
        with pytest.raises(GpusqError, match=what) as caught:
            load_recipe(path)
        assert caught.value.place == str(path)


def test_a_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + '[[rule]]\nmatch = "fc*"\nprecision = "float"\nsparse = false\nreason = "käse"\n', "utf-8")
    assert load_recipe(path).rules == (Rule(match="fc*", precision="float", sparse=False, reason="käse"),)


def test_a_required_rule_that_decides_nothing_is_named() -> None:
    mine = recipe(Rule(match="blcoks.*", reason="misspelt"), Rule(reason="rest"))
    with pytest.raises(GpusqError, match=r"1 rule.*match = 'blcoks.*'") as caught:
        require_used_rules(mine, [Layer("blocks.0.fc")])
    assert caught.value.place == "recipe mine"
    assert "required = false" in str(caught.value.hint)


def test_a_rule_in_the_shadow_of_another_decides_nothing() -> None:
    mine = recipe(Rule(reason="everything"), Rule(match="head", reason="never reached"))
    with pytest.raises(GpusqError, match="match = 'head'"):
        require_used_rules(mine, [Layer("head"), Layer("fc")])


def test_every_idle_rule_is_named_and_those_not_required_are_not() -> None:
    mine = recipe(
        Rule(match="a", reason=""), Rule(match="b", required=False, reason=""), Rule(kind="conv", match="c", reason="")
    )
    with pytest.raises(GpusqError, match=r"2 rule\(s\).*'a'.*'c', kind = 'conv'") as caught:
        require_used_rules(mine, [])
    assert "'b'" not in caught.value.what


def test_two_equal_rules_are_two_rules() -> None:
    """The second of them decides nothing, though an equal one does."""
    mine = recipe(Rule(match="fc", reason="same"), Rule(match="fc", reason="same"))
    with pytest.raises(GpusqError, match="1 rule"):
        require_used_rules(mine, [Layer("fc")])


def test_the_default_recipe_says_what_its_name_says() -> None:
    default = load_recipe(None)
    assert default.name == DEFAULT_RECIPE
    require_used_rules(default, [])
    seen = (
        default.rule_for("blocks.0.mlp.fc1", "linear"),
        default.rule_for("head", "linear"),
        default.rule_for("patch_embed.proj", "patch_embed"),
    )
    assert [rule is not None and rule.precision == "int8" for rule in seen] == [True] * 3
    assert [rule is not None and rule.sparse for rule in seen] == [True, False, False]
    conv = default.rule_for("stem.conv1", "conv")
    assert conv is not None
    assert (conv.precision, conv.sparse) == ("float", False)


def test_a_rule_names_its_calibrator() -> None:
    text = HEAD + '[[rule]]\ncalibrator = "percentile"\npercentile = 99.9\nreason = "x"\n'
    (rule,) = recipe_from_toml(text, place="mine").rules
    assert rule.calibrator_or(Calibrator(name="mse")) == Calibrator(name="percentile", percentile=99.9)


def test_a_rule_without_calibrator_leaves_it_to_the_command() -> None:
    assert Rule(reason="x").calibrator_or(Calibrator(name="mse")) == Calibrator(name="mse")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('calibrator = "median"', "median"),
        ("percentile = 99.0", "needs `calibrator"),
        ('calibrator = "mse"\npercentile = 99.0', "belongs to the calibrator"),
        ('calibrator = "percentile"\npercentile = 0.0', "above 0"),
        ('calibrator = "percentile"\npercentile = 101.0', "not above 100"),
        ('calibrator = "mse"\nprecision = "float"', "INT8 layers"),
        ('calibrater = "mse"', "calibrater"),
    ],
)
def test_a_calibrator_that_makes_no_sense_is_refused(keys: str, message: str) -> None:
    with pytest.raises(GpusqError, match=message):
        recipe_from_toml(f'{HEAD}[[rule]]\n{keys}\nreason = "x"\n', place="mine")


def test_a_rule_says_how_it_is_smoothed_widened_rounded_and_corrected() -> None:
    keys = 'smooth = true\nheadroom = 0.15\nrounding = "second-order"\ncorrect_bias = true\n'
    (rule,) = recipe_from_toml(f'{HEAD}[[rule]]\n{keys}reason = "x"\n', place="mine").rules
    assert rule == Rule(smooth=True, headroom=0.15, rounding="second-order", correct_bias=True, reason="x")


def test_a_rule_that_says_nothing_of_it_quantises_plainly() -> None:
    (rule,) = recipe_from_toml(HEAD + '[[rule]]\nreason = "x"\n', place="mine").rules
    assert (rule.smooth, rule.headroom, rule.rounding, rule.correct_bias) == (False, 0, "nearest", False)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("headroom = -0.1", "share of the range, from 0 to 1, unlike -0.1"),
        ("headroom = 15.0", "unlike 15.0"),
        ("headroom = nan", "unlike nan"),
        ('headroom = "15 %"', "headroom"),
        ('rounding = "stochastic"', "stochastic"),
        ("smooth = 1", "smooth"),
        ('correct_bias = "yes"', "correct_bias"),
        ('precision = "float"\nsmooth = true', "are for INT8 layers"),
        ('precision = "float"\nheadroom = 0.1', "are for INT8 layers"),
        ('precision = "float"\nrounding = "second-order"', "are for INT8 layers"),
        ('precision = "float"\ncorrect_bias = true', "are for INT8 layers"),
    ],
)
def test_a_refinement_that_makes_no_sense_is_refused(keys: str, message: str) -> None:
    with pytest.raises(GpusqError, match=message):
        recipe_from_toml(f'{HEAD}[[rule]]\n{keys}\nreason = "x"\n', place="mine")


@pytest.mark.parametrize("headroom", ["0", "0.0", "1", "1.0"])
def test_a_headroom_may_lie_at_either_end(headroom: str) -> None:
    (rule,) = recipe_from_toml(f'{HEAD}[[rule]]\nheadroom = {headroom}\nreason = "x"\n', place="mine").rules
    assert rule.headroom == float(headroom)


def test_the_default_recipe_refines_its_linear_layers_alone() -> None:
    default = load_recipe(None)
    linear, patches = default.rule_for("blocks.0.mlp.fc1", "linear"), default.rule_for("stem", "patch_embed")
    assert linear is not None
    assert patches is not None
    assert (linear.smooth, linear.rounding, linear.correct_bias, linear.headroom > 0) == (
        True,
        "second-order",
        True,
        True,
    )
    assert (patches.smooth, patches.rounding, patches.correct_bias, patches.headroom) == (False, "nearest", False, 0)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('precision = "int4"\nblock = 48', "48"),
        ("block = 32", "`block` needs"),
        ('precision = "fp8"\nsmooth = true', "are for INT8 layers"),
        ('precision = "fp8"\nrounding = "second-order"', "`rounding`"),
        ('precision = "fp8"\ncalibrator = "entropy"', "FP8 takes amax or percentile"),
        ('precision = "int4"\nheadroom = 0.1', "`headroom` for FP8 too"),
        ('precision = "int4"\ncalibrator = "amax"', "need no range"),
    ],
)
def test_what_a_precision_can_t_take_is_refused(lines: str, said: str) -> None:
    with pytest.raises(GpusqError, match="not a recipe") as caught:
        recipe_from_toml(f'{HEAD}[[rule]]\n{lines}\nreason = "r"\n', place="mine")
    assert said in caught.value.what


def test_the_shipped_low_bit_recipes_are_what_their_names_say() -> None:
    fp8, int4 = load_recipe(Path(FP8_RECIPE)), load_recipe(Path(INT4_RECIPE))
    assert fp8.precisions == {"fp8"}
    assert int4.precisions == {"int4"}
    rule = int4.rule_for("blocks.0.mlp.fc1", "linear")
    assert rule is not None
    assert (rule.block_size, rule.ranged, rule.refined) == (32, False, True)


RESIDUAL = f'{HEAD}[[rule]]\nreason = "r"\n[residual]\nreason = "to see"\n'


def test_a_residual_stream_in_int8_is_refused_with_its_cost_until_that_is_accepted() -> None:
    with pytest.raises(GpusqError, match=f"leaves {RESIDUAL_SQNR_DB['skip']:g} dB"):
        recipe_from_toml(RESIDUAL, place="mine")
    taken = recipe_from_toml(f"{RESIDUAL}accept_loss = true\n", place="mine")
    assert taken.residual is not None
    assert taken.residual.inputs == "skip"


def test_placements_without_an_int8_layer_are_refused() -> None:
    text = f"{RESIDUAL}accept_loss = true\n".replace("[[rule]]", '[[rule]]\nprecision = "fp8"')
    with pytest.raises(GpusqError, match="no rule makes a layer INT8"):
        recipe_from_toml(text, place="mine")


BASED = HEAD + 'base = "{}"\n'


def test_a_recipe_says_only_what_differs_from_its_base(tmp_path: Path) -> None:
    base = (
        HEAD
        + '[[rule]]\nname = "tail"\nmatch = ["head", "fc"]\nsparse = false\nreason = "tails"\n'
        + '[[rule]]\nname = "rest"\nsmooth = true\nreason = "rest"\n[mixed]\nflops = 0.2\n'
    )
    (tmp_path / "base.toml").write_text(base, "utf-8")
    changes = '[[rule]]\nname = "rest"\nheadroom = 0.1\n[[rule]]\nmatch = "stem"\nrequired = false\nreason = "new"\n'
    path = tmp_path / "mine.toml"
    path.write_text(BASED.format("base.toml") + changes, "utf-8")
    mine = load_recipe(path)
    assert mine.rules == (
        Rule(match="stem", required=False, reason="new"),
        Rule(name="tail", match=("head", "fc"), sparse=False, reason="tails"),
        Rule(name="rest", smooth=True, headroom=0.1, reason="rest"),
    )
    assert mine.mixed is not None
    assert mine.mixed.flops == 0.2


def test_a_table_stands_in_for_the_bases() -> None:
    mine = recipe_from_toml(BASED.format("mixed_wi8_ai8") + "[mixed]\nflops = 0.3\n", place="mine")
    shipped = load_recipe(Path("mixed_wi8_ai8"))
    assert mine.rules == shipped.rules
    assert (mine.mixed, shipped.mixed) == (MixedRule(flops=0.3), MixedRule(flops=0.1))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ('[[rule]]\nname = "heds"\n', "has no rule called heds, only heads, patch embedding, linear, convolutions"),
        ('[[rule]]\nname = "heads"\n[[rule]]\nname = "heads"\n', "two rules have the same `name`"),
        ('[[rule]]\nname = "heads"\nprecison = "fp8"\n', "precison"),
        ('[[rule]]\nname = ["heads"]\nreason = "x"\n', "name"),
        ("[[rule]]\n", "reason"),
        ("rule = 1\n", "rule"),
        ("[mixt]\n", "mixt"),
        ("[mixed]\n", "flops"),
    ],
)
def test_changes_that_change_nothing_are_refused(changes: str, told: str) -> None:
    with pytest.raises(GpusqError, match=told) as caught:
        recipe_from_toml(BASED.format("static_wi8_ai8") + changes, place="mine.toml")
    assert caught.value.place == "mine.toml"


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(GpusqError, match="two rules have the same `name`"):
        recipe_from_toml(HEAD + '[[rule]]\nname = "a"\nreason = "x"\n' * 2, place="mine")


def test_bases_that_form_a_circle_are_refused(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "b")):
        (tmp_path / f"{name}.toml").write_text(BASED.format(f"{base}.toml"), "utf-8")
    with pytest.raises(GpusqError, match="its own base") as caught:
        load_recipe(tmp_path / "a.toml")
    assert caught.value.place == str(tmp_path / "b.toml")


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(BASED.format("none.toml"), "utf-8")
    with pytest.raises(GpusqError, match="cannot read the recipe") as caught:
        load_recipe(tmp_path / "a.toml")
    assert caught.value.place == str(tmp_path / "none.toml")


def test_shipped_recipes_that_leave_patches_float_say_so() -> None:
    for name in SHIPPED:
        shipped = load_recipe(Path(name))
        patches = shipped.rule_for("stem", "patch_embed")
        assert patches is not None
        if "As static" in shipped.description:
            assert ("patch embedding" in shipped.description) == (patches.precision == "float")
