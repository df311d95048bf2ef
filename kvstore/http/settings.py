"""What the HTTP door allows a caller: sizes, counts and times.

Sizes come from `cluster.limits`, because every node of a cluster must refuse the same values; times
and counts are this node's own. A slow sender is met by two clocks, one for the head and one for the
body, and by a limit on connections: each costs us one task, so that many of them are affordable and
none delays another.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster import limits

__all__ = ["HttpSettings"]


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Limits of one HTTP listener; seconds and bytes."""

    head_seconds_max: float = 10.0
    """From the first byte of a request (or the connection) to the end of its headers."""
    body_seconds_max: float = 30.0
    """From there to the end of the body."""
    keepalive_seconds_max: float = 75.0
    """A connection may idle so long between requests."""
    linger_seconds_max: float = 1.0
    """After a refusal the rest of a body is dropped for so long, so that the answer arrives."""
    connections_max: int = 4_096
    """Beyond them a connection is answered 503 and closed."""
    headers_max: int = 64
    """Header fields of a request."""
    timeout_seconds_default: float = 5.0
    """A request's time where `?timeout=` says nothing."""
    timeout_seconds_max: float = 60.0
    """The longest that a caller may ask for."""
    body_bytes_max: int = limits.VALUE_BYTES_MAX
    """The body of a value; what it becomes as MessagePack is limited by the same number."""
    batch_bytes_max: int = limits.HTTP_BATCH_BYTES_MAX
    """The body of a batch."""
    line_bytes_max: int = limits.HTTP_LINE_BYTES_MAX
    """The request line."""
    header_bytes_max: int = limits.HTTP_HEADER_BYTES_MAX
    """All header fields together."""
    answer_bytes_max: int = limits.SCAN_PAGE_BYTES_MAX
    """Values in one page of a listing or one batch's answer, before encoding; a page ends early."""
