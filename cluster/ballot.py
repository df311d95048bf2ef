"""Ballots, positions and versions: the three orders that the protocol compares.

A *ballot* ``(round, node)`` fences old primaries (Liskov and Cowling, Viewstamped Replication
Revisited, 2012, calls it a view). It is never reused by its node, so two primaries never share one.
A *position* ``(established, sequence)`` says what a replica holds: the ballot that its content
belongs to, and the last operation in it. Two replicas with equal positions have equal content;
everything in `docs/protocol.md` rests on that. A *version* ``(ballot, sequence)`` names the
operation that wrote a record, so a version is the position at which a record appeared.

All three are compared lexicographically, which is what tuples do.
"""

from __future__ import annotations

from typing import NamedTuple

NodeId = int
"""A member id: 48 random bits, drawn when a disk is formatted and kept on it (rule 16)."""


class Ballot(NamedTuple):
    """``(round, node)``; higher wins, the node breaks ties."""

    round: int
    node: NodeId


class Position(NamedTuple):
    """``(established, sequence)``: equal positions mean equal content."""

    established: Ballot
    sequence: int


NO_BALLOT = Ballot(0, 0)
"""Below every ballot that a node can choose: rounds start at 1."""

NO_POSITION = Position(NO_BALLOT, 0)
"""Where a slot begins: nothing established, nothing written."""
