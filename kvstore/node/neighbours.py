"""The other nodes as this one meets them: links, gossip and the core told the same story.

Who they are says the topology; it changes while the node runs (`adopt`). Whether one can be
reached is judged in one place: over a link, and not dead by gossip. The core is told of changes
only. What a peer says that it leads goes to the directory for clients and to the core for routing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cluster.members import MemberState
from kvstore.log import get_logger
from kvstore.node.directory import pack_leads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cluster.ballot import NodeId
    from cluster.topology import Node as Member
    from kvstore.node.node import Node
    from kvstore.wire.protocol import Leads

log = get_logger(__name__)

EXPECT_PEERS_S = 3.0
"""After its own start a node lets the others have so long to start too, before it stands in."""


class Neighbours:
    """Those of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._members: dict[NodeId, Member] = {}
        """All nodes of the topology, this one included."""
        self._reached: dict[NodeId, bool] = {}
        """What the core was told of each peer; nothing while it is only hoped for."""
        self._expected: set[NodeId] = set()
        self._turn = 0
        self.leads_moved = asyncio.Event()

    def knows(self, node: NodeId) -> bool:
        """Whether the topology lists this node."""
        return node in self._members

    # -- who they are ----------------------------------------------------------------------------

    def begin(self, members: Iterable[Member]) -> None:
        """Those that the first topology lists; all may be starting just now."""
        self._node.router.detour = self.detour
        self.adopt(members)
        for other in self._others():
            self._node.table.peer_hoped(other)
            self._expected.add(other)
        asyncio.get_running_loop().call_later(EXPECT_PEERS_S, self._stop_expecting)

    def adopt(self, members: Iterable[Member]) -> None:
        """Those that the newest topology lists: meet the new ones, part from the others."""
        node, former = self._node, self._members
        self._members = {member.id: member for member in members}
        for other, before in list(former.items()):
            now = self._members.get(other)
            if other != node.id and (now is None or now.address != before.address):
                self._part_from(other)
                del former[other]
        for other in self._others():
            if other not in former:
                member = self._members[other]
                node.peers.add(other, member.name, member.address)
        node.gossip.swim.join(self._members, node.clock.now_ms())

    def part_from_all(self) -> None:
        """This node is no member any more."""
        for other in self._node.peers.names():
            self._part_from(other)
        self._members.clear()

    def _others(self) -> list[NodeId]:
        return [other for other in self._members if other != self._node.id]

    def _part_from(self, other: NodeId) -> None:
        """It is no member any more, or it will be met at another address."""
        node = self._node
        node.peers.remove(other)
        node.gossip.swim.remove(other)
        node.directory.forget(other)
        node.table.peer_down(other)
        node.router.peer_lost(other)
        self._reached.pop(other, None)
        self._expected.discard(other)

    def _stop_expecting(self) -> None:
        late, self._expected = self._expected, set()
        for other in late:
            self._judge(other)

    # -- whether they can be reached -------------------------------------------------------------

    def link_up(self, other: NodeId) -> None:
        """A data link is open."""
        node = self._node
        self._expected.discard(other)
        node.peers.send(other, pack_leads(node.table.led(), (), complete=True))
        self._judge(other)

    def link_down(self, other: NodeId) -> None:
        """A data link was refused, could not be made, or broke."""
        self._node.gossip.unreachable(other)
        self._judge(other)
        self._node.router.peer_lost(other)

    def caught_up(self, other: NodeId) -> None:
        """What a peer missed while it took nothing is gone: bring it up to date (R11)."""
        if self._reached.get(other):
            self._node.core.wake()
            self._node.table.peer_up(other)

    def member_state(self, other: NodeId, state: MemberState) -> None:
        """Gossip believes something else of a member than before."""
        listed = self._members.get(other)
        name = listed.name if listed is not None else f"{other:012x}"
        log.info("member", peer=name, state=state.name.lower())
        if other != self._node.id:
            self._judge(other)

    def _judge(self, other: NodeId) -> None:
        """Tell the core whether a peer can be reached: over a link, and not dead by gossip."""
        if not self.knows(other):
            return
        node = self._node
        gone = node.gossip.swim.state(other) in (MemberState.DEAD, MemberState.LEFT)
        reached = node.peers.is_up(other) and not gone
        if reached == self._reached.get(other):
            return
        if not reached and other in self._expected:
            return  # all nodes are starting: do not lead for one that comes yet
        self._reached[other] = reached
        node.core.wake()
        if reached:
            node.table.peer_up(other)
            # What it told last still holds: it does not tell again over its own link if that held.
            told = node.directory.led_by(other)
            node.table.peer_leads(other, told, ballot_of=node.directory.ballot_of)
        else:
            node.table.peer_down(other)
            node.router.peer_lost(other)  # a frozen node's connections do not break

    def detour(self, slot: int) -> NodeId | None:
        """Whom to ask for a slot whose leader lives, but out of this node's reach (R10).

        None where that is not so: no leader is known, it can be reached, or nobody hears of it.
        """
        leader, swim = self._node.directory.leaders[slot], self._node.gossip.swim
        if leader is None or self._reached.get(leader, True) or not self.knows(leader):
            return None
        if swim.state(leader) is not MemberState.ALIVE:
            return None
        helpers = [other for other, reached in self._reached.items() if reached]
        self._turn += 1
        return helpers[self._turn % len(helpers)] if helpers else None

    # -- what they lead --------------------------------------------------------------------------

    def on_leads(self, sender: NodeId, leads: Leads) -> None:
        """A peer's summary.

        Raises:
            ValueError: it is malformed.
        """
        node = self._node
        led, lost = node.directory.take(sender, leads)
        if self._reached.get(sender) is False:  # the directory keeps it until `_judge` says so
            return
        node.core.wake()
        node.table.peer_leads_no_more(sender, lost)
        ballot_of = node.directory.ballot_of
        node.table.peer_leads(sender, led, complete=leads.complete, ballot_of=ballot_of)
        node.router.leads_changed(led)
        self.leads_moved.set()

    def tell_leads(self, slots: set[int]) -> None:
        """What this node leads has changed in these slots."""
        node = self._node
        node.directory.moved |= slots
        led = list(node.table.led_of(sorted(slots)))
        lost = slots.difference(number for number, _ in led)
        leads = pack_leads(led, sorted(lost), complete=False)
        for other in node.peers.names():
            node.peers.send(other, leads)
        node.router.leads_changed([number for number, _ in led])
        self.leads_moved.set()
