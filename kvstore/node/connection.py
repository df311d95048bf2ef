"""One connection of the peer and client port: frames in, frames out.

The same class serves both ends. What is one of many leaves with the others, in one write at the end
of the loop's turn (`Connection.send_soon`): a hundred answers in a write each are a hundred system
calls, and wake the other side a hundred times. Neither uvloop nor asyncio gathers by itself. What
is alone does not wait for the end of anything. A reader that is slower than what is sent to it
first stops being read from (so that it cannot ask for more), and is cut off when its unread answers
pass a limit: memory is bounded whatever it does.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, cast

from cluster.limits import CONNECTION_BYTES_IN_FLIGHT_MAX, FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX
from kvstore.wire.frames import FrameDecoder, FrameError, encode_frame, keep
from kvstore.wire.protocol import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.wire.protocol import Frame

WRITE_PAUSE_BYTES = 1_048_576
"""Unsent bytes above which this connection is not read from."""

GATHERED_BYTES_MAX = 65_536
"""What is gathered leaves before the turn ends if it is more: large answers are not held twice."""


class Connection(asyncio.Protocol):
    """Frames over one socket.

    Args:
        on_frames: Called with this connection and the frames that one read completed.
        on_open: Called when the socket is connected.
        on_close: Called once when it is closed, with the reason for the log.
        listening: Whether this side accepted the connection (it then expects the magic).
    """

    def __init__(
        self,
        on_frames: Callable[[Connection, list[Frame]], None],
        on_open: Callable[[Connection], None],
        on_close: Callable[[Connection, str], None],
        *,
        listening: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_frames = on_frames
        self._on_open = on_open
        self._on_close = on_close
        self._decoder = FrameDecoder(expect_magic=listening, frame_bytes_max=HANDSHAKE_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._reason = "closed by the other side"
        self._holds = 0
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self.is_open = False
        """Whether frames can be sent; a socket that broke is noticed a turn of the loop later."""
        self.remote = "?"
        self.refusal = ""
        """The kind of refusal that ended it, for whoever counts them."""
        self.peer: object = None
        """Who is there, once the handshake told; kept for the owner of the connection."""
        self.sent_bytes = 0
        """Handed to the socket since the connection was made."""
        self.in_flight = 0
        """Requests taken from this connection and not answered; kept for its owner."""
        self.partial_since = 0.0
        """Loop time since which a frame has been incomplete; 0 if none is."""

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        transport = self._transport
        transport.set_write_buffer_limits(high=WRITE_PAUSE_BYTES)
        name = transport.get_extra_info("peername")
        self.remote = f"{name[0]}:{name[1]}" if name else "?"
        self.is_open = True
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Decode, and hand on what is whole; a bad frame ends the connection with a word."""
        if not self.is_open:
            return
        try:
            frames = self._decoder.feed(data)
        except FrameError as error:
            self.refuse("frame", str(error))
            return
        if self._decoder.buffered_bytes:
            if frames or not self.partial_since:
                self.partial_since = self._loop.time()
        elif self.partial_since:
            self.partial_since = 0.0
        if frames:
            self._on_frames(self, frames)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner once."""
        self._transport = None
        self.is_open = False
        self._forget()
        self._on_close(self, str(exc) if exc is not None else self._reason)

    def pause_writing(self) -> None:
        """The other side reads too slowly."""
        self.hold()

    def resume_writing(self) -> None:
        """It caught up."""
        self.unhold()

    # -- for the owner -----------------------------------------------------------------------

    @property
    def handshake_done(self) -> bool:
        """Whether `welcome_frames` was called."""
        return self._decoder.frame_bytes_max == FRAME_BYTES_MAX

    def welcome_frames(self, turn_away: Callable[[bytes], bool] = keep) -> None:
        """The handshake is over: frames of full size from now on, those that are not turned away.

        ``turn_away`` is asked about each frame's body before it is decoded.
        """
        self._decoder.frame_bytes_max = FRAME_BYTES_MAX
        self._decoder.turn_away = turn_away

    @property
    def unsent_bytes(self) -> int:
        """What the other side has not taken yet, beside what the kernel keeps for it."""
        if self._transport is None:
            return 0
        return self._gathered_bytes + self._transport.get_write_buffer_size()

    def hold(self) -> None:
        """Stop reading until `unhold` was called as often."""
        self._holds += 1
        if self._holds == 1 and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def unhold(self) -> None:
        """One reason less not to read."""
        assert self._holds > 0
        self._holds -= 1
        if self._holds == 0 and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def send(self, frame: Frame) -> None:
        """Send now, behind what is about to leave.

        Raises:
            FrameError: the frame is over the limit; nothing was queued.
        """
        self.send_bytes(encode_frame(frame))

    def send_bytes(self, data: bytes) -> None:
        """Send an encoded frame; dropped if the connection is closed."""
        if not self.is_open:
            return
        self.sent_bytes += len(data)
        if self._gathered:
            self._gathered.append(data)
            self._flush()
        else:
            self._write(data)

    def send_soon(self, frame: Frame) -> None:
        """Send with everything else of this turn of the loop, at its end; otherwise as `send`."""
        self.send_bytes_soon(encode_frame(frame))

    def send_bytes_soon(self, data: bytes) -> None:
        """The same for an encoded frame."""
        if not self.is_open:
            return
        self.sent_bytes += len(data)
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes > GATHERED_BYTES_MAX:
            self._flush()
        elif len(self._gathered) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """What was gathered leaves."""
        if self._gathered:
            data = b"".join(self._gathered)
            self._forget()
            self._write(data)

    def _forget(self) -> None:
        self._gathered.clear()
        self._gathered_bytes = 0

    def _write(self, data: bytes) -> None:
        transport = self._transport
        assert transport is not None
        transport.write(data)
        # Held, because it reads slowly, long before there is so much.
        if self._holds and transport.get_write_buffer_size() > CONNECTION_BYTES_IN_FLIGHT_MAX:
            self.abort("it does not read what it is sent")

    def break_when_unacknowledged(self, after_ms: int) -> None:
        """To be called as it opens: later, the socket may be closed already."""
        assert self._transport is not None
        raw = self._transport.get_extra_info("socket")
        if raw is not None:  # none in virtual time
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, after_ms)

    def refuse(self, reason: str, detail: str, *, kind: str = "") -> None:
        """Say why, then close; `kind` is what it is counted as, if that is not the reason."""
        if not self.is_open:
            return
        self.refusal = kind or reason
        self.send(Refused(reason, detail))
        self.close(f"{reason}: {detail}")

    def close(self, reason: str) -> None:
        """Close when what is queued has left."""
        self._flush()
        self._reason = reason
        self.is_open = False
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close now; what is queued is lost."""
        self._reason = reason
        self.is_open = False
        self._forget()
        if self._transport is not None:
            self._transport.abort()
