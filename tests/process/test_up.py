"""`kvstore up` as `make run` starts it: three real processes, the cities, keys on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import kvstore
from kvstore.cli.dashboard import KEYS_HELP
from tests.process.cluster_processes import command, command_here, free_port_range

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CITIES = 30_000
"""At least so many are in the data set."""


class Up:
    """The command, its output as it comes."""

    def __init__(self, directory: Path, *arguments: str, terminal: bool = False) -> None:
        self.port = free_port_range(8)  # three nodes, and one that is added
        self.url = f"kv://127.0.0.1:{self.port}"
        command = [
            *(sys.executable, "-m", "kvstore", "up", "--dir", str(directory)),
            *("--port", str(self.port), "--http-port", str(self.port + 4), *arguments),
        ]
        ours, theirs = pty.openpty() if terminal else os.pipe()
        self.output = ours
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        if terminal:  # what its keys do does not depend on the number of slots
            environment["KVSTORE_SLOT_COUNT"] = "256"
        self.process = subprocess.Popen(
            command,
            stdin=theirs if terminal else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.text = ""

    def wait_for(self, what: str, timeout_s: float = 40.0) -> None:
        """Until this is printed."""
        deadline = time.monotonic() + timeout_s
        while not re.search(what, self.text):
            assert time.monotonic() < deadline, f"{what!r} does not come after:\n{self.text}"
            if select.select([self.output], [], [], 0.2)[0]:
                try:
                    read = os.read(self.output, 65_536)
                except OSError:
                    read = b""
                assert read, f"{what!r} was not printed:\n{self.text}"
                self.text += read.decode(errors="replace")

    def press(self, keys: str) -> None:
        for key in keys:
            os.write(self.output, key.encode())

    def forget(self) -> None:
        self.text = ""


@contextmanager
def up(directory: Path, *arguments: str, terminal: bool = False) -> Iterator[Up]:
    running = Up(directory, *arguments, terminal=terminal)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
        try:
            running.process.wait(15)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()
            raise
        finally:
            os.close(running.output)


def test_first_run_loads_and_second_keeps(tmp_path: Path) -> None:
    """... and while it runs, others cannot have its ports, nor its directory for five nodes."""
    directory = tmp_path / "var"
    with up(directory, "--demo") as first:
        first.wait_for("Try:")
        loaded = re.search(r"loading cities: ([\d,]+) keys", first.text)
        assert loaded is not None
        cities = int(loaded[1].replace(",", ""))
        with kvstore.connect(first.url) as db:
            assert db.get("city:2950159")["name"] == "Berlin"
            assert sum(1 for _ in db.scan("city:")) == cities > CITIES
            db.put("mine", "kept")
    assert first.process.returncode == 0
    with up(directory, "--demo") as second:
        second.wait_for("Try:")
        assert "loading" not in second.text
        with kvstore.connect(second.url) as db:
            assert db.get("mine") == "kept"
        for line in re.findall(r"^  (\S*kvstore (?:get|scan|status).*)$", second.text, re.M):
            assert command_here(*line.split()[1:]).returncode == 0, line
        taken = command("up", "--dir", str(tmp_path / "b"), "--port", str(second.port))
        assert taken.returncode == 2
        assert f"port {second.port}" in taken.stderr
        assert "--port" in taken.stderr
        other = command_here("up", "--dir", str(directory), "--nodes", "5")
        assert other.returncode == 2
        assert "--nodes 3" in other.stderr
    assert second.process.returncode == 0


def test_keys_on_a_terminal_hurt_and_heal(tmp_path: Path) -> None:
    with up(tmp_path / "var", terminal=True) as running:
        running.wait_for(KEYS_HELP[:6])
        running.wait_for(r"load: [1-9]\d* writes/s")
        running.press("k2")
        running.wait_for(r"n2: killed")
        running.wait_for(r"dead")
        running.press("f3")
        running.wait_for("frozen")
        running.press("f3")
        running.wait_for("thawed")
        running.press("r2")
        running.wait_for("n2: started")
        running.forget()
        running.wait_for(r"load: [1-9]\d* writes/s")
        assert "acknowledged writes lost: 0" in running.text
        running.press("a")
        running.wait_for("n4: joins")
        running.wait_for(r"n4 +\S*running\S* +alive +[1-9]")
        running.press("q")
        running.wait_for("stopped; the data is in")
        running.process.wait(15)
    assert running.process.returncode == 0
