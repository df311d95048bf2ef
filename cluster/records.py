"""The record: what is stored for a key, byte for byte the same on every replica.

::

    crc32 u32 | format u8 | flags u8 | round u32 | node u64 | sequence u64 | [expiry u64] | [ctype]
    | value

The primary makes these bytes once; they travel to the replicas, lie on disk and go back to the
reader as they are. Nobody decodes and encodes them again. The 20 bytes after the flags are the
*version* (rule 1): the ballot and the sequence of the operation that wrote the record. They double
as the token that users compare by. The checksum (CRC-32 of all that follows it) is verified by
whoever looks inside: a reader, the scrub, a conditional write.

The value is MessagePack, opaque here. Integers are big-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from cluster.ballot import Ballot, Position

RECORD_FORMAT = 1
"""Written into every record; a record of another format is refused, never guessed at."""

VERSION_BYTES = 20
"""``round u32 | node u64 | sequence u64``."""

_VERSION = struct.Struct(">IQQ")
_BALLOT = struct.Struct(">IQ")
_CRC = struct.Struct(">I").unpack_from
BALLOT_BYTES = _BALLOT.size
"""A packed version begins with its ballot; both sort as bytes the way they compare."""
_HEADER_BYTES = 26
_VERSION_AT = 6
_EXPIRES = 0x01
_CONTENT_TYPE = 0x02
_PLAIN_HEAD = bytes((RECORD_FORMAT, 0))


class RecordError(ValueError):
    """These bytes are no record of this format, or their checksum does not fit."""


class Record(NamedTuple):
    """A record taken apart.

    ``version`` is 20 bytes, ``value`` MessagePack, ``expires_at_ms`` Unix time or 0 for never,
    ``content_type`` empty unless the value was put as raw bytes with one.
    """

    version: bytes
    value: bytes
    content_type: str
    expires_at_ms: int


def pack_version(ballot: Ballot, sequence: int) -> bytes:
    """The 20 bytes that name an operation; equal operations, equal bytes."""
    return _VERSION.pack(ballot.round, ballot.node, sequence)


def pack_ballot(ballot: Ballot) -> bytes:
    """The first 12 bytes of every version of this ballot."""
    return _BALLOT.pack(ballot.round, ballot.node)


def unpack_ballot(packed: bytes) -> Ballot:
    """The inverse of `pack_ballot`."""
    return Ballot(*_BALLOT.unpack(packed))


def unpack_version(version: bytes) -> Position:
    """The inverse of `pack_version`.

    Raises:
        RecordError: not 20 bytes.
    """
    if len(version) != VERSION_BYTES:
        raise RecordError(f"a version has {VERSION_BYTES} bytes, these are {len(version)}")
    round_, node, sequence = _VERSION.unpack(version)
    return Position(Ballot(round_, node), sequence)


def encode_record(
    version: bytes, value: bytes | memoryview, content_type: str = "", expires_at_ms: int = 0
) -> bytes:
    """Make the stored form; `version` is `pack_version`'s, `value` MessagePack."""
    if not content_type and not expires_at_ms:
        body = b"".join((_PLAIN_HEAD, version, value))
    else:
        flags = (_EXPIRES if expires_at_ms else 0) | (_CONTENT_TYPE if content_type else 0)
        parts = [bytes((RECORD_FORMAT, flags)), version]
        if expires_at_ms:
            parts.append(expires_at_ms.to_bytes(8, "big"))
        if content_type:
            name = content_type.encode()
            assert len(name) < 256, "content types are checked at the door"
            parts += (bytes((len(name),)), name)
        parts.append(bytes(value))
        body = b"".join(parts)
    return crc32(body).to_bytes(4, "big") + body


def record_version(record: bytes) -> bytes:
    """The version alone, without a look at the rest."""
    return record[_VERSION_AT:_HEADER_BYTES]


def expires_at_ms(record: bytes) -> int:
    """When the record expires, in Unix milliseconds; 0 for never. Reads the flags first."""
    if not record[5] & _EXPIRES:
        return 0
    return int.from_bytes(record[_HEADER_BYTES : _HEADER_BYTES + 8], "big")


def is_intact(record: bytes) -> bool:
    """Whether the checksum fits (0.4 us for 100 bytes)."""
    return len(record) >= _HEADER_BYTES and crc32(record[4:]) == _CRC(record)[0]


def is_expired(record: bytes, unix_ms: int) -> bool:
    """Whether the record's time is over (R7).

    Never where the checksum does not fit: what has rotted may be the expiry, and a damaged record
    is to be found and mended, not deleted.
    """
    if not record[5] & _EXPIRES or expires_at_ms(record) > unix_ms:
        return False
    return is_intact(record)


def record_head(record: bytes) -> bytes:
    """Checksum, format, flags and version: of an intact record they stand for all of it."""
    return record[:_HEADER_BYTES]


def decode_record(record: bytes) -> Record:
    """Take a record apart and verify its checksum.

    Raises:
        RecordError: cut off, of another format, or the checksum does not fit.
    """
    if len(record) < _HEADER_BYTES or crc32(memoryview(record)[4:]) != int.from_bytes(
        record[:4], "big"
    ):
        raise RecordError(f"a record of {len(record)} bytes fails its checksum")
    if record[4] != RECORD_FORMAT:
        raise RecordError(f"record format {record[4]} is not known here (only {RECORD_FORMAT})")
    flags, at = record[5], _HEADER_BYTES
    expiry, content_type = 0, ""
    if flags & _EXPIRES:
        expiry = int.from_bytes(record[at : at + 8], "big")
        at += 8
    if flags & _CONTENT_TYPE:
        begin = at + 1
        at = begin + int.from_bytes(record[at:begin], "big")
        try:
            content_type = record[begin:at].decode()
        except UnicodeDecodeError as error:
            raise RecordError(f"the content type of a record is no text: {error}") from error
    if at >= len(record):
        raise RecordError(f"a record of {len(record)} bytes is cut off before its value")
    return Record(record[_VERSION_AT:_HEADER_BYTES], record[at:], content_type, expiry)
