"""Requests that a full node turns away, at a fraction of what taking them on would cost.

At five times the load that saturates a node four of five requests are refused, so what a refusal
costs is taken from those that are served. Of a request that is refused nothing is decoded but what
the refusal depends on: its id, how many operations it has (stepped over, not made), its time. The
answer differs from the others of the moment in its id only, so the rest is packed once.

Whatever is no well-formed request is left to the way that all frames go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Protocol

import msgspec

from cluster.limits import REQUEST_OPERATIONS_MAX
from kvstore.wire.frames import LENGTH_BYTES
from kvstore.wire.protocol import Request, Response

if TYPE_CHECKING:
    from cluster.operations import Failed
    from kvstore.node.connection import Connection

_TAG_AT: Final = 1
"""Behind the header of the array."""


class RequestHead(msgspec.Struct, frozen=True, array_like=True, tag=70, gc=False):
    """What a `Request` is refused by; the fields are the same, in the same order."""

    id: int
    client: int
    number: int
    retry: bool
    timeout_ms: int
    hops: int
    ops: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=REQUEST_OPERATIONS_MAX)]
    seen: msgspec.Raw
    offsets: msgspec.Raw = msgspec.Raw()
    system: bool = False


_heads: Final = msgspec.msgpack.Decoder(RequestHead)
_encoder: Final = msgspec.msgpack.Encoder()
_REQUEST: Final = _encoder.encode(Request(0, 0, 0, False, 1, 0, [], []))[_TAG_AT]
_RESPONSE: Final = _encoder.encode(Response(0, [], {}))[: _TAG_AT + 1]
_NO_LEADS: Final = _encoder.encode({})


def head_of(body: bytes) -> RequestHead | None:
    """The head of a request, None if the body is of anything else."""
    if len(body) <= _TAG_AT or body[_TAG_AT] != _REQUEST:
        return None
    try:
        return _heads.decode(body)
    except msgspec.DecodeError:
        return None


class Refusing(Protocol):
    """What decides."""

    def is_full(self) -> bool:
        """Whether most requests are refused now."""

    def refusal(self, request: Request | RequestHead) -> Failed | None:
        """Why the node does not take a request on now, if it does not."""


class TurningAway:
    """Refuses for a node while that is full."""

    def __init__(self, host: Refusing) -> None:
        self._host = host
        self._refusal: Failed | None = None
        self._end = b""
        """What stands behind the id of the answer to a request with one operation."""

    def refuse(self, connection: Connection, body: bytes) -> bool:
        """Answer the request in this frame's body if it is to be refused; False if it is not."""
        if not self._host.is_full() or (head := head_of(body)) is None:
            return False
        refusal = self._host.refusal(head)
        if refusal is None:
            return False
        connection.send_bytes_soon(self.answer(head.id, len(head.ops), refusal))
        return True

    def answer(self, request_id: int, operations: int, refusal: Failed) -> bytes:
        """As `kvstore.wire.frames.encode_frame` makes it of the `Response`."""
        if refusal is not self._refusal:
            self._refusal = refusal
            self._end = _end([refusal])
        end = self._end if operations == 1 else _end([refusal] * operations)
        begin = _encoder.encode(request_id)
        size = len(_RESPONSE) + len(begin) + len(end)
        return b"".join((size.to_bytes(LENGTH_BYTES, "big"), _RESPONSE, begin, end))


def _end(results: list[Failed]) -> bytes:
    return _encoder.encode(results) + _NO_LEADS
