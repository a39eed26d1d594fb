"""What every command has: help in groups, versions, and what can be listed."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
import timm
from click.testing import CliRunner
from commands import run_main

from gpusq_deploy.__main__ import COMMANDS
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.command import Command
from gpusq_deploy.engines.installed import ENGINES, LIBRARIES

ROOT = Path(__file__).resolve().parents[3]


def command_of(name: str) -> Command:
    found: Any = importlib.import_module(f"gpusq_deploy.cli.{name}").command
    assert isinstance(found, Command)
    return found


def options_of(name: str) -> list[click.Option]:
    return [param for param in command_of(name).params if isinstance(param, click.Option)]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_asked_for_as_usual(name: str, flag: str) -> None:
    done = CliRunner().invoke(command_of(name), [flag])
    assert done.exit_code == 0
    for option in options_of(name):
        assert max(option.opts, key=len) in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_one_sentence(name: str) -> None:
    for option in options_of(name):
        said = option.help or ""
        assert said[:1].isupper(), option.opts
        assert said.endswith("."), option.opts
        assert len(said) <= 130, option.opts


@pytest.mark.parametrize("name", COMMANDS)
def test_groups_name_options_that_are_there_each_once(name: str) -> None:
    known = {long for option in options_of(name) for long in option.opts}
    named = Counter(option for _, options in command_of(name).groups for option in options)
    assert {option for option, count in named.items() if count > 1} == set()
    assert set(named) - known == set()
    if len(options_of(name)) > 11:  # three of them are everywhere
        assert known - set(named) <= {"-q", "-v", "--version"}


def test_what_most_people_need_comes_first() -> None:
    text = CliRunner().invoke(command_of("build"), ["-h"]).stdout
    order = [text.index(f"  {option}") for option in ("--int8", "--sparse", "--calib", "--target", "--out", "--arch")]
    assert order == sorted(order)


@pytest.mark.parametrize("name", COMMANDS)
def test_versions_are_those_that_are_installed(name: str) -> None:
    command: Any = importlib.import_module(f"gpusq_deploy.cli.{name}")
    told = run_main(command.main, "--version", "--json").json()
    here = {found.name.lower().replace("_", "-") for found in metadata.distributions()}
    for package in (*LIBRARIES, *ENGINES):
        assert told.get(package) == (metadata.version(package) if package in here else None)
    assert told["gpusq-deploy"] == metadata.version("gpusq-deploy")
    lines = run_main(command.main, "--version").out.splitlines()
    assert lines[0] == f"gpusq-deploy {told['gpusq-deploy']}"
    assert f"numpy {metadata.version('numpy')}" in lines


def test_targets_and_recipes_are_the_files_that_are_shipped() -> None:
    for what, folder in (("targets", "engines/targets"), ("recipes", "calibration/recipes")):
        done = run_main(build, "--list", what, "--json")
        assert done.code == 0
        names = {path.stem for path in (ROOT / folder).glob("*.toml")}
        assert {entry["name"] for entry in done.json()[what]} == names
        assert {line.split()[0] for line in run_main(build, "--list", what).out.splitlines()[1:]} == names


@pytest.mark.parametrize("pattern", ["vit_small*", "deit3"])
def test_architectures_are_those_of_timm(pattern: str) -> None:
    done = run_main(build, "--list", f"architectures:{pattern}")
    wanted = pattern if "*" in pattern else f"*{pattern}*"
    assert [line for line in done.out.splitlines() if line.startswith("timm:")] == [
        f"timm:{name}" for name in timm.list_models(wanted)
    ]


@pytest.mark.parametrize("what", ["nonsense", "targets:a100", ""])
def test_an_unknown_list_is_a_usage_error(what: str) -> None:
    assert run_main(build, "--list", what).code == 2


def test_an_architecture_that_nobody_has_gets_near_ones() -> None:
    done = run_main(build, "--list", "architectures:vit_smal_patch16_224")
    assert done.code == 5
    assert "vit_small_patch16_224" in done.err


def test_json_is_looked_for_among_options_alone() -> None:
    done = CliRunner().invoke(command_of("inspect"), ["--", "--json"])
    with pytest.raises(json.JSONDecodeError):
        json.loads(done.stdout)
