"""The failure detector: SWIM with Lifeguard, as a state machine without clock or sockets.

Once in each *period* a node sends `Ping` to one other member. Without an ack in time it asks a few
others to try (`PingReq`), and that one again; without any ack by the end of the period it
*suspects* the member and says so. A suspected member that lives hears of it and refutes it with a
higher incarnation; one that does not is declared dead when its time is over (`cluster.suspicion`).
News ride on these messages (`cluster.broadcasts`), and each also carries one entry of the sender's
table in turn, so that what was lost on the way is mended without a second kind of message.

Sources: Das, Gupta and Motivala, SWIM, DSN 2002; Dadgar, Phillips and Currey, Lifeguard,
arXiv:1707.00788 (local health, suspicion by confirmation, the buddy rule: who is probed while it is
suspected is told so in that very message). What a node sends and does in a period does not depend
on the number of members (`docs/gossip.md`). The rota is SWIM's (`cluster.rota`).

Deviations: a silent member is pinged twice more, and one that was accused wrongly time and again
has more time, because false news go to all. Dead members are still probed now and then, since the
topology lists them and a healed cut must be noticed. Whoever repeats a refuted accusation is told
so in the answer: in a large cluster in trouble not all news reach all. A node that finds itself
late (it was frozen) blames itself: all its deadlines move by the time that it missed.

Nothing here decides safety: a wrong verdict costs a detour, never data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.awareness import Awareness
from cluster.ballot import NodeId
from cluster.broadcasts import ACCUSATION_SENDS_LESS, CONFIRMATION_SENDS, Broadcasts
from cluster.members import Member, MemberEvent, MemberState, MemberUpdate, presumed_alive
from cluster.probes import Probe, Relay
from cluster.rota import Chance, Rota
from cluster.suspicion import Suspicion, Suspicions
from cluster.swim_messages import GossipMessage, Ping, PingAck, PingNack, PingReq

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cluster.swim_settings import SwimSettings

Sends = list[tuple[NodeId, GossipMessage]]


class Swim:
    """The failure detector of one node.

    Args:
        me: Its own id.
        settings: See `SwimSettings`.
        rng: For the order of probes and the choice of helpers.
        now_ms: The present, on any monotonic clock.
    """

    def __init__(self, me: NodeId, settings: SwimSettings, rng: Chance, now_ms: int) -> None:
        self.me = me
        self.incarnation = 0
        self._settings = settings
        self._rng = rng
        self._members: dict[NodeId, Member] = {me: presumed_alive(now_ms)}
        self._gone: list[NodeId] = []
        self._awareness = Awareness(settings.health_score_max)
        self._broadcasts = Broadcasts()
        self._suspicions = Suspicions()
        self._probes: dict[int, Probe] = {}
        self._relays: dict[int, Relay] = {}
        self._events: list[MemberEvent] = []
        self._rota = Rota(rng)
        self._number = 0
        self._period_due_ms = now_ms
        self._dead_due_ms = 0
        self._left = False

    # -- what is known ---------------------------------------------------------------------------

    @property
    def health_score(self) -> int:
        """See `cluster.awareness`; 0 is healthy."""
        return self._awareness.score

    def members(self) -> dict[NodeId, Member]:
        """All members, this node included; not to be changed."""
        return self._members

    def state(self, node: NodeId) -> MemberState:
        """What is believed of a member."""
        return self._members[node].state

    def take_events(self) -> list[MemberEvent]:
        """The changes of state since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_due_ms(self) -> int:
        """When `tick` must be called next; a message may bring that forward."""
        due_ms = self._period_due_ms
        for probe in self._probes.values():
            due_ms = min(due_ms, probe.indirect_due_ms)
        for relay in self._relays.values():
            due_ms = min(due_ms, relay.due_ms)
        suspicion_due_ms = self._suspicions.next_due_ms()
        return due_ms if suspicion_due_ms is None else min(due_ms, suspicion_due_ms)

    # -- who is in ---------------------------------------------------------------------------------

    def join(self, nodes: Iterable[NodeId], now_ms: int) -> None:
        """These are members too (the topology says so); presumed alive."""
        alive, known = presumed_alive(now_ms), self._members
        newcomers = {node: alive for node in nodes if node not in known}
        self._members |= newcomers
        self._rota.add(newcomers)

    def remove(self, node: NodeId) -> None:
        """This is no member any more."""
        assert node != self.me
        del self._members[node]
        self._rota.remove(node)
        if node in self._gone:
            self._gone.remove(node)
        self._suspicions.end(node)
        self._broadcasts.drop(node)
        self._probes = {n: p for n, p in self._probes.items() if p.target != node}
        self._relays = {n: r for n, r in self._relays.items() if r.origin != node}

    def leave(self, now_ms: int) -> Sends:
        """This node stops on purpose: tells a few others, who tell the rest."""
        self._left = True
        self._believe(MemberUpdate(self.me, self.incarnation, MemberState.LEFT), now_ms)
        number = self._next_number()
        return [(node, Ping(number, self._news(node))) for node in self._helpers({self.me})]

    # -- time -------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> Sends:
        """Do what is due."""
        if self._left:
            return []
        self._forgive(now_ms)
        sends: Sends = []
        for number, probe in [*self._probes.items()]:
            if now_ms >= probe.due_ms:
                del self._probes[number]
                self._judge(probe, now_ms)
            elif now_ms >= probe.indirect_due_ms:
                sends += self._ask_again(number, probe)
        for number, relay in list(self._relays.items()):
            if now_ms >= relay.due_ms:
                del self._relays[number]
                sends.append((relay.origin, PingNack(relay.number, self._news(relay.origin))))
        while (node := self._suspicions.overdue(now_ms)) is not None:
            incarnation = self._members[node].incarnation
            self._believe(MemberUpdate(node, incarnation, MemberState.DEAD, self.me), now_ms)
        if now_ms >= self._period_due_ms:
            period_ms = self._awareness.stretch_ms(self._settings.probe_interval_ms)
            self._period_due_ms = now_ms + period_ms
            sends += self._begin_period(now_ms)
        return sends

    def _forgive(self, now_ms: int) -> None:
        """If this node was away for over a period, the others could not be heard: blame nobody."""
        late_ms = now_ms - self.next_due_ms()
        if late_ms <= self._settings.probe_interval_ms:
            return
        self._awareness.add(1)
        for probe in self._probes.values():
            probe.indirect_due_ms += late_ms
            probe.due_ms += late_ms
        self._suspicions.delay(late_ms)

    def _begin_period(self, now_ms: int) -> Sends:
        sends: Sends = []
        target = self._next_target()
        if target is not None:
            sends += self._probe(target, now_ms)
        if now_ms >= self._dead_due_ms:
            self._dead_due_ms = now_ms + self._settings.dead_probe_interval_ms
            if self._gone:
                node = self._gone[self._rng.randrange(len(self._gone))]
                sends.append((node, Ping(self._next_number(), self._news(node))))
        return sends

    def _next_target(self) -> NodeId | None:
        """The next in the rota that is not known to be gone and not being probed already."""
        probed = self._probed()
        for _ in range(len(self._rota)):
            node = self._rota.next()
            if self._members[node].state < MemberState.DEAD and node not in probed:
                return node
        return None

    def _probe(self, target: NodeId, now_ms: int, *, direct: bool = True) -> Sends:
        stretch_ms = self._awareness.stretch_ms
        wait_ms = stretch_ms(self._settings.probe_timeout_ms) if direct else 0
        number = self._next_number()
        due_ms = now_ms + stretch_ms(self._settings.probe_interval_ms)
        in_many = len(self._members) >= self._settings.fickle_from_members
        if direct and in_many and self._members[target].is_fickle(now_ms):
            due_ms += self._settings.fickle_patience_ms
        self._probes[number] = probe = Probe(target, now_ms + wait_ms, due_ms)
        if direct:
            return [(target, Ping(number, self._news(target)))]
        return self._ask_helpers(number, probe)

    def _ask_helpers(self, number: int, probe: Probe) -> Sends:
        helpers = self._helpers({self.me, probe.target})
        probe.asked = len(helpers)
        probe.indirect_due_ms = probe.due_ms
        return [(node, PingReq(number, probe.target, self._news(probe.target))) for node in helpers]

    def _ask_again(self, number: int, probe: Probe) -> Sends:
        """Ask others and the silent one, later that one once more: a message may have been lost."""
        ping = (probe.target, Ping(number, self._news(probe.target)))
        if probe.is_repeated:
            probe.indirect_due_ms = probe.due_ms
            return [ping]
        again_ms = (probe.indirect_due_ms + probe.due_ms) // 2
        sends = self._ask_helpers(number, probe)
        probe.is_repeated, probe.indirect_due_ms = True, again_ms
        return [*sends, ping]

    def _judge(self, probe: Probe, now_ms: int) -> None:
        """Nobody has heard of the target by the end of the period."""
        missing = probe.asked - probe.nacks
        self._awareness.add(missing if probe.asked else 1)  # silent helpers: it may be us
        member = self._members[probe.target]
        if member.state is MemberState.ALIVE:
            self._believe(
                MemberUpdate(probe.target, member.incarnation, MemberState.SUSPECT, self.me), now_ms
            )
        elif member.state is MemberState.SUSPECT:
            self._confirm(probe.target, self.me)

    # -- messages ---------------------------------------------------------------------------------

    def on_message(self, sender: NodeId, message: GossipMessage, now_ms: int) -> Sends:
        """A message of another member. Whoever is none is not listened to."""
        if sender not in self._members or self._left:
            return []
        refuted: list[NodeId] = []
        for update in message.updates:
            member = self._members.get(update.node)
            if member is None:
                continue
            if update.incarnation >= member.incarnation:
                self._hear(update, member, now_ms)
            elif update.state is not MemberState.ALIVE:
                refuted.append(update.node)
        match message:
            case Ping(number=number):
                return [(sender, PingAck(number, self._news(sender, *refuted)))]
            case PingReq(number=number, target=target):
                return self._on_request(sender, number, target, now_ms)
            case PingAck(number=number):
                return self._on_ack(number)
            case PingNack(number=number):
                if number in self._probes:
                    self._probes[number].nacks += 1
                return []

    def on_unreachable(self, node: NodeId, now_ms: int) -> Sends:
        """The transport cannot reach this member now: others are asked at once."""
        if self._left or node not in self._members:
            return []
        if self._members[node].state is not MemberState.ALIVE or node in self._probed():
            return []
        return self._probe(node, now_ms, direct=False)

    def _on_request(self, origin: NodeId, number: int, target: NodeId, now_ms: int) -> Sends:
        if target not in self._members:
            return []
        if target == self.me:
            return [(origin, PingAck(number, self._news(origin)))]
        mine = self._next_number()
        self._relays[mine] = Relay(origin, number, now_ms + self._settings.relay_timeout_ms)
        return [(target, Ping(mine, self._news(target)))]

    def _on_ack(self, number: int) -> Sends:
        relay = self._relays.pop(number, None)
        if relay is not None:
            return [(relay.origin, PingAck(relay.number, self._news(relay.origin)))]
        if self._probes.pop(number, None) is not None:
            self._awareness.add(-1)
        return []

    # -- beliefs ----------------------------------------------------------------------------------

    def _hear(self, update: MemberUpdate, member: Member, now_ms: int) -> None:
        if update.node == self.me:
            self._refute(update, now_ms)
        elif member.loses_to(update):
            self._believe(update, now_ms)
        elif (
            update.state is MemberState.SUSPECT is member.state
            and update.incarnation == member.incarnation
        ):
            self._confirm(update.node, update.accuser)

    def _refute(self, update: MemberUpdate, now_ms: int) -> None:
        """Whatever others say of this node, it lives: said under a higher incarnation."""
        if not self._members[self.me].loses_to(update):
            return
        if update.state is not MemberState.ALIVE:
            self._awareness.add(1)
        self.incarnation = update.incarnation + 1
        lives = MemberUpdate(self.me, self.incarnation, MemberState.ALIVE)
        self._members[self.me] = self._members[self.me].after(lives, now_ms)
        self._broadcasts.put(lives)

    def _confirm(self, node: NodeId, accuser: NodeId) -> None:
        if self._suspicions.confirm(node, accuser):
            sends = self._settings.sends_max(len(self._members)) - CONFIRMATION_SENDS
            self._broadcasts.put_more(self._update(node, accuser), sends=sends)

    def _believe(self, update: MemberUpdate, now_ms: int) -> None:
        node, before = update.node, self._members[update.node]
        self._members[node] = member = before.after(update, now_ms)
        if member.state is not before.state:
            self._events.append(MemberEvent(node, member.state))
            if before.state >= MemberState.DEAD > member.state:
                self._gone.remove(node)
            elif member.state >= MemberState.DEAD > before.state:
                self._gone.append(node)
        self._suspicions.end(node)
        suspect = member.state is MemberState.SUSPECT
        self._broadcasts.put(update, sends=ACCUSATION_SENDS_LESS if suspect else 0)
        if suspect:
            self._suspicions.begin(node, self._suspicion(update.accuser, now_ms))

    def _suspicion(self, accuser: NodeId, now_ms: int) -> Suspicion:
        settings = self._settings
        others = len(self._members) - len(self._gone) - 2
        timeout_ms = settings.suspicion_ms(len(self._members))
        return Suspicion(
            accuser,
            now_ms,
            expected=settings.confirmations if others >= settings.confirmations else 0,
            timeout_ms_min=timeout_ms,
            timeout_ms_max=timeout_ms * settings.suspicion_stretch,
        )

    # -- small parts ------------------------------------------------------------------------------

    def _news(self, receiver: NodeId, *also: NodeId) -> list[MemberUpdate]:
        """What rides on a message: fresh news, and what this receiver may be lacking.

        That is one entry in turn, its own state if it is accused, and ``also``. The accused whose
        time is over first is always named, so that whoever knows better can say so.
        """
        settings = self._settings
        sends_max = settings.sends_max(len(self._members))
        updates = self._broadcasts.take(settings.updates_per_message, sends_max=sends_max)
        told = {update.node for update in updates}
        in_turn = self._rota.next_told()
        extra = [self.me if in_turn is None else in_turn, *also]
        if self._members[receiver].state is not MemberState.ALIVE:
            extra.append(receiver)
        accused = self._suspicions.first()
        if accused is not None:
            extra.append(accused)
        for node in dict.fromkeys(extra):
            if node not in told:
                updates.append(self._update(node, self._suspicions.accuser(node)))
        return updates

    def _update(self, node: NodeId, accuser: NodeId) -> MemberUpdate:
        member = self._members[node]
        return MemberUpdate(node, member.incarnation, member.state, accuser)

    def _helpers(self, without: set[NodeId]) -> list[NodeId]:
        """A few random members that may answer; O(helpers) in large clusters."""
        chosen: list[NodeId] = []
        for _ in range(4 * self._settings.indirect_probes):
            if not self._rota or len(chosen) == self._settings.indirect_probes:
                break
            node = self._rota.any()
            if node in without or self._members[node].state is not MemberState.ALIVE:
                continue
            without.add(node)
            chosen.append(node)
        return chosen

    def _probed(self) -> set[NodeId]:
        return {probe.target for probe in self._probes.values()}

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def check(self) -> None:
        """Assert the invariants; O(members)."""
        self._rota.check()
        states = {node: member.state for node, member in self._members.items()}
        suspects = {node for node, state in states.items() if state is MemberState.SUSPECT}
        assert set(self._suspicions) == suspects, "each suspect, and nobody else, has a time limit"
        assert {*self._rota} == self._members.keys() - {self.me}
        assert {*self._gone} == {n for n, s in states.items() if s >= MemberState.DEAD}
        assert self._left or states[self.me] is MemberState.ALIVE
        assert self._members[self.me].incarnation == self.incarnation
        assert len(self._broadcasts) <= len(self._members)
        assert len(self._probes) <= len(self._members)
