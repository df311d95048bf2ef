"""Histories of real clients: kept in memory while an operation is under way, then in files.

Times come from the machine's steady clock, which all its processes share, so that the events of
different processes have an order. Rows go to one file for each stretch of time (`CHUNK_EPOCHS`
names of keys), so that a run of any length is judged piece by piece: an operation on a key is found
in the files of that key's time and nowhere else.
"""

from __future__ import annotations

import pickle
import re
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from tests.simulation.checkers import Event
from tests.simulation.workload import History

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.simulation.checkers import Action

EPOCH_SECONDS: Final = 2.0
"""Keys have other names after so long: see `tests.simulation.workload.EPOCH_SECONDS`."""

CHUNK_EPOCHS: Final = 15
NS: Final = 1_000_000_000
_EPOCH: Final = re.compile(r"@(\d+)")


class Row(NamedTuple):
    """An event, and when its client was told whatever it was told (nanoseconds, steady clock)."""

    event: Event
    told: int


class Ledger(History):
    """What one client does now; its `take` moves what is over to the files."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    @property
    def now(self) -> float:
        return time.monotonic()

    def begin(self, client: str, key: str, action: Action) -> Event:
        now = time.monotonic_ns()
        event = Event(client, key, action, now, now / NS)
        self.events.append(event)
        return event

    def end(self, event: Event, answer: Any) -> None:
        event.ended = time.monotonic_ns()
        event.ended_at = event.ended / NS
        event.answer = answer

    def take(self) -> list[Row]:
        """All that was begun since; whatever had no answer by now is told to be without one."""
        told = time.monotonic_ns()
        rows = [Row(event, told) for event in self.events]
        self.events.clear()
        return rows


class Files:
    """Where a process writes its rows; for any number of threads."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, name
        self._open: dict[int, BinaryIO] = {}
        self._lock = threading.Lock()
        self.count = 0

    def write(self, rows: list[Row]) -> None:
        """Append rows, each to the file of its key's time."""
        by_chunk: dict[int, list[Row]] = {}
        for row in rows:
            by_chunk.setdefault(chunk_of(row.event.key), []).append(row)
        with self._lock:
            for chunk, some in by_chunk.items():
                pickle.dump(some, self._file(chunk), pickle.HIGHEST_PROTOCOL)
            self.count += len(rows)

    def close(self) -> None:
        """Everything is in the files."""
        with self._lock:
            for stream in self._open.values():
                stream.close()
            self._open.clear()

    def _file(self, chunk: int) -> BinaryIO:
        if chunk not in self._open:
            for old in [known for known in self._open if known < chunk - 1]:
                self._open.pop(old).close()
            path = self._directory / f"{chunk:08d}-{self._name}.events"
            self._open[chunk] = path.open("ab")
        return self._open[chunk]


def chunk_of(key: str) -> int:
    """The stretch of time that a key belongs to."""
    found = _EPOCH.search(key)
    return int(found[1]) // CHUNK_EPOCHS if found else 0


def chunks_in(directory: Path) -> list[int]:
    """All stretches of time in a directory."""
    return sorted({int(path.name[:8]) for path in directory.glob("*.events")})


def read_rows(directory: Path, chunks: Iterable[int] | None = None) -> Iterator[Row]:
    """The rows of some stretches of time, or of all."""
    for chunk in chunks_in(directory) if chunks is None else chunks:
        for path in sorted(directory.glob(f"{chunk:08d}-*.events")):
            with path.open("rb") as stream, suppress(EOFError):
                while True:
                    yield from pickle.load(stream)
