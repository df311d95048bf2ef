"""`kvstore dump`: many keys to a file.

Pages come slot by slot, each of one moment within its slot; the whole is of no single moment. The
file appears under its name only when it is complete: until then it is ``FILE.part``, with the place
where the next page begins beside it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import click

from kvstore.cli.bulk import PAGE_KEYS, Bar, Remembered
from kvstore.cli.data import key_argument
from kvstore.cli.formats import FORMATS, Writer, format_of, writer
from kvstore.cli.output import cluster_options, connect, stderr_console
from kvstore.errors import BadRequest, KVError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from kvstore.client import Client


class Place(NamedTuple):
    """How far a dump came: bytes written, the keys in them, where the next page begins."""

    bytes: int = 0
    keys: int = 0
    cursor: str | None = None
    progress: float = 0.0


@click.command()
@cluster_options
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--prefix", default="", help="Only keys that begin with it.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="[default: by the file's name]")
@click.option("--force", is_flag=True, help="Replace FILE.")
def dump(url: str, timeout: float, file: str, prefix: str, form: str | None, force: bool) -> None:
    """Export keys to FILE (JSON lines, CSV or MessagePack; - is stdout).

    After an interruption the same command goes on where it stopped.
    """
    made = writer(form := format_of(file, form))
    console = stderr_console()
    with connect(url, timeout) as client:
        if file == "-":
            sys.stdout.buffer.write(made.head())
            for _ in _walk(client, prefix, made, sys.stdout.buffer, Place()):
                sys.stdout.buffer.flush()
            return
        path = Path(file)
        if path.exists() and not force:
            raise BadRequest(f"{file} exists: choose another name, or replace it with --force")
        job = {"url": url, "prefix": prefix, "format": form}
        _dump_to(path, client, prefix, made, Remembered(_beside(path, ".progress"), job), console)


def _dump_to(
    path: Path,
    client: Client,
    prefix: str,
    made: Writer,
    remembered: Remembered,
    console: Console,
) -> None:
    part = _beside(path, ".part")
    place = Place()
    found = remembered.recall()
    if found is not None and part.exists() and part.stat().st_size >= found["bytes"]:
        place = Place(**found)
        console.print(f"going on behind the {place.keys:,} keys of last time")
    with _open(part) as target:
        target.truncate(place.bytes)
        target.seek(place.bytes)
        if not place.bytes:
            target.write(made.head())
        try:
            with Bar(console, f"dumping to {path}", 1.0) as bar:
                for reached in _walk(client, prefix, made, target, place):
                    place = reached
                    bar.advance(place.keys - bar.keys, place.progress)
                    remembered.remember(place._asdict())
        except (KVError, KeyboardInterrupt):
            remembered.remember(place._asdict(), now=True)
            console.print(f"stopped: {place.keys:,} keys are in {part}; the same command goes on")
            raise
        os.fsync(target.fileno())
    os.replace(part, path)
    remembered.forget()


def _walk(
    client: Client, prefix: str, made: Writer, target: IO[bytes], place: Place
) -> Iterator[Place]:
    """Write page after page; each place is that behind what was handed to the system."""
    while True:
        page = client.scan_page(key_argument(prefix), limit=PAGE_KEYS, cursor=place.cursor)
        lines = (made.entry(k, e) for k, e in zip(page.keys, page.entries, strict=True))
        target.write(b"".join(lines))
        target.flush()
        end = target.tell() if target.seekable() else 0
        place = Place(end, place.keys + len(page.keys), page.cursor, page.progress)
        yield place
        if page.cursor is None:
            return


def _open(part: Path) -> IO[bytes]:
    try:
        return part.open("r+b" if part.exists() else "w+b")
    except OSError as error:
        raise BadRequest(f"cannot write {part}: {error.strerror}") from error


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
