"""The data directory: whose it is, that nobody else is using it, and that it can be written.

::

    IDENTITY   format, member id, when it was made: written once, atomically, with fsync
    LOCK       held by the one process that uses the directory
    PID        who that is; for messages only
    LOST       why the disk may not be used any more (rule 12)
    db/        the store

A member id belongs to a disk, not to a machine or a name (rules 12 and 16): it is drawn when the
directory is formatted and never changes. A disk that has lost its content must not come back under
the same id, because others would take it for a replica that still holds what it promised. So
`IDENTITY` also notes that the store was made (`DataDir.mark_formatted`); from then on an identity
without its store is a lost disk.

Whatever is wrong is found before anything is written: a directory that is not ours, or of a newer
release, stays as it was, without even a lock file.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import filelock
import msgspec

from cluster.limits import NODE_ID_BITS
from kvstore.errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from cluster.ballot import NodeId

__all__ = ["FORMAT_VERSION", "DataDir", "DataDirError", "Identity"]

FORMAT_VERSION = 1
"""Of the directory; the store under `db/` has its own (`kvstore.storage.keyspace`)."""

_IDENTITY = "IDENTITY"
_IDENTITY_NEW = "IDENTITY.new"
_LOCK = "LOCK"
_PID = "PID"
_PROBE = "WRITABLE"
_LOST = "LOST"
_DATABASE = "db"

_BEFORE_IDENTITY = {_LOCK, _PID, _IDENTITY_NEW, _PROBE, "lost+found"}
"""What a directory may hold before it has an identity: an interrupted start, an empty disk."""


class DataDirError(SetupError):
    """The directory cannot be used; the message says which, why, and what to do about it."""


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `IDENTITY` says."""

    format: int
    member: int
    created: str
    """ISO 8601, UTC; for people."""

    formatted: bool
    """Whether the store was made, so that its absence means that it was lost."""


