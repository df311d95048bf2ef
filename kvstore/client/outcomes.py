"""From what the cluster answered to what the caller sees: values, entries, errors.

Each message says what happened, to which key, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn
from zlib import crc32

from cluster.operations import Absent, Code, Conflict, Failed
from cluster.records import RECORD_FORMAT, VERSION_BYTES, RecordError, decode_record
from kvstore.client.core import Unsettled
from kvstore.errors import (
    BadRequest,
    CorruptValue,
    DeadlineExceeded,
    KVError,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    ValueTooLarge,
    VersionConflict,
    WrongType,
)
from kvstore.values import unpack_value, version_to_text

if TYPE_CHECKING:
    from kvstore.client.core import Outcome

Key = str | bytes
"""Text keys are stored as UTF-8; either form names the same key."""

_PLAIN_HEAD: Final = bytes((RECORD_FORMAT, 0))
_PLAIN_VALUE_AT: Final = 6 + VERSION_BYTES
_UNTOUCHED: Final = "nothing was written"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored value with what is known about it.

    Attributes:
        value: The value.
        version: An opaque token of the write that stored it; pass it as ``if_version``.
        expires_at: When it goes away by itself, in UTC; None for never.
        content_type: Of raw bytes that were put with one, else empty.
    """

    value: Any
    version: str
    expires_at: datetime | None
    content_type: str


def value_of(record: bytes, key: Key) -> Any:
    """A record's value alone: the hot twin of `entry_of`, for records without expiry and type.

    Raises:
        CorruptValue: as `entry_of`.
    """
    if record[4:6] != _PLAIN_HEAD or crc32(record[4:]) != int.from_bytes(record[:4], "big"):
        return entry_of(record, key).value
    try:
        return unpack_value(record[_PLAIN_VALUE_AT:])
    except CorruptValue as error:
        raise CorruptValue(f"key {shown(key)}: {error}") from error


def entry_of(record: bytes, key: Key) -> Entry:
    """A record taken apart.

    Raises:
        CorruptValue: the record fails its checksum or holds no value.
    """
    try:
        version, packed, content_type, expires_at_ms = decode_record(record)
        value = unpack_value(packed)
    except (RecordError, CorruptValue) as error:
        raise CorruptValue(f"key {shown(key)}: {error}") from error
    expires_at = moment_of(expires_at_ms) if expires_at_ms else None
    return Entry(value, version_to_text(version), expires_at, content_type)


def moment_of(unix_ms: int) -> datetime:
    """A record's expiry in UTC; one beyond the calendar, by a wrong clock, is its last moment."""
    try:
        return _EPOCH + timedelta(milliseconds=unix_ms)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def text_key(key: bytes) -> Key:
    """A key as scans hand it out: text where it is valid UTF-8, else bytes."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def shown(key: Key) -> str:
    """A key for a message, shortened."""
    return repr(key) if len(key) <= 80 else f"{key[:60]!r}... ({len(key):,} long)"


def error_of(outcome: Outcome, what: str, *, reads: bool = False) -> KVError:
    """The error for an outcome that is no success; `what` says what was tried on which key.

    Of what only reads nobody needs to hear that nothing was written.
    """
    match outcome:
        case Unsettled(operation_id, detail):
            return OutcomeUnknown(
                f"{what}: it may have happened or may yet happen ({detail}); "
                f"repeat it with operation_id={operation_id!r} to settle it",
                operation_id,
            )
        case Conflict(current):
            return _conflict(what, current)
        case Failed(code, detail, retry_after_ms):
            left = "" if reads or _UNTOUCHED in detail else f"; {_UNTOUCHED}"
            return _failure(code, f"{what}: {detail}", left, retry_after_ms)
        case Absent():
            return _conflict(what, b"")
        case _:
            return KVError(f"{what}: answered with {type(outcome).__name__}, which is no answer")


def refuse(outcome: Outcome, what: str, *, reads: bool = False) -> NoReturn:
    """Raise `error_of`."""
    raise error_of(outcome, what, reads=reads)


def _conflict(what: str, current: bytes) -> VersionConflict:
    version = version_to_text(current) if current else None
    state = f"its version is {version}" if version else "there is no such key"
    return VersionConflict(f"{what}: the condition is not met, {state}; nothing written", version)


def _failure(code: Code, message: str, left: str, retry_after_ms: int) -> KVError:
    """``left`` says what a write has left behind."""
    match code:
        case Code.BAD_REQUEST:
            return BadRequest(message)
        case Code.TOO_LARGE:
            return ValueTooLarge(message)
        case Code.WRONG_TYPE:
            return WrongType(message)
        case Code.CORRUPT:
            return CorruptValue(message)
        case Code.OVERLOADED:
            again = retry_after_ms / 1_000
            return Overloaded(f"{message}{left}; try again in {again:g} s", again)
        case Code.DEADLINE:
            return DeadlineExceeded(f"{message}{left}; try with more time")
        case Code.UNAVAILABLE | Code.UNKNOWN:
            return Unavailable(f"{message}{left}; try again")
