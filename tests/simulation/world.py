"""A whole cluster from one seed: nodes, clients, faults, and the judgement at the end.

The nodes and clients are the production code (everything but sockets, disk and clock). A seed
draws the size of the cluster, the speed of network and disk, what clients do, and which kinds of
fault there are at all (*swarm testing*, Groce et al., ISSTA 2012: a run with every fault hides
what a run with few would show). Then, after TigerBeetle's VOPR: a time of chaos in which only
safety is asked for; then all faults stop, and everything must be well again within a bound.

What is checked: after each moment of chaos, replicas at equal positions have equal content, and no
two primaries have one ballot; when all is healed, every slot is served by its first member and all
replicas are equal; and the history of all clients, with a last look at every key, is linearizable.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from cluster.slot import Primary
from tests.simulation.checkers import Checker
from tests.simulation.machines import Caller, Machine
from tests.simulation.network import Network
from tests.simulation.observer import Observer
from tests.simulation.process_loop import Universe, Violation
from tests.simulation.workload import TTL_SECONDS, Customer, History

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from cluster.slot import Slot

CHAOS_SECONDS = 12.0
LOOK_SECONDS = 0.05
START_SECONDS = 30.0
HEAL_SECONDS = 20.0
SLOT_COUNT = 8
SKEW_SECONDS = 2.0
KINDS = ("put", "get", "get", "incr", "delete", "cas", "absent", "ttl", "touch", "batch", "many")
FAULTS = ("kill", "power", "pause", "cut", "bridge", "break", "stop", "skew")


@dataclass(frozen=True)
class Plan:
    """What a seed drew; printed with a failure, so that a person sees what kind of run it was."""

    nodes: int
    delay_seconds: float
    slow_chance: float
    sync_seconds: float
    slow_sync_chance: float
    callers: int
    customers: int
    observers: int
    pause_seconds: float
    timeout_seconds: float
    """Of a client's call: short ones leave outcomes open."""
    keys: int
    kinds: tuple[str, ...]
    faults: tuple[str, ...]
    calm_seconds: float
    """Between two faults, on average."""


def draw_plan(rng: Random) -> Plan:
    """The swarm."""
    faults = tuple(fault for fault in FAULTS if rng.random() < 0.4)
    kinds = tuple(kind for kind in KINDS if rng.random() < 0.6) or ("put", "get")
    return Plan(
        nodes=rng.choice((3, 3, 3, 4, 5)),
        delay_seconds=rng.choice((0.0001, 0.0005, 0.003)),
        slow_chance=rng.choice((0.0, 0.01, 0.05)),
        sync_seconds=rng.choice((0.0002, 0.001, 0.005)),
        slow_sync_chance=rng.choice((0.0, 0.02)),
        callers=rng.choice((1, 2, 3)),
        customers=rng.choice((1, 2, 4)),
        observers=rng.choice((0, 1, 2)),
        pause_seconds=rng.choice((0.02, 0.1, 0.4)),
        timeout_seconds=rng.choice((0.2, 1.0, 5.0)),
        keys=rng.choice((1, 2, 4)),
        kinds=kinds,
        faults=faults or ("kill",),
        calm_seconds=rng.choice((0.2, 0.6, 2.0)),
    )


