"""Is a history linearizable? Wing and Gong's search with Lowe's memory, one object at a time.

A history is what clients were told: for each operation when it was begun, when its answer came, and
what the answer was. It is linearizable (Herlihy and Wing, 1990) if each operation can be given one
moment between its two ends so that a plain dictionary, obeying them in that order, gives the same
answers. Operations on different keys do not concern each other (locality), so the keys are checked
apart, unless an atomic batch ties some of them together.

An operation without an answer may take effect at any moment after it was begun, or never. One that
was *refused* ("nothing was written") never does, so it is no part of the search: if it took effect,
no order explains what others saw. Exactly-once and durability need no checkers of their own: a lost
or doubled increment, and an acknowledged write that the last reads do not find, have no order.

Expiry is the one thing here that depends on clocks. A record with a time to live may be gone from
the moment that the fastest clock says so, and must be gone when the slowest does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NEVER = float("inf")
STEPS_MAX = 300_000
"""Above it a history counts as undecided: the search is exponential in the worst case."""


class Undecided(Exception):
    """The search grew too large."""


class Held(NamedTuple):
    """What a key holds: its value, the version if a result named it, and when it may expire."""

    value: Any
    version: str | None
    expires: float = NEVER
    latest: float = NEVER


class Condition(NamedTuple):
    """What a write asks for: ``absent``, or a version."""

    absent: bool = False
    version: str | None = None


class Put(NamedTuple):
    """Replace (answer: the version)."""

    value: Any
    condition: Condition | None = None
    ttl: float | None = None


class Delete(NamedTuple):
    """Remove (answer: whether it was there)."""

    condition: Condition | None = None


class Incr(NamedTuple):
    """Add (answer: the sum)."""

    by: int


class Touch(NamedTuple):
    """Set the expiry of what is there (answer: whether anything is)."""

    ttl: float | None


class Get(NamedTuple):
    """Read (answer: None, or (value, version), or (value, None) without a word of the version)."""


class Batch(NamedTuple):
    """Several writes at once (answer: the version of all)."""

    writes: tuple[tuple[str, Put | Delete], ...]


Action = Put | Delete | Incr | Touch | Get | Batch


class Conflicted(NamedTuple):
    """The answer to a condition that is not met: the version that stands, None if none does."""

    current: str | None


class Mistyped(NamedTuple):
    """The answer to an increment of something that is no integer."""


@dataclass(slots=True)
class Event:
    """One operation as its client saw it; times are in seconds, orders are unique numbers."""

    client: str
    key: str
    """Of a batch: the first of its keys."""
    action: Action
    began: int
    began_at: float
    ended: int | None = None
    ended_at: float = NEVER
    answer: Any = None
    refused: bool = False
    label: str = field(default="", compare=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that it is about."""
        if isinstance(self.action, Batch):
            return tuple(key for key, _ in self.action.writes)
        return (self.key,)

    def __str__(self) -> str:
        end = "?" if self.ended is None else f"{self.ended_at:.6f}"
        answer = "open" if self.ended is None else repr(self.answer)
        return f"{self.began_at:.6f}-{end} {self.client} {self.key} {self.action} -> {answer}"


State = tuple[Held | None, ...]


class Checker:
    """Checks histories.

    Args:
        skew: How far clocks may be apart, in seconds, with what a clock's tick adds.
    """

    def __init__(self, skew: float = 0.0) -> None:
        self.skew = skew

    def faults(self, events: Sequence[Event]) -> list[list[Event]]:
        """The groups of operations that have no explanation.

        Raises:
            Undecided: a group is too large to tell.
        """
        return [group for group in groups_of(events) if not self.is_linearizable(group)]

    def is_linearizable(self, events: Sequence[Event]) -> bool:
        """Whether one object's operations have an order."""
        ops = sorted((e for e in events if not e.refused), key=lambda e: e.began)
        keys = sorted({key for op in ops for key in op.keys})
        index = {key: at for at, key in enumerate(keys)}
        must = sum(1 << i for i, op in enumerate(ops) if op.ended is not None)
        ends = [NEVER if op.ended is None else float(op.ended) for op in ops]
        by_end = sorted(range(len(ops)), key=lambda i: ends[i])
        begin: State = (None,) * len(keys)
        reached: dict[tuple[int, State], list[int]] = {}
        steps_count = 0
        stack: list[tuple[int, State]] = [(0, begin)]
        while stack:
            taken, state = stack.pop()
            if taken & must == must:
                return True
            limit = next(ends[i] for i in by_end if not taken >> i & 1)
            steps = []
            for i, op in enumerate(ops):
                if op.began > limit:
                    break
                if taken >> i & 1:
                    continue
                for after in self._after(op, state, index):
                    then = taken | 1 << i
                    if not _is_dominated(reached, then & must, then & ~must, after):
                        steps.append((ends[i], (then, after)))
            steps_count += len(steps)
            if steps_count > STEPS_MAX:
                raise Undecided(f"{len(ops)} operations on {', '.join(keys)}")
            steps.sort(key=lambda pair: pair[0], reverse=True)  # what ended first is tried first
            stack += [step for _, step in steps]
        return False

    def _after(self, op: Event, state: State, index: dict[str, int]) -> Iterator[State]:
        """Every state that the operation may leave, if its answer can be so."""
        if isinstance(op.action, Batch):
            yield from self._after_batch(op, op.action, state, index)
            return
        at = index[op.key]
        for held in self._live(op, state[at]):
            for after in step(op, op.action, held):
                yield (*state[:at], after, *state[at + 1 :])

    def _after_batch(
        self, op: Event, batch: Batch, state: State, index: dict[str, int]
    ) -> Iterator[State]:
        if isinstance(op.answer, Conflicted | Mistyped):
            return
        rows = list(state)
        for key, write in batch.writes:
            if isinstance(write, Delete):
                rows[index[key]] = None
            else:
                rows[index[key]] = _put(op, write)
        yield tuple(rows)

    def _live(self, op: Event, held: Held | None) -> list[Held | None]:
        """What the key may hold when the operation is carried out, for all that is known."""
        if held is None or held.expires == NEVER:
            return [held]
        if op.began_at > held.latest + self.skew:
            return [None]
        if op.ended_at < held.expires - self.skew:
            return [held]
        return [held, None]


