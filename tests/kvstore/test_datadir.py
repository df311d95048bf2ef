"""A data directory is ours, alone and writable, or it is left as it was."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvstore import process
from kvstore.errors import SetupError
from kvstore.storage import keyspace
from kvstore.storage.datadir import FORMAT_VERSION, DataDir, DataDirError
from kvstore.storage.engine import EngineError, EngineSyncError
from kvstore.storage.rocksdb import RocksEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOLDER = """
import sys
from pathlib import Path
from kvstore.storage.datadir import DataDir
with DataDir.open(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def content(path: Path) -> dict[str, bytes | None]:
    return {
        str(each.relative_to(path)): each.read_bytes() if each.is_file() else None
        for each in path.rglob("*")
    }


def refused(path: Path, match: str) -> str:
    """The message, after checking that it names the directory and that nothing was touched."""
    before = content(path)
    with pytest.raises(DataDirError, match=match) as caught:
        DataDir.open(path)
    assert content(path) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


def formatted(path: Path) -> int:
    """A directory as a node leaves it; its member id."""
    with DataDir.open(path) as datadir:
        engine = RocksEngine(datadir.database_path, cache_bytes=8 << 20)
        keyspace.claim_store(engine, datadir.member_id, fresh=datadir.fresh)
        engine.close()
        datadir.mark_formatted()
        return datadir.member_id


def change(path: Path, **fields: object) -> None:
    identity = json.loads((path / "IDENTITY").read_bytes())
    (path / "IDENTITY").write_text(json.dumps(identity | fields))


def test_a_new_directory_gets_an_identity_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "inside" / "n1"
    with DataDir.open(path) as datadir:
        assert datadir.fresh
        assert 0 < datadir.member_id < 2**48
        assert datadir.identity.created.endswith("+00:00")
        assert datadir.database_path == path / "db"
        first = datadir.identity
    with DataDir.open(path) as datadir:
        assert datadir.identity == first


def test_formatting_is_noted_once_the_store_is_made(tmp_path: Path) -> None:
    member = formatted(tmp_path)
    with DataDir.open(tmp_path) as datadir:
        assert not datadir.fresh
        assert datadir.member_id == member
        datadir.mark_formatted()
        engine = RocksEngine(datadir.database_path, cache_bytes=8 << 20)
        keyspace.claim_store(engine, member, fresh=False)
        engine.close()


def test_two_directories_have_two_members(tmp_path: Path) -> None:
    assert formatted(tmp_path / "a") != formatted(tmp_path / "b")


@pytest.mark.parametrize("leftover", ["LOCK", "PID", "IDENTITY.new", "WRITABLE"])
def test_an_interrupted_first_start_is_finished(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).write_bytes(b"")
    with DataDir.open(tmp_path) as datadir:
        assert datadir.fresh


def test_an_empty_disk_may_have_a_lost_and_found(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    DataDir.open(tmp_path).close()


def test_another_process_holds_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        message = refused(tmp_path, match="in use")
        assert f"process {holder.pid}" in message
        holder.kill()
        holder.wait()
    # A killed holder leaves its files, not its lock.
    assert (tmp_path / "PID").exists()
    with DataDir.open(tmp_path):
        assert (tmp_path / "PID").read_text() == str(os.getpid())


def test_the_same_process_holds_it(tmp_path: Path) -> None:
    datadir = DataDir.open(tmp_path)
    refused(tmp_path, match=f"in use by process {os.getpid()}")
    datadir.close()
    datadir.close()
    DataDir.open(tmp_path).close()


def test_it_may_be_closed_on_another_thread(tmp_path: Path) -> None:
    datadir = DataDir.open(tmp_path)
    thread = threading.Thread(target=datadir.close)
    thread.start()
    thread.join()
    DataDir.open(tmp_path).close()


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    for name in ("thesis.txt", "a", "b", "c"):
        (tmp_path / name).write_text("do not lose me")
    message = refused(tmp_path, match="not a data directory")
    assert "a, b, c, ..." in message


def test_a_store_without_identity_is_foreign_too(tmp_path: Path) -> None:
    formatted(tmp_path)
    (tmp_path / "IDENTITY").unlink()
    refused(tmp_path, match="not a data directory")


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    formatted(tmp_path)
    change(tmp_path, format=FORMAT_VERSION + 1, more="that we do not know")
    assert "Run that release" in refused(tmp_path, match="written by a newer release")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{}",
        b'{"format": "one"}',
        b'{"format": null}',
        b'{"format": 1}',
        b'{"format": 1, "member": 0, "created": "", "formatted": true}',
        b'{"format": 1, "member": 281474976710656, "created": "", "formatted": true}',
        b'{"format": 1, "member": "5", "created": "", "formatted": true}',
    ],
)
def test_a_damaged_identity_is_left_alone(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "IDENTITY").write_bytes(damage)
    refused(tmp_path, match="cannot be understood")


@pytest.mark.parametrize("lost", ["db", "db/CURRENT"])
def test_an_identity_without_its_store_is_a_lost_disk(tmp_path: Path, lost: str) -> None:
    """R16: the member must not come back empty under the same id."""
    path = tmp_path / "n1"
    formatted(path)
    (path / lost).rename(tmp_path / "away")
    refused(path, match="counts as lost")


# -- directories that cannot be written, also for root, whom permissions do not stop --------------


def test_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "n1"):
        with pytest.raises(SetupError, match="cannot be used") as caught:
            DataDir.open(path)
        assert str(path) in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_system_that_takes_no_files() -> None:
    """`/proc` refuses everybody."""
    with pytest.raises(DataDirError, match=r"/proc/ringkv cannot be used"):
        DataDir.open(Path("/proc/ringkv"))


@pytest.mark.parametrize("made_before", [True, False])
def test_permissions_are_missing(made_before: bool) -> None:
    """As another user where we are root, else by mode."""
    script = (
        "import os, sys; from pathlib import Path; from kvstore.storage.datadir import *\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: DataDir.open(Path(sys.argv[1]))\n"
        "except DataDirError as exc: print(exc)"
    )
    with tempfile.TemporaryDirectory() as parent:  # pytest's own are closed to other users
        path = Path(parent) / "n1"
        if made_before:
            path.mkdir()
            path.chmod(0o555)
        Path(parent).chmod(0o555)
        run = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
        )
        assert f"{path} cannot be used: Permission denied" in run.stdout
        assert not made_before or list(path.iterdir()) == []
        Path(parent).chmod(0o755)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Let fsync fail from now on, as a full or dying disk does."""

    def fail(number: int) -> None:
        def fsync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    yield fail
    monkeypatch.undo()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_writes(
    tmp_path: Path,
    failing: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    member = formatted(tmp_path)
    identity = (tmp_path / "IDENTITY").read_bytes()
    failing(number)
    with pytest.raises(DataDirError, match=os.strerror(number)):
        DataDir.open(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "IDENTITY").read_bytes() == identity
    with DataDir.open(tmp_path) as datadir:  # the lock was let go
        assert datadir.member_id == member


def test_a_disk_whose_sync_failed_is_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    with DataDir.open(tmp_path) as directory:
        process._disk_lost(directory, EngineError("no space left"))
    with DataDir.open(tmp_path) as directory:  # a failed write says nothing of what was written
        process._disk_lost(directory, EngineSyncError("IO error: fdatasync"))
    assert ended == [process.LOST_DISK_STATUS] * 2
    with pytest.raises(DataDirError, match=r"fdatasync.*remove the data directory"):
        DataDir.open(tmp_path)
