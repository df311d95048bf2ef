"""How long an accused member has to answer before it is declared dead.

Lifeguard (Dadgar, Phillips and Currey, arXiv:1707.00788, LHA-Suspicion): an accusation by one node
may be that node's own slowness, so it begins with a long time to answer; each further independent
accuser shortens it, on a logarithmic scale, to the shortest time when ``expected`` confirmations
have come. In a cluster too small for independent accusers the shortest time holds at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.ballot import NodeId


def suspicion_timeout_ms(
    confirmations: int, *, expected: int, timeout_ms_min: int, timeout_ms_max: int
) -> int:
    """Time to answer, from the first accusation, after so many confirmations of it.

    >>> [
    ...     suspicion_timeout_ms(n, expected=3, timeout_ms_min=1_000, timeout_ms_max=6_000)
    ...     for n in range(5)
    ... ]
    [6000, 3500, 2037, 1000, 1000]
    >>> suspicion_timeout_ms(0, expected=0, timeout_ms_min=1_000, timeout_ms_max=6_000)
    1000
    """
    assert 0 < timeout_ms_min <= timeout_ms_max
    if confirmations >= expected:
        return timeout_ms_min
    share = math.log(confirmations + 1) / math.log(expected + 1)
    return max(
        timeout_ms_min, math.floor(timeout_ms_max - share * (timeout_ms_max - timeout_ms_min))
    )


class Suspicion:
    """One accused member's time to answer."""

    def __init__(
        self,
        accuser: NodeId,
        now_ms: int,
        *,
        expected: int,
        timeout_ms_min: int,
        timeout_ms_max: int,
    ) -> None:
        self.accusers = {accuser}
        self.since_ms = now_ms
        self._expected = expected
        self._timeout_ms_min = timeout_ms_min
        self._timeout_ms_max = timeout_ms_max

    @property
    def due_ms(self) -> int:
        """When the member is declared dead, unless it answers."""
        return self.since_ms + suspicion_timeout_ms(
            len(self.accusers) - 1,
            expected=self._expected,
            timeout_ms_min=self._timeout_ms_min,
            timeout_ms_max=self._timeout_ms_max,
        )

    def confirm(self, accuser: NodeId) -> bool:
        """Another accusation; returns whether it is news that is worth passing on."""
        if accuser in self.accusers or len(self.accusers) > self._expected:
            return False
        self.accusers.add(accuser)
        return True
