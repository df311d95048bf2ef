"""`kvstore serve`: one node in the foreground, until it is told to stop.

The options have no defaults and no types here: what is not given may stand in the environment or
in a file, and all of them are read and checked in one place (`kvstore.settings`), so that the same
slip gets the same answer wherever it was made.
"""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from kvstore.settings import NodeSettings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., Any]")

PLAN_TIMEOUT_S: Final = 10.0

_OPTIONS: Final = {
    "name": ("NAME", "the node's name, unique in the cluster [node-PORT]"),
    "host": ("HOST", "listen here for peers and clients [127.0.0.1]"),
    "port": ("PORT", "... on this port [7401]"),
    "http_host": ("HOST", "listen here for HTTP [as --host]"),
    "http_port": ("PORT", "... on this port [8401]"),
    "advertised_address": ("HOST:PORT", "where peers and clients reach the node [host and port]"),
    "advertised_http_address": ("HOST:PORT", "where they reach its HTTP [HTTP host and port]"),
    "data_dir": ("DIR", "where the node keeps its data [./kvdata]"),
    "cluster": ("NAME", "the cluster's name, the same on all nodes [ringkv]"),
    "founders": (
        "HOST:PORT,...",
        "found a cluster of these nodes, by advertised address, the same list on each [a cluster "
        "of this node alone]",
    ),
    "join": ("HOST:PORT,...", "be taken into the cluster of one of these nodes [none]"),
    "replace": ("NODE", "... in the place of this member, which leaves [none]"),
    "zone": ("NAME", "spread replicas over zones; this node's [none]"),
    "weight": ("NUMBER", "the node's share of the data relative to others' [1]"),
    "replicas": ("COUNT", "copies of each key, for a cluster that is founded [3]"),
    "slot_count": ("COUNT", "slots of a cluster that is founded, a power of two [16384]"),
    "durability": ("disk|os", "acknowledge writes when on disk, or when with the system [disk]"),
    "engine": ("rocksdb|memory", "where records are kept [rocksdb]"),
    "cache_bytes": ("SIZE", "memory for the engine's cache, such as 512MiB [192MiB]"),
    "disk_reserve_bytes": (
        "SIZE",
        "with less than this free on the disk, take no writes but deletes [512MiB]",
    ),
    "scrub_bytes_per_s": (
        "SIZE",
        "compare copies in the background, so many bytes a second; 0: do not [1MiB]",
    ),
    "insecure": (None, "listen beyond loopback although there is no authentication yet"),
    "log_level": ("debug|info|warning|error", "the least to log [info]"),
    "log_format": ("auto|text|json", "form of the log; auto is text on a terminal [auto]"),
}
"""Each setting's form and help, with its default in brackets."""

assert tuple(_OPTIONS) == NodeSettings.__struct_fields__


def _setting_options(*without: str) -> Callable[[_F], _F]:
    """An option for each setting, but for those that the command has another way to give."""

    def add(command: _F) -> _F:
        for name, (form, text) in reversed(_OPTIONS.items()):
            flag = f"--{name.replace('_', '-')}"
            if name in without:
                continue
            if form is None:
                command = click.option(flag, is_flag=True, default=None, help=text)(command)
            else:
                command = click.option(flag, metavar=form, help=text)(command)
        return command

    return add


_settings_file_option: Final = click.option(
    "--settings-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="KVSTORE_SETTINGS_FILE",
    help="a TOML file of these settings: http_port = 8401",
)


@click.command()
@_setting_options()
@_settings_file_option
@click.pass_context
def serve(ctx: click.Context, /, settings_file: Path | None, **options: Any) -> int:
    """Run one node.

    Each option can also be set in the environment (--http-port as KVSTORE_HTTP_PORT) or in a
    settings file (as http_port); an option wins over the environment, the environment over the
    file. Without any, a cluster of one node keeps its data in ./kvdata.
    """
    return _run(ctx, settings_file, options)


@click.command()
@click.argument("address", metavar="HOST:PORT")
@_setting_options("founders", "join", "replace")
@_settings_file_option
@click.option("--plan", "plan_only", is_flag=True, help="Show what would move, and start nothing.")
@click.pass_context
def join(
    ctx: click.Context,
    /,
    address: str,
    settings_file: Path | None,
    plan_only: bool,
    **options: Any,
) -> int:
    """Run one node that joins the cluster of the member at HOST:PORT.

    As `kvstore serve --join`: a node that is in already just starts.
    """
    if plan_only:
        return _show_plan(address, _settings(ctx, settings_file, options, join=address))
    return _run(ctx, settings_file, options, join=address)


def _show_plan(address: str, settings: NodeSettings) -> int:
    """What would move if this node came."""
    from kvstore.cli.membership import ask_plan, show_plan
    from kvstore.node.operator_view import Newcomer

    newcomer = Newcomer(settings.name, settings.zone, settings.weight)
    show_plan(asyncio.run(ask_plan(f"kv://{address}", newcomer, PLAN_TIMEOUT_S)), "table")
    return 0


@click.command()
@click.argument("node")
@_setting_options("founders", "replace")
@_settings_file_option
@click.pass_context
def replace(ctx: click.Context, /, node: str, settings_file: Path | None, **options: Any) -> int:
    """Run one node that takes the place of NODE in the cluster of --join.

    As `kvstore serve --join HOST:PORT --replace NODE`. NODE is drained, unless this is its own
    machine with a new disk: then it is taken out at once.
    """
    return _run(ctx, settings_file, options, replace=node)


def _settings(
    ctx: click.Context, settings_file: Path | None, options: dict[str, Any], **more: str
) -> NodeSettings:
    flags = {
        name: value
        for name, value in options.items()
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    # The configuration file also has defaults of other commands, and they rank below all else.
    configured = {name: v for name, v in (ctx.default_map or {}).items() if name in _OPTIONS}
    return load_settings(flags | more, os.environ, settings_file, configured=configured)


def _run(
    ctx: click.Context, settings_file: Path | None, options: dict[str, Any], **more: str
) -> int:
    settings = _settings(ctx, settings_file, options, **more)
    gc.disable()  # what is imported stays: to walk it again and again takes a tenth of a second
    from kvstore.log import configure_logging
    from kvstore.process import run_node

    gc.enable()
    configure_logging(settings.log_level, settings.log_format)
    return run_node(settings)
