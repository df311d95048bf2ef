"""`kvstore load`: many keys from a file.

Rows are read, checked and stored in batches, each durable before the next is read, so memory stays
small whatever the file's size. Rows that can never be stored are named by their number and left
out; the exit status tells that there were some.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click

from kvstore.cli.bulk import Bar, Remembered, batches, store_rows
from kvstore.cli.formats import FORMATS, BadRow, Row, Shape, format_of, read_rows
from kvstore.cli.output import ExitStatus, cluster_options, connect, stderr_console
from kvstore.errors import BadRequest, KVError

if TYPE_CHECKING:
    from rich.console import Console

    from kvstore.client import Client

BAD_SHOWN_MAX: Final = 20


@click.command()
@cluster_options
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--format", "form", type=click.Choice(FORMATS), help="[default: by the file's name]")
@click.option("--key", "key_field", metavar="FIELD", help="Take keys from it; rows are the values.")
@click.option("--prefix", default="", help="Put before every key.")
@click.option("--restart", is_flag=True, help="From the beginning, whatever was loaded before.")
def load(
    url: str,
    timeout: float,
    file: str,
    form: str | None,
    key_field: str | None,
    prefix: str,
    restart: bool,
) -> ExitStatus:
    """Import FILE (JSON lines, CSV or MessagePack; - is stdin).

    A row has a key and a value (CSV: a column "value" of text, or "json"), or with --key FIELD the
    key is in that field and the whole row is the value. After an interruption the same command
    goes on where it stopped. Exit status 2 says that rows were left out.
    """
    form = format_of(file, form)
    shape = Shape(key_field, prefix)
    console = stderr_console()
    with _open(file) as source, connect(url, timeout) as client:
        job = Job(client, console, source, form, shape)
        if file != "-":
            job.resume_beside(Path(file), url, restart=restart)
        return job.run()


def _open(file: str) -> IO[bytes]:
    try:
        return sys.stdin.buffer if file == "-" else Path(file).open("rb")
    except OSError as error:
        raise BadRequest(f"cannot read {file}: {error.strerror}") from error


class Job:
    """One import."""

    def __init__(
        self, client: Client, console: Console, source: IO[bytes], form: str, shape: Shape
    ) -> None:
        self._client = client
        self._console = console
        self._source = source
        self._form = form
        self._shape = shape
        self._remembered: Remembered | None = None
        self._done = 0
        """Rows that are settled: durable or reported."""
        self._bad = 0
        self._total: int | None = None

    def resume_beside(self, path: Path, url: str, *, restart: bool) -> None:
        """Go on where the same job stopped, and remember how far this one comes."""
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return
        self._total = found.st_size
        job: dict[str, Any] = {
            "size": found.st_size,
            "modified_ns": found.st_mtime_ns,
            "format": self._form,
            "shape": list(self._shape),
            "url": url,
        }
        self._remembered = Remembered(path.with_name(path.name + ".progress"), job)
        place = None if restart else self._remembered.recall()
        if place is not None:
            self._done = int(place["rows"])
            self._console.print(
                f"going on behind the {self._done:,} rows of last time (--restart begins anew)"
            )

    def run(self) -> ExitStatus:
        """Import everything; says how to go on when that fails."""
        try:
            self._import()
        except (KVError, KeyboardInterrupt):
            if self._remembered is not None:
                self._remembered.remember({"rows": self._done}, now=True)
                self._console.print(
                    f"stopped: {self._done:,} rows are done; the same command goes on from there"
                )
            raise
        if self._remembered is not None:
            self._remembered.forget()
        if self._bad:
            self._console.print(f"{self._bad:,} rows were left out")
            return ExitStatus.USAGE
        return ExitStatus.OK

    def _import(self) -> None:
        rows = read_rows(self._form, self._source, self._shape)
        for _ in zip(range(self._done), rows, strict=False):  # settled last time
            pass
        with Bar(self._console, "loading", self._total) as bar:
            for batch in batches(rows):
                good = [row for row in batch if isinstance(row, Row)]
                bad = [row for row in batch if isinstance(row, BadRow)]
                if good:
                    bad += store_rows(self._client, good)
                self._report(sorted(bad))
                self._done += len(batch)
                place = self._source.tell() if self._total is not None else 0
                bar.advance(len(batch) - len(bad), place)
                if self._remembered is not None:
                    self._remembered.remember({"rows": self._done})

    def _report(self, bad: list[BadRow]) -> None:
        where = "entry" if self._form == "msgpack" else "line"
        for row in bad:
            self._bad += 1
            if self._bad <= BAD_SHOWN_MAX:
                text = f"{where} {row.number}: {row.reason}; left out"
                self._console.print(text, markup=False, soft_wrap=True)
            elif self._bad == BAD_SHOWN_MAX + 1:
                self._console.print("more rows are left out; only their number is shown")
