"""What is wrong with this node's disk and with the copies that it compares: watched and said.

The core finds damage (`cluster.scrub`) and refuses what a full disk cannot take (`cluster.space`);
here it is told how full the disk is, and people are told what it found: in the log when it is
found, and in `status` for as long as it stands. A copy that was replaced is mended, but whatever
damaged it may do so again, so that is said for a day longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.scrub import NOBODY
from kvstore.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cluster.ballot import NodeId
    from cluster.scrub import Finding
    from cluster.slot_table import SlotTable
    from kvstore.node.clock import Clock
    from kvstore.storage.disk_space import DiskSpace

log = get_logger(__name__)

LOOK_INTERVAL_MS: Final = 1_000
"""Between two looks at the free space: at a gigabyte a second the default reserve still holds."""

SAID_FOR_MS: Final = 24 * 3_600 * 1_000
"""How long status speaks of damage that was mended."""

FINDINGS_SAID_MAX: Final = 8
"""Lines of one kind; what is beyond them is counted."""


class Health:
    """Watches the disk, logs what the core finds, and says what is wrong.

    Args:
        space: Of the data directory; None without one.
        scrub_bytes_per_s: The pace of `cluster.scrub`.
        name_of: A member's name.
        clock: The node's.
    """

    def __init__(
        self,
        space: DiskSpace | None,
        scrub_bytes_per_s: int,
        name_of: Callable[[NodeId], str],
        clock: Clock,
    ) -> None:
        self._table: SlotTable
        self._space = space
        self._scrub_bytes_per_s = scrub_bytes_per_s
        self._name_of = name_of
        self._clock = clock
        self._looked_ms = -LOOK_INTERVAL_MS
        self._repaired = 0
        self._repaired_ms = 0

    def begin(self, table: SlotTable) -> None:
        """These are the slots."""
        self._table = table
        table.scrub.bytes_per_s = self._scrub_bytes_per_s

    @property
    def free_bytes(self) -> int:
        """Free space on the disk; 0 without one."""
        return self._space.free_bytes if self._space is not None else 0

    def tick(self) -> None:
        """On the node's timer: look at the disk now and then."""
        self._look_at_repairs()
        now_ms, space = self._clock.now_ms(), self._space
        if space is None or now_ms - self._looked_ms < LOOK_INTERVAL_MS:
            return
        self._looked_ms = now_ms
        was_full = space.full
        full = space.look()
        self._table.room.set_full(full=full)
        if full != was_full:
            say = log.error if full else log.info
            what = "the disk is full: no more writes" if full else "there is room on the disk again"
            say(what, free_bytes=space.free_bytes, reserve_bytes=space.reserve_bytes)

    def _look_at_repairs(self) -> None:
        repaired = self._table.scrub.repaired_total
        if repaired != self._repaired:
            self._repaired, self._repaired_ms = repaired, self._clock.now_ms()
            log.info("damaged copies replaced", total=self._repaired)

    def on_alarms(self, alarms: Iterable[Finding]) -> None:
        """Damage was found."""
        for finding in alarms:
            log.error("damaged copy", slot=finding.slot, found=self._said(finding))

    def problems(self) -> list[str]:
        """One line for each thing that is wrong."""
        self._look_at_repairs()
        scrub, space = self._table.scrub, self._space
        found = [self._said(finding) for finding in scrub.findings.values()]
        if len(found) > FINDINGS_SAID_MAX:
            more = len(found) - FINDINGS_SAID_MAX
            found[FINDINGS_SAID_MAX:] = [f"... and {more} more damaged copies"]
        if scrub.damaged:
            found.append(
                f"{scrub.damaged} copies on this node are damaged and wait for whole ones from the"
                " others"
            )
        if self._repaired and self._clock.now_ms() - self._repaired_ms < SAID_FOR_MS:
            found.append(
                f"{self._repaired} damaged copies on this node were replaced from the others: check"
                " its disk and memory"
            )
        if space is not None and space.full:
            found.append(
                f"the disk of {space.path} is full ({space.free_bytes:,} bytes free, reserve"
                f" {space.reserve_bytes:,}): only reads and deletes go on until there is room"
            )
        return found

    def _said(self, finding: Finding) -> str:
        where = f"slot {finding.slot}, at {finding.begin[:64]!r}"
        if finding.node == NOBODY:
            return f"{where}: {finding.detail}"
        return f"{where}: the copy on {self._name_of(finding.node)} is damaged ({finding.detail})"
