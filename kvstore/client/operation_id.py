"""The name of one write, kept over all its attempts (rule 5).

It is what `OutcomeUnknown.operation_id` carries, so that a caller can settle the write later,
even from another process: the client's id, the operation's number, and ``seen``, the committed
position that was known before the first attempt and must be repeated with it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from cluster.records import VERSION_BYTES
from kvstore.errors import BadRequest

_TEXT: Final = re.compile(
    rf"([0-9a-f]{{1,16}})-([0-9a-f]{{1,16}})-((?:[0-9a-f]{{{2 * VERSION_BYTES}}})?)"
)


class OperationId(NamedTuple):
    """``seen`` is 20 bytes, or empty if no position was known."""

    client: int
    number: int
    seen: bytes

    def to_text(self) -> str:
        """The form that users keep."""
        return f"{self.client:x}-{self.number:x}-{self.seen.hex()}"


def operation_id_from_text(text: str) -> OperationId:
    """The inverse of `OperationId.to_text`.

    Raises:
        BadRequest: no `OutcomeUnknown` carried this.
    """
    parts = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if parts is None:
        raise BadRequest(f"{text!r:.120} is no operation id: use that of an OutcomeUnknown")
    client, number, seen = parts.groups()
    return OperationId(int(client, 16), int(number, 16), bytes.fromhex(seen))
