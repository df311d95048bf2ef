"""What the failure detector says: one probe, its detour, its answers. News ride on each of them."""

from __future__ import annotations

import msgspec

from cluster.ballot import NodeId
from cluster.members import MemberUpdate


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=40, gc=False):
    """Answer me with this number."""

    number: int
    updates: list[MemberUpdate]


class PingReq(msgspec.Struct, frozen=True, array_like=True, tag=41, gc=False):
    """Ping ``target`` for me, and pass its answer on under this number."""

    number: int
    target: NodeId
    updates: list[MemberUpdate]


class PingAck(msgspec.Struct, frozen=True, array_like=True, tag=42, gc=False):
    """The member with this number's ping lives."""

    number: int
    updates: list[MemberUpdate]


class PingNack(msgspec.Struct, frozen=True, array_like=True, tag=43, gc=False):
    """I live, but the target that you asked me to ping has not answered me (Lifeguard)."""

    number: int
    updates: list[MemberUpdate]


GossipMessage = Ping | PingReq | PingAck | PingNack
"""Every message of gossip."""
