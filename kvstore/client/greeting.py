"""The handshake from the client's side, without a socket."""

from __future__ import annotations

from kvstore.wire.frames import FrameDecoder, encode_frame
from kvstore.wire.protocol import MAGIC, PROTOCOL_VERSION, Hello, Refused, Welcome


class Greeting:
    """Says hello, understands the answer.

    Args:
        cluster_id: Of the cluster that this client found first, so that it never talks to another
            one whose node took over an address; empty at first.

    Attributes:
        welcomed: True once the node let us in.
        refused: Its reason if it did not, one of the stable ones.
        cluster_id: The node's, once welcomed.
        decoder: Goes on with the connection, whatever it has already buffered.
    """

    def __init__(self, cluster_id: str) -> None:
        self.welcomed: bool = False
        self.refused: str = ""
        self.cluster_id: str = cluster_id
        self.decoder: FrameDecoder = FrameDecoder()

    def first_bytes(self) -> bytes:
        """What the dialling side sends first."""
        return MAGIC + encode_frame(Hello(PROTOCOL_VERSION, "client", self.cluster_id, "", 0, ""))

    def feed(self, data: bytes) -> str | None:
        """Take what the node said; a text is its reason for refusing.

        Raises:
            FrameError: this is no node.
        """
        for frame in self.decoder.feed(data):
            if isinstance(frame, Welcome):
                self.welcomed = True
                self.cluster_id = frame.cluster_id
            elif isinstance(frame, Refused):
                self.refused = frame.reason
                return f"refused ({frame.reason}): {frame.detail}"
            else:
                return "refused: it greets with something else, it may be no kvstore node"
        return None
