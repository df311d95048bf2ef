"""Bytes to frames: a length, then that many bytes of MessagePack.

Sans-I/O: `FrameDecoder` is fed what the socket gave, in pieces of any size, and hands out whole
messages; `encode_frame` makes the bytes of one. The length is checked against the limit before a
byte of the body is kept, so a frame that claims 4 GiB costs nothing. The decoder validates the type
of every field (msgspec), never allocates by a claimed size, and refuses what it does not know.

A connection that has sent one bad frame is finished: there is no telling where the next begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cluster.limits import FRAME_BYTES_MAX
from kvstore.wire.protocol import MAGIC, Frame

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH_BYTES: Final = 4

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


class FrameError(ValueError):
    """The peer sent what is no frame; the connection must be closed."""


def encode_frame(frame: Frame) -> bytes:
    """One message with its length in front.

    Raises:
        FrameError: it is over the frame limit.
    """
    buffer = bytearray(LENGTH_BYTES)
    _encoder.encode_into(frame, buffer, LENGTH_BYTES)
    size = len(buffer) - LENGTH_BYTES
    if size > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {size} bytes is over the limit of {FRAME_BYTES_MAX}")
    buffer[:LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "big")
    return bytes(buffer)


def keep(body: bytes) -> bool:
    """Turn nothing away."""
    del body
    return False


class FrameDecoder:
    """Collects bytes, hands out messages.

    Args:
        expect_magic: The first four bytes must be `MAGIC` (the side that listens).
        frame_bytes_max: Refuse longer frames. The handshake uses a small limit; raise it after.
    """

    def __init__(
        self, *, expect_magic: bool = False, frame_bytes_max: int = FRAME_BYTES_MAX
    ) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.turn_away: Callable[[bytes], bool] = keep
        """Asked about each body before it is decoded; True if that is all that it was good for."""
        self._buffer = bytearray()
        self._expect_magic = expect_magic

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take what arrived, return the messages that it completes.

        Raises:
            FrameError: wrong magic, too long, or not a message of this protocol.
        """
        buffer = self._buffer
        if not buffer and not self._expect_magic and len(data) >= LENGTH_BYTES:
            size = int.from_bytes(data[:LENGTH_BYTES], "big")
            if size == len(data) - LENGTH_BYTES and size <= self.frame_bytes_max:
                body = bytes(data[LENGTH_BYTES:])  # one frame, whole, as usual
                return [] if self.turn_away(body) else [decode_frame(body)]
        buffer += data
        if self._expect_magic and not self._take_magic():
            return []
        frames: list[Frame] = []
        at, end = 0, len(buffer)
        view = memoryview(buffer)
        try:
            while end - at >= LENGTH_BYTES:
                size = int.from_bytes(view[at : at + LENGTH_BYTES], "big")
                if size > self.frame_bytes_max:
                    raise FrameError(
                        f"a frame claims {size} bytes; the limit here is {self.frame_bytes_max}"
                    )
                begin = at + LENGTH_BYTES
                if end - begin < size:
                    break
                body = bytes(view[begin : begin + size])
                at = begin + size
                if not self.turn_away(body):
                    frames.append(decode_frame(body))
        finally:
            view.release()
        del buffer[:at]
        return frames

    @property
    def buffered_bytes(self) -> int:
        """Bytes kept of a frame that is not whole yet; at most the frame limit."""
        return len(self._buffer)

    def _take_magic(self) -> bool:
        head = bytes(self._buffer[: len(MAGIC)])
        if not MAGIC.startswith(head):
            raise FrameError(f"expected {MAGIC!r} first, got {head!r}: this is no kvstore client")
        if len(head) < len(MAGIC):
            return False
        del self._buffer[: len(MAGIC)]
        self._expect_magic = False
        return True


def decode_frame(body: bytes) -> Frame:
    """One message from the bytes behind its length.

    The bytes are copied out of the receive buffer once, because values (`msgspec.Raw`) point into
    them.

    Raises:
        FrameError: not MessagePack, too deep, or not a message of this protocol; the text says
        where.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"not a message of this protocol: {error}") from error
