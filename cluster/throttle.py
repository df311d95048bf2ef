"""How fast copies of slots may leave a node, and how many slots it moves at once.

`Throttle` is a token bucket. Tokens are bytes. They come in at the rate, up to what `BURST_MS`
bring, and a message may be sent while there are any; it may take the bucket into debt, which the
next one waits for. So the rate holds over time whatever the size of a message, and one that is
larger than the bucket is not stuck.

`Room` follows how busy the node is, and that is told by the lateness of its own timers and by what
took it longest of all that its peers said: users' requests wait as long behind the moves, so these
give way (additive increase, multiplicative decrease: Chiu and Jain, 1989), and pause between one
wave and the next while it is late. Timers alone do not tell: they come twenty times a second, and a
turn of 15 ms now and then is seldom there just when one is due. Small slots cost few bytes, but
each costs some work all over the cluster. It never falls below a number
that still goes together well: what one slot costs alone, in frames and fsyncs, a few of them cost
together, so that to move fewer at once would not be gentler, only longer.
"""

from __future__ import annotations

BURST_MS = 100
"""Unused time is kept for no longer than this, so that a pause is not followed by a flood."""

LATE_MS = 4
"""Who waits longer than this waits behind too much work: a read takes less."""

PLACES_MIN = 16
"""So many slots take a step together in a few milliseconds."""

PLACES_PER_TICK = 2
"""By how much the room grows while the node is in time, forty in a second; it is halved when it is
late."""

PAUSE_FACTOR = 3
"""A node that is late lets no slot set out for so many times as long as its last wave took: what
moves cost, all nodes together pay for, and users wait behind it."""

PAUSE_MS_MAX = 1_000

UNIT_MS_MAX = 100
"""A step that takes longer waited for somebody out of reach, and tells nothing of others."""

LEARN_SHARE = 0.1
"""Of what a wave took in what is known of all of them."""


class Room:
    """Places for moves at once, up to ``most``.

    >>> room = Room(128)
    >>> for late_ms in (*(0.1,) * 20, 9.0):
    ...     room.felt_late(late_ms)
    >>> room.places
    28
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.places = PLACES_MIN
        self._wave_ms: int | None = None
        """When the newest wave of moves began, until there is room for the next."""
        self._units = self._waited_ms = self._at_ms = self._paused_until_ms = 0
        self.unit_ms: float | None = None
        """What a step of a move takes, rests included and waiting for bytes not; see `set_out`."""

    def begin_wave(self, now_ms: int) -> bool:
        """Whether more moves may set out, where half of the places are free again.

        Not at once if the node was late in the last second or so. To wait for the throttle is a
        rest too.
        """
        if self._wave_ms is not None:
            took_ms = max(now_ms - self._wave_ms - self._waited_ms, 0)
            is_late = self.places < self._most // 2
            rest_ms = min(PAUSE_FACTOR * took_ms, PAUSE_MS_MAX) if is_late else 0
            self._paused_until_ms = now_ms + max(rest_ms - self._waited_ms, 0)
            self._learn(took_ms + rest_ms)
            self._wave_ms = None
        if now_ms < self._paused_until_ms:
            return False
        self._wave_ms, self._waited_ms, self._units = now_ms, 0, 0
        return True

    def _learn(self, wave_ms: int) -> None:
        if self._units:
            seen = min(wave_ms / self._units, UNIT_MS_MAX)
            before = seen if self.unit_ms is None else self.unit_ms
            self.unit_ms = before + (seen - before) * LEARN_SHARE

    def set_out(self, copies: int) -> None:
        """A slot sets out in this wave, to be copied so often.

        It counts for one more: the changes of its config take about what a small copy takes.
        """
        self._units += 1 + copies

    def pass_time(self, now_ms: int, *, throttled: bool, moving: bool) -> None:
        """What happened since the last call: copies waited for the rate, or nothing moved."""
        if throttled and self._at_ms:
            self._waited_ms += now_ms - self._at_ms
        if not moving:
            self._wave_ms = None
        self._at_ms = now_ms

    def felt_late(self, late_ms: float) -> None:
        """Somebody waited so long: a timer, or whoever came behind a message of a peer."""
        if late_ms > LATE_MS:
            self.places = max(PLACES_MIN, self.places // 2)
        else:
            self.places = min(self.places + PLACES_PER_TICK, self._most)


class Throttle:
    """Bytes per second, fed with monotonic milliseconds.

    >>> throttle = Throttle(1_000_000)
    >>> throttle.has_room(0)
    True
    >>> throttle.spend(600_000)
    >>> throttle.has_room(400), throttle.has_room(501)
    (False, True)
    """

    def __init__(self, bytes_per_s: int | None) -> None:
        assert bytes_per_s is None or bytes_per_s > 0
        self.bytes_per_s = bytes_per_s
        self.spent_total = 0
        """Bytes since the beginning, counted without a rate too."""
        self._tokens = self._burst()
        self._at_ms = 0

    def set_rate(self, bytes_per_s: int | None) -> None:
        """From now on; None for no limit. What is owed stays owed."""
        assert bytes_per_s is None or bytes_per_s > 0
        self.bytes_per_s = bytes_per_s
        self._tokens = min(self._tokens, self._burst())

    def has_room(self, now_ms: int) -> bool:
        """Whether something may be sent now."""
        if self.bytes_per_s is None:
            return True
        elapsed_ms, self._at_ms = now_ms - self._at_ms, now_ms
        self._tokens = min(self._burst(), self._tokens + self.bytes_per_s * elapsed_ms / 1_000)
        return self._tokens > 0

    def spend(self, size: int) -> None:
        """So many bytes were sent."""
        self.spent_total += size
        if self.bytes_per_s is not None:
            self._tokens -= size

    def _burst(self) -> float:
        return (self.bytes_per_s or 0) * BURST_MS / 1_000
