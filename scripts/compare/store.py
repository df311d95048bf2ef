"""What a store has to offer to be compared: processes to start and stop, and entrants.

An *entrant* is one way of using a store, such as a client and a durability, with a phase for each
operation that this way has. Several entrants share the processes of their store. `promise` says
what an answered operation means; the report prints it beside the figures, because a figure without
it compares apples with pears.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from scripts.bench_figures import Timing

BULK_PREFIX: Final = "bulk:"
"""Of the keys of an import."""


@dataclass(frozen=True)
class Load:
    """Keys and values of a phase, the same for every store."""

    stored: Sequence[str]
    """All keys, each once, in random order."""
    drawn: Sequence[str]
    """What phases draw from: the same keys, some more often than others if popularity differs."""
    value: bytes

    def draw(self, count: int) -> Sequence[str]:
        """Random keys: neighbours in a random order, which costs the client almost nothing."""
        start = random.randrange(len(self.drawn) - count + 1)
        return self.drawn[start : start + count]


Phase = Callable[[Load, float], Timing]
"""What is done, and for how many seconds."""


@dataclass(frozen=True)
class Entrant:
    """One way of using a store."""

    name: str
    client: str
    promise: str
    """Of an answered write, and of a read."""
    phases: Mapping[str, Phase]
    """By the name of the operation."""


class Missing(Exception):
    """A store that cannot be compared here; says how to install it."""


class Store(Protocol):
    """One contestant's processes. Its data stays from start to start."""

    name: str
    keeps: bool
    """Whether what was stored is there after a restart."""

    @property
    def version(self) -> str:
        """For the report."""

    @property
    def pids(self) -> list[int]:
        """Of the processes that run now."""

    @property
    def entrants(self) -> list[Entrant]:
        """Usable while it runs."""

    def start(self) -> None:
        """Return when every process serves."""

    def stop(self) -> None:
        """End every process, whatever state it is in; may be called twice."""

    def fill(self, load: Load) -> None:
        """Store every key once."""


class BulkStore(Store, Protocol):
    """A store that is also compared with very many keys."""

    def prepare_import(self, entries: Iterable[tuple[str, bytes]]) -> None:
        """Write the file or files that the import reads; the store runs."""

    def load_prepared(self) -> None:
        """By the store's own command; return when all is as durable as it gets."""

    def kill(self) -> None:
        """End every process at once."""

    def scan(self) -> int:
        """Read every key with its value; how many there were."""


def executable(name: str, package: str) -> str:
    """The path of a command.

    Raises:
        Missing: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise Missing(f"there is no {name} here: apt-get install {package}")
    return found


def library_missing(name: str, library: str) -> Missing:
    """A contestant whose Python client is not installed."""
    return Missing(f"{name} needs the Python package {library}: make bench installs it")
