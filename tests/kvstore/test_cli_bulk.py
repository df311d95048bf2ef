"""How many rows are stored at once."""

from __future__ import annotations

from kvstore.cli.bulk import (
    BATCH_KEYS_FIRST,
    BATCH_KEYS_MAX,
    BATCH_KEYS_MIN,
    BATCH_S,
    batches,
)


class Stopwatch:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def sizes(rows: int, seconds_a_row: float) -> list[int]:
    watch = Stopwatch()
    found = []
    for batch in batches(range(rows), watch):
        found.append(len(batch))
        watch.time += len(batch) * seconds_a_row
    assert sum(found) == rows
    return found


def test_batches_grow_while_they_are_quick() -> None:
    found = sizes(1_000_000, 1e-9)
    assert found[:3] == [BATCH_KEYS_FIRST, 2 * BATCH_KEYS_FIRST, 4 * BATCH_KEYS_FIRST]
    assert max(found) == BATCH_KEYS_MAX


def test_batches_settle_where_one_takes_about_a_second() -> None:
    shortest_s, longest_s = BATCH_S
    settled = sizes(300_000, 20e-6)[-2]
    assert shortest_s <= settled * 20e-6 <= longest_s


def test_large_rows_come_in_few() -> None:
    found = sizes(1_000, 1.0)
    assert found[-2] == BATCH_KEYS_MIN
    assert found[1] == BATCH_KEYS_FIRST // 2


def test_all_rows_come_in_their_order() -> None:
    assert [row for batch in batches(range(1_000)) for row in batch] == list(range(1_000))
    assert list(batches([])) == []
