"""What `load`, `dump` and the demo data share: the bar, storing rows in batches, resuming.

A load is resumed by what is certain: every row before the remembered one is durable, and storing a
row again does no harm. What is remembered stands beside the file, for as long as it is unfinished.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from kvstore.cli.formats import BadRow, Row
from kvstore.client.flows import check_content_type
from kvstore.errors import BadRequest, PartialFailure
from kvstore.values import check_key, pack_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from rich.console import Console

    from kvstore.client import Client

PAGE_KEYS: Final = 1_000
"""Keys that are read at once."""

BATCH_KEYS_MIN: Final = 16
BATCH_KEYS_FIRST: Final = 128
BATCH_KEYS_MAX: Final = 65_536
"""Keys that are stored at once. Of many there are several for each slot, which is less work
(`kvstore.client.many`); of large values there are few, so that memory stays small."""

BATCH_S: Final = (0.5, 1.5)
"""How long a batch should take; well below a call's time limit."""

REMEMBER_EVERY_S: Final = 1.0


class _RateColumn(ProgressColumn):
    """Keys a second since the beginning."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        rate = task.fields["keys"] / elapsed if elapsed else 0.0
        return Text(f"{rate:,.0f} keys/s")


class Bar:
    """A progress bar on a terminal, and everywhere one line at the end.

    Args:
        console: Where to draw.
        what: What is done, as the bar's label.
        total: Units that it will take, whatever they are; None if nobody knows.
    """

    def __init__(self, console: Console, what: str, total: float | None) -> None:
        self._console = console
        self._what = what
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            _RateColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total, keys=0)
        self._begun = time.monotonic()
        self.keys = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._progress.stop()
        if kind is None:
            seconds = time.monotonic() - self._begun
            rate = self.keys / seconds if seconds else 0.0
            self._console.print(
                f"{self._what}: {self.keys:,} keys in {seconds:.1f} s ({rate:,.0f} keys/s)"
            )

    def advance(self, keys: int, done: float) -> None:
        """So many keys more; `done` of the total's units in all."""
        self.keys += keys
        self._progress.update(self._task, completed=done, keys=self.keys)


def batches(rows: Iterable[Any], now: Callable[[], float] = time.monotonic) -> Iterator[list[Any]]:
    """Lists of rows, longer and longer while each is done with quickly, shorter when it is not."""
    walk = iter(rows)
    size = BATCH_KEYS_FIRST
    shortest_s, longest_s = BATCH_S
    while batch := list(islice(walk, size)):
        begun = now()
        yield batch
        took_s = now() - begun
        if took_s < shortest_s:
            size = min(2 * size, BATCH_KEYS_MAX)
        elif took_s > longest_s:
            size = max(size // 2, BATCH_KEYS_MIN)


def load_pairs(
    client: Client,
    pairs: Iterable[tuple[str, object]],
    total: int,
    description: str,
    console: Console,
) -> None:
    """Store keys with values, with a bar.

    Raises:
        PartialFailure: some could not be stored.
    """
    with Bar(console, description, total) as bar:
        for batch in batches(pairs):
            client.put_many(dict(batch))
            bar.advance(len(batch), bar.keys + len(batch))


def store_rows(client: Client, rows: list[Row]) -> list[BadRow]:
    """Store rows; the last of those with one key stands. Returns those that can never be stored.

    Raises:
        PartialFailure: the cluster did not take some; storing all of them again is safe.
    """
    last = {row.key: row for row in rows}
    now = datetime.now(UTC)
    groups: defaultdict[tuple[float | None, str], dict[str | bytes, Row]] = defaultdict(dict)
    for key, row in last.items():
        if row.expires_at is None:
            groups[None, row.content_type][key] = row
        elif (left := (row.expires_at - now).total_seconds()) > 0:
            groups[left, row.content_type][key] = row
    bad: list[BadRow] = []
    for (ttl, content_type), group in groups.items():
        bad += _store_group(client, group, ttl, content_type)
    return bad


def _store_group(
    client: Client, group: dict[str | bytes, Row], ttl: float | None, content_type: str
) -> list[BadRow]:
    """All of them in one batch; only when that is refused they are looked at one by one."""
    items = {key: row.value for key, row in group.items()}
    try:
        client.put_many(items, ttl=ttl, content_type=content_type)
    except BadRequest:
        bad = [row for row in map(_judge, group.values()) if row is not None]
        faulty = {row.number for row in bad}
        rest = {key: row.value for key, row in group.items() if row.number not in faulty}
        if not bad or not rest:
            if not bad:
                raise
            return bad
        client.put_many(rest, ttl=ttl, content_type=content_type)
        return bad
    except PartialFailure as failure:
        if not all(isinstance(error, BadRequest) for error in failure.errors.values()):
            raise
        return [BadRow(group[key].number, str(error)) for key, error in failure.errors.items()]
    return []


def _judge(row: Row) -> BadRow | None:
    try:
        check_key(row.key)
        pack_value(row.value)
        check_content_type(row.content_type, row.value)
    except BadRequest as error:
        return BadRow(row.number, str(error))
    return None


class Remembered:
    """How far an unfinished job came, in a small file beside its data.

    Args:
        path: That file.
        job: What makes it the same job; anything else remembered there does not count.
    """

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        self._path = path
        self._job = job
        self._written = time.monotonic()

    def recall(self) -> dict[str, Any] | None:
        """What was remembered of this job, or None."""
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or found.get("job") != self._job:
            return None
        place = found.get("place")
        return place if isinstance(place, dict) else None

    def remember(self, place: dict[str, Any], *, now: bool = False) -> None:
        """Write it down, at most once a second; a directory that takes no file only costs that."""
        if not now and time.monotonic() - self._written < REMEMBER_EVERY_S:
            return
        self._written = time.monotonic()
        new = self._path.with_name(self._path.name + ".new")
        with suppress(OSError):
            new.write_text(json.dumps({"job": self._job, "place": place}))
            os.replace(new, self._path)

    def forget(self) -> None:
        """The job is done."""
        with suppress(OSError):
            self._path.unlink()
