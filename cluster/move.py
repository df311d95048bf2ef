"""One slot's way to its owners, as it is shown to people; who moves it is `cluster.moves`."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from cluster.ballot import NodeId


class Stage(IntEnum):
    """How far a move is."""

    WAITING = 1
    """For its turn, or for a node that cannot be reached."""
    COPYING = 2
    """Learners are being brought the slot (R13)."""
    JOINT = 3
    """Old and new members decide together (R14)."""


class Move(msgspec.Struct, frozen=True):
    """One slot's way to its owners, as its primary sees it."""

    slot: int
    stage: Stage
    members: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]
    wanted: tuple[NodeId, ...]
    urgent: bool
    """A member cannot be reached, or there are fewer than there should be."""
    copied_bytes: int
    copied_records: int