class DataDir:
    """A directory that is ours while this object is open; made by `DataDir.open`."""

    def __init__(self, path: Path, identity: Identity, lock: filelock.FileLock) -> None:
        self.path = path
        self.identity = identity
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> DataDir:
        """Take a directory, making and formatting it where needed.

        Raises:
            DataDirError: it is in use, foreign, of a newer release, damaged or cannot be written.
        """
        path = path.absolute()
        try:
            _make(path)
            _identity_or_none(path)
            lock = _locked(path)
        except OSError as exc:
            raise _unusable(path, exc) from exc
        try:
            _probe(path)
            # Once more: another process may have formatted it before we had the lock.
            identity = _identity_or_none(path) or _format(path)
            _write(path / _PID, str(os.getpid()).encode())
        except OSError as exc:
            lock.release()
            raise _unusable(path, exc) from exc
        except BaseException:
            lock.release()
            raise
        return cls(path, identity, lock)

    @property
    def member_id(self) -> NodeId:
        """The member that this disk is."""
        return self.identity.member

    @property
    def fresh(self) -> bool:
        """No store was ever completed here: it may be made, and the member may be founded."""
        return not self.identity.formatted

    @property
    def database_path(self) -> Path:
        """Where the storage engine lives."""
        return self.path / _DATABASE

    def mark_formatted(self) -> None:
        """Note, durably, that the store was made; for after its first rows are synced."""
        if self.fresh:
            identity = msgspec.structs.replace(self.identity, formatted=True)
            try:
                _write_identity(self.path, identity)
            except OSError as exc:
                raise _unusable(self.path, exc) from exc
            self.identity = identity

    def mark_lost(self, reason: str) -> None:
        """Note that this disk failed, so that nobody opens it again; as well as it still can."""
        with suppress(OSError):
            _write(self.path / _LOST, reason.encode())

    def close(self) -> None:
        """Let others have it; closing twice is fine."""
        if self._lock.is_locked:
            with suppress(OSError):
                (self.path / _PID).unlink()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _make(path: Path) -> None:
    """Make the directory and what is above it, so that it outlives a power cut."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_directory(made.parent)


def _identity_or_none(path: Path) -> Identity | None:
    """What the directory says it is, or None where it is empty; raises for anything else."""
    names = {each.name for each in path.iterdir()}
    if _IDENTITY not in names:
        foreign = sorted(names - _BEFORE_IDENTITY)
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise DataDirError(
                f"{path} is not empty and not a data directory (it holds {shown}); nothing was"
                " changed. Choose an empty or a new directory"
            )
        return None
    identity = _parsed(path / _IDENTITY)
    if _LOST in names:
        reason = (path / _LOST).read_text(errors="replace")
        raise DataDirError(
            f"the disk of {path} failed, and counts as lost: {reason}. Acknowledged writes may not"
            " be on it. Check the hardware, remove the data directory and start the"
            " node again; it comes back as a new, empty member and is filled from the others"
        )
    if identity.formatted and not (path / _DATABASE / "CURRENT").exists():
        raise DataDirError(
            f"{path} belongs to member {identity.member}, but its store {_DATABASE}/ is gone: this"
            " disk counts as lost. Remove the directory and start again; the node comes back as a"
            " new, empty member"
        )
    return identity


def _parsed(file: Path) -> Identity:
    """The content of an identity file; the format is looked at before anything else."""
    try:
        fields: Any = json.loads(file.read_bytes())
        found = fields["format"]
        if found == FORMAT_VERSION:
            identity = msgspec.convert(fields, Identity)
            if 0 < identity.member < 1 << NODE_ID_BITS:
                return identity
            raise ValueError(f"{identity.member} is no member id")
        if not isinstance(found, int):
            raise TypeError("the format is no number")
    except (ValueError, TypeError, KeyError, RecursionError) as exc:  # also msgspec's and json's
        raise DataDirError(
            f"{file} cannot be understood ({exc}): this disk counts as lost, or the directory is"
            " not ours. Nothing was changed. Choose another directory, or remove this one; the"
            " node comes back as a new, empty member"
        ) from exc
    age = "newer" if found > FORMAT_VERSION else "older"
    raise DataDirError(
        f"{file.parent} has format {found}, this release knows format {FORMAT_VERSION}: it was"
        f" written by a {age} release. Nothing was changed. Run that release, or choose another"
        " directory"
    )


def _locked(path: Path) -> filelock.FileLock:
    """The lock, or who holds it."""
    # Not bound to a thread: a node may be closed on another one than it was opened on.
    lock = filelock.FileLock(path / _LOCK, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        pid = ""
        with suppress(OSError):
            pid = (path / _PID).read_text().strip()
        holder = f"process {pid}" if pid.isdecimal() else "another process"
        raise DataDirError(
            f"{path} is in use by {holder}; one directory serves one node. Stop that process, or"
            " choose another directory"
        ) from None
    return lock


def _probe(path: Path) -> None:
    """Find out now, and not with the first write of a user, that the disk takes writes."""
    probe = path / _PROBE
    _write(probe, b"x")
    probe.unlink()


def _format(path: Path) -> Identity:
    member = 0
    while member == 0:  # below every ballot, so nobody's id
        member = secrets.randbits(NODE_ID_BITS)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    identity = Identity(FORMAT_VERSION, member, created, formatted=False)
    _write_identity(path, identity)
    return identity


def _write_identity(path: Path, identity: Identity) -> None:
    content = json.dumps(msgspec.to_builtins(identity), indent=2) + "\n"
    _write(path / _IDENTITY_NEW, content.encode())
    (path / _IDENTITY_NEW).replace(path / _IDENTITY)
    _sync_directory(path)


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, exc: OSError) -> DataDirError:
    return DataDirError(
        f"the data directory {path} cannot be used: {exc.strerror or exc}"
        f"{f' ({exc.filename})' if exc.filename and exc.filename != str(path) else ''}. Check its"
        " owner, its permissions and the space on its disk, or choose another directory"
    )
