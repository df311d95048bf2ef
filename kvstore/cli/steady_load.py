"""A small steady load that notices what a fault does to a client: pauses, and lost writes.

One thread writes rising numbers to a few keys and reads them back. A write that was acknowledged
and is older than what a later read returns is *lost*; there must never be one.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from kvstore.client import connect
from kvstore.errors import KVError, OutcomeUnknown

if TYPE_CHECKING:
    from kvstore.client import Client

KEYS: Final = [f"up:load:{n}" for n in range(64)]
PAUSE_S: Final = 0.002
TTL_S: Final = 3_600
READ_EVERY: Final = 8
WINDOW_S: Final = 2.0


class SteadyLoad:
    """Runs from `start` to `stop`; its figures may be read at any time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steady load", daemon=True)
        self._acknowledged: dict[str, int] = {}
        self._times: list[float] = []
        self.writes = 0
        self.lost = 0
        self.failed = 0
        self.unknown = 0
        self._pause_longest_s = 0.0
        self._last_success: float | None = None
        self.last_error = ""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End and wait for it."""
        self._stopping.set()
        self._thread.join()

    def begin_fault(self) -> None:
        """A new fault begins: what was wrong before is of no interest any more."""
        self._pause_longest_s, self.last_error = 0.0, ""

    def pause_longest_s(self) -> float:
        """The longest time without a successful write since `begin_fault`, the present included."""
        last = self._last_success
        present = time.monotonic() - last if last is not None else 0.0
        return max(self._pause_longest_s, present)

    @property
    def rate(self) -> float:
        """Writes a second, lately."""
        now = time.monotonic()
        return sum(at > now - WINDOW_S for at in list(self._times)) / WINDOW_S

    def _run(self) -> None:
        with connect(self._url) as client:
            number = 0
            while not self._stopping.is_set():
                number += 1
                key = KEYS[number % len(KEYS)]
                try:
                    client.put(key, number, ttl=TTL_S)
                    self._acknowledged[key] = number
                    self.writes += 1
                    now = time.monotonic()
                    pause_s = now - (self._last_success or now)
                    self._pause_longest_s = max(self._pause_longest_s, pause_s)
                    self._last_success = now
                    self._times = [*self._times[-2_000:], now]
                    if number % READ_EVERY == 0:
                        self._check(client, KEYS[(number * 7) % len(KEYS)])
                except OutcomeUnknown as error:
                    self.unknown += 1
                    self.last_error = str(error)
                except KVError as error:
                    self.failed += 1
                    self.last_error = str(error)
                self._stopping.wait(PAUSE_S)

    def _check(self, client: Client, key: str) -> None:
        expected = self._acknowledged.get(key, 0)
        if client.get(key, 0) < expected:
            self.lost += 1
