"""`kvstore put`, `get`, `delete`, `incr`, `touch` and `scan`: one key, or the keys below a prefix.

A value on the command line is text; one from a file (``@path``) or from stdin (``-``) is raw bytes,
unchanged; ``--json`` says that it is JSON, and is the way to store numbers, lists and maps. What
JSON lacks (bytes, moments) is written as `kvstore.json_values` describes, both ways.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.output import ExitStatus, cluster_options, connect, output_option, print_columns
from kvstore.errors import BadRequest, WrongType
from kvstore.json_values import dump_json, load_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstore.client import Client, Entry

VALUE_SHOWN_MAX = 80
"""Characters of a value in a table."""

_json = click.option("--json", "as_json", is_flag=True, help="The value is JSON.")
_operation_id = click.option(
    "--operation-id", metavar="ID", help="Settle a write whose outcome was unknown."
)
_consistency = click.option(
    "--consistency",
    type=click.Choice(["linearizable", "eventual"]),
    default="linearizable",
    show_default=True,
    help="Whether any replica's word will do.",
)


@click.command()
@cluster_options
@click.argument("key")
@click.argument("value", required=False)
@_json
@click.option("--ttl", type=float, metavar="SECONDS", help="Remove it after this time.")
@click.option("--if-absent", is_flag=True, help="Only if there is no such key.")
@click.option("--if-version", metavar="VERSION", help="Only if this is still its version.")
@click.option("--content-type", default="", help="Of raw bytes, for readers over HTTP.")
@_operation_id
def put(
    url: str,
    timeout: float,
    key: str,
    value: str | None,
    as_json: bool,
    ttl: float | None,
    if_absent: bool,
    if_version: str | None,
    content_type: str,
    operation_id: str | None,
) -> None:
    """Store VALUE under KEY and print its version.

    VALUE is text; @PATH reads a file and - reads stdin, both as raw bytes. Without VALUE, stdin is
    read unless it is a terminal.
    """
    content = read_value(value, as_json=as_json)
    with connect(url, timeout) as client:
        version = client.put(
            key_argument(key),
            content,
            ttl=ttl,
            if_absent=if_absent,
            if_version=if_version,
            content_type=content_type,
            operation_id=operation_id,
        )
    click.echo(version)


@click.command()
@cluster_options
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="The value as JSON, whatever it is.")
@click.option("--entry", is_flag=True, help="As JSON, with version, expiry and content type.")
@_consistency
def get(
    url: str, timeout: float, key: str, as_json: bool, entry: bool, consistency: str
) -> ExitStatus:
    """Print the value of KEY; exit status 1 if there is none.

    Text and bytes are printed as they are, bytes without a line end; other values as JSON.
    """
    with connect(url, timeout) as client:
        found = client.get_entry(key_argument(key), consistency=consistency)
    if found is None:
        click.echo(f"kvstore: there is no key {key!r}", err=True)
        return ExitStatus.NOT_FOUND
    if entry:
        write_line(dump_json({"key": key, **entry_fields(found)}))
    elif as_json or not isinstance(found.value, str | bytes):
        write_line(dump_json(found.value))
    elif isinstance(found.value, str):
        write_line(found.value.encode())
    else:
        sys.stdout.buffer.write(found.value)
        sys.stdout.buffer.flush()
    return ExitStatus.OK


@click.command()
@cluster_options
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--if-version", metavar="VERSION", help="Only if this is still its version.")
@_operation_id
def delete(
    url: str,
    timeout: float,
    keys: tuple[str, ...],
    if_version: str | None,
    operation_id: str | None,
) -> ExitStatus:
    """Delete keys and print how many there were; exit status 1 if none."""
    names = list(dict.fromkeys(key_argument(key) for key in keys))
    with connect(url, timeout) as client:
        if len(names) == 1:
            existed = client.delete(names[0], if_version=if_version, operation_id=operation_id)
            count = int(existed)
        elif if_version is not None or operation_id is not None:
            raise BadRequest("--if-version and --operation-id are for a single key")
        else:
            count = client.delete_many(names)
    click.echo(count)
    return ExitStatus.OK if count else ExitStatus.NOT_FOUND


@click.command()
@cluster_options
@click.argument("key")
@click.option("--by", type=int, default=1, show_default=True, help="What to add; may be negative.")
@_operation_id
def incr(url: str, timeout: float, key: str, by: int, operation_id: str | None) -> None:
    """Add to the integer under KEY (absent is 0) and print the new number."""
    with connect(url, timeout) as client:
        try:
            number = client.incr(key_argument(key), by, operation_id=operation_id)
        except WrongType as error:
            raise WrongType(f"{error}; `kvstore put --json` stores a number as a number") from None
    click.echo(number)


@click.command()
@cluster_options
@click.argument("key")
@click.option(
    "--ttl", type=float, metavar="SECONDS", help="Remove it after this time; for ever without."
)
@_operation_id
def touch(
    url: str, timeout: float, key: str, ttl: float | None, operation_id: str | None
) -> ExitStatus:
    """Set or remove the time to live of KEY; exit status 1 if there is none.

    The value stays as it is.
    """
    with connect(url, timeout) as client:
        existed = client.touch(key_argument(key), ttl, operation_id=operation_id)
    if not existed:
        click.echo(f"kvstore: there is no key {key!r}", err=True)
        return ExitStatus.NOT_FOUND
    return ExitStatus.OK


@click.command()
@cluster_options
@output_option
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many.")
def scan(url: str, timeout: float, output: str, prefix: str, limit: int | None) -> None:
    """List the keys that begin with PREFIX (all without it), with their values.

    -o json prints one JSON object a line, as `kvstore load` reads it; -o name the keys alone;
    -o wide whole values, with their versions.
    """
    with connect(url, timeout) as client:
        pages = scan_pages(client, key_argument(prefix), limit, values=output != "name")
        for number, (keys, entries) in enumerate(pages):
            if output == "name":
                for key in keys:
                    write_line(key if isinstance(key, bytes) else key.encode())
            elif output == "json":
                for key, entry in zip(keys, entries, strict=True):
                    write_line(dump_json({"key": key, "value": entry.value}))
            else:
                wide = output == "wide"
                columns = ["key", "version", "value"] if wide else ["key", "value"]
                pairs = zip(keys, entries, strict=True)
                rows = [
                    (shown(k), *([e.version] * wide), preview(e.value, whole=wide))
                    for k, e in pairs
                ]
                print_columns(columns, rows, head=number == 0)


def scan_pages(
    client: Client, prefix: str | bytes, limit: int | None, *, values: bool
) -> Iterator[tuple[list[str | bytes], list[Entry]]]:
    """The pages of a scan, up to `limit` keys in all; empty ones are left out."""
    cursor: str | None = None
    left = limit
    while left is None or left > 0:
        room = 1_000 if left is None else min(left, 1_000)
        page = client.scan_page(prefix, limit=room, cursor=cursor, values=values)
        if page.keys:
            yield page.keys, page.entries
        cursor = page.cursor
        if cursor is None:
            return
        left = None if left is None else left - len(page.keys)


def read_value(text: str | None, *, as_json: bool) -> Any:
    """A value from the command line, a file or stdin.

    Raises:
        BadRequest: the file cannot be read, or there is no JSON where JSON was promised.
    """
    content: str | bytes
    if text is None or text == "-":
        if text is None and sys.stdin.isatty():
            raise BadRequest("there is no value: give VALUE, @PATH, or - for stdin")
        content = sys.stdin.buffer.read()
    elif text.startswith("@"):
        try:
            content = Path(text[1:]).read_bytes()
        except OSError as error:
            raise BadRequest(f"cannot read {text[1:]}: {error.strerror}") from error
    else:
        content = text
    if as_json:
        return load_json(content if isinstance(content, bytes) else os.fsencode(content))
    if isinstance(content, str) and isinstance(key_argument(content), bytes):
        raise BadRequest("VALUE is no valid text: pass raw bytes as @PATH or through stdin")
    return content


def key_argument(text: str) -> str | bytes:
    """A key as it was typed: text, or the bytes of what is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def entry_fields(entry: Entry) -> dict[str, Any]:
    """An entry as JSON members; what is empty is left out."""
    fields: dict[str, Any] = {"value": entry.value, "version": entry.version}
    if entry.expires_at is not None:
        fields["expires_at"] = entry.expires_at
    if entry.content_type:
        fields["content_type"] = entry.content_type
    return fields


def write_line(line: bytes) -> None:
    """One line on stdout, as bytes: keys and values may be no text of the terminal's encoding."""
    sys.stdout.buffer.write(line + b"\n")


def shown(key: str | bytes) -> str:
    """A key in a table."""
    return key if isinstance(key, str) else repr(key)


def preview(value: Any, *, whole: bool) -> str:
    """A value in a table."""
    text = value if isinstance(value, str) else dump_json(value).decode()
    text = " ".join(text.split()) if isinstance(value, str) else text
    return text if whole or len(text) <= VALUE_SHOWN_MAX else f"{text[: VALUE_SHOWN_MAX - 3]}..."
