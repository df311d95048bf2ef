"""The command `kvstore`: its list of commands, and the one place where errors become exit statuses.

A command's module is imported when it is used, so that `kvstore get` does not pay for the server.
Settings come from flags, then the environment (`KVSTORE_...`), then the configuration file, a TOML
file whose tables are named after the commands (``[get] url = "kv://..."``); ``url`` and ``timeout``
at its top serve all commands.
"""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import click

from kvstore.cli.output import ExitStatus, describe, status_of
from kvstore.errors import KVError

_COMMANDS: Final = {
    "serve": ("kvstore.cli.serve", "run one node"),
    "up": ("kvstore.cli.up", "run a local cluster in this terminal"),
    "put": ("kvstore.cli.data", "store a value"),
    "get": ("kvstore.cli.data", "read a value"),
    "delete": ("kvstore.cli.data", "delete keys"),
    "incr": ("kvstore.cli.data", "add to a number"),
    "touch": ("kvstore.cli.data", "set or remove a key's time to live"),
    "scan": ("kvstore.cli.data", "list keys by prefix"),
    "watch": ("kvstore.cli.watch", "follow what happens to keys"),
    "load": ("kvstore.cli.load", "import a file of many keys"),
    "dump": ("kvstore.cli.dump", "export many keys to a file"),
    "status": ("kvstore.cli.cluster", "the cluster on one screen"),
    "members": ("kvstore.cli.cluster", "which nodes are in, and how they are"),
    "slots": ("kvstore.cli.cluster", "where a key lives"),
    "join": ("kvstore.cli.serve", "run one node that joins a cluster"),
    "leave": ("kvstore.cli.membership", "let a node leave"),
    "replace": ("kvstore.cli.serve", "run one node that takes another's place"),
    "rebalance": ("kvstore.cli.membership", "which slots move, where to and how fast"),
    "can-stop": ("kvstore.cli.membership", "may a node be stopped now"),
    "doctor": ("kvstore.cli.doctor", "find what would hurt, and what to do about it"),
}

CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Commands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of a day's work, not of the alphabet."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help text, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A misspelt command is answered with the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            if not near:
                raise
            message = f"{error.message} Did you mean {near[0]!r}?"
            raise click.UsageError(message, ctx) from error


def read_config(path: Path) -> dict[str, Any]:
    """The configuration file as click's defaults: ``{command: {option: value}}``.

    Raises:
        click.ClickException: the file is not TOML.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.ClickException(f"the configuration file {path} is not TOML: {error}") from error
    shared = {name: value for name, value in document.items() if not isinstance(value, dict)}
    return {name: {**shared, **document.get(name, {})} for name in _COMMANDS}


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(package_name="ringkv", prog_name="kvstore")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="KVSTORE_CONFIG",
    default=Path(click.get_app_dir("kvstore")) / "config.toml",
    show_default=True,
    help="Defaults of the commands, as TOML.",
)
@click.pass_context
def cli(ctx: click.Context, config: Path) -> None:
    """A replicated key-value store: its nodes, its data, its state."""
    ctx.default_map = read_config(config)


def main() -> None:
    """The console script: runs a command and exits with its status."""
    try:
        status = cli.main(prog_name="kvstore", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except KVError as error:
        click.echo(f"kvstore: {describe(error)}", err=True)
        status = status_of(error)
    except BrokenPipeError:
        # The reader of our output has enough (`| head`): leave quietly, stdout has no one left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = ExitStatus.OK
    sys.exit(status if isinstance(status, int) else 0)
