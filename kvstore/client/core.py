"""The client without its sockets: whom to ask, under which id, and what an answer settles.

`ClientCore.execute` carries any number of operations to their outcomes. Operations that go to one
node travel as a *run*, one request with consecutive numbers, and stay one when they must be sent
again, so that their ids stay theirs. Runs of all nodes are under way together.

Rule 5, the client's side. A write has one id and one ``seen`` for all its attempts. What never
left may be sent again as if for the first time; everything else is sent again as a retry. An
attempt without an answer makes the write *ambiguous*: from then on a refusal settles nothing,
only a result does, and without one the outcome is `Unsettled`. An answer that comes after its
attempt was given up is dropped by the transport, so a conflict taken here is always that of the
newest attempt.

State is shared by all flows of a client. Every update is one assignment of something at least as
good, so threads need a lock only where numbers are drawn.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

from cluster.operations import (
    Code,
    Deleted,
    Done,
    Failed,
    Get,
    Number,
    Operation,
    Result,
    Scan,
    Stale,
)
from kvstore.client.exchange import (
    Broken,
    Exchange,
    Failure,
    Flow,
    NotSent,
    Pause,
    Reply,
    Send,
    TimedOut,
)
from kvstore.client.operation_id import OperationId
from kvstore.client.retry import RetryBudget, attempt_seconds, backoff_seconds, node_ms
from kvstore.client.routing import NOBODY, RoutingTable
from kvstore.client.runs import Run, chunks, grouped
from kvstore.errors import AuthError, Unavailable
from kvstore.wire.protocol import Request, Response, Routes

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.client.retry import Chance

UNKNOWN_ANSWERS_MAX: Final = 4
"""Retries that a node may answer "unknown" before the caller is told: its key log was cut."""

_FETCH_SECONDS: Final = 1.0
_FETCH_WAIT_SECONDS: Final = 0.002
_VERSIONED: Final = frozenset((Done, Deleted, Number))
_OPEN: Final = frozenset((Failed, Stale))
_TRY_AGAIN: Final = frozenset((Code.UNAVAILABLE, Code.OVERLOADED, Code.DEADLINE, Code.UNKNOWN))


class Unsettled(NamedTuple):
    """A write that may have happened, or may yet happen."""

    operation_id: str
    detail: str


Outcome = Result | Unsettled


class ClientCore:
    """What all flows of one client share.

    Args:
        seeds: Addresses to learn the cluster from.
        token_aware: False if one door serves all keys.
        now: A monotonic clock in seconds; deadlines are on it.
        chance: For jitter.
    """

    def __init__(
        self,
        seeds: list[str],
        *,
        token_aware: bool = True,
        now: Callable[[], float] = time.monotonic,
        chance: Chance | None = None,
    ) -> None:
        self.now: Callable[[], float] = now
        self.table: RoutingTable = RoutingTable(seeds)
        self.token_aware: bool = token_aware
        self.chance: Chance = chance or random.Random()
        self._budget = RetryBudget(now())
        self._frame_ids = count(1)
        self._fetching_since = float("-inf")
        self.renew_identity()

    def renew_identity(self) -> None:
        """Draw a new client id; a forked child must not number on under its parent's (rule 5)."""
        self.client_id: int = secrets.randbits(64)
        self._next_number = 1
        self._number_lock = threading.Lock()
        self._fetching_since = float("-inf")

    def ready(self, deadline: float) -> Flow[None]:
        """Fetch the routing table unless there is one; other flows wait for the one that does.

        Raises:
            Unavailable: no node gave one before the deadline.
        """
        table, attempt = self.table, 0
        told: list[NotSent] = []
        while not table.known:
            now = self.now()
            if now - self._fetching_since < _FETCH_SECONDS and now < deadline:
                yield Pause(_FETCH_WAIT_SECONDS)
                continue
            self._fetching_since = now
            try:
                failures = yield from self._fetch(attempt, deadline)
            finally:
                self._fetching_since = float("-inf")
            if table.known:
                return
            attempt += 1
            over = self.now() >= deadline
            told = told if over and told else failures  # a round that was cut short knows less
            if over or all(failure.permanent for failure in failures):
                reasons = "; ".join(failure.detail for failure in told) or "time was over"
                message = f"no node of {', '.join(table.seeds)} can be used: {reasons}"
                if any("(auth)" in failure.detail for failure in told if failure.permanent):
                    raise AuthError(message)
                raise Unavailable(f"{message}. Check the address and that the cluster runs")
            yield Pause(min(backoff_seconds(attempt + 2, self.chance), deadline - self.now()))

    def _fetch(self, attempt: int, deadline: float) -> Flow[list[NotSent]]:
        failures: list[NotSent] = []
        for address in self.table.by_promise(self.now()):
            limit = min(deadline, self.now() + attempt_seconds(attempt, 0, 0))
            send = self.table.query(address, next(self._frame_ids))
            reply = (yield Exchange([send], limit))[0]
            if isinstance(reply, Routes):
                self.table.load(reply, self.now(), address)
                if self.table.known:
                    return []
                failures.append(NotSent(f"{address} has no slots yet"))
            elif isinstance(reply, NotSent):
                failures.append(reply)
            else:
                failures.append(NotSent(getattr(reply, "detail", f"{address} gave no table")))
        return failures

    def execute(
        self,
        ops: list[Operation],
        slots: list[int],
        deadline: float,
        *,
        size_bytes: int = 0,
        identity: OperationId | None = None,
    ) -> Flow[list[Outcome]]:
        """Carry out operations, each to its outcome, in order; call after `ready`.

        Args:
            ops: Reads, or writes; a mixed list is treated as writes.
            slots: The slot of each.
            deadline: When to stop trying.
            size_bytes: Roughly what the operations' keys and values take.
            identity: The id of a write whose outcome was unknown, to settle it.

        Returns:
            Results. What could not be settled is `Unsettled`, what was not done is `Failed`.
        """
        outcomes: list[Outcome] = [NOT_TRIED] * len(ops)
        reading = type(ops[0]) is Get or type(ops[0]) is Scan if ops else True
        runs = self._first_runs(ops, slots, size_bytes, reading=reading, identity=identity)
        while runs:
            now = self.now()
            if now >= deadline:
                break
            due = [run for run in runs if run.due <= now]
            if not due:
                yield Pause(min(min(run.due for run in runs), deadline) - now)
                continue
            left = [run for run in runs if run.due > now]
            sends = [self._request(run, now, deadline) for run in due]
            limit = self._attempt_limit(due, size_bytes, now, deadline)
            fetch = self.table.wants_refresh(now) and now - self._fetching_since > _FETCH_SECONDS
            if fetch:
                self._fetching_since = now
                sends.append(self.table.query(sends[0].address, next(self._frame_ids)))
            replies = yield Exchange(sends, limit)
            now = self.now()
            if fetch and isinstance(routes := replies[-1], Routes):
                self._fetching_since = float("-inf")
                self.table.load(routes, now, sends[-1].address)
            for run, send, reply in zip(due, sends, replies, strict=False):
                left += self._settle(run, send.address, reply, outcomes, reading=reading)
            runs = left
        for run in runs:
            self._give_up(run, outcomes, reading=reading)
        return outcomes

    def _first_runs(
        self,
        ops: list[Operation],
        slots: list[int],
        size_bytes: int,
        *,
        reading: bool,
        identity: OperationId | None,
    ) -> list[Run]:
        """One run a node; more where a request would be too large."""
        positions, primaries = self.table.positions, self.table.primaries
        if identity is not None:
            (slot,) = slots
            client, number, seen = identity
            run = Run(client, number, [0], ops, slots, [seen], primaries[slot])
            run.retry = run.ambiguous = True
            return [run]
        groups = grouped(slots, primaries if self.token_aware else None)
        number = self._draw(len(ops))
        runs = []
        for primary, group in groups.items():
            for indices in chunks(group, ops, size_bytes):
                where = [slots[index] for index in indices]
                seen_list = [] if reading else [positions[slot] for slot in where]
                picked = [ops[index] for index in indices]
                runs.append(Run(self.client_id, number, indices, picked, where, seen_list, primary))
                number += len(indices)
        return runs

    def _request(self, run: Run, now: float, deadline: float) -> Send:
        primary = self.table.primaries[run.slots[0]] if run.attempts else run.primary
        not_again = run.asked if run.attempts else NOBODY
        address = self.table.resolve(primary, now, not_again=not_again)
        left_ms = node_ms(deadline - now)
        frame_id = next(self._frame_ids)
        request = Request(
            frame_id, run.client, run.number, run.retry, left_ms, 0, run.ops, run.seen
        )
        return Send(address, request)

    def _attempt_limit(self, due: list[Run], size_bytes: int, now: float, deadline: float) -> float:
        """When to ask another node: never without one, and never on credit that is used up."""
        if len(self.table.addresses) < 2 or not self.token_aware or self._budget.credits < 1.0:
            return deadline
        attempt = max(run.attempts for run in due)
        operations = sum(len(run.ops) for run in due)
        return min(deadline, now + attempt_seconds(attempt, operations, size_bytes))

    def _settle(
        self, run: Run, address: str, reply: Reply, outcomes: list[Outcome], *, reading: bool
    ) -> list[Run]:
        """Take over what a reply settles; returns what must be sent again."""
        if isinstance(reply, Response):
            self.table.answered(address)
            self.table.lead(reply.leads)
            if address != run.primary and self.token_aware and not reading:
                self.table.served(address, run.slots, reply.results, reply.leads)
            if len(reply.results) == len(run.ops):
                return self._take(run, address, reply.results, outcomes, reading=reading)
            reply = Broken(f"{address} answered {len(reply.results)} of {len(run.ops)} operations")
        elif isinstance(reply, Routes):
            reply = Broken(f"{address} answered another question")
        self._note_failure(run, address, reply)
        return [run]

    def _note_failure(self, run: Run, address: str, reply: Failure) -> None:
        now = self.now()
        silent = isinstance(reply, TimedOut) or (isinstance(reply, NotSent) and reply.permanent)
        self.table.failed(address, now, silent=silent)
        if isinstance(reply, TimedOut):
            self._budget.spend(now)
        if not isinstance(reply, NotSent):  # R5: it may have arrived
            run.retry = run.ambiguous = True
        run.asked, run.why = address, reply.detail
        run.due = now if run.attempts == 0 else now + backoff_seconds(run.attempts, self.chance)
        run.attempts += 1

    def _take(
        self,
        run: Run,
        address: str,
        results: list[Result],
        outcomes: list[Outcome],
        *,
        reading: bool,
    ) -> list[Run]:
        if not reading:
            self._learn(run.slots, results)
        if _OPEN.isdisjoint(map(type, results)):
            self._budget.earn(len(results))
            for index, result in zip(run.indices, results, strict=True):
                outcomes[index] = result
            return []
        again: dict[int, Failed] = {}
        anew: dict[int, bytes] = {}
        for offset, (index, result) in enumerate(zip(run.indices, results, strict=True)):
            if type(result) is Stale and not run.retry:
                anew[offset] = result.position
            elif type(result) is Failed and self._try_again(run, result):
                again[offset] = result
            elif type(result) is Failed and not reading and run.ambiguous and _refuses(result):
                outcomes[index] = self._unsettled(run, offset, result.detail)  # R5
            else:
                outcomes[index] = result
        parts = self._parts(run, address, again)
        if anew:  # R5: nothing was done under the old ids
            parts.append(run.anew(self.client_id, self._draw(len(anew)), anew))
            parts[-1].due = self.now() + backoff_seconds(run.attempts, self.chance)
        return parts

    def _draw(self, count: int) -> int:
        """The first of so many operation numbers that were never used."""
        with self._number_lock:
            number = self._next_number
            self._next_number += count
        return number

    def _try_again(self, run: Run, result: Failed) -> bool:
        if result.code not in _TRY_AGAIN:
            return False
        if result.code is Code.OVERLOADED:
            return self._budget.spend(self.now())
        return result.code is not Code.UNKNOWN or run.unknowns < UNKNOWN_ANSWERS_MAX

    def _parts(self, run: Run, address: str, again: dict[int, Failed]) -> list[Run]:
        """What is left of a run, cut where numbers or states part."""
        parts: list[Run] = []
        offsets = sorted(again)
        start = 0
        now = self.now()
        for at in range(1, len(offsets) + 1):
            if (
                at < len(offsets)
                and offsets[at] == offsets[at - 1] + 1
                and again[offsets[at]].code is again[offsets[start]].code
            ):
                continue
            first, last = offsets[start], offsets[at - 1]
            failed = again[first]
            refusals = {offset - first: again[offset] for offset in offsets[start:at]}
            part = run.part(first, last + 1, refusals)
            if failed.code is not Code.OVERLOADED:  # which refuses at the door: it was no attempt
                part.retry = True  # R5: a repeated attempt says so
            part.attempts += 1
            part.asked = NOBODY if failed.code is Code.OVERLOADED else address
            part.why = failed.detail
            if failed.code is Code.UNKNOWN:
                part.ambiguous = True
                part.unknowns += 1
            wait = backoff_seconds(part.attempts, self.chance)
            part.due = now + max(wait, failed.retry_after_ms / 1_000)
            parts.append(part)
            start = at
        return parts

    def _learn(self, slots: list[int], results: list[Result]) -> None:
        """A write's version is a committed position of its slot, told by its primary (rule 5)."""
        positions = self.table.positions
        for slot, result in zip(slots, results, strict=True):
            if type(result) in _VERSIONED:
                version = result.version  # type: ignore[union-attr]
                if version > positions[slot]:
                    positions[slot] = version

    def _give_up(self, run: Run, outcomes: list[Outcome], *, reading: bool) -> None:
        for offset, index in enumerate(run.indices):
            if run.ambiguous and not reading:
                outcomes[index] = self._unsettled(run, offset, run.why)
            elif (refusal := run.refusals.get(offset)) and refusal.code is not Code.UNKNOWN:
                outcomes[index] = refusal
            elif run.why and not run.ambiguous:
                outcomes[index] = Failed(Code.UNAVAILABLE, run.why)
            else:
                outcomes[index] = Failed(Code.DEADLINE, run.why or "time was over")

    def _unsettled(self, run: Run, offset: int, detail: str) -> Unsettled:
        seen = run.seen[offset] if run.seen else b""
        return Unsettled(OperationId(run.client, run.number + offset, seen).to_text(), detail)


NOT_TRIED: Final = Failed(Code.DEADLINE, "time was over before anything was sent")


def _refuses(failed: Failed) -> bool:
    """Does this leave open what an earlier attempt did? A judged operand type does not (rule 3)."""
    return failed.code is not Code.WRONG_TYPE
