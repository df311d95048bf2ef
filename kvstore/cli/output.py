"""What all commands share: forms of output, exit statuses, the options to reach a cluster.

Output is plain columns without boxes, which survive `grep` and `awk`; ``-o json`` is for programs.
Results go to stdout, everything else to stderr. Colours and bars appear only on a terminal.
"""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from kvstore.errors import (
    BadRequest,
    KVError,
    OutcomeUnknown,
    SetupError,
    Unavailable,
    VersionConflict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import Console

    from kvstore.client import Client

DEFAULT_URL: Final = "kv://127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"

_F = TypeVar("_F", bound="Callable[..., Any]")


class ExitStatus(IntEnum):
    """What a script learns from a command's end."""

    OK = 0
    NOT_FOUND = 1
    USAGE = 2
    UNAVAILABLE = 3
    OUTCOME_UNKNOWN = 4
    CONFLICT = 5


def status_of(error: KVError) -> ExitStatus:
    """The exit status that says what kind of error this is."""
    match error:
        case OutcomeUnknown():
            return ExitStatus.OUTCOME_UNKNOWN
        case VersionConflict():
            return ExitStatus.CONFLICT
        case BadRequest() | SetupError():
            return ExitStatus.USAGE
        case Unavailable():
            return ExitStatus.UNAVAILABLE
        case _:
            return ExitStatus.NOT_FOUND


def describe(error: KVError) -> str:
    """The error as one line for a person; what settles an unknown outcome as the option it is."""
    if isinstance(error, OutcomeUnknown):
        option = f"--operation-id {error.operation_id}"
        return str(error).replace(f"operation_id={error.operation_id!r}", option)
    return str(error)


def cluster_options(command: _F) -> _F:
    """Options ``--url`` and ``--timeout``, as arguments ``url`` and ``timeout``."""
    command = click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=5.0,
        show_default=True,
        envvar="KVSTORE_TIMEOUT",
        help="Seconds for a whole call, retries included.",
    )(command)
    return click.option(
        "--url",
        default=DEFAULT_URL,
        show_default=True,
        envvar="KVSTORE_URL",
        help="Any nodes of the cluster; the rest is learned.",
    )(command)


def output_option(command: _F) -> _F:
    """Option ``-o``, the same for every command that has it, as argument ``output``."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "wide", "json", "name"]),
        default="table",
        show_default=True,
        help="Form of the output; wide leaves out nothing, name is for other commands.",
    )(command)


def connect(url: str, timeout: float) -> Client:
    """A client for the command.

    Raises:
        BadRequest: the address cannot be read.
    """
    from kvstore.client import connect as connect_client

    return connect_client(url, timeout=timeout)


def print_json(value: object) -> None:
    """One JSON document on stdout, indented on a terminal only."""
    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(value, ensure_ascii=False, indent=indent, default=str))


def print_columns(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, head: bool = True
) -> None:
    """Aligned columns under upper-case heads; an empty cell is a dash, so that `awk` can count."""
    table = [[name.upper().replace("_", "-") for name in columns]] if head else []
    table += [[str(cell) if cell not in ("", None) else "-" for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(columns))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def print_rows(
    output: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    wide: Sequence[str] = (),
) -> None:
    """Rows in the form ``output``: table (without the columns in ``wide``), wide, json or name.

    The first column is the name.
    """
    match output:
        case "json":
            print_json([dict(zip(columns, row, strict=True)) for row in rows])
        case "name":
            for row in rows:
                click.echo(row[0])
        case _:
            shown = [at for at, name in enumerate(columns) if output == "wide" or name not in wide]
            print_columns(
                [columns[at] for at in shown], [[row[at] for at in shown] for row in rows]
            )


def stderr_console() -> Console:
    """For bars and notes: plain text when it is no terminal."""
    from rich.console import Console  # a node does without

    return Console(stderr=True, highlight=False)