class World:
    """One run."""

    def __init__(self, seed: int, *, logging: bool = False) -> None:
        self.seed = seed
        rng = Random(f"world {seed}")
        self.plan = plan = draw_plan(rng)
        self.universe = Universe(rng)
        if logging:
            self.universe.log = []
        self.network = Network(
            self.universe, delay_seconds=plan.delay_seconds, slow_chance=plan.slow_chance
        )
        self.machines = [
            Machine(self.universe, self.network, n, plan.nodes, plan.sync_seconds)
            for n in range(1, plan.nodes + 1)
        ]
        self.history = History(self.universe)
        self.callers = [
            Caller(self.universe, self.network, n, plan.nodes, plan.timeout_seconds)
            for n in range(plan.callers)
        ]
        self.customers: list[Customer] = []
        self.observers = [
            Observer(Caller(self.universe, self.network, n, plan.nodes, 5.0), SLOT_COUNT)
            for n in range(100, 100 + plan.observers)
        ]
        self._last_look = 0
        self.faults = 0
        self.serving_seconds = 0.0
        self.equal_seconds = 0.0

    # -- the run -----------------------------------------------------------------------------

    def run(self) -> str:
        """From the founding to the judgement; returns the trace.

        Raises:
            Violation: a promise was broken.
        """
        for machine in self.machines:
            machine.disk.slow_chance = self.plan.slow_sync_chance
            machine.start(slot_count=SLOT_COUNT)
        if not self.universe.run(self.universe.now + START_SECONDS, self.is_served):
            raise Violation("the cluster does not start")
        for observer in self.observers:
            observer.start()
        tasks = self._start_customers()
        self._chaos()
        self._heal(tasks)
        self._judge()
        return self.universe.trace

    def _start_customers(self) -> list[asyncio.Task[None]]:
        plan, tasks = self.plan, []
        for caller in self.callers:
            for number in range(plan.customers):
                customer = Customer(
                    caller,
                    self.history,
                    number,
                    [f"k{n}" for n in range(plan.keys)],
                    plan.pause_seconds,
                    list(plan.kinds),
                )
                self.customers.append(customer)
                tasks.append(caller.process.spawn(customer.run()))
        return tasks

    def _chaos(self) -> None:
        universe, rng = self.universe, self.universe.rng
        end = universe.now + CHAOS_SECONDS
        next_fault = universe.now + self.plan.calm_seconds * 2 * rng.random()
        while universe.now < end:
            universe.run(min(universe.now + LOOK_SECONDS, end))
            self.check()
            if universe.now >= next_fault:
                self._fault(rng.choice(self.plan.faults))
                next_fault = universe.now + self.plan.calm_seconds * 2 * rng.random()
            self._recover()

    def _fault(self, kind: str) -> None:
        universe, rng = self.universe, self.universe.rng
        machine = rng.choice(self.machines)
        self.faults += 1
        universe.note("fault", kind, machine.host)
        match kind:
            case "kill" | "power":
                if machine.running:
                    machine.crash(silently=kind == "power")
            case "pause":
                if machine.process is not None:
                    machine.process.pause()
                    process = machine.process
                    universe.at(universe.now + rng.choice((0.1, 0.7, 3.0)), process.resume)
            case "cut":
                others = [m.host for m in self.machines if m is not machine]
                if rng.random() < 0.3:
                    others += [caller.host for caller in self.callers]
                ways = rng.choice(("in", "out", "both"))
                for other in others:
                    if ways != "out":
                        self.network.cut([(other, machine.host)])
                    if ways != "in":
                        self.network.cut([(machine.host, other)])
                universe.at(universe.now + rng.choice((0.3, 1.5, 4.0)), self.network.mend)
            case "bridge":
                left, right = rng.sample([m.host for m in self.machines], 2)
                self.network.cut([(left, right), (right, left)])
                universe.at(universe.now + rng.choice((0.3, 1.5, 4.0)), self.network.mend)
            case "break":
                self.network.break_some(rng.choice((0.1, 0.5, 1.0)))
            case "stop":
                self._stop(machine)
            case "skew":
                machine.clock.skew_ms = int(rng.uniform(-1, 1) * 500 * SKEW_SECONDS)
            case _:
                raise AssertionError(kind)

    def _stop(self, machine: Machine) -> None:
        """SIGTERM: the process ends when it has closed."""
        if machine.process is None or machine.process.paused:
            return
        process = machine.process

        def gone(_: asyncio.Task[None]) -> None:
            if machine.process is process:
                machine.crash(silently=False)

        machine.stop().add_done_callback(gone)

    def _recover(self) -> None:
        """Whoever is down comes back sooner or later."""
        for machine in self.machines:
            if not machine.running and self.universe.rng.random() < LOOK_SECONDS / 1.0:
                machine.start(slot_count=SLOT_COUNT)

    # -- the end -----------------------------------------------------------------------------

    def _heal(self, tasks: list[asyncio.Task[None]]) -> None:
        """All faults stop; everything must be well within a bound."""
        universe = self.universe
        universe.note("heal")
        self.network.mend()
        for machine in self.machines:
            machine.clock.skew_ms = 0
            if machine.process is None:
                machine.start(slot_count=SLOT_COUNT)
            elif machine.process.paused:
                machine.process.resume()
        for customer in self.customers:
            customer.stopping = True
        begin = universe.now
        until = begin + HEAL_SECONDS
        if not self._settles(until, lambda: all(task.done() for task in tasks)):
            raise Violation("clients do not end")
        for task in tasks:
            task.result()
        if not self._settles(until, self.is_served):
            raise Violation(f"not served {HEAL_SECONDS:g} s after the last fault: {self.places()}")
        self.serving_seconds = universe.now - begin
        if not self._settles(begin + HEAL_SECONDS, self.replicas_equal):
            raise Violation(f"replicas differ after {HEAL_SECONDS:g} s: {self.places()}")
        self.equal_seconds = universe.now - begin
        self.check()
        last = self.customers[0]
        universe.run(universe.now + 2 * TTL_SECONDS)  # or a key may expire between two looks
        self._last_look = len(self.history.events)
        task = self.callers[0].process.spawn(last.read_all(self.history.keys()))
        if not universe.run(universe.now + HEAL_SECONDS, task.done):
            raise Violation("the last look does not end")
        task.result()
        if not self._settles(universe.now + HEAL_SECONDS, lambda: not any(self._unheard())):
            raise Violation(f"watch: {next(filter(None, self._unheard()))[:3]}")

    def _unheard(self) -> Iterator[list[str]]:
        """What each observer has not heard yet, of what it should have."""
        state: dict[str, Any] = {}
        for event in self.history.events[self._last_look :]:
            if event.answer is not None:
                state[event.key] = event.answer[0]
        for observer in self.observers:
            yield observer.missed(self.history.events) + observer.differences(state)

    def _settles(self, until: float, is_well: Callable[[], bool]) -> bool:
        """Whether a moment comes in which all is well."""
        universe = self.universe
        while universe.now < until:
            if is_well():
                return True
            for machine in self.machines:  # one that was told to stop may only have stopped now
                if machine.process is None:
                    machine.start(slot_count=SLOT_COUNT)
            universe.run(universe.now + LOOK_SECONDS)
        return False

    def _judge(self) -> None:
        checker = Checker(skew=SKEW_SECONDS + 0.01)
        faults = checker.faults(self.history.events)
        if faults:
            lines = "\n".join(map(str, faults[0]))
            raise Violation(f"not linearizable:\n{lines}")

    # -- what holds at any time ----------------------------------------------------------------

    def nodes(self) -> list[tuple[Machine, Any]]:
        """The running nodes that are founded."""
        return [
            (machine, machine.node)
            for machine in self.machines
            if machine.node is not None and machine.node.topology is not None
        ]

    def is_served(self) -> bool:
        """Whether every node runs and knows a primary for every slot."""
        nodes = self.nodes()
        return len(nodes) == len(self.machines) and not any(
            node.board.not_ready_reason() for _, node in nodes
        )

    def replicas(self) -> list[list[tuple[Machine, Slot]]]:
        """By slot, who holds it; the system slot is the last."""
        held: list[list[tuple[Machine, Slot]]] = [[] for _ in range(SLOT_COUNT + 1)]
        for machine, node in self.nodes():
            for slot in node.table.slots:
                if slot is not None and slot.holds_state:
                    held[slot.number].append((machine, slot))
        return held

    def replicas_equal(self) -> bool:
        """Whether all replicas of each slot stand at one position, with nothing in flight."""
        for held in self.replicas():
            if len({slot.position for _, slot in held}) != 1:
                return False
            leads = [slot.role for _, slot in held if isinstance(slot.role, Primary)]
            if len(leads) != 1 or leads[0].committed != held[0][1].sequence:
                return False
        return True

    def check(self) -> None:
        """The invariants of the protocol, over all nodes.

        Raises:
            Violation: one does not hold.
        """
        for _, node in self.nodes():
            node.table.check()
        for number, held in enumerate(self.replicas()):
            ballots = [s.role.ballot for _, s in held if isinstance(s.role, Primary)]
            if len(set(ballots)) != len(ballots):
                raise Violation(f"slot {number} has two primaries of one ballot")
            first: dict[Any, tuple[str, Any]] = {}
            for machine, slot in held:
                content = self.content(machine, slot)
                host, other = first.setdefault(slot.position, (machine.host, content))
                if other != content:
                    raise Violation(
                        f"slot {number}: {host} and {machine.host} differ at {slot.position}"
                    )

    def content(self, machine: Machine, slot: Slot) -> Any:
        """Records, key log and config of a replica."""
        assert machine.node is not None
        store = machine.node.store
        records = store.scan(slot.prefix, b"", 1_000)
        return (tuple(records), tuple(store.log_entries(slot.prefix, 0)), slot.config)

    def places(self) -> str:
        """Where the replicas stand, for a message."""
        return "; ".join(
            f"{number}: "
            + ", ".join(f"{m.host} {s.position.established}.{s.sequence}" for m, s in held)
            for number, held in enumerate(self.replicas())
        )
