"""Operations that travel together.

A *run* is what one request carries: operations with consecutive numbers, for one node. Its id and
``seen`` never change (rule 5); what remains of it after an answer is cut into runs again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from cluster.limits import FRAME_BYTES_MAX, REQUEST_OPERATIONS_MAX
from cluster.operations import Atomic, Failed, Operation, Put, Scan
from kvstore.client.routing import NOBODY

REQUEST_BYTES_SOFT_MAX: Final = FRAME_BYTES_MAX // 2
"""Larger batches are split, so that one frame never holds up everyone behind it."""

_OPERATION_OVERHEAD_BYTES: Final = 64


@dataclass(slots=True)
class Run:
    """Operations with consecutive numbers on their way to one node.

    Attributes:
        client: With `number`, the id of the first operation; the others follow on.
        indices: Where the outcomes belong in the caller's list.
        slots: Each operation's slot.
        seen: Each operation's committed position before the first attempt; empty for reads.
        primary: Who is thought to serve them.
        retry: An earlier attempt may have arrived.
        ambiguous: An earlier attempt may have been carried out; only a result settles that.
        attempts: How many there were.
        unknowns: How many of them a node answered with "unknown".
        due: When to try next, on the flow's clock.
        asked: The node that failed last.
        why: What went wrong last, for people.
        refusals: By offset, what the last answer said.
    """

    client: int
    number: int
    indices: list[int]
    ops: list[Operation]
    slots: list[int]
    seen: list[bytes]
    primary: str
    retry: bool = False
    ambiguous: bool = False
    attempts: int = 0
    unknowns: int = 0
    due: float = 0.0
    asked: str = NOBODY
    why: str = ""
    refusals: dict[int, Failed] = field(default_factory=dict)

    def part(self, start: int, stop: int, refusals: dict[int, Failed]) -> Run:
        """The operations from `start` to `stop`, ids unchanged."""
        return Run(
            self.client,
            self.number + start,
            self.indices[start:stop],
            self.ops[start:stop],
            self.slots[start:stop],
            self.seen[start:stop],
            self.primary,
            retry=self.retry,
            ambiguous=self.ambiguous,
            attempts=self.attempts,
            unknowns=self.unknowns,
            asked=self.asked,
            why=self.why,
            refusals=refusals,
        )

    def anew(self, client: int, number: int, positions: dict[int, bytes]) -> Run:
        """Those at these offsets, as if never sent: new ids, and what is committed by now."""
        indices = [self.indices[offset] for offset in positions]
        ops = [self.ops[offset] for offset in positions]
        slots = [self.slots[offset] for offset in positions]
        fresh = Run(client, number, indices, ops, slots, list(positions.values()), self.primary)
        fresh.attempts = self.attempts + 1
        return fresh


def grouped(slots: list[int], primaries: list[str] | None) -> dict[str, list[int]]:
    """The operations (by their place) of each primary; all in one where one door serves all."""
    if primaries is None:
        return {NOBODY: list(range(len(slots)))}
    if len(slots) == 1:
        return {primaries[slots[0]]: [0]}
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, slot in enumerate(slots):
        groups[primaries[slot]].append(index)
    return groups


def chunks(group: list[int], ops: list[Operation], size_bytes: int) -> list[list[int]]:
    """A node's operations, cut where a request would become too large."""
    room = REQUEST_BYTES_SOFT_MAX
    overhead = len(group) * _OPERATION_OVERHEAD_BYTES
    if len(group) <= REQUEST_OPERATIONS_MAX and size_bytes + overhead <= room:
        return [group]
    chunks: list[list[int]] = []
    chunk: list[int] = []
    filled = 0
    for index in group:
        size = _OPERATION_OVERHEAD_BYTES + operation_bytes(ops[index])
        if chunk and (filled + size > room or len(chunk) == REQUEST_OPERATIONS_MAX):
            chunks.append(chunk)
            chunk, filled = [], 0
        chunk.append(index)
        filled += size
    chunks.append(chunk)
    return chunks


def operation_bytes(op: Operation) -> int:
    """What an operation's keys and values take."""
    match op:
        case Scan():
            return len(op.prefix) + len(op.after)
        case Atomic():
            return sum(operation_bytes(write) for write in op.writes)
        case Put():
            return len(op.key) + len(op.value)
        case _:
            return len(op.key)