def _is_dominated(
    reached: dict[tuple[int, State], list[int]], settled: int, opened: int, state: State
) -> bool:
    """Whether the same was reached with fewer open operations used up, which can do all that this
    can; if not, it is noted. This is what keeps histories with many open operations in reach.
    """
    others = reached.setdefault((settled, state), [])
    if any(other & opened == other for other in others):
        return True
    others[:] = [other for other in others if other & opened != opened]
    others.append(opened)
    return False


def step(op: Event, action: Action, held: Held | None) -> Iterator[Held | None]:
    """What a single key holds after the operation, for each way in which its answer can be so."""
    match action:
        case Get():
            if op.ended is None or read_agrees(op.answer, held):
                yield held
        case Incr(by):
            yield from _after_incr(op, by, held)
        case Put(_, condition, _) | Delete(condition):
            for meets in verdicts(condition, held):
                if not meets:
                    yield from _after_conflict(op, held)
                elif isinstance(action, Put):
                    if not isinstance(op.answer, Conflicted):
                        yield _put(op, action)
                elif op.ended is None or op.answer is (held is not None):
                    yield None
        case Touch(ttl):
            yield from _after_touch(op, ttl, held)
        case Batch():
            raise AssertionError("a batch has several keys")


def _after_conflict(op: Event, held: Held | None) -> Iterator[Held | None]:
    """The condition is not met: nothing changes, if that is what the client was told."""
    if op.ended is None or (isinstance(op.answer, Conflicted) and current_agrees(op.answer, held)):
        yield held


def _after_touch(op: Event, ttl: float | None, held: Held | None) -> Iterator[Held | None]:
    if op.ended is not None and op.answer is not (held is not None):
        return
    yield None if held is None else Held(held.value, None, *_expiry(op, ttl))


def _after_incr(op: Event, by: int, held: Held | None) -> Iterator[Held | None]:
    if held is None:
        number, expires, latest = by, NEVER, NEVER
    elif type(held.value) is int:
        number, expires, latest = held.value + by, held.expires, held.latest
    else:
        if op.ended is None or isinstance(op.answer, Mistyped):
            yield held
        return
    if op.ended is None or op.answer == number:
        yield Held(number, None, expires, latest)


def _put(op: Event, put: Put) -> Held:
    """What a put leaves; its own answer, or its batch's, names the version."""
    return Held(put.value, _version(op), *_expiry(op, put.ttl))


def _version(op: Event) -> str | None:
    return None if op.ended is None else op.answer


def _expiry(op: Event, ttl: float | None) -> tuple[float, float]:
    """Earliest and latest: the primary reads its clock at some moment between the two ends."""
    return (NEVER, NEVER) if ttl is None else (op.began_at + ttl, op.ended_at + ttl)


def read_agrees(answer: Any, held: Held | None) -> bool:
    """Whether a read may have seen this."""
    if held is None or answer is None:
        return held is None and answer is None
    value, version = answer
    same = type(value) is type(held.value) and value == held.value
    return bool(same and (version is None or held.version in (None, version)))


def verdicts(condition: Condition | None, held: Held | None) -> tuple[bool, ...]:
    """Whether the condition is met; both, where the version that stands is not known."""
    if condition is None:
        return (True,)
    if condition.absent:
        return (held is None,)
    if held is None:
        return (False,)
    if held.version is None:
        return (True, False)
    return (held.version == condition.version,)


def current_agrees(answer: Conflicted, held: Held | None) -> bool:
    """Whether a conflict names what stands."""
    if held is None:
        return answer.current is None
    return answer.current is not None and held.version in (None, answer.current)


def groups_of(events: Sequence[Event]) -> list[list[Event]]:
    """The operations by what they are about: a key, or keys that batches tie together."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        leader.setdefault(key, key)
        while leader[key] != key:
            leader[key] = key = leader[leader[key]]
        return key

    for event in events:
        first, *others = event.keys
        root = find(first)
        for key in others:
            leader[find(key)] = root
    groups: dict[str, list[Event]] = {}
    for event in events:
        groups.setdefault(find(event.key), []).append(event)
    return list(groups.values())
