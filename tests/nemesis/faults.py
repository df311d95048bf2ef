"""What is done to the cluster, and how it is undone, drawn from a seed.

Two hands work at a time, never on one node. The *light* one does what a node must bear without
losing anything: it kills, stops and freezes nodes, cuts and slows links, puts clocks off; often two
at once. The *heavy* one takes a disk away (wiped, rotten, full) or changes who is in, one after the
other: two disks lost at once out of three copies may lose data by any protocol, so it begins only
when the cluster is whole again, which the light hand waits for too.

A fault lasts until what it hit serves again. A node that ends without being told to has broken a
promise, unless its disk was made to rot or to fill.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from cluster.membership import Leave
from kvstore.cli.membership import send_change
from kvstore.errors import KVError
from tests.nemesis.arena import FOUNDERS, PLACES, POLL_SECONDS, RESERVE_BYTES, fetch
from tests.nemesis.judge import Span
from tests.nemesis.proxies import Proxies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvstore.cli.local_cluster import LocalNode
    from tests.nemesis.arena import Arena

SNAP: Final = "snap"
"""Only proxies can break connections."""

LIGHT: Final[tuple[str, ...]] = (
    *("kill", "stop", "pause", "clock", "cut", "lose", "split", "slow", SNAP),
)

HEAVY: Final[tuple[str, ...]] = ("wipe", "rot-log", "rot-table", "full", "brim", "join")
DISK: Final = ("full", "brim")
CALM_SECONDS: Final = (1.0, 5.0)
HEAVY_CALM_SECONDS: Final = (2.0, 8.0)
HEAL_SECONDS: Final = 120.0
WHOLE_SECONDS: Final = 300.0
"""Long, so that a busy machine is not taken for a node that never comes back; the aims of a quiet
one are figures of the summary."""

LOST_DISK: Final = 74
SKEW_MS_MAX: Final = 1_000


class Trouble(Exception):
    """The cluster did not do what it must."""


class Nemesis:
    """The two hands; `run` lets them work until a flag is set.

    Args:
        arena: What they hurt.
        rng: Draws everything.
        kinds: Which faults.
        say: Told each fault and its end.
    """

    def __init__(
        self, arena: Arena, rng: Random, kinds: list[str], say: Callable[[str], None]
    ) -> None:
        self._arena = arena
        self._rng = rng
        self._say = say
        self._light = [kind for kind in LIGHT if kind in kinds]
        self._heavy = [kind for kind in HEAVY if kind in kinds]
        if not isinstance(arena.links, Proxies):
            self._light = [kind for kind in self._light if kind != SNAP]
        if not arena.has_small_disk:
            self._heavy = [kind for kind in self._heavy if kind not in DISK]
        self._busy: set[LocalNode] = set()
        self._lock = threading.Lock()
        self._light_may = threading.Lock()
        """Held by whoever needs the other hand to rest."""
        self._do: dict[str, Callable[[LocalNode, float], None]] = {
            "kill": self._kill, "stop": self._stop, "pause": self._pause, "clock": self._clock,
            "cut": self._cut, "lose": self._lose, "split": self._split, "slow": self._slow,
            SNAP: self._snap,
            "wipe": self._wipe, "rot-log": self._rot, "rot-table": self._rot_table,
            "full": self._full, "brim": self._brim, "join": self._join,
        }  # fmt: skip
        self.spans: list[Span] = []
        self.troubles: list[str] = []
        self._stopping = threading.Event()

    @property
    def kinds(self) -> list[str]:
        """What can be done here, of what was asked for."""
        return self._light + self._heavy

    def start(self) -> None:
        """Let the hands work."""
        hands = [self._work_lightly] * bool(self._light) + [self._work_heavily] * bool(self._heavy)
        hands.append(self._look_after)
        seeds = [Random(self._rng.getrandbits(64)) for _ in hands]
        self._hands = [
            threading.Thread(target=self._guarded, args=pair)
            for pair in zip(hands, seeds, strict=True)
        ]
        for hand in self._hands:
            hand.start()

    def stop(self) -> None:
        """What is broken is mended; then both rest."""
        self._stopping.set()
        for hand in self._hands:
            hand.join()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to find out."""
        return bool(self.troubles)

    # -- the hands ---------------------------------------------------------------------------

    def _guarded(self, work: Callable[[Random], None], rng: Random) -> None:
        try:
            work(rng)
        except (Trouble, KVError, OSError) as error:
            self.troubles.append(f"{type(error).__name__}: {error}")
            self._say(f"TROUBLE {error}")

    def _rest(self, rng: Random, seconds: tuple[float, float]) -> bool:
        """Wait a while; whether there is more to do."""
        return not self._stopping.wait(rng.uniform(*seconds))

    def _work_lightly(self, rng: Random) -> None:
        while self._rest(rng, CALM_SECONDS):
            with self._light_may:
                count = 2 if rng.random() < 0.3 else 1
                works = []
                for _ in range(count):
                    kind, seconds = rng.choice(self._light), rng.choice((0.3, 1.5, 4.0))
                    one = partial(self._one, kind=kind, seconds=seconds)
                    works.append(threading.Thread(target=self._guarded, args=(one, rng)))
                for work in works:
                    work.start()
                for work in works:
                    work.join()

    def _one(self, rng: Random, kind: str, seconds: float) -> None:
        with self._borrow(rng) as node, self._span(kind, node.name):
            self._do[kind](node, seconds)
            self._wait_ready(node)

    def _work_heavily(self, rng: Random) -> None:
        """In turn, so that a run of some minutes has done each."""
        turn = rng.sample(self._heavy, len(self._heavy))
        while self._rest(rng, HEAVY_CALM_SECONDS):
            kind = turn.pop(0)
            turn.append(kind)
            with self._light_may:
                wrong = self._arena.wait_for(self._arena.unwell, WHOLE_SECONDS)
                if wrong:
                    raise Trouble(f"the cluster is not whole after {WHOLE_SECONDS:g} s: {wrong}")
                borrowed = self._borrow(rng, small=kind in DISK)
                node = borrowed.__enter__()
            try:
                with self._span(kind, node.name):
                    self._do[kind](node, rng.choice((1.0, 3.0)))
                    wrong = self._arena.wait_for(self._unwell_around, WHOLE_SECONDS)
                    if wrong:
                        raise Trouble(f"not whole {WHOLE_SECONDS:g} s after {kind}: {wrong}")
            finally:
                borrowed.__exit__(None, None, None)

    def _unwell_around(self) -> str:
        """`Arena.unwell`; the other hand works, and rests only while it is asked."""
        time.sleep(1.0)
        with self._light_may:
            return self._arena.wait_for(self._arena.unwell, 2.0)

    def _look_after(self, rng: Random) -> None:
        """Who ends without being told to?"""
        while not self._stopping.wait(POLL_SECONDS):
            with self._lock:
                for node in list(self._arena.nodes):
                    ended = node.process is not None and node.process.poll() is not None
                    if ended and node not in self._busy:
                        raise Trouble(f"{node.name} {node.state} by itself:\n{node.log_tail()}")

    @contextmanager
    def _borrow(self, rng: Random, *, small: bool = False) -> Iterator[LocalNode]:
        """A node that nobody hurts now."""
        with self._lock:
            free = [n for n in self._arena.nodes[:FOUNDERS] if n not in self._busy]
            node = self._arena.small if small else rng.choice(free)
            assert node in free, "the other hand rests"
            self._busy.add(node)
        try:
            yield node
        finally:
            with self._lock:
                self._busy.discard(node)

    @contextmanager
    def _span(self, kind: str, name: str) -> Iterator[None]:
        begin = time.monotonic_ns()
        self._say(f"{kind} {name}")
        try:
            yield
        finally:
            end = time.monotonic_ns()
            self.spans.append(Span(kind, name, begin, end))
            self._say(f"{kind} {name} is over after {(end - begin) / 1e9:.1f} s")

    def _wait_ready(self, node: LocalNode) -> None:
        if not self._arena.wait_ready(node, HEAL_SECONDS):
            why = fetch(node, "/v1/cluster/node") or {}
            raise Trouble(
                f"{node.name} ({node.state}) does not serve after {HEAL_SECONDS:g} s: "
                f"{why.get('not_ready_reason')}\n{node.log_tail()}"
            )

    # -- light faults ------------------------------------------------------------------------

    def _kill(self, node: LocalNode, seconds: float) -> None:
        self._arena.end(node)
        time.sleep(seconds)
        self._arena.start(node)

    def _stop(self, node: LocalNode, seconds: float) -> None:
        node.stop()
        time.sleep(seconds)
        self._arena.start(node)

    def _pause(self, node: LocalNode, seconds: float) -> None:
        node.signal(signal.SIGSTOP)
        time.sleep(seconds)
        node.signal(signal.SIGCONT)

    def _clock(self, node: LocalNode, seconds: float) -> None:
        self._arena.set_clock(node, self._rng.randrange(-SKEW_MS_MAX, SKEW_MS_MAX))
        time.sleep(seconds)
        self._arena.set_clock(node, 0)

    def _cut(self, node: LocalNode, seconds: float) -> None:
        number = self._arena.number(node)
        self._arena.links.cut(number)
        time.sleep(seconds)
        self._arena.links.mend(number)

    def _lose(self, node: LocalNode, seconds: float) -> None:
        """In one direction, to or from some of the others."""
        me = self._arena.number(node)
        others = [n for n in range(1, PLACES + 1) if n != me and self._rng.random() < 0.6]
        ways = [(me, n) if self._rng.random() < 0.5 else (n, me) for n in others]
        self._lost(ways, seconds)

    def _split(self, node: LocalNode, seconds: float) -> None:
        """This node and another on one side, the rest on the other; clients reach all."""
        me = self._arena.number(node)
        side = {me, self._rng.choice([n for n in range(1, FOUNDERS + 1) if n != me])}
        rest = [n for n in range(1, PLACES + 1) if n not in side]
        self._lost([pair for a in side for b in rest for pair in ((a, b), (b, a))], seconds)

    def _lost(self, ways: list[tuple[int, int]], seconds: float) -> None:
        for sender, receiver in ways:
            self._arena.links.lose(sender, receiver)
        time.sleep(seconds)
        for sender, receiver in ways:
            self._arena.links.find(sender, receiver)

    def _slow(self, node: LocalNode, seconds: float) -> None:
        number = self._arena.number(node)
        self._arena.links.slow(number)
        time.sleep(seconds)
        self._arena.links.hasten(number)

    def _snap(self, node: LocalNode, seconds: float) -> None:
        assert isinstance(self._arena.links, Proxies)
        self._arena.links.snap(self._arena.number(node))

    # -- heavy faults ------------------------------------------------------------------------

    def _wipe(self, node: LocalNode, seconds: float) -> None:
        self._arena.end(node)
        time.sleep(seconds)
        self._refill(node)

    def _refill(self, node: LocalNode) -> None:
        """An operator puts an empty disk in, and the node in its old place."""
        self._arena.end(node)
        self._arena.wipe(node)
        deadline = time.monotonic() + HEAL_SECONDS
        while True:  # whom it asks may be down just now
            by = self._rng.choice([n for n in self._arena.nodes[:FOUNDERS] if n is not node])
            self._arena.replace(node, by)
            if self._arena.wait_ready(node, deadline - time.monotonic()):
                return
            if time.monotonic() > deadline:
                raise Trouble(f"{node.name} cannot be replaced ({node.state}):\n{node.log_tail()}")

    def _rot(self, node: LocalNode, seconds: float) -> None:
        self._rotten(node, "*.log", seconds)

    def _rot_table(self, node: LocalNode, seconds: float) -> None:
        self._rotten(node, "*.sst", seconds)

    def _rotten(self, node: LocalNode, pattern: str, seconds: float) -> None:
        """Flip bytes of a stopped node's files; whatever it makes of that, its disk is replaced."""
        self._arena.end(node)
        files = [file for file in (node.directory / "db").glob(pattern) if file.stat().st_size]
        if files:
            file = max(files, key=lambda each: each.stat().st_size)
            for _ in range(self._rng.randrange(1, 4)):
                flip(file, self._rng.randrange(file.stat().st_size), self._rng.randrange(8))
        self._arena.start(node)
        serves = self._arena.wait_ready(node, HEAL_SECONDS)
        if serves:
            time.sleep(2 * seconds)
        elif node.process is None or node.process.poll() is None:
            raise Trouble(f"{node.name} with a bad byte in {pattern} neither serves nor ends")
        self._say(f"{node.name} with bad bytes in {pattern} {'serves' if serves else 'refuses'}")
        self._refill(node)

    def _full(self, node: LocalNode, seconds: float) -> None:
        """Below its reserve it refuses writes, and takes them again when there is room."""
        self._arena.fill_disk(RESERVE_BYTES // 2)
        time.sleep(2 * seconds)
        self._arena.empty_disk()
        self._wait_ready(node)

    def _brim(self, node: LocalNode, seconds: float) -> None:
        """Not a byte is left: the node ends, and its disk counts as lost."""
        self._arena.fill_disk(0)
        deadline = time.monotonic() + HEAL_SECONDS
        assert node.process is not None
        while node.process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._arena.empty_disk()
        if node.process.poll() is None:
            return  # nobody wrote to it: it lived on what it had
        if node.process.returncode != LOST_DISK:
            raise Trouble(f"{node.name} {node.state} on a full disk:\n{node.log_tail()}")
        self._refill(node)

    def _join(self, node: LocalNode, seconds: float) -> None:
        """A node joins, serves, and leaves; ``node`` is only kept from the other hand."""
        with self._lock:
            new = self._arena.add()
            self._busy.add(new)
        try:
            self._wait_ready(new)
            time.sleep(2 * seconds)
            asyncio.run(self._leave(new.name))
            deadline = time.monotonic() + WHOLE_SECONDS
            while any(self._knows(other, new.name) for other in self._arena.nodes[:FOUNDERS]):
                if time.monotonic() > deadline:
                    raise Trouble(f"{new.name} has not left after {WHOLE_SECONDS:g} s")
                time.sleep(POLL_SECONDS)
        finally:
            with self._lock:
                self._arena.remove(new)
                self._busy.discard(new)

    async def _leave(self, name: str) -> None:
        """Asked until it is taken; to repeat it is no harm."""
        deadline = time.monotonic() + HEAL_SECONDS
        while True:
            try:
                await send_change(self._arena.cluster.url, Leave(name), 5.0)
                return
            except KVError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_SECONDS)

    @staticmethod
    def _knows(node: LocalNode, name: str) -> bool:
        """Whether a node that answers has another in its topology."""
        document = fetch(node, "/v1/cluster/topology")
        return document is not None and any(n["name"] == name for n in document["nodes"])


def flip(file: Path, at: int, bit: int) -> None:
    """One bit of a file."""
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1 << bit]))
