"""Slots on their way, summed over what every node says of those that it leads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import click
import msgspec
from rich.live import Live
from rich.text import Text

from kvstore.cli.admin import ask_http, learn_routes
from kvstore.cli.cluster import human_bytes
from kvstore.cli.output import print_columns, print_json, stderr_console
from kvstore.node.operator_view import MovesStatus

if TYPE_CHECKING:
    from types import TracebackType

LINE_INTERVAL_S: Final = 5.0
"""Between lines where there is no terminal to draw on."""


class Moves(NamedTuple):
    """One moment."""

    nodes: list[MovesStatus]
    at: float
    """Monotonic seconds."""

    @property
    def slots(self) -> int:
        """Slots that are not where they should be."""
        return sum(node.slots for node in self.nodes)

    @property
    def waits_for_nodes(self) -> bool:
        """Whether some node does not know yet what the newest topology moves."""
        return len({node.epoch for node in self.nodes}) > 1 or not all(n.placed for n in self.nodes)

    @property
    def bytes_left(self) -> int:
        """Of copies that have yet to be sent."""
        return sum(node.copies_bytes for node in self.nodes)

    @property
    def bytes_sent(self) -> int:
        """Since the nodes started."""
        return sum(node.copied_bytes_total for node in self.nodes)

    @property
    def seconds_left(self) -> float | None:
        """At the rate that is set; None without one."""
        times = [n.copies_bytes / n.copy_bytes_per_s for n in self.nodes if n.copy_bytes_per_s]
        return max(times, default=0.0) if len(times) == len(self.nodes) else None

    def show(self, output: str) -> None:
        """What every node is moving."""
        if output == "json":
            print_json([msgspec.to_builtins(node) for node in self.nodes])
            return
        paused = any(node.paused for node in self.nodes)
        left = self.seconds_left
        pace = "paused" if paused else "" if left is None else f"about {left:,.0f} s at this rate"
        what = f"{self.slots} slots to go, {human_bytes(self.bytes_left)}, {pace}"
        if not self.slots:
            what = "all slots are where they should be"
        if self.waits_for_nodes:
            what = f"the nodes find out what the newest topology moves; so far {self.slots} slots"
        click.echo(what)
        click.echo()
        rows = [
            (n.node, n.slots, n.copies, human_bytes(n.copies_bytes), n.done_total)
            for n in self.nodes
        ]
        print_columns(["primary", "slots", "copies", "bytes", "done"], rows)


async def take_moves(url: str, timeout: float) -> Moves:
    """What is on its way, by what every node says."""
    routes = await learn_routes(url, timeout)
    return await moves_of([node.http_address for node in routes.nodes], timeout)


async def moves_of(addresses: list[str], timeout: float) -> Moves:
    """The same from these nodes alone; those that do not answer are left out."""
    answers = await ask_http(addresses, "/v1/cluster/moves", timeout)
    told = [msgspec.convert(a.document, MovesStatus) for a in answers if not a.error]
    return Moves(told, time.monotonic())


class Progress:
    """One line that changes on a terminal; elsewhere a line now and then."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._console = stderr_console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._before: Moves | None = None
        self._rate = 0.0
        self._shown_at = -LINE_INTERVAL_S

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, now: Moves) -> None:
        """Draw it, with the rate since the last time and the time left at that rate."""
        before, self._before = self._before, now
        if before is not None and now.at > before.at:
            self._rate = max(now.bytes_sent - before.bytes_sent, 0) / (now.at - before.at)
        line = f"{self._what}: {now.slots} slots to go, {human_bytes(self._rate)}/s"
        if self._rate and now.bytes_left:
            line += f", about {now.bytes_left / self._rate:,.0f} s left"
        if any(node.paused for node in now.nodes):
            line += " (paused: kvstore rebalance --resume)"
        if self._console.is_terminal:
            self._live.update(Text(line), refresh=True)
        elif now.at - self._shown_at >= LINE_INTERVAL_S:
            self._shown_at = now.at
            click.echo(line, err=True)
