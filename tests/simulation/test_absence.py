"""A node stays dead for long, in virtual time: others take its slots, and give them back."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from cluster.membership import Patience
from cluster.scrub import BYTES_PER_S_DEFAULT
from cluster.topology import ACTIVE, AWAY
from tests.simulation.machines import Caller, Machine, MachineSettings
from tests.simulation.network import Network
from tests.simulation.process_loop import Universe

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

SLOTS = 8
NODES = 4
PATIENCE_S = 20.0


class Site:
    """Four machines and a client, with virtual time."""

    def __init__(self, seed: int) -> None:
        rng = Random(seed)
        self.universe = Universe()
        self.network = Network(self.universe, rng, delay_seconds=0.0005, slow_chance=0.0)
        settings = MachineSettings(SLOTS, 0.001, 0.0, BYTES_PER_S_DEFAULT)
        self.machines = [
            Machine(self.universe, self.network, n, NODES, settings, rng)
            for n in range(1, NODES + 1)
        ]
        self.caller = Caller(self.universe, self.network, 1, NODES, 5.0, rng)
        for machine in self.machines:
            machine.start()
        self.until(lambda: all(self.knows(n, state=ACTIVE) for n in self.machines), 30)

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = self.universe.now + seconds
        while not condition():
            assert self.universe.now < end, f"not within {seconds:g} s"
            self.universe.run(self.universe.now + 0.5)

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = self.caller.process.spawn(work)
        assert self.universe.run(self.universe.now + 30, task.done)
        return task.result()

    def be_patient(self, seconds: float) -> None:
        """For so long dead nodes are waited for; any node takes the command."""
        machine = self.machines[-1]
        assert machine.node is not None
        assert machine.process is not None
        change = machine.node.membership.change(Patience(int(seconds)), 5_000)
        task = machine.process.spawn(change)
        assert self.universe.run(self.universe.now + 10, task.done)
        assert task.result().away_after_s == seconds

    def knows(self, machine: Machine, state: str) -> bool:
        """Whether all nodes that run list it so."""
        nodes = [m.node for m in self.machines if m.node is not None]
        topologies = [node.topology for node in nodes]
        listed = [t.node(machine.id) if t is not None else None for t in topologies]
        return all(node is not None and node.state == state for node in listed)

    def held(self) -> list[int]:
        """The copies of each slot, on machines that run."""
        tables = [m.node.table for m in self.machines if m.node is not None]
        return [
            sum((slot := table.slots[n]) is not None and slot.holds_state for table in tables)
            for n in range(SLOTS)
        ]

    def is_settled(self) -> bool:
        moving = [m.node.table.moves.pending for m in self.machines if m.node is not None]
        return self.held() == [3] * SLOTS and not any(moving)


def test_a_node_that_stays_dead_is_replaced_and_comes_back_as_a_member() -> None:
    site = Site(5)
    site.be_patient(PATIENCE_S)
    db, lost = site.caller.client, site.machines[1]
    written = {f"k{n}": n for n in range(50)}
    site.call(db.put_many(written))
    lost.crash(silently=False)
    site.universe.run(site.universe.now + 0.9 * PATIENCE_S)
    assert site.knows(lost, ACTIVE)
    assert min(site.held()) == 2, "its slots wait for it"
    site.until(lambda: site.knows(lost, AWAY), PATIENCE_S)
    site.until(site.is_settled, 30)
    epochs = {m.node.topology.epoch for m in site.machines if m.node and m.node.topology}
    assert epochs == {3}, "one epoch, however many nodes keep the time"
    site.machines[0].crash(silently=False)
    assert site.call(db.get_many(list(written))) == written
    written |= {f"k{n}": -n for n in range(25)}
    site.call(db.put_many(written))
    site.machines[0].start()

    lost.start()
    site.until(lambda: site.knows(lost, ACTIVE), 30)
    site.until(site.is_settled, 30)
    assert lost.node is not None
    assert any(slot is not None and slot.holds_state for slot in lost.node.table.slots)
    assert site.call(db.get_many(list(written))) == written
    site.universe.run(site.universe.now + 1.5 * PATIENCE_S)
    assert site.knows(lost, ACTIVE), "it stays"
