"""What is compared: operations by name, with a value size and a popularity of keys.

The main cases have values of 100 bytes and keys that are equally popular; the others change one of
the two. Every store is given the same keys and values, made from one seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Final

from scripts.bench_loops import TASKS
from scripts.compare.store import Load

SEED: Final = 7
ZIPF_EXPONENT: Final = 0.99
"""As in YCSB: of 100,000 keys the most popular takes 8 % of all calls."""
ZIPF_DRAWS: Final = 100_000
STORED_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of one copy of all values, so that large values do not need an hour to be stored."""
STORED_KEYS_MIN: Final = 200


@dataclass(frozen=True)
class Case:
    """One row of the comparison."""

    name: str
    operation: str
    value_bytes: int = 100
    zipf: bool = False

    @property
    def by_p99(self) -> bool:
        """Whether stores are compared by their P99 and not by their rate."""
        return self.operation.endswith("-half-peak")

    @property
    def needs_wrk(self) -> bool:
        """Whether the load is made by wrk."""
        return self.operation.startswith("http-")


MAIN: Final = [
    Case(name, name)
    for name in (
        "put",
        "get",
        "put_many-100",
        "get_many-100",
        f"put-{TASKS}-tasks",
        f"get-{TASKS}-tasks",
        f"incr-one-key-{TASKS}-tasks",
        "http-put",
        "http-get",
        "put-half-peak",
        "get-half-peak",
    )
]
VARIED: Final = ("put", "get", f"put-{TASKS}-tasks", f"get-{TASKS}-tasks")
SIZES: Final = [
    *(Case(f"{name}-1KiB", name, value_bytes=1_024) for name in VARIED),
    *(Case(f"{name}-64KiB", name, value_bytes=65_536) for name in VARIED),
    *(Case(f"{name}-zipf", name, zipf=True) for name in VARIED),
]
CASES: Final = {case.name: case for case in (*MAIN, *SIZES)}


@cache
def make_load(case: Case, keys: int) -> Load:
    """Keys and value of a case; the same for the same arguments."""
    rng = random.Random(SEED)
    count = max(STORED_KEYS_MIN, min(keys, STORED_BYTES_MAX // case.value_bytes))
    prefix = "bench" if case.value_bytes == 100 else f"bench{case.value_bytes}"
    stored = [f"{prefix}:{number:06}" for number in range(count)]
    rng.shuffle(stored)
    value = rng.randbytes(case.value_bytes)
    if not case.zipf:
        return Load(stored, stored, value)
    weights = list(accumulate(1 / rank**ZIPF_EXPONENT for rank in range(1, count + 1)))
    return Load(stored, rng.choices(stored, cum_weights=weights, k=ZIPF_DRAWS), value)
