"""How much a node trusts its own judgement.

Lifeguard (arXiv:1707.00788, section 4.1, Local Health Multiplier): a node that is slow itself hears
too little from healthy others and would accuse them. So it keeps a score: missing answers, and
having been accused, raise it; answers in time lower it. While the score is high the node probes
more slowly and waits longer, so it does less harm and has less to do.
"""

from __future__ import annotations


class Awareness:
    """The score: 0 is healthy, ``score_max`` the most doubtful."""

    def __init__(self, score_max: int) -> None:
        assert score_max >= 0
        self._score_max = score_max
        self.score = 0

    def add(self, points: int) -> None:
        """Raise or lower the score, within its bounds."""
        self.score = min(max(self.score + points, 0), self._score_max)

    def stretch_ms(self, time_ms: int) -> int:
        """A time that this node allows others, longer when it doubts itself."""
        return time_ms * (self.score + 1)
