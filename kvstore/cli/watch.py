"""`kvstore watch`: what happens under a prefix, a line for each change, until Ctrl-C."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kvstore.cli.data import key_argument, preview, shown, write_line
from kvstore.cli.output import cluster_options, connect, output_option
from kvstore.errors import BadRequest
from kvstore.json_values import dump_json

if TYPE_CHECKING:
    from kvstore.client import Watch, WatchEvent

SAVE_SECONDS: Final = 1.0
"""How often the place is written to the file of --resume."""


@click.command()
@cluster_options
@output_option
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many changes.")
@click.option(
    "--resume",
    "resume_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Go on from the place in this file, if it is there, and keep it up to date.",
)
def watch(
    url: str,
    timeout: float,
    output: str,
    prefix: str,
    limit: int | None,
    resume_file: Path | None,
) -> None:
    """Print what happens to the keys that begin with PREFIX (all without it), until Ctrl-C.

    Each line is a change, once, through any failover: put, delete, superseded (changed again before
    it could be told) or reset (changes were missed; the present state follows). -o json prints one
    JSON object a line, -o name the keys alone, -o wide whole values with their versions.
    """
    with (
        connect(url, timeout) as client,
        client.watch(key_argument(prefix), resume=_saved(resume_file)) as events,
        suppress(KeyboardInterrupt),
    ):
        click.echo(f"kvstore: watching {prefix!r}", err=True)
        place = _Place(events, resume_file)
        try:
            left = limit
            while left is None or left > 0:
                event = events.poll(SAVE_SECONDS)
                if event is not None:
                    _print(event, output)
                    left = None if left is None else left - 1
                place.keep()
        finally:
            place.keep(now=True)


class _Place:
    """Where the watch goes on next time: printed first, kept then."""

    def __init__(self, events: Watch, path: Path | None) -> None:
        self._events = events
        self._path = path
        self._kept_at = time.monotonic()
        self._kept = ""

    def keep(self, *, now: bool = False) -> None:
        """Write it to the file, now and then."""
        if self._path is None or (not now and time.monotonic() - self._kept_at < SAVE_SECONDS):
            return
        self._kept_at = time.monotonic()
        token = self._events.token
        if token != self._kept:
            sys.stdout.flush()
            beside = self._path.with_name(f"{self._path.name}.new")
            beside.write_text(token)
            os.replace(beside, self._path)
            self._kept = token


def _saved(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"cannot read {path}: {error}") from error


def _print(event: WatchEvent, output: str) -> None:
    if output == "json":
        write_line(dump_json(_fields(event)))
    elif output == "name":
        write_line(event.key if isinstance(event.key, bytes) else event.key.encode())
    else:
        wide = output == "wide"
        value = preview(event.value, whole=wide) if event.type == "put" else ""
        about = [shown(event.key), *([event.version] * wide), value]
        write_line("  ".join([f"{event.type:<10}", *about]).rstrip().encode(errors="replace"))
    sys.stdout.buffer.flush()


def _fields(event: WatchEvent) -> dict[str, Any]:
    """A change as JSON members."""
    if event.type == "reset":
        return {"type": "reset", "slots": sorted(event.slots)}
    fields: dict[str, Any] = {"type": event.type, "key": event.key, "version": event.version}
    if event.type == "put":
        fields["value"] = event.value
        if event.expires_at is not None:
            fields["expires_at"] = event.expires_at
        if event.content_type:
            fields["content_type"] = event.content_type
    return fields
