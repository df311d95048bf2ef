"""`kvstore serve`: one node, until it is told to stop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from kvstore.log import FORMS, LEVELS, configure_logging
from kvstore.settings import load_settings


@click.command()
@click.option("--name", help="Unique in the cluster.  [default: node-PORT]")
@click.option("--host", help="Where the peer and client port listens.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="The peer and client port.  [default: 7401]")
@click.option("--http-host", help="Where the HTTP port listens.  [default: as --host]")
@click.option("--http-port", type=int, help="The HTTP port.  [default: 8401]")
@click.option("--advertised-address", help="host:port under which others reach this node.")
@click.option("--advertised-http-address", help="host:port of its HTTP port for others.")
@click.option("--data-dir", help="The directory of its data, its own.  [default: ./kvdata]")
@click.option("--cluster", help="The cluster's name.  [default: ringkv]")
@click.option(
    "--founders",
    help="Comma-separated host:port of all nodes that found the cluster together, the same list on "
    "each. Without it a node founds a cluster of one.",
)
@click.option("--zone", help="What fails together; replicas are spread over zones.")
@click.option("--weight", type=float, help="Share of the load, relative to others.  [default: 1]")
@click.option("--replicas", type=int, help="Copies of each key.  [default: 3]")
@click.option("--slot-count", type=int, help="Slots of a new cluster.  [default: 16384]")
@click.option(
    "--durability",
    type=click.Choice(["disk", "os"]),
    help='"disk" acknowledges after an fsync, "os" before.  [default: disk]',
)
@click.option(
    "--engine",
    type=click.Choice(["rocksdb", "memory"]),
    help='"memory" forgets everything when the node stops.  [default: rocksdb]',
)
@click.option("--cache-bytes", help="Memory for what is read, 64MiB.  [default: 64MiB]")
@click.option(
    "--insecure", is_flag=True, default=None, help="Listen beyond loopback without authentication."
)
@click.option("--log-level", type=click.Choice(LEVELS), help="[default: info]")
@click.option("--log-format", type=click.Choice(FORMS), help="[default: auto]")
@click.option(
    "--settings-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="KVSTORE_SETTINGS_FILE",
    help="A TOML file of these settings, with underscores for hyphens.",
)
def serve(settings_file: Path | None, **flags: Any) -> int:
    """Run one node.

    Settings come from flags, then the environment (KVSTORE_PORT, KVSTORE_DATA_DIR, ...), then the
    settings file. Without any: a cluster of one in ./kvdata on ports 7401 and 8401.
    """
    settings = load_settings(flags, os.environ, settings_file)
    configure_logging(settings.log_level, settings.log_format)
    from kvstore.process import run_node

    return run_node(settings)
