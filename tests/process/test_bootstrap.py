"""`scripts/bootstrap_cluster.sh` with real nodes, here and through a stand-in for ssh."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).parents[2] / "scripts" / "bootstrap_cluster.sh"
SMALL = ["--", "--slot-count", "64"]
KVSTORE = f"{sys.executable} -m kvstore"


def free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in taken]
    for sock in taken:
        sock.close()
    return ports


class Bootstrap:
    """The script with a directory and free ports of its own."""

    def __init__(self, directory: Path, nodes: int) -> None:
        self.directory = directory
        ports = free_ports(2 * nodes)
        self.http_ports = ports[nodes:]
        self.hosts = [
            f"127.0.0.1:{ports[at]}:{http_port}" for at, http_port in enumerate(self.http_ports)
        ]
        self.options: list[str] = ["--kvstore", KVSTORE]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), "--dir", str(self.directory), *self.options, *arguments],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
            env={name: v for name, v in os.environ.items() if not name.startswith("KVSTORE_")},
        )

    def pids(self) -> dict[str, int]:
        found = sorted(self.directory.glob("**/n*.pid"))
        return {path.stem: int(path.read_text()) for path in found}


@pytest.fixture
def bootstrap(tmp_path: Path) -> Iterator[Bootstrap]:
    runner = Bootstrap(tmp_path / "cluster dir", 3)
    yield runner
    for pid in runner.pids().values():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def is_ready(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
        return bool(answer.status == 200)


def test_it_starts_what_is_missing_and_nothing_else(bootstrap: Bootstrap) -> None:
    first = bootstrap.run(*bootstrap.hosts, *SMALL)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count(" started on ") == 3
    assert all(map(is_ready, bootstrap.http_ports))
    pids = bootstrap.pids()

    os.kill(pids["n2"], signal.SIGKILL)
    while (Path("/proc") / str(pids["n2"]) / "exe").exists():
        time.sleep(0.02)
    again = bootstrap.run(*SMALL)  # the hosts are remembered
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(" started on ") == 1
    assert "n2 started on" in again.stdout
    now = bootstrap.pids()
    assert now["n2"] != pids["n2"]
    assert (now["n1"], now["n3"]) == (pids["n1"], pids["n3"])

    stopped = bootstrap.run("--stop")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.count(" stopped") == 3
    assert bootstrap.pids() == {}
    assert bootstrap.run("--stop").stdout.count("was not running") == 3


def test_other_hosts_are_reached_by_ssh(bootstrap: Bootstrap, tmp_path: Path) -> None:
    stand_in = tmp_path / "ssh"
    log = tmp_path / "targets"
    stand_in.write_text(f'#!/bin/sh\necho "$1" >>"{log}"\nshift\nexec bash -c "$*"\n')
    stand_in.chmod(0o755)
    remote = bootstrap.directory / "it's there"
    bootstrap.options = ["--ssh", str(stand_in), "--ssh-always", "--ssh-user", "kv"]
    bootstrap.options += ["--remote-dir", str(remote), "--remote-kvstore", KVSTORE]
    begun = bootstrap.run(*bootstrap.hosts, *SMALL)
    assert begun.returncode == 0, begun.stderr
    assert (remote / "n3.log").exists()
    assert set(log.read_text().split()) == {"kv@127.0.0.1"}
    assert bootstrap.run("--stop").stdout.count(" stopped") == 3


def test_a_node_that_cannot_start_is_named_with_its_log(bootstrap: Bootstrap) -> None:
    port = int(bootstrap.hosts[1].split(":")[1])
    with socket.create_server(("127.0.0.1", port)):
        failed = bootstrap.run(*bootstrap.hosts, "--timeout", "20", *SMALL)
    assert failed.returncode == 1
    assert f"n2 on 127.0.0.1:{port} is not ready" in failed.stderr
    assert f"cannot listen on 127.0.0.1:{port}" in failed.stderr
    assert bootstrap.run("--stop").returncode == 0


def test_a_pid_of_another_process_is_left_alone(bootstrap: Bootstrap) -> None:
    bootstrap.directory.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as other:
        (bootstrap.directory / "n1.pid").write_text(f"{other.pid}\n")
        assert bootstrap.run(*bootstrap.hosts, "--stop").returncode == 0
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["here"], "'here' is not HOST:PORT"),
        (["--port", "1"], "no option --port"),
        (["--hosts"], "--hosts needs a value"),
        (["--hosts", "/nowhere/hosts"], "cannot read the hosts file"),
        (["--timeout", "soon"], "'soon'"),
    ],
)
def test_wrong_usage_is_refused(bootstrap: Bootstrap, arguments: list[str], said: str) -> None:
    refused = bootstrap.run(*arguments)
    assert refused.returncode == 2
    assert said in refused.stderr


def test_hosts_of_a_file(bootstrap: Bootstrap, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# three\n\n" + "  # mine\n".join(bootstrap.hosts))
    answer = bootstrap.run("--hosts", str(hosts), "--stop")
    assert answer.stdout.splitlines() == [f"n{n} was not running" for n in (1, 2, 3)]
    assert bootstrap.run("--help").stdout.startswith("Usage:")
