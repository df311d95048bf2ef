"""A cluster of node processes on this machine: started, watched, hurt and stopped by their ids.

Each node has a directory ``n1``, ``n2``, ... and a log beside it. All are founders with one and the
same list of addresses, so starting again finds the cluster of last time.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from kvstore.errors import SetupError, Unavailable

if TYPE_CHECKING:
    import threading
    from pathlib import Path

HOST: Final = "127.0.0.1"
NODES_MAX: Final = 32
STOP_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.05
LOG_LINES_SHOWN: Final = 5
HTTP_TIMEOUT_S: Final = 1.0


class LocalNode:
    """One node process; ``name``, its ports, its directory.

    ``host`` and ``prefix`` may be changed before it is started: its address, and a command that
    runs the node's command (somewhere else, such as in a network namespace).
    """

    def __init__(self, name: str, port: int, http_port: int, directory: Path) -> None:
        self.name = name
        self.host = HOST
        self.prefix: list[str] = []
        self.port = port
        self.http_port = http_port
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen = False

    @property
    def address(self) -> str:
        """Of its peer and client port."""
        return f"{self.host}:{self.port}"

    @property
    def log_path(self) -> Path:
        """Where its log goes."""
        return self.directory.with_suffix(".log")

    @property
    def state(self) -> str:
        """Of the process: "running", "frozen", "stopped", or how it ended."""
        if self.process is None:
            return "stopped"
        status = self.process.poll()
        if status is None:
            return "frozen" if self.frozen else "running"
        return "killed" if status == -signal.SIGKILL else f"exited ({status})"

    def start(self, way: list[str], extra: list[str]) -> None:
        """Start it; its earlier log is kept. ``way``: how a fresh disk comes into the cluster."""
        assert self.process is None or self.process.poll() is not None
        command = [
            *self.prefix, sys.executable, "-m", "kvstore", "serve",
            "--name", self.name, "--host", self.host, "--port", str(self.port),
            "--http-port", str(self.http_port), "--data-dir", str(self.directory),
            *way, *extra,
        ]  # fmt: skip
        self.frozen = False
        with self.log_path.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for us, who stop it cleanly.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.frozen = number == signal.SIGSTOP or (self.frozen and number != signal.SIGCONT)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop it cleanly, kill it if it does not listen; return when it has ended."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if self.process is not None:
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log_tail(self) -> str:
        """The last lines of its log."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_LINES_SHOWN:])

    def fetch(self, path: str) -> Any:
        """A JSON document from its HTTP port; None if it does not answer."""
        url = f"http://{self.host}:{self.http_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as answer:
                return json.load(answer)
        except (OSError, urllib.error.URLError, ValueError):
            return None


class LocalCluster:
    """The nodes ``n1`` to ``n<count>`` under one directory.

    Raises:
        SetupError: the directory holds a cluster of another size, or cannot be made.
    """

    def __init__(
        self,
        directory: Path,
        count: int,
        port: int,
        http_port: int,
        extra: list[str] | None = None,
    ) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(f"cannot make the directory {directory}: {error.strerror}") from error
        present = nodes_in(directory)
        if present not in (0, count):
            raise SetupError(
                f"{directory} holds a cluster of {present} nodes: start it with --nodes {present}, "
                "or choose another --dir"
            )
        self.directory = directory
        self.nodes = [
            LocalNode(f"n{n}", port + n - 1, http_port + n - 1, directory / f"n{n}")
            for n in range(1, count + 1)
        ]
        self._extra = extra or []
        self._founders = count

    @property
    def url(self) -> str:
        """For clients."""
        return "kv://" + ",".join(node.address for node in self.nodes)

    def start(self) -> None:
        """Start every node.

        Raises:
            SetupError: a port is taken.
        """
        for node in self.nodes:
            check_port_free(node.port, node.name, "--port")
            check_port_free(node.http_port, node.name, "--http-port")
        for node in self.nodes:
            self.start_node(node)

    def start_node(self, node: LocalNode) -> None:
        """Start one node (again)."""
        others = ",".join(other.address for other in self.nodes[: self._founders])
        founds = node in self.nodes[: self._founders]
        node.start(["--founders" if founds else "--join", others], self._extra)

    def add_node(self) -> LocalNode:
        """Start one node more, on the next ports that are free; it joins by itself.

        Raises:
            SetupError: there are none.
        """
        last, number = self.nodes[-1], len(self.nodes) + 1
        taken = {port for node in self.nodes for port in (node.port, node.http_port)}
        port = next_free_port(last.port + 1, taken)
        http_port = next_free_port(last.http_port + 1, taken | {port})
        node = LocalNode(f"n{number}", port, http_port, self.directory / f"n{number}")
        self.nodes.append(node)
        self.start_node(node)
        return node

    def wait_ready(self, timeout_s: float, stopping: threading.Event | None = None) -> None:
        """Until every node serves, or ``stopping`` is set.

        Raises:
            SetupError: a node ended; with the end of its log.
            Unavailable: not all serve in time.
        """
        deadline = time.monotonic() + timeout_s
        waiting = list(self.nodes)
        while waiting and not (stopping is not None and stopping.is_set()):
            for node in waiting:
                assert node.process is not None
                if node.process.poll() is not None:
                    raise SetupError(
                        f"node {node.name} ended with status {node.process.returncode}; the end of "
                        f"{node.log_path}:\n{node.log_tail()}"
                    )
            while waiting and waiting[0].fetch("/health/ready") is not None:  # one at a time: they
                del waiting[0]  # start together, and each question takes from the start of all
            if waiting and time.monotonic() > deadline:
                names = ", ".join(node.name for node in waiting)
                raise Unavailable(
                    f"not ready after {timeout_s:.0f} s: {names} (see {self.directory}/*.log)"
                )
            if waiting:
                time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop every node cleanly; whoever does not listen is killed."""
        for node in self.nodes:
            node.signal(signal.SIGCONT)
            node.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for node in self.nodes:
            node.stop(max(0.1, deadline - time.monotonic()))


def nodes_in(directory: Path) -> int:
    """Nodes that a directory holds from an earlier time."""
    return sum(path.is_dir() for path in directory.glob("n[0-9]*"))


def next_free_port(first: int, taken: set[int]) -> int:
    """The first from this one on that nobody listens on and no node of ours is to have.

    Raises:
        SetupError: there are none up to the highest port.
    """
    for port in range(first, 65_536):
        with suppress(SetupError):
            if port not in taken:
                check_port_free(port, "", "")
                return port
    raise SetupError(f"there is no free port from {first} on")


def check_port_free(port: int, name: str, flag: str) -> None:
    """Refuse a taken port early, with who has it.

    Raises:
        SetupError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SetupError(
                f"node {name} cannot have port {port}: {error.strerror}{_who_has(port)} "
                f"(choose others with {flag})"
            ) from error


def _who_has(port: int) -> str:
    import psutil  # only to name the culprit

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and port in connection.laddr:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f", by process {connection.pid}: {command[:120]}"
    except psutil.Error:
        pass
    return ""
