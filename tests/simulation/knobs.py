"""Sizes and periods of the production code, turned for the length of a run.

With their real sizes a simulated minute would never see a key log outgrown, a copy of two pages, or
the ids of retries filling their room.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from cluster import key_log, primary, transfer
from cluster.swim_settings import SwimSettings
from kvstore.node import node, watching
from tests.simulation.machines import owners_once

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from tests.simulation.plan import Knobs


@contextmanager
def turned(knobs: Knobs) -> Iterator[None]:
    """Until the end of the block; nothing else may run production code meanwhile."""
    slow = knobs.slow
    swim = partial(
        SwimSettings,
        probe_interval_ms=100 * slow,
        probe_timeout_ms=50 * slow,
        relay_timeout_ms=30 * slow,
    )
    values: list[tuple[ModuleType, str, object]] = [
        (node, "TICK_INTERVAL_S", 0.05 * min(slow, 3)),
        (node, "SwimSettings", swim),
        (node, "owners", owners_once),
        (key_log, "KEY_LOG_ENTRIES_MAX", knobs.log_entries),
        (key_log, "KEY_LOG_EVICTION_STEP", knobs.log_step),
        (watching, "PROGRESS_STEP", min(watching.PROGRESS_STEP, _power_below(knobs))),
        (transfer, "CHUNK_ROWS_MAX", knobs.chunk_rows),
        (primary, "RETRIED_OPERATIONS_MAX", knobs.retried),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in values]
    try:
        for module, name, value in values:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _power_below(knobs: Knobs) -> int:
    """The greatest power of two that the key log reaches back over at any time."""
    reach: int = 1 << (knobs.log_entries - knobs.log_step).bit_length() - 1
    return reach
