"""The command that all of ours are: its help in groups, `-h`, `--version`, `--quiet` and `--verbose`."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from gpusq_deploy.cli.session import filter_advice, session

# A heading of the help and the options under it, by their long names, in the order of the page.
Groups = Sequence[tuple[str, Sequence[str]]]
# What a command prints: for the last of its groups.
LOUDNESS = ("--json", "--quiet", "--verbose")
_ABOUT = (*LOUDNESS, "--version", "--help")
_WIDTH = 100


class PipeClosedError(Exception):
    """Whoever read our output is gone. Click would make exit code 1 of a BrokenPipeError, which is a verdict's."""


class Command(click.Command):
    """A command with the options that every one has.

    Args:
        groups: Headings of its `--help` with their options; what is in none comes last, under "Other".
    """

    def __init__(self, *arguments: Any, groups: Groups = (), **settings: Any) -> None:
        settings["context_settings"] = {**_SETTINGS, **(settings.get("context_settings") or {})}
        super().__init__(*arguments, **settings)
        self.params += common_options()
        self.groups = groups

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Look whether the result is to be JSON before anything can fail."""
        session.quiet = session.verbose = False
        session.json = _json_on_stdout(self, args)
        with _pipe_watched():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        with _pipe_watched():
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options under their headings."""
        records = dict(self._records(ctx))
        placed = {name for _, names in self.groups for name in names}
        rest = [name for name in records if name not in placed and name not in _ABOUT]
        last = ("Other" if self.groups else "Options", [*rest, *(name for name in _ABOUT if name not in placed)])
        for title, names in (*self.groups, last):
            if rows := [records[name] for name in names if name in records]:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _records(self, ctx: click.Context) -> Iterator[tuple[str, tuple[str, str]]]:
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                yield max(param.opts, key=len), record


class Grouped(click.Group):
    """The command that holds the others: `-h` and `--version`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings["context_settings"] = _SETTINGS
        super().__init__(*arguments, **settings)
        self.params.append(_version_option())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Look whether errors are to be JSON, until the command that is named looks itself."""
        session.json = "--json" in args
        # Beside --version it stands here, where it is nobody's option.
        mine = [arg for arg in args if arg != "--json"] if args[:1] in (["--json"], ["--version"]) else args
        with _pipe_watched():
            return super().parse_args(ctx, mine)


def common_options() -> list[click.Parameter]:
    """`--quiet`, `--verbose` and `--version`: they act by themselves, and no function receives them."""
    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set_quiet,
            help="Print errors and the result only.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set_verbose,
            help="Also print the warnings of libraries, and the traceback of an error.",
        ),
        _version_option(),
    ]


def _version_option() -> click.Option:
    return click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_print_versions,
        help="Print the versions of this package and of those that it uses.",
    )


_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH}


def _set_quiet(_context: click.Context, _option: click.Parameter, asked: bool) -> None:
    session.quiet = session.quiet or asked


def _set_verbose(_context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked:
        session.verbose = True
        filter_advice("default")


def _print_versions(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        print_versions(context)


def on_command_line(context: click.Context, names: Iterable[str]) -> list[str]:
    """Of parameters, by their Python names: the options of those that were given, as they are spelt."""
    spelt = {param.name: max(param.opts, key=len) for param in context.command.params}
    typed = click.core.ParameterSource.COMMANDLINE
    return [spelt[name] for name in names if context.get_parameter_source(name) == typed]


def print_versions(context: click.Context) -> NoReturn:
    """Print what is installed, and end the command."""
    from gpusq_deploy.engines import all_versions

    versions = all_versions()
    if session.json:
        click.echo(json.dumps(versions, indent=2))
    else:
        click.echo("\n".join(f"{name} {version}" for name, version in versions.items()))
    context.exit()


def _json_on_stdout(command: click.Command, args: Sequence[str]) -> bool:
    """True for `--json`, where no file is named to it."""
    words = list(args[: args.index("--")] if "--" in args else args)
    if "--json" not in words:
        return False
    following = words[words.index("--json") + 1 :]
    takes_file = any("--json" in param.opts and not _is_flag(param) for param in command.params)
    return not takes_file or not following or following[0].startswith("-")


def _is_flag(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and param.is_flag


@contextmanager
def _pipe_watched() -> Generator[None, None, None]:
    try:
        yield
    except BrokenPipeError as error:
        raise PipeClosedError from error
    except SystemExit as stop:  # rich makes one of it
        if isinstance(stop.__context__, BrokenPipeError):
            raise PipeClosedError from stop
        raise
