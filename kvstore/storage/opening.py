"""From a directory to a locked, open store that makes its batches durable.

A node process and the embedded store open theirs in the same way: the directory is locked to this
process first, so that nothing of another's is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvstore.errors import SetupError
from kvstore.storage.engine import EngineError
from kvstore.storage.group_commit import GroupCommit, ImmediateCommit
from kvstore.storage.memory import MemoryEngine
from kvstore.storage.rocksdb import RocksEngine

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from kvstore.storage.datadir import DataDir
    from kvstore.storage.engine import Engine
    from kvstore.storage.group_commit import Commit

__all__ = ["Store", "open_store"]


class Store(NamedTuple):
    """An open engine and what makes its batches durable."""

    engine: Engine
    commit: Commit


def open_store(
    directory: DataDir,
    loop: asyncio.AbstractEventLoop,
    on_disk_lost: Callable[[Exception], None],
    *,
    engine: str,
    durability: str,
    cache_bytes: int,
) -> Store:
    """Open the store in a locked directory.

    Args:
        directory: Locked by this process.
        loop: On which batches are written and callbacks run.
        on_disk_lost: Called once on the loop when a write or sync failed; nothing is acknowledged
            after that (rule 12).
        engine: "rocksdb" or "memory".
        durability: "disk" acknowledges after an fsync, "os" after the write.
        cache_bytes: Memory for blocks that are read.

    Raises:
        SetupError: the files cannot be used; the message says why.
    """
    try:
        opened: Engine
        if engine == "memory":
            opened = MemoryEngine()
        else:
            opened = RocksEngine(directory.database_path, cache_bytes=cache_bytes)
        directory.mark_formatted()
    except EngineError as error:
        raise SetupError(f"cannot open the store in {directory.path}: {error}") from error
    if engine == "memory" or durability == "os":
        synced = engine == "memory"
        return Store(opened, ImmediateCommit(opened, loop, on_disk_lost, synced=synced))
    return Store(opened, GroupCommit(opened, loop, on_disk_lost))
