"""What goes wrong in a simulated cluster, and what its operator does to it.

Each fault has a generator of its own, so that leaving one out changes nothing in the others
(`tests.simulation.plan`). One disk at a time may be lost or rot: the next one only when everything
has three whole copies again, because no store promises to outlive the loss of a majority.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cluster.membership import Leave, Pace, Replicate, Weigh
from cluster.slot import Primary
from cluster.topology import ACTIVE, TopologyError
from kvstore.errors import KVError
from tests.simulation.disk import RESERVE_BYTES, ROOM_BYTES
from tests.simulation.plan import DISK_FAULTS, rng_of

if TYPE_CHECKING:
    from random import Random

    from cluster.membership import TopologyChange
    from tests.simulation.machines import Machine
    from tests.simulation.plan import Fault
    from tests.simulation.world import World

LOSSES = frozenset(("wipe", "syncfail", "rot"))
CHANGE_TIMEOUT_MS = 5_000
COPIES_MIN = 3
"""Members that a slot needs to outlive the loss of a disk and go on."""


class Chaos:
    """Carries out the faults of a plan."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.losses = 0
        """Disks that were lost or rotted."""
        self.count = 0

    def carry_out(self, fault: Fault) -> None:
        """Now; one that makes no sense at present is passed over."""
        world = self._world
        rng = rng_of(world.seed, "fault", fault.number)
        kind = fault.kind
        if kind in LOSSES and not world.auditor.may_lose_a_disk(COPIES_MIN):
            return
        machines = [m for m in world.machines if not m.out]
        machine = rng.choice(machines)
        world.universe.note("fault", kind, machine.host)
        self.count += 1
        if kind in DISK_FAULTS or kind == "writefail":
            self._disk(kind, machine, rng)
        elif kind in ("join", "leave", "weigh", "replicate", "pace"):
            self._operate(kind, machine, rng)
        elif kind in ("cut", "bridge", "break", "slow", "duel", "doubt"):
            self._network(kind, machine, rng)
        else:
            self._process(kind, machine, rng)

    def _process(self, kind: str, machine: Machine, rng: Random) -> None:
        universe = self._world.universe
        match kind:
            case "kill" | "power":
                if machine.running:
                    machine.crash(silently=kind == "power")
                    self._world.start_later(machine, rng.expovariate(1.0))
            case "blackout":
                for each in self._world.machines:
                    if each.running:
                        each.crash(silently=True)
                        self._world.start_later(each, rng.expovariate(2.0))
            case "pause":
                process = machine.process
                if process is not None:
                    process.pause()
                    universe.at(universe.now + rng.choice((0.1, 0.7, 3.0)), process.resume)
            case "stop":
                machine.stop()
            case "jump":
                half = 500 * self._world.plan.skew_seconds
                machine.clock.skew_ms = int(rng.uniform(-half, half))
            case _:
                raise AssertionError(kind)

    def _network(self, kind: str, machine: Machine, rng: Random) -> None:
        world, network = self._world, self._world.network
        universe = world.universe
        mend_at = universe.now + rng.choice((0.3, 1.5, 4.0))
        match kind:
            case "cut":
                others = [m.host for m in world.machines if m is not machine]
                if rng.random() < 0.3:
                    others += [caller.host for caller in world.callers]
                ways = rng.choice(("in", "out", "both"))
                if ways != "out":
                    network.cut([(other, machine.host) for other in others])
                if ways != "in":
                    network.cut([(machine.host, other) for other in others])
                universe.at(mend_at, network.mend)
            case "bridge":
                left, right = rng.sample([m.host for m in world.machines], 2)
                network.cut([(left, right), (right, left)])
                universe.at(mend_at, network.mend)
            case "slow":
                network.slow[machine.host] = rng.choice((10.0, 100.0))
                universe.at(mend_at, network.mend)
            case "duel":
                self._duel(rng, mend_at)
            case "doubt":
                self._doubt(rng, mend_at)
            case "break":
                network.break_some(rng.choice((0.1, 0.5, 1.0)))
            case _:
                raise AssertionError(kind)

    def _duel(self, rng: Random, mend_at: float) -> None:
        """A slot's primary and another of its members lose each other; all others reach both."""
        world, network = self._world, self._world.network
        primary, others = self._some_members(rng)
        if primary is None or not others:
            return
        rival = rng.choice(others)
        network.cut([(primary.host, rival.host), (rival.host, primary.host)])
        network.part(primary.host, rival.host)
        universe, process = world.universe, rival.process
        if rng.random() < 0.5:
            network.slow[rival.host] = 10.0
        if process is not None and rng.random() < 0.7:  # as it takes over, at whatever step
            at = universe.now + 10.0 ** rng.uniform(-3.3, -0.5)
            universe.at(at, process.pause)
            universe.at(at + rng.choice((0.1, 0.5)), process.resume)
        universe.at(mend_at, network.mend)

    def _doubt(self, rng: Random, mend_at: float) -> None:
        """A duel that the next in ring order wins, slowly, while the primary goes on.

        The others' links to the primary break for as long as it takes to dial again. Who is asked
        meanwhile is willing; it promises when it hears the primary again.
        """
        network, universe = self._world.network, self._world.universe
        primary, others = self._some_members(rng, written=True)
        if primary is None or len(others) < 2:
            return
        rival, *witnesses = others
        network.cut([(primary.host, rival.host), (rival.host, primary.host)])
        network.part(primary.host, rival.host)
        seconds = rng.choice((0.05, 0.2))
        network.slow[rival.host] = seconds / network.delay_seconds
        for witness in witnesses:
            part = partial(network.part, witness.host, primary.host)
            universe.at(universe.now + seconds * rng.uniform(1.0, 3.0), part)
        universe.at(mend_at, network.mend)

    def _some_members(
        self, rng: Random, *, written: bool = False
    ) -> tuple[Machine | None, list[Machine]]:
        """Any slot's primary, and the other members in ring order; written: one that has keys."""
        world = self._world
        users = world.auditor.slot_count if written else None
        by_id = {machine.id: machine for machine in world.machines}
        led = [
            (machine, slot)
            for held in world.auditor.replicas()[:users]
            for machine, slot in held
            if isinstance(slot.role, Primary) and (slot.sequence or not written)
        ]
        if not led:
            return None, []
        primary, slot = rng.choice(led)
        return primary, [by_id[n] for n in slot.config.members if n in by_id and n != primary.id]

    def _disk(self, kind: str, machine: Machine, rng: Random) -> None:
        universe, disk = self._world.universe, machine.disk
        later = universe.now + rng.choice((0.5, 2.0, 5.0))
        match kind:
            case "wipe":
                self.losses += 1
                machine.crash(silently=rng.random() < 0.5)
                disk.lost = True
                self._world.start_later(machine, rng.expovariate(1.0))
            case "syncfail":
                self.losses += 1
                disk.fail_next_sync = True
            case "writefail":
                disk.fail_next_write = True
            case "rot":
                self.losses += disk.rot(rng)
            case "full":
                disk.free_bytes = rng.choice((RESERVE_BYTES - 1, 0))

                def room() -> None:
                    disk.free_bytes = ROOM_BYTES

                universe.at(later, room)
            case "slowdisk":
                disk.slow_factor = rng.choice((10.0, 100.0))

                def recovered() -> None:
                    disk.slow_factor = 1.0

                universe.at(later, recovered)
            case _:
                raise AssertionError(kind)

    def _operate(self, kind: str, machine: Machine, rng: Random) -> None:
        world = self._world
        match kind:
            case "join":
                outside = [m for m in world.machines if m.out]
                if outside:
                    world.let_join(rng.choice(outside))
            case "leave":
                self.ask(Leave(machine.host), rng)
            case "weigh":
                self.ask(Weigh(machine.host, rng.choice((0.1, 0.5, 1.0, 3.0))), rng)
            case "replicate":
                kinds = {fault.kind for fault in world.plan.faults}
                fewer = (1, 2) if kinds.isdisjoint(LOSSES) else ()
                self.ask(Replicate(rng.choice((3, 3, 4, 5, *fewer))), rng)
            case "pace":
                paused, rate = rng.random() < 0.3, rng.choice((0, 65_536))
                self.ask(Pace(paused, rate), rng)
            case _:
                raise AssertionError(kind)

    def ask(self, change: TopologyChange, rng: Random) -> None:
        """An operator's command, at some node; it may be refused, or fail."""
        world = self._world
        nodes = [(m.process, node) for m, node in world.nodes() if m.process is not None]
        if not nodes:
            return
        process, node = rng.choice(nodes)

        async def carry_out() -> None:
            try:
                await node.membership.change(change, CHANGE_TIMEOUT_MS)
                world.universe.note("changed", change)
            except (TopologyError, KVError) as error:
                world.universe.note("not changed", change, type(error).__name__)

        process.spawn(carry_out()).add_done_callback(lambda task: task.result())

    def settle(self) -> None:
        """No more faults: disks have room, and moves may go on."""
        world = self._world
        for machine in world.machines:
            machine.clock.skew_ms = 0
            machine.disk.free_bytes = ROOM_BYTES
            machine.disk.slow_factor, machine.disk.slow_chance = 1.0, 0.0
            machine.disk.fail_next_sync = machine.disk.fail_next_write = False

    def resume_moves(self) -> None:
        """Whoever paused them lets them go on; asked again until it is so."""
        paused = [node for _, node in self._world.nodes() if node.topology.paused]
        if paused:
            self.ask(Pace(paused=False, copy_bytes_per_s=0), rng_of(self._world.seed, "resume"))


def active_hosts(world: World) -> set[str]:
    """Names of the nodes that the newest topology counts on."""
    newest = max((node.topology for _, node in world.nodes()), key=lambda t: t.epoch)
    return {node.name for node in newest.nodes if node.state == ACTIVE}
