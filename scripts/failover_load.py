"""Writers that notice every pause, and what they saw.

One key in each slot, written over and over by clients with default settings: tasks of an asyncio
client put single keys, threads with blocking clients put many at a time. Both walk all slots. A
value is the number of the round in which it was written, so that afterwards each key must hold the
newest number that was acknowledged, or one that was never answered.

Three figures, so that nothing hides. *Gap*: the longest time in which no write of the whole load
was acknowledged. *Longest write*: the longest that any single caller waited, from call to return;
it is what an application feels of a slot that nobody serves. *Slot gap*: the longest time between
two acknowledged writes of one and the same slot; it contains the time that the load takes to come
round to that slot again, so it is given beside the same figure of a quiet time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

import kvstore
from cluster.limits import SLOT_COUNT_DEFAULT
from cluster.slots import slot_of
from kvstore.errors import KVError, PartialFailure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvstore.client import AsyncClient

TASKS: Final = 8
THREADS: Final = 2
BATCH_KEYS: Final = 64
VALUE_PADDING: Final = "x" * 88


@dataclass(frozen=True)
class Call:
    """One acknowledged call: seconds on the monotonic clock, and the slots that it wrote."""

    begin: float
    end: float
    slots: Sequence[int]


@dataclass(frozen=True)
class Seen:
    """What the load saw in a window of time."""

    writes: int
    gap_ms: float
    longest_ms: float
    slot_gap_ms: float
    errors: int


def one_key_per_slot(slot_count: int, prefix: str) -> list[str]:
    """A key of each slot, in the order of the slots."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < slot_count:
        key = f"{prefix}{number}"
        found.setdefault(slot_of(key.encode(), slot_count), key)
        number += 1
    return [found[slot] for slot in range(slot_count)]


class Load:
    """The writers; they run from `start` to `stop`."""

    def __init__(self, url: str, slot_count: int = SLOT_COUNT_DEFAULT) -> None:
        self._url = url
        self._slot_count = slot_count
        self._single = one_key_per_slot(slot_count, "one:")
        self._many = one_key_per_slot(slot_count, "many:")
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.calls: list[Call] = []
        self.errors: list[tuple[float, str]] = []
        self.acknowledged: dict[str, int] = {}
        self.attempted: dict[str, int] = {}

    def start(self) -> None:
        """Begin to write; returns after the first round of each writer has begun."""
        self._threads = [threading.Thread(target=asyncio.run, args=(self._singles(),))]
        self._threads += [threading.Thread(target=self._batches, args=(n,)) for n in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is under way."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    async def _singles(self) -> None:
        async with kvstore.connect_async(self._url) as client:
            await asyncio.gather(*(self._put_singles(client, n) for n in range(TASKS)))

    async def _put_singles(self, client: AsyncClient, mine: int) -> None:
        slots = list(range(mine, self._slot_count, TASKS))
        Random(mine).shuffle(slots)
        number = 0
        while True:
            number += 1
            for slot in slots:
                if self._stopping.is_set():
                    return
                key = self._single[slot]
                self.attempted[key] = number
                begin = time.monotonic()
                try:
                    await client.put(key, [number, VALUE_PADDING])
                except KVError as error:
                    self.errors.append((begin, str(error)))
                    continue
                self.calls.append(Call(begin, time.monotonic(), (slot,)))
                self.acknowledged[key] = number

    def _batches(self, mine: int) -> None:
        slots = list(range(mine, self._slot_count, THREADS))
        Random(mine).shuffle(slots)
        with kvstore.connect(self._url) as client:
            number = 0
            while True:
                number += 1
                for at in range(0, len(slots), BATCH_KEYS):
                    if self._stopping.is_set():
                        return
                    some = slots[at : at + BATCH_KEYS]
                    keys = [self._many[slot] for slot in some]
                    self.attempted.update(dict.fromkeys(keys, number))
                    begin = time.monotonic()
                    try:
                        client.put_many({key: [number, VALUE_PADDING] for key in keys})
                    except PartialFailure as failure:
                        self.errors += [(begin, str(e)) for e in failure.errors.values()]
                        keys = [key for key in keys if key not in failure.errors]
                        some = [slot_of(key.encode(), self._slot_count) for key in keys]
                    except KVError as error:
                        self.errors.append((begin, str(error)))
                        continue
                    self.calls.append(Call(begin, time.monotonic(), some))
                    self.acknowledged.update(dict.fromkeys(keys, number))

    def seen(self, begin: float, end: float) -> Seen:
        """Everything that touches this window."""
        calls = sorted(
            (call for call in self.calls.copy() if call.end >= begin and call.begin <= end),
            key=lambda call: call.end,
        )
        last_any = min([begin, *(call.end for call in calls[:1])])
        gap = slot_gap = longest = 0.0
        last: dict[int, float] = {}
        for call in calls:
            gap = max(gap, call.end - last_any)
            last_any = call.end
            longest = max(longest, call.end - call.begin)
            for slot in call.slots:
                if slot in last:
                    slot_gap = max(slot_gap, call.end - last[slot])
                last[slot] = call.end
        gap = max(gap, end - last_any)
        errors = sum(begin <= at <= end for at, _ in self.errors)
        writes = sum(len(call.slots) for call in calls)
        return Seen(writes, 1_000 * gap, 1_000 * longest, 1_000 * slot_gap, errors)

    def lost(self) -> list[str]:
        """Keys that do not hold what was acknowledged last, nor anything newer that was tried."""
        with kvstore.connect(self._url, timeout=30) as client:
            wrong = []
            keys = list(self.acknowledged)
            for at in range(0, len(keys), 2_000):
                some = keys[at : at + 2_000]
                held = client.get_many(some)
                wrong += [
                    key
                    for key in some
                    if not self.acknowledged[key]
                    <= held.get(key, [0, ""])[0]
                    <= self.attempted[key]
                ]
            return wrong
