"""The reserve: full below it, and no flutter at its edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.storage.disk_space import DiskSpace

if TYPE_CHECKING:
    from pathlib import Path


def test_full_below_the_reserve_and_room_an_eighth_above(tmp_path: Path) -> None:
    free = iter((800, 800, 799, 800, 899, 900, 899, 800, 799))
    space = DiskSpace(tmp_path, 800, free.__next__)
    seen = [space.look() for _ in range(8)]
    assert seen == [False, True, True, True, False, False, False, True]
    assert space.free_bytes == 799


def test_no_reserve_is_never_full(tmp_path: Path) -> None:
    assert not DiskSpace(tmp_path, 0, lambda: 0).look()


def test_a_real_disk_has_room_and_one_can_ask_for_too_much(tmp_path: Path) -> None:
    space = DiskSpace(tmp_path, 1)
    assert not space.look()
    assert space.free_bytes > 1
    assert DiskSpace(tmp_path, 1 << 60).look()
