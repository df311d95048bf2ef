"""How far the write-ahead logs were synced, noted beside them, so that a short log is recognised.

After a crash the last record of a log may be torn, and RocksDB takes that as normal: it drops what
it cannot read at the end of a file. It cannot know whether what it drops had been synced, and so
been acknowledged: a file that lost its end, or one flipped bit in a length near it, looks the same
as a write that was under way. Seen in runs: a flipped length in the last 32 KiB lost up to 25
synced batches without a word, a flipped record type at the front lost a whole log, and cutting the
older of two logs short left a hole.

So after each sync the sizes of the logs at its beginning are written into a small file beside them.
When the store is opened, each log must hold at least that much, and nothing of that may look like a
torn write. Anything less is a lost disk (rule 12). The note itself is not synced, only written
after the sync that it tells of: a power cut may leave an older one, which promises less and never
too much.

The format of the logs is RocksDB's: blocks of 32 KiB, records that begin with a header of seven
bytes (checksum, length, type) and never cross a block. RocksDB checks the checksums; only lengths
and types, by which it finds the end, are looked at here (0.2 s for a log of 128 MiB).
"""

from __future__ import annotations

import os
from contextlib import suppress
from mmap import mmap
from typing import TYPE_CHECKING, Final
from zlib import crc32

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SyncedMark", "shortfall"]

MARK_NAME: Final = "SYNCED"
_NOTE_BYTES: Final = 4_096
"""One page of the mapped file."""

_BLOCK_BYTES: Final = 32_768
_HEADER_BYTES: Final = 7
_RECORD_TYPES: Final = frozenset((1, 2, 3, 4))
"""Whole, first, middle, last; those of recycled or compressed logs are not used here."""


class SyncedMark:
    """Notes the sizes of a store's logs after each sync; used on the thread that syncs.

    This is part of every sync, and each system call gives up the interpreter, for which the thread
    then has to queue behind the loop. So the newest log is kept open and asked for its end, and the
    note is written through a mapped page: what is there outlives the process, like what is written.

    Args:
        path: The store's directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        file = os.open(path / MARK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(file).st_size
            if size < _NOTE_BYTES:  # written, not truncated: a mapped hole may find no room later
                os.pwrite(file, bytes(_NOTE_BYTES - size), size)
            self._note: mmap | None = mmap(file, _NOTE_BYTES)
        finally:
            os.close(file)
        self._sizes: dict[str, int] = {}
        self._newest = ""
        self._newest_file = -1

    def before_sync(self) -> dict[str, int]:
        """What a sync that begins now will cover: each log's size. One ``lseek``, usually."""
        if self._newest_file >= 0:
            size = os.lseek(self._newest_file, 0, os.SEEK_END)
            if size > self._sizes.get(self._newest, 0):
                return {**self._sizes, self._newest: size}
        return self._all_sizes()

    def _all_sizes(self) -> dict[str, int]:
        """A log that did not grow may have a successor: look at all of them."""
        sizes: dict[str, int] = {}
        with os.scandir(self._path) as entries:
            for entry in entries:
                if entry.name.endswith(".log"):
                    with suppress(FileNotFoundError):
                        sizes[entry.name] = entry.stat().st_size
        self._watch(max(sizes, default=""))
        return sizes

    def _watch(self, newest: str) -> None:
        if newest == self._newest:
            return
        if self._newest_file >= 0:
            os.close(self._newest_file)
        self._newest, self._newest_file = newest, -1
        if newest:
            with suppress(FileNotFoundError):
                self._newest_file = os.open(self._path / newest, os.O_RDONLY | os.O_CLOEXEC)

    def after_sync(self, sizes: dict[str, int]) -> None:
        """The sync that covered these has succeeded."""
        if sizes != self._sizes and self._note is not None:
            self._sizes = sizes
            text = " ".join([f"{name}:{size}" for name, size in sorted(sizes.items())]).encode()
            line = b"%08x %b\n" % (crc32(text), text)
            if len(line) <= _NOTE_BYTES:  # over a hundred logs: an older note promises less
                self._note[: len(line)] = line

    def close(self) -> None:
        """Make the note durable; closing twice is fine."""
        self._watch("")
        if self._note is not None:
            self._note.flush()
            self._note.close()
            self._note = None


def shortfall(path: Path) -> str:
    """What is missing of the logs that were synced; empty where nothing is.

    To be asked before RocksDB opens the store, because that writes the logs anew.
    """
    for name, synced in _noted(path / MARK_NAME).items():
        log = path / name
        if not log.exists():
            continue  # flushed into tables, and removed
        size = log.stat().st_size
        if size < synced:
            return f"{name} has {size} bytes, of which {synced} were synced"
        if synced and not _is_readable(log, synced):
            return f"{name} is damaged within the {synced} bytes that were synced"
    return ""


def _noted(mark: Path) -> dict[str, int]:
    """The note's content; none where it is absent or was torn by a power cut."""
    try:
        line = mark.read_bytes().partition(b"\n")[0].decode()
        checksum, _, text = line.partition(" ")
        if int(checksum, 16) != crc32(text.encode()):
            return {}
        pairs = (part.rpartition(":") for part in text.split())
        return {name: int(size) for name, _, size in pairs}
    except (OSError, ValueError):
        return {}


def _is_readable(log: Path, synced: int) -> bool:
    """Whether nothing below ``synced`` would be taken for the end of the log.

    A reader drops what lies behind the first record that is longer than its block, or of a type
    that is not used here, without a word where it believes that the log ends there. So that record
    may only be one that was not synced.
    """
    with log.open("rb") as file:
        for begin in range(0, synced, _BLOCK_BYTES):
            block = file.read(_BLOCK_BYTES)
            at, size = 0, len(block)
            while at + _HEADER_BYTES <= size:
                end = at + _HEADER_BYTES + (block[at + 4] | block[at + 5] << 8)
                if end > size or block[at + 6] not in _RECORD_TYPES:
                    break
                at = end
            rest = size - at
            if rest and (rest >= _HEADER_BYTES or size < _BLOCK_BYTES) and begin + at < synced:
                return False
    return True
