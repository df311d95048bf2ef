"""What can be asked of a slot, and what it answers.

One frozen record per meaning, in two closed unions: `Operation` goes in, `Result` comes out. They
are the same from the client's library to the slot's state machine, so that nothing is translated on
the way. Conditions (``expect``) are part of the operation because the primary judges them against
its newest state (rule 1):

==============  ==============================================
``None``        no condition
``ABSENT``      the key must not exist
``PRESENT``     the key must exist, at any version
20 bytes        the key must exist at exactly this version
==============  ==============================================

Values travel as `msgspec.Raw`: MessagePack inside the frame's MessagePack. The frame's decoder
checks that they are well-formed while it steps over them, and nobody here looks inside, `Incr`
excepted.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec

from cluster.limits import REQUEST_OPERATIONS_MAX

ABSENT = b""
PRESENT = b"*"


class Put(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Store a value; ``ttl_ms`` 0 means that it stays."""

    key: bytes
    value: msgspec.Raw
    content_type: str = ""
    ttl_ms: int = 0
    expect: bytes | None = None


class Delete(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Remove a key; to remove what is absent is no error (`Deleted.existed` tells)."""

    key: bytes
    expect: bytes | None = None


class Incr(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Add to a 64-bit signed integer; an absent key counts as 0."""

    key: bytes
    by: int


class Touch(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Give an existing key a new time to live (0: for ever), its value unchanged."""

    key: bytes
    ttl_ms: int


class Atomic(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Several writes to keys of one slot, all or nothing, as one operation."""

    writes: Annotated[list[Put | Delete], msgspec.Meta(max_length=REQUEST_OPERATIONS_MAX)]


class Get(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Read one key; ``eventual`` takes any replica's word for it."""

    key: bytes
    eventual: bool = False


class Scan(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """One page of a slot's keys that begin with ``prefix``, in order, above ``after`` (rule 6)."""

    slot: int
    prefix: bytes
    after: bytes
    limit: int
    values: bool


Write = Put | Delete | Incr | Touch | Atomic
Read = Get | Scan
Operation = Put | Delete | Incr | Touch | Atomic | Get | Scan


def first_key(op: Write | Get) -> bytes:
    """The key of an operation, or the first one of a batch."""
    return op.writes[0].key if isinstance(op, Atomic) else op.key


class Done(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A put, touch or batch is committed under this version."""

    version: bytes


class Deleted(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A delete is committed; ``existed`` says whether there was anything."""

    version: bytes
    existed: bool


class Number(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """An increment is committed; the new value."""

    version: bytes
    value: int


class Found(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """The record of a key, as it lies on disk (`cluster.records`)."""

    record: bytes


class Absent(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """There is no such key. Never an answer to an outage."""


class Page(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Keys of a slot in order, with their records if asked for; ``more``: the scan goes on.

    A page may be empty and say ``more``; then the same ``after`` is asked again (`cluster.scan`).
    """

    keys: list[bytes]
    records: list[bytes]
    more: bool


class Conflict(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """The condition was not met; ``current`` is the version that stands, empty if none does."""

    current: bytes


class Code(IntEnum):
    """Why an operation was not carried out, by what the caller can do about it."""

    BAD_REQUEST = 1
    """Will never work as it stands."""
    TOO_LARGE = 2
    """Value or frame over the limit."""
    UNAVAILABLE = 3
    """No quorum, no primary: nothing was written, try again."""
    OVERLOADED = 4
    """Refused at the door before any work; try again after ``retry_after_ms``."""
    DEADLINE = 5
    """The caller's time was over before anything was done."""
    UNKNOWN = 6
    """It may have happened or may happen yet (rule 4); a retry with the same id settles it."""
    WRONG_TYPE = 7
    """An increment of something that is no integer, or that would leave 64 bits."""
    CORRUPT = 8
    """What is stored is damaged and no undamaged copy is known (rule 18): nothing was written."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Not carried out; all codes but UNKNOWN mean that nothing was written."""

    code: Code
    detail: str
    retry_after_ms: int = 0


class Stale(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """A first attempt whose ``seen`` is too old to tell it from a repeat (rule 5): not executed.

    The caller, if it has sent nothing else under this id, starts anew with a new id and
    ``position`` as ``seen``.
    """

    position: bytes


Result = Done | Deleted | Number | Found | Absent | Page | Conflict | Failed | Stale
