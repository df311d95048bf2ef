"""A whole cluster from one seed: nodes, clients, faults, and the judgement at the end.

The nodes and clients are the production code (everything but sockets, disk and clock). What a seed
draws is its `tests.simulation.plan.Plan`. It runs in three parts, after TigerBeetle's VOPR: a time
of chaos in which only safety is asked for; then all faults stop, and everything must be well again
within a bound; then everything is read once more and the whole history judged.

What is checked: often, all that `tests.simulation.auditor` knows to hold at any time; when all is
healed, that every slot is where the topology wants it and all replicas are equal; that no operation
was carried out twice and nothing is left waiting; that what clients saw is linearizable, that a
scan names every key that was there all the time exactly once, and that watchers heard everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.auditor import Auditor
from tests.simulation.checkers import Checker
from tests.simulation.faults import Chaos
from tests.simulation.knobs import turned
from tests.simulation.machines import SPARES, Caller, Machine, MachineSettings
from tests.simulation.network import Network
from tests.simulation.observer import Observer
from tests.simulation.plan import draw_plan, rng_of
from tests.simulation.process_loop import Universe, Violation
from tests.simulation.workload import TTL_SECONDS, Customer, History

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from tests.simulation.plan import Plan

LOOK_SECONDS = 0.2
START_SECONDS = 30.0
SERVING_SECONDS_MAX = 10.0
"""From the last fault until every slot is served."""
EQUAL_SECONDS_MAX = 60.0
"""... until all moves are finished and all replicas are equal."""
CLIENTS_SECONDS_MAX = 30.0
SLOT_COUNT = 8
REST_SECONDS_MAX = 2.0
"""After the last answer until nothing is left of attempts that a client gave up before it."""


class World:
    """One run.

    Args:
        seed: Decides everything ...
        plan: ... but what is left out here; None is the seed's own.
        logging: Whether to keep a log of what happens, for people.
    """

    def __init__(self, seed: int, plan: Plan | None = None, *, logging: bool = False) -> None:
        self.seed = seed
        self.plan = plan = plan or draw_plan(seed)
        self.universe = Universe()
        if logging:
            self.universe.log = []
        self.network = Network(
            self.universe,
            rng_of(seed, "network"),
            delay_seconds=plan.delay_seconds,
            slow_chance=plan.slow_chance,
        )
        settings = MachineSettings(
            SLOT_COUNT, plan.sync_seconds, plan.slow_sync_chance, plan.knobs.scrub_bytes_per_s
        )
        self.machines = [
            Machine(
                self.universe, self.network, n, plan.nodes, settings, rng_of(seed, "machine", n)
            )
            for n in range(1, plan.nodes + SPARES + 1)
        ]
        self.history = History(self.universe)
        self.callers = [
            self._caller(n, plan.timeout_seconds, balanced=plan.balanced)
            for n in range(plan.callers)
        ]
        self.customers: list[Customer] = []
        self.observers = [
            Observer(self._caller(n, 5.0, balanced=False), SLOT_COUNT)  # a watch needs primaries
            for n in range(100, 100 + plan.observers)
        ]
        self.auditor = Auditor(self, SLOT_COUNT)
        self.chaos = Chaos(self)
        self._last_look = 0
        self._healed_at = 0.0
        self.serving_seconds = 0.0
        self.equal_seconds = 0.0

    def _caller(self, number: int, timeout_seconds: float, *, balanced: bool) -> Caller:
        rng = rng_of(self.seed, "caller", number)
        return Caller(
            self.universe,
            self.network,
            number,
            self.plan.nodes,
            timeout_seconds,
            rng,
            balanced=balanced,
        )

    # -- the run -----------------------------------------------------------------------------

    def run(self) -> str:
        """From the founding to the judgement; returns the trace.

        Raises:
            Violation: a promise was broken.
        """
        with turned(self.plan.knobs):
            self._begin()
            first_round = -self.universe.now % self.plan.round_seconds
            self.universe.run(self.universe.now + first_round)
            tasks = self._start_customers()
            self._suffer()
            self._heal(tasks)
            self._look_back()
        self._judge()
        return self.universe.trace

    def _begin(self) -> None:
        for machine in self.machines:
            if not machine.joins:
                machine.start()
        if not self._settles(START_SECONDS, self.auditor.is_served):
            raise Violation("the cluster does not start")
        for observer in self.observers:
            observer.start()

    def _start_customers(self) -> list[asyncio.Task[None]]:
        plan, tasks = self.plan, []
        for caller in self.callers:
            for number in range(plan.customers):
                rng = rng_of(self.seed, "customer", caller.host, number)
                customer = Customer(
                    caller,
                    self.history,
                    number,
                    [f"k{n}" for n in range(plan.keys)],
                    plan.pause_seconds,
                    list(plan.kinds),
                    burst=plan.burst_operations,
                    round_seconds=plan.round_seconds,
                    rng=rng,
                )
                self.customers.append(customer)
                tasks.append(caller.process.spawn(customer.run()))
        return tasks

    def _suffer(self) -> None:
        universe = self.universe
        begin = universe.now
        end = begin + self.plan.chaos_seconds
        faults = [(begin + fault.at, fault) for fault in reversed(self.plan.faults)]
        next_look = begin
        while universe.now < end:
            until = min(next_look, faults[-1][0] if faults else end, end)
            universe.run(until)
            if faults and universe.now >= faults[-1][0]:
                self.chaos.carry_out(faults.pop()[1])
            if universe.now >= next_look:
                self._care()
                self.auditor.look()
                next_look = universe.now + LOOK_SECONDS

    def start_later(self, machine: Machine, seconds: float) -> None:
        """Whoever is down comes back."""
        machine.start_is_due = True
        self.universe.at(self.universe.now + seconds, lambda: self._start(machine))

    def _start(self, machine: Machine) -> None:
        machine.start_is_due = False
        if machine.running or machine.out or machine.disk.free_bytes == 0:
            return
        if machine.disk.lost:  # R12: it comes back empty, and as somebody else
            machine.new_disk()
            machine.replaces = machine.host
        machine.start()

    def let_join(self, machine: Machine) -> None:
        """A machine that is no part of the cluster becomes one, with an empty disk."""
        machine.new_disk()
        machine.out, machine.replaces = False, ""
        machine.start()

    def _care(self) -> None:
        """What an operator does at any time: start what ended, switch off what has left."""
        topologies = [node.topology for _, node in self.nodes()]
        newest = max(topologies, key=lambda topology: topology.epoch, default=None)
        for machine in self.machines:
            node = machine.node
            if machine.out:
                continue
            if node is None:
                if not machine.start_is_due:
                    self.start_later(machine, 1.0)
            elif node.topology is not None and newest and newest.node(machine.id) is None:
                self.universe.note("left", machine.host)
                machine.crash(silently=False)
                machine.out = True

    # -- the end -----------------------------------------------------------------------------

    def _heal(self, tasks: list[asyncio.Task[None]]) -> None:
        """All faults stop; everything must be well within a bound."""
        universe = self.universe
        universe.note("heal")
        self._healed_at = universe.now
        self.network.mend()
        self.chaos.settle()
        for machine in self.machines:
            if machine.process is None:
                self._start(machine)
            elif machine.process.paused:
                machine.process.resume()
        for customer in self.customers:
            customer.stopping = True
        if not self._settles(SERVING_SECONDS_MAX, self.auditor.is_served):
            told = [node.board.not_ready_reason() for _, node in self.nodes()]
            raise Violation(f"not served {SERVING_SECONDS_MAX:g} s after the last fault: {told}")
        begin = self._healing_since()
        self.serving_seconds = max(universe.now - begin, 0.0)
        if not self._settles(CLIENTS_SECONDS_MAX, lambda: all(task.done() for task in tasks)):
            raise Violation("clients do not end")
        for task in tasks:
            task.result()
        if not self._settles(EQUAL_SECONDS_MAX, self._is_mended):
            why = "; ".join(self.auditor.unequal())
            raise Violation(f"not mended {EQUAL_SECONDS_MAX:g} s after the last fault: {why}")
        self.equal_seconds = max(universe.now - self._healing_since(), 0.0)
        self.auditor.look()

    def _is_mended(self) -> bool:
        self.chaos.resume_moves()
        return self.auditor.is_served() and self.auditor.is_equal()

    def _healing_since(self) -> float:
        """When the last fault was over: whoever was being stopped has been started again."""
        return max(self._healed_at, *(m.started_at for m in self.machines))

    def _settles(self, seconds: float, is_well: Callable[[], bool]) -> bool:
        """Whether a moment comes in which all is well."""
        universe = self.universe
        while universe.now < self._healing_since() + seconds:
            if is_well():
                return True
            self._care()
            universe.run(universe.now + LOOK_SECONDS)
        return False

    def _look_back(self) -> None:
        """Everything is read once more, when nothing else happens."""
        universe = self.universe
        last = self.customers[0]
        universe.run(universe.now + 2 * TTL_SECONDS)  # or a key may expire between two looks
        self._last_look = len(self.history.events)
        task = self.callers[0].process.spawn(last.read_all(self.history.keys()))
        if not universe.run(universe.now + CLIENTS_SECONDS_MAX, task.done):
            raise Violation("the last look does not end")
        task.result()
        until = universe.now + CLIENTS_SECONDS_MAX
        while any(self._unheard()):
            if universe.now > until:
                raise Violation(f"watch: {next(filter(None, self._unheard()))[:3]}")
            universe.run(universe.now + LOOK_SECONDS)
        self.auditor.check_exactly_once()
        until = universe.now + REST_SECONDS_MAX
        while left := next(self.auditor.left_over(), ""):
            if universe.now > until:
                raise Violation(f"{left} {REST_SECONDS_MAX:g} s after all was done")
            universe.run(universe.now + LOOK_SECONDS)

    def _unheard(self) -> Iterator[list[str]]:
        """What each observer has not heard yet, of what it should have."""
        state: dict[str, Any] = {}
        for event in self.history.events[self._last_look :]:
            if event.answer is not None:
                state[event.key] = event.answer[0]
        for observer in self.observers:
            yield observer.missed(self.history.events) + observer.differences(state)

    def _judge(self) -> None:
        checker = Checker(skew=self.plan.skew_seconds + 0.01)
        faults = checker.faults(self.history.events)
        if faults:
            lines = "\n".join(map(str, faults[0]))
            raise Violation(f"not linearizable:\n{lines}")

    def nodes(self) -> list[tuple[Machine, Any]]:
        """The running nodes that are founded or taken in."""
        return [
            (machine, machine.node)
            for machine in self.machines
            if machine.node is not None and machine.node.topology is not None
        ]
