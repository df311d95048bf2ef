"""The knobs of the failure detector, with what each trades."""

from __future__ import annotations

from math import ceil, log10

import msgspec

from cluster.broadcasts import ACCUSATION_SENDS_LESS, CONFIRMATION_SENDS


class SwimSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How quickly, how patiently and at what cost members are watched.

    With these, three nodes suspect a frozen one after 0.1 to 0.3 s and declare it dead 0.5 s later.
    """

    probe_interval_ms: int = 100
    """One period: detection is quicker and costs more the shorter it is."""
    probe_timeout_ms: int = 50
    """Silence after which others are asked: above a busy peer's usual answer time."""
    relay_timeout_ms: int = 30
    """When a helper says that it has not heard either: before the asker's period ends."""
    fickle_patience_ms: int = 1_000
    """More time to answer for a member that has been accused wrongly again and again."""
    fickle_from_members: int = 50
    """... in clusters of so many: in a small one false news cost less than a late verdict."""
    indirect_probes: int = 3
    """Others that are asked: more forgive more lost messages."""
    suspicion_periods: int = 5
    """Time to answer an accusation: this many periods, times log10 of the members if over ten."""
    suspicion_stretch: int = 6
    """... and as many times longer while nobody has confirmed the accusation."""
    confirmations: int = 3
    """Independent confirmations that bring the time to answer down to its shortest."""
    sends_per_magnitude: int = 4
    """Each piece of news is sent this often for each digit of the number of members."""
    updates_per_message: int = 32
    """News in one message: of at most 25 bytes each, so that it fits the smallest IPv6 packet."""
    dead_probe_interval_ms: int = 1_000
    """How often one of the dead is probed."""
    health_score_max: int = 7
    """A node that doubts itself works up to one more than this many times more slowly."""

    def __post_init__(self) -> None:
        assert 0 < self.relay_timeout_ms < self.probe_timeout_ms < self.probe_interval_ms
        assert self.relay_timeout_ms < self.probe_interval_ms - self.probe_timeout_ms
        assert self.indirect_probes >= 0
        assert self.suspicion_periods >= 1
        assert self.suspicion_stretch >= 1
        assert self.sends_per_magnitude > max(ACCUSATION_SENDS_LESS, CONFIRMATION_SENDS)

    def sends_max(self, members: int) -> int:
        """How often a node sends one piece of news."""
        return self.sends_per_magnitude * ceil(log10(members + 1))

    def suspicion_ms(self, members: int) -> int:
        """The shortest time to answer an accusation."""
        return int(self.suspicion_periods * self.probe_interval_ms * max(1.0, log10(members)))
