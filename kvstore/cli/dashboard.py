"""The live view of `kvstore up`: what a fault does to a small steady load; a key press is one."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any, Final

from rich.live import Live
from rich.table import Table
from rich.text import Text

from kvstore.cli.keyboard import Keyboard
from kvstore.cli.local_cluster import NODES_MAX
from kvstore.cli.steady_load import SteadyLoad
from kvstore.errors import SetupError

if TYPE_CHECKING:
    from kvstore.cli.local_cluster import LocalCluster, LocalNode

REFRESH_S: Final = 0.25
KEYS_HELP: Final = (
    "k kill   f freeze/thaw   r restart   (then the node's number)   a add a node   q quit"
)


def load_line(load: SteadyLoad) -> str:
    """The steady load's figures."""
    pause_ms = 1_000 * load.pause_longest_s()
    return (
        f"load: {load.rate:,.0f} writes/s   longest pause {pause_ms:,.0f} ms   "
        f"acknowledged writes lost: {load.lost}   failed: {load.failed}   unknown: {load.unknown}"
    )


class Dashboard:
    """The live view and its keys."""

    def __init__(self, cluster: LocalCluster, stopping: threading.Event, *, load: bool) -> None:
        self._cluster = cluster
        self._stopping = stopping
        self._load = SteadyLoad(cluster.url) if load else None
        self._seen: dict[str, dict[str, Any]] = {}
        self._pending = ""
        self._note = ""

    def run(self) -> None:
        """Until q or a signal."""
        watcher = threading.Thread(target=self._fetch, name="dashboard", daemon=True)
        watcher.start()
        if self._load is not None:
            self._load.start()
        with Keyboard() as keyboard, Live(self._picture(), auto_refresh=False) as live:
            while not self._stopping.is_set():
                self._press(keyboard.read(REFRESH_S))
                live.update(self._picture(), refresh=True)
        watcher.join()
        if self._load is not None:
            self._load.stop()

    def _fetch(self) -> None:
        """What gossip says of each node, asked of the first that answers."""
        while not self._stopping.wait(REFRESH_S):
            running = [node for node in self._cluster.nodes if node.state == "running"]
            answers = (node.fetch("/v1/cluster") for node in running)
            document = next((answer for answer in answers if answer is not None), None)
            if document is not None:
                self._seen = {entry["name"]: entry for entry in document["nodes"]}

    def _press(self, key: str) -> None:
        if not key:
            return
        if key == "q":
            self._stopping.set()
        elif key == "a":
            self._pending, self._note = "", self._add()
        elif key in "kfr":
            self._pending = key
            self._note = f"{key}: which node? 1 to {len(self._cluster.nodes)}"
        elif self._pending and key.isdigit() and 1 <= int(key) <= len(self._cluster.nodes):
            node = self._cluster.nodes[int(key) - 1]
            self._note = self._act(self._pending, node)
            self._pending = ""
        else:
            self._pending, self._note = "", ""

    def _add(self) -> str:
        if len(self._cluster.nodes) >= NODES_MAX:
            return f"{NODES_MAX} nodes are as many as one terminal takes"
        if self._load is not None:
            self._load.begin_fault()
        try:
            node = self._cluster.add_node()
        except SetupError as error:
            return str(error)
        return f"{node.name}: joins, and takes its share of the slots"

    def _act(self, action: str, node: LocalNode) -> str:
        if self._load is not None:
            self._load.begin_fault()
        if action == "k":
            node.signal(signal.SIGKILL)
            return f"{node.name}: killed (SIGKILL)"
        if action == "f":
            if node.frozen:
                node.signal(signal.SIGCONT)
                return f"{node.name}: thawed"
            node.signal(signal.SIGSTOP)
            return f"{node.name}: frozen (SIGSTOP)"
        if node.state in ("running", "frozen"):
            node.stop()
        self._cluster.start_node(node)
        return f"{node.name}: started"

    def _picture(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_row("", "NODE", "PROCESS", "GOSSIP", "LEADS", "HOLDS", "PID")
        for number, node in enumerate(self._cluster.nodes, 1):
            entry = self._seen.get(node.name, {})
            pid = node.process.pid if node.process is not None else "-"
            style = "green" if node.state == "running" else "red"
            grid.add_row(
                str(number),
                node.name,
                Text(node.state, style=style),
                str(entry.get("state", "-")),
                str(entry.get("slots_led", "-")),
                str(entry.get("slots_held", "-")),
                str(pid),
            )
        rows = Table.grid()
        rows.add_row(grid)
        if self._load is not None:
            rows.add_row(load_line(self._load))
            if self._load.last_error:
                rows.add_row(Text(f"last error: {self._load.last_error}", style="red"))
        rows.add_row(Text(f"{KEYS_HELP}   {self._note}", style="dim"))
        return rows
