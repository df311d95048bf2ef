"""Free space on the disk of the data directory, and the reserve below which it counts as full.

Looking costs a system call (2 us), so it is done by a timer and never for an operation. Below the
reserve the node takes no more writes that grow it (`cluster.space`); it takes them again once an
eighth more than the reserve is free, so that it does not flutter while the engine moves files
about. The reserve is for deletes, for promises and takeovers, for being brought to a new primary's
content, and for the engine itself, which writes a table anew before it drops the old ones.

RocksDB gives the space of deleted records back when it compacts, not when they are deleted.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["DiskSpace"]

_RESUME_SHARE: Final = 8


class DiskSpace:
    """Whether the disk is full, as of the last look.

    Args:
        path: The data directory.
        reserve_bytes: Kept free; 0 never counts as full.
        free_bytes: In place of the file system, for tests.
    """

    def __init__(
        self, path: Path, reserve_bytes: int, free_bytes: Callable[[], int] | None = None
    ) -> None:
        self.path = path
        self.reserve_bytes = reserve_bytes
        self.full = False
        self._free_bytes = free_bytes or self._from_file_system
        self.free_bytes = self._free_bytes()

    def look(self) -> bool:
        """Look, and tell whether it is full now."""
        self.free_bytes = self._free_bytes()
        enough = self.reserve_bytes
        if self.full:
            enough += self.reserve_bytes // _RESUME_SHARE
        self.full = self.free_bytes < enough
        return self.full

    def _from_file_system(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize
