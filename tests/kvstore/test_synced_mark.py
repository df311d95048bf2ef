"""A log that lost what was synced is recognised, wherever it was cut and whichever bit has rotted.

Real logs of a writer that was killed: two of them, because a table was flushed in between.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kvstore.storage.engine import EngineCorruption, Table
from kvstore.storage.rocksdb import RocksEngine
from kvstore.storage.synced_mark import MARK_NAME, shortfall

if TYPE_CHECKING:
    from pathlib import Path

BATCHES = 300
WRITER = f"""
import sys
from pathlib import Path
from kvstore.storage.engine import Table
from kvstore.storage.rocksdb import RocksEngine
engine = RocksEngine(Path(sys.argv[1]), cache_bytes=8 << 20)
for number in range({BATCHES}):
    batch = engine.batch()
    batch.put(Table.RECORDS, b"%06d" % number, b"." * 500)
    batch.put(Table.LOG, b"%06d" % number, b"x")
    engine.write(batch)
    if number == 150:
        engine._tables[0].flush()
    engine.sync()
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose every batch was synced, and two logs."""
    path = tmp_path_factory.mktemp("killed") / "db"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"done\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert len(logs(path)) == 2
    return path


def logs(path: Path) -> list[Path]:
    return sorted(path.glob("*.log"))


def heads(log: Path) -> list[int]:
    """Where the records of a log begin."""
    content, at, found = log.read_bytes(), 0, []
    while at + 7 <= len(content):
        if at % 32_768 > 32_768 - 7:
            at += 32_768 - at % 32_768
            continue
        found.append(at)
        at += 7 + int.from_bytes(content[at + 4 : at + 6], "little")
    return found


def flip(log: Path, at: int, bits: int) -> None:
    with log.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ bits]))


def opened(path: Path) -> list[int] | None:
    """How many rows each table has; None if the store is refused."""
    try:
        engine = RocksEngine(path, cache_bytes=8 << 20)
    except EngineCorruption:
        return None
    rows = [len(engine.scan(table, b"", b"z", limit=1_000)) for table in (Table.RECORDS, Table.LOG)]
    engine.close()
    return rows


def copied(killed: Path, to: Path) -> Path:
    shutil.copytree(killed, to)
    return to


def test_whole_logs_are_taken(killed: Path, tmp_path: Path) -> None:
    path = copied(killed, tmp_path / "db")
    assert shortfall(path) == ""
    assert opened(path) == [BATCHES, BATCHES]
    assert opened(path) == [BATCHES, BATCHES], "and after a clean end"


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_log_cut_short_is_refused(killed: Path, tmp_path: Path, which: int, share: float) -> None:
    path = copied(killed, tmp_path / "db")
    log = logs(path)[which]
    os.truncate(log, int(log.stat().st_size * share))
    with pytest.raises(
        EngineCorruption, match=r"synced writes are lost.*remove the data directory"
    ):
        RocksEngine(path)


@pytest.mark.parametrize("which", [0, 1])
def test_no_flipped_header_loses_anything_silently(
    killed: Path, tmp_path: Path, which: int
) -> None:
    """RocksDB takes a record that is longer than its file for one that was being written."""
    at = heads(logs(killed)[which])
    for number, head in enumerate([*at[::9], *at[-12:]]):
        for byte, bits in ((4, 0x40), (5, 0x40), (6, 0x04), (6, 0x01)):
            path = copied(killed, tmp_path / f"{number}.{byte}")
            flip(logs(path)[which], head + byte, bits)
            assert opened(path) is None, f"record at {head}, byte {byte}"
            shutil.rmtree(path)


def test_what_was_never_synced_may_be_torn(killed: Path, tmp_path: Path) -> None:
    path = copied(killed, tmp_path / "db")
    log = logs(path)[1]
    with log.open("ab") as file:
        file.write(log.read_bytes()[:40])
    assert opened(path) == [BATCHES, BATCHES]


@pytest.mark.parametrize("content", [b"", b"00000000 000004.log:9999999\n", b"\xff\xfe", b"x"])
def test_a_note_that_was_torn_promises_nothing(
    killed: Path, tmp_path: Path, content: bytes
) -> None:
    path = copied(killed, tmp_path / "db")
    (path / MARK_NAME).write_bytes(content)
    assert opened(path) == [BATCHES, BATCHES]
    (path / MARK_NAME).unlink()
    assert opened(path) == [BATCHES, BATCHES]
