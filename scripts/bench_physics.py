"""How far each path is from what the machine allows.

A path cannot be faster than what it has to wait for: round trips over loopback, fsyncs, bytes to
the disk. What stands here is the least that this design needs, measured raw on the same machine in
the same run, and beside it what the path took. Processor time is not counted as physics: it is what
we can save, and what the table of stages divides up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scripts.bench_figures import MIB, columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scripts.bench_events import Happened
    from scripts.bench_figures import Timing
    from scripts.bench_machine import Machine

COPIES: Final = 3
RECORD_BYTES: Final = 150
"""A key, a value of 100 bytes and what stands around them (`cluster.records`)."""


@dataclass(frozen=True)
class Need:
    """What one call waits for at least."""

    fsyncs: int = 0
    round_trips: int = 0
    disk_bytes: int = 0

    def milliseconds(self, machine: Machine) -> float:
        """At the raw speed of this machine (medians)."""
        return (
            self.fsyncs * machine.fsync.p50_ms
            + self.round_trips * machine.round_trip.p50_ms
            + 1e3 * self.disk_bytes / (machine.disk_mib_per_s * MIB)
        )

    def __str__(self) -> str:
        """In words."""
        parts = []
        if self.fsyncs:
            parts.append(f"{self.fsyncs} fsync")
        if self.round_trips:
            parts.append(f"{self.round_trips} round trips")
        if self.disk_bytes:
            parts.append(f"{self.disk_bytes / MIB:,.1f} MiB to the disk")
        return " + ".join(parts)


WRITE: Final = Need(fsyncs=1, round_trips=2)
"""From the client to the primary and from there to a replica; both sync at the same time."""
READ: Final = Need(round_trips=2)
"""The second confirms that nobody else leads."""
OF_PHASES: Final = {
    "put": WRITE,
    "get": READ,
    "put_many-100": WRITE,
    "get_many-100": READ,
    "http-put-alone": Need(fsyncs=1, round_trips=3),  # a round trip more to whoever leads
    "http-get-alone": Need(round_trips=3),
}


def of_event(name: str, happened: Happened) -> Need:
    """What an event waits for at least, all of it together."""
    if name == "load":
        return Need(fsyncs=1, round_trips=2, disk_bytes=COPIES * RECORD_BYTES * happened.operations)
    if name == "takeover":  # a promise of every slot at once, then the read
        return Need(fsyncs=1, round_trips=3)
    assert name == "join"
    return Need(fsyncs=1, round_trips=2, disk_bytes=happened.copied_bytes)


def table(machine: Machine, phases: Mapping[str, Timing], events: Mapping[str, Happened]) -> str:
    """One line for each path; a phase by the median of a call, an event by its whole time."""
    lines = [["PATH", "NEEDS AT LEAST", "LIMIT MS", "TOOK MS", "TIMES THE LIMIT"]]
    taken = [
        (name, need, phases[name].p50_ms) for name, need in OF_PHASES.items() if name in phases
    ]
    taken += [(name, of_event(name, one), 1e3 * one.seconds) for name, one in events.items()]
    for name, need, took_ms in taken:
        limit_ms = need.milliseconds(machine)
        lines.append(
            [name, str(need), f"{limit_ms:,.3f}", f"{took_ms:,.2f}", f"{took_ms / limit_ms:,.1f}"]
        )
    return columns(lines)
